//! Batch mode (Linux 7.0): one command prepares all tags of a queue, one that stays with the kernel
//! tells which tags have a request, as often as there are some, and one a turn commits what has been
//! answered. Each command names elements in memory of ours, which it reads while it is taken over.
//!
//! ```text
//!   fetches of all tags of a queue --flush--> prepare, fetch [stays]
//!   commits of a turn              --flush--> commit
//!   fetch: tags | ended -> each slot that the kernel has ends with it
//! ```

use super::{BatchKey, UblkShape, UblkSlot};
use crate::backend::{Completion, Driver, FdRef, SysOp};
use crate::io::Key;
use crate::limits::UBLK_TAG_BUFFERS;
use core::sync::atomic::{AtomicU16, Ordering};
use memmap2::{MmapMut, MmapRaw};
use std::collections::VecDeque;
use std::io;

/// `UBLK_U_IO_PREP_IO_CMDS`: `_IOWR('u', 0x25, 16 bytes)`.
const PREPARE: u32 = 0xc010_7525;
/// `UBLK_U_IO_COMMIT_IO_CMDS`.
const COMMIT: u32 = 0xc010_7526;
/// `UBLK_U_IO_FETCH_IO_CMDS`.
const FETCH: u32 = 0xc010_7527;
/// Elements carry an address (`UBLK_BATCH_F_HAS_BUF_ADDR`).
const WITH_ADDRESS: u16 = 1 << 1;
/// Bytes of a `struct ublk_elem_header`.
const ELEMENT_BYTES: u8 = 8;
/// Bytes of an entry of a ring of buffers.
const ENTRY_BYTES: usize = 16;
/// Where the tail of a ring of buffers is: in its first entry.
const TAIL_AT: usize = 14;
/// Bytes of a tag.
const TAG_BYTES: usize = 2;

/// `struct ublk_batch_io`.
fn header(queue: u16, flags: u16, elements: u16, element_bytes: u8) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&queue.to_le_bytes());
    bytes[2..4].copy_from_slice(&flags.to_le_bytes());
    bytes[4..6].copy_from_slice(&elements.to_le_bytes());
    bytes[6] = element_bytes;
    bytes
}

/// A ring of buffers that the kernel writes tags to.
#[derive(Debug)]
struct TagRing {
    /// The ring's entries in the first page, then the buffers.
    map: MmapRaw,
    buffers_at: usize,
    buffer_bytes: usize,
    tail: u16,
}

impl TagRing {
    fn new(depth: u16) -> io::Result<TagRing> {
        let buffer_bytes = usize::from(depth) * TAG_BYTES;
        let buffers_at = rustix::param::page_size();
        assert!(usize::from(UBLK_TAG_BUFFERS) * ENTRY_BYTES <= buffers_at);
        let len = buffers_at + usize::from(UBLK_TAG_BUFFERS) * buffer_bytes;
        let mut ring = TagRing {
            map: MmapRaw::from(MmapMut::map_anon(len)?),
            buffers_at,
            buffer_bytes,
            tail: 0,
        };
        for buffer in 0..UBLK_TAG_BUFFERS {
            ring.give(buffer);
        }
        Ok(ring)
    }

    fn buffer(&self, buffer: u16) -> *mut u8 {
        assert!(buffer < UBLK_TAG_BUFFERS, "buffer {buffer}");
        let at = self.buffers_at + usize::from(buffer) * self.buffer_bytes;
        self.map.as_mut_ptr().wrapping_add(at)
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, buffer: u16) {
        let place = usize::from(self.tail % UBLK_TAG_BUFFERS) * ENTRY_BYTES;
        let mut entry = [0; TAIL_AT];
        entry[0..8].copy_from_slice(&(self.buffer(buffer) as u64).to_le_bytes());
        let len = u32::try_from(self.buffer_bytes).unwrap_or(0);
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        entry[12..14].copy_from_slice(&buffer.to_le_bytes());
        let target = self.map.as_mut_ptr().wrapping_add(place);
        // SAFETY: the entry lies in the first page of the mapping (asserted in `new`), and the kernel
        // does not look at it before the tail says so. The last two bytes, which may be the tail, are
        // not touched.
        unsafe { core::ptr::copy_nonoverlapping(entry.as_ptr(), target, TAIL_AT) };
        self.tail = self.tail.wrapping_add(1);
        let tail = self.map.as_mut_ptr().wrapping_add(TAIL_AT).cast::<u16>();
        // SAFETY: two aligned bytes of the mapping that both sides use atomically only.
        unsafe { AtomicU16::from_ptr(tail) }.store(self.tail, Ordering::Release);
    }

    /// Takes the tags from a buffer that the kernel has filled with so many bytes, and gives it back.
    fn take(&mut self, buffer: u16, bytes: usize, tags: &mut VecDeque<u16>) {
        let count = bytes.min(self.buffer_bytes) / TAG_BYTES;
        let start = self.buffer(buffer).cast::<u16>();
        for at in 0..count {
            // SAFETY: inside the buffer, which starts at an even address; the kernel is done with it.
            tags.push_back(unsafe { start.wrapping_add(at).read_volatile() });
        }
        self.give(buffer);
    }
}

/// One queue.
#[derive(Debug)]
struct Queue {
    tags: TagRing,
    /// Slots that have been fetched for the first time.
    fetched: u16,
    /// They have been handed over.
    prepared: bool,
    /// The fetch is with the kernel.
    armed: bool,
    /// Why the kernel has ended the fetch, or what was prepared.
    ended: Option<i32>,
    /// What goes with the next flush.
    elements: Vec<u8>,
    /// Elements that are on their way.
    flying: usize,
}

/// Elements on their way to the kernel.
#[derive(Debug)]
struct Flight {
    queue: u16,
    elements: Vec<u8>,
    prepares: bool,
}

/// All queues of a device.
#[derive(Debug)]
pub(super) struct Batch {
    shape: UblkShape,
    queues: Vec<Queue>,
    /// By place.
    flights: Vec<Option<Flight>>,
    /// Memory for elements, to be used again.
    spare: Vec<Vec<u8>>,
    /// Tags whose request has come.
    tags: VecDeque<u16>,
}

impl Batch {
    pub(super) fn new(driver: &mut Driver, shape: UblkShape) -> io::Result<Batch> {
        let mut batch = Batch {
            shape,
            queues: Vec::new(),
            flights: Vec::new(),
            spare: Vec::new(),
            tags: VecDeque::new(),
        };
        for group in 0..shape.queues {
            let tags = TagRing::new(shape.depth)?;
            let start = tags.map.as_mut_ptr();
            // SAFETY: the mapping is there until `end`, or for good when the device is dropped with
            // commands in flight.
            if let Err(error) = unsafe { driver.give_buffers(group, start, UBLK_TAG_BUFFERS) } {
                batch.end(driver);
                return Err(error);
            }
            batch.queues.push(Queue {
                tags,
                fetched: 0,
                prepared: false,
                armed: false,
                ended: None,
                elements: Vec::new(),
                flying: 0,
            });
        }
        Ok(batch)
    }

    /// Takes the buffers back. No command may be with the kernel.
    pub(super) fn end(&self, driver: &mut Driver) {
        for group in 0..self.queues.len() {
            driver.take_buffers(u16::try_from(group).unwrap_or(u16::MAX));
        }
    }

    fn element_bytes(&self) -> u8 {
        match self.shape.user_copy {
            true => ELEMENT_BYTES,
            false => 2 * ELEMENT_BYTES,
        }
    }

    /// A slot is the kernel's from the next flush on: for the first time, or with a result.
    pub(super) fn add(&mut self, slot: UblkSlot, result: Option<i32>, address: u64) {
        let len = usize::from(self.element_bytes());
        let queue = &mut self.queues[usize::from(slot.queue)];
        let mut element = [0; 2 * ELEMENT_BYTES as usize];
        element[0..2].copy_from_slice(&slot.tag.to_le_bytes());
        element[4..8].copy_from_slice(&result.unwrap_or(0).to_le_bytes());
        element[8..16].copy_from_slice(&address.to_le_bytes());
        queue.elements.extend_from_slice(&element[..len]);
        queue.fetched += u16::from(result.is_none());
    }

    /// Submits what has been added. Returns the number of commands.
    pub(super) fn flush(&mut self, driver: &mut Driver, fd: FdRef) -> usize {
        let mut commands = 0;
        let element_bytes = self.element_bytes();
        let flags = if self.shape.user_copy {
            0
        } else {
            WITH_ADDRESS
        };
        for number in 0..self.shape.queues {
            let queue = &mut self.queues[usize::from(number)];
            // Nothing is prepared before all is: requests may come from then on.
            let prepares = !queue.prepared;
            if queue.elements.is_empty() || (prepares && queue.fetched < self.shape.depth) {
                continue;
            }
            let spare = self.spare.pop().unwrap_or_default();
            let elements = core::mem::replace(&mut queue.elements, spare);
            let count = elements.len() / usize::from(element_bytes);
            let count = u16::try_from(count).unwrap_or(u16::MAX);
            queue.flying += 1;
            let address = elements.as_ptr() as u64;
            let place = self.flights.iter().position(Option::is_none);
            let place = place.unwrap_or_else(|| {
                self.flights.push(None);
                self.flights.len() - 1
            });
            self.flights[place] = Some(Flight {
                queue: number,
                elements,
                prepares,
            });
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            let (op, key) = match prepares {
                true => (PREPARE, BatchKey::Prepare(place)),
                false => (COMMIT, BatchKey::Commit(place)),
            };
            let command = SysOp::Command {
                op,
                bytes: header(number, flags, count, element_bytes),
                elements: address,
            };
            // SAFETY: the elements stay where they are, in `flights`, until the completion.
            unsafe { driver.submit(Key::of_batch(key).pack(), fd, command) };
            commands += 1;
            queue.prepared = true;
        }
        // A new one, or one that ended for want of buffers.
        for number in 0..self.shape.queues {
            let queue = &mut self.queues[usize::from(number)];
            if !queue.armed && queue.ended.is_none() && queue.prepared {
                queue.armed = true;
                commands += arm(driver, fd, number);
            }
        }
        commands
    }

    /// Elements have been taken over, or not. Returns their queue.
    pub(super) fn carried_out(&mut self, place: u32, result: i32) -> u32 {
        let flight = self.flights.get_mut(place as usize).and_then(Option::take);
        let Some(mut flight) = flight else { return 0 };
        let bytes = usize::from(self.element_bytes());
        let queue = &mut self.queues[usize::from(flight.queue)];
        queue.flying -= 1;
        let done = usize::try_from(result).unwrap_or(0);
        if flight.prepares {
            if result < 0 {
                tracing::error!(result, "the kernel refuses the slots of a ublk queue");
                queue.ended = Some(-result);
            }
        } else if done < flight.elements.len() {
            // The kernel does not go on behind an element that it refuses: that is, one that it has.
            let first = done / bytes * bytes;
            tracing::error!(
                result,
                done,
                "the kernel refuses a commit of a ublk request"
            );
            let rest = flight.elements.get(first + bytes..).unwrap_or_default();
            queue.elements.extend_from_slice(rest);
        }
        flight.elements.clear();
        self.spare.push(flight.elements);
        u32::from(flight.queue)
    }

    /// The fetch of a queue has brought tags, or has ended. [`Batch::tag`] gives the tags.
    pub(super) fn fetched(&mut self, queue: u32, completion: &Completion) {
        let Some(queue) = self.queues.get_mut(queue as usize) else {
            return;
        };
        if let Some(buffer) = completion.buffer {
            let bytes = usize::try_from(completion.result).unwrap_or(0);
            queue.tags.take(buffer, bytes, &mut self.tags);
        }
        if !completion.more {
            queue.armed = false;
            if completion.result < 0 && completion.result != -libc::ENOBUFS {
                queue.ended = queue.ended.or(Some(-completion.result));
            }
        }
    }

    /// The next tag whose request has come.
    pub(super) fn tag(&mut self) -> Option<u16> {
        self.tags.pop_front()
    }

    /// Why all slots of a queue that the kernel has are to end, once nothing is on its way.
    pub(super) fn is_over(&self, queue: u32) -> Option<i32> {
        let queue = self.queues.get(queue as usize)?;
        let still = queue.flying == 0 && queue.elements.is_empty() && !queue.armed;
        queue.ended.filter(|_| still)
    }

    /// A fetch waits for requests that never come.
    pub(super) fn is_vain(&self, queue: u32) -> bool {
        let queue = self.queues.get(queue as usize);
        queue.is_some_and(|queue| queue.armed && queue.ended.is_some())
    }
}

/// Gives the fetch of a queue to the kernel. Returns the number of commands.
fn arm(driver: &mut Driver, fd: FdRef, queue: u16) -> usize {
    let command = SysOp::FetchTags {
        op: FETCH,
        bytes: header(queue, 0, 0, 2),
        group: queue,
    };
    let key = BatchKey::Fetch(u32::from(queue));
    // SAFETY: it names only buffers of its group, which stay until `end`.
    unsafe { driver.submit(Key::of_batch(key).pack(), fd, command) };
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_laid_out_as_the_driver_reads_them() {
        let bytes = header(0x0102, WITH_ADDRESS, 0x0304, 16);
        assert_eq!(bytes[..8], [2, 1, 2, 0, 4, 3, 16, 0]);
        assert_eq!(bytes[8..], [0; 8]);
    }

    #[test]
    fn kernel_finds_each_buffer_of_a_ring_once_and_again_when_given_back() {
        let mut ring = TagRing::new(128).unwrap();
        let word = |ring: &TagRing, at: usize| {
            // SAFETY: an aligned word of the first page, and nobody writes meanwhile.
            unsafe { ring.map.as_ptr().wrapping_add(at).cast::<u16>().read() }
        };
        assert_eq!(word(&ring, TAIL_AT), UBLK_TAG_BUFFERS);
        for buffer in 0..UBLK_TAG_BUFFERS {
            let entry = usize::from(buffer) * ENTRY_BYTES;
            assert_eq!(word(&ring, entry + 12), buffer);
            assert_eq!(word(&ring, entry + 8), 256);
        }
        let filled: [u16; 3] = [7, 127, 0];
        for (at, tag) in filled.iter().enumerate() {
            // SAFETY: inside buffer 1, which nobody else uses here.
            unsafe { ring.buffer(1).cast::<u16>().wrapping_add(at).write(*tag) };
        }
        let mut tags = VecDeque::new();
        ring.take(1, 6, &mut tags);
        assert_eq!(tags, filled);
        assert_eq!(word(&ring, TAIL_AT), UBLK_TAG_BUFFERS + 1);
        assert_eq!(word(&ring, 12), 1, "the oldest entry is used again");
    }
}
