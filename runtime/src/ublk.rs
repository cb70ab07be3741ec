//! The data path of a ublk device (`/dev/ublkcN`) on this loop's ring, so that requests of a local
//! block device, links and timers share one loop. Only the moving parts are here; what a request
//! means, and how a device is made and removed, is decided elsewhere.
//!
//! Each tag of each queue has one command: it is *fetched* (the kernel keeps it until a request
//! comes), then *committed* with the request's result, which fetches the next one. A device in batch
//! mode (Linux 7.0) has few commands for all tags instead (`batch.rs`); callers see no difference. The
//! request's description lies in memory that the driver shares; its payload is copied by `pread` and
//! `pwrite` on the device ("user copy", Linux 6.5), which copies between the request's pages and ours
//! in the caller's context and never waits, or, where that is not allowed, by the kernel to and from a
//! place of the slot (`bounce.rs`). Format: `include/uapi/linux/ublk_cmd.h`.
//!
//! A loop that is dropped while the kernel has commands leaves nothing behind: closing the ring cancels
//! them, and the driver keeps the requests for a successor. Memory that they name stays mapped.

mod batch;
mod bounce;

use crate::backend::{Backend, Completion, FdRef, SysOp};
use crate::error::{Errno, RuntimeError};
use crate::io::{Event, Io, Key};
use crate::limits::{UBLK_BOUNCE_BYTES_MAX, UBLK_DEPTH_MAX, UBLK_QUEUES_MAX};
use batch::Batch;
use bounce::Bounce;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use trilith_block::{BufSlice, Buffers};

/// `UBLK_U_IO_FETCH_REQ`: `_IOWR('u', 0x20, 16 bytes)`.
const FETCH: u32 = 0xc010_7520;
/// `UBLK_U_IO_COMMIT_AND_FETCH_REQ`.
const COMMIT_AND_FETCH: u32 = 0xc010_7521;
/// Bytes of a `struct ublksrv_io_desc`.
const DESCRIPTOR_BYTES: usize = 24;
/// The kernel lays the queues' descriptors out for this depth (`UBLK_MAX_QUEUE_DEPTH`).
const LAYOUT_DEPTH: usize = 4096;
/// Where payload starts in the device's address space (`UBLKSRV_IO_BUF_OFFSET`).
const PAYLOAD_BASE: u64 = 0x8000_0000;
/// Bits of a byte offset within a request (`UBLK_IO_BUF_BITS`).
const OFFSET_BITS: u32 = 25;
/// Bits of a tag (`UBLK_TAG_BITS`).
const TAG_BITS: u32 = 16;

#[cfg(target_endian = "big")]
compile_error!("the driver's structures are written in little-endian order here");

/// A place for one request: a tag of a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UblkSlot {
    /// The queue, from 0.
    pub queue: u16,
    /// The tag, from 0.
    pub tag: u16,
}

/// A request as the kernel describes it, not yet looked at (`struct ublksrv_io_desc`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UblkDescriptor {
    /// Operation in bits 0 to 7, flags above.
    pub op_flags: u32,
    /// Length in sectors of 512 bytes.
    pub sectors: u32,
    /// First sector.
    pub start_sector: u64,
}

/// A fetched or committed command has come back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UblkFetched {
    /// Whose.
    pub slot: UblkSlot,
    /// The request that came, or why none ever will: `ENODEV` when the device is being stopped.
    pub result: Result<UblkDescriptor, Errno>,
}

/// How a device was added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UblkShape {
    /// Queues, 1 to [`UBLK_QUEUES_MAX`].
    pub queues: u16,
    /// Requests in flight in each queue, 1 to [`UBLK_DEPTH_MAX`].
    pub depth: u16,
    /// Longest read or write in bytes.
    pub request_bytes_max: u32,
    /// Payload by `pread` and `pwrite`; otherwise the kernel copies it, and the product of the three
    /// numbers above is at most [`UBLK_BOUNCE_BYTES_MAX`].
    pub user_copy: bool,
    /// Few commands for all tags.
    pub batch: bool,
}

impl UblkShape {
    fn slots(&self) -> usize {
        usize::from(self.queues) * usize::from(self.depth)
    }

    /// Bytes of the slots' places where the kernel copies payload.
    fn bounce_bytes(&self) -> u64 {
        if self.user_copy {
            return 0;
        }
        self.slots() as u64 * u64::from(self.request_bytes_max)
    }

    fn check(&self) -> Result<(), String> {
        let Self { queues, depth, .. } = *self;
        if !(1..=UBLK_QUEUES_MAX).contains(&queues) || !(1..=UBLK_DEPTH_MAX).contains(&depth) {
            let most = format!("at most {UBLK_QUEUES_MAX} queues of {UBLK_DEPTH_MAX}");
            return Err(format!("expected {most}, found {queues} of {depth}"));
        }
        let bytes = self.bounce_bytes();
        if bytes > UBLK_BOUNCE_BYTES_MAX {
            let most = format!("at most {UBLK_BOUNCE_BYTES_MAX} bytes");
            return Err(format!(
                "expected {most} of requests in flight, found {bytes}"
            ));
        }
        Ok(())
    }
}

/// An open `/dev/ublkcN` with its shared descriptors. Only one process can have it open.
#[derive(Debug)]
pub struct UblkDevice {
    file: File,
    number: u32,
    shape: UblkShape,
    descriptors: Vec<MmapRaw>,
}

impl UblkDevice {
    /// Opens the character device `number`, which was added in this shape. Blocks little; any thread
    /// may do it.
    ///
    /// # Errors
    /// When it is not there, open already (`ResourceBusy`), or the shape is too large.
    pub fn open(number: u32, shape: UblkShape) -> Result<UblkDevice, RuntimeError> {
        let path = format!("/dev/ublkc{number}");
        let what = || format!("open {path}");
        shape
            .check()
            .map_err(|why| RuntimeError::own(what(), io::ErrorKind::InvalidInput, why))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| RuntimeError::new(what(), error))?;
        Ok(UblkDevice {
            file,
            number,
            shape,
            descriptors: Vec::new(),
        })
    }

    /// Maps the descriptors, once the kernel has the slots. Not before: Linux 6.12 remembers who has
    /// mapped them, and a process that dies between that and its last fetch would leave a device
    /// that nobody can take over any more.
    fn map(&mut self) -> io::Result<()> {
        let page = rustix::param::page_size();
        let used = (usize::from(self.shape.depth) * DESCRIPTOR_BYTES).next_multiple_of(page);
        let apart = (LAYOUT_DEPTH * DESCRIPTOR_BYTES).next_multiple_of(page);
        for queue in self.descriptors.len()..usize::from(self.shape.queues) {
            let map = MmapOptions::new()
                .offset((queue * apart) as u64)
                .len(used)
                .populate()
                .map_raw_read_only(&self.file)?;
            self.descriptors.push(map);
        }
        Ok(())
    }

    /// Its number: N of `/dev/ublkbN`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Queues.
    pub fn queues(&self) -> u16 {
        self.shape.queues
    }

    /// Requests in flight in each queue.
    pub fn depth(&self) -> u16 {
        self.shape.depth
    }

    fn index(&self, slot: UblkSlot) -> u32 {
        let UblkShape { queues, depth, .. } = self.shape;
        assert!(
            slot.queue < queues && slot.tag < depth,
            "{slot:?} of {queues} queues of {depth}"
        );
        u32::from(slot.queue) * u32::from(depth) + u32::from(slot.tag)
    }

    fn slot(&self, index: u32) -> UblkSlot {
        let depth = u32::from(self.shape.depth);
        UblkSlot {
            queue: u16::try_from(index / depth).unwrap_or(u16::MAX),
            tag: u16::try_from(index % depth).unwrap_or(u16::MAX),
        }
    }

    /// The description in a slot. Meaningful between a fetch's success and the commit.
    fn descriptor(&self, slot: UblkSlot) -> UblkDescriptor {
        let index = usize::from(slot.tag) * DESCRIPTOR_BYTES;
        let map = &self.descriptors[usize::from(slot.queue)];
        assert!(index + DESCRIPTOR_BYTES <= map.len(), "{slot:?}");
        let start = map.as_ptr().wrapping_add(index).cast::<u32>();
        let word = |at: usize| {
            // SAFETY: word `at` (0 to 5) of a descriptor that lies inside the mapping (asserted),
            // which starts at a page and so is aligned; volatile, since the kernel writes it
            // between requests.
            unsafe { start.wrapping_add(at).read_volatile() }
        };
        UblkDescriptor {
            op_flags: word(0),
            sectors: word(1),
            start_sector: u64::from(word(2)) | u64::from(word(3)) << 32,
        }
    }

    /// Where byte `offset` of the request in `slot` is in the device's address space.
    fn position(slot: UblkSlot, offset: u32) -> u64 {
        PAYLOAD_BASE
            + (u64::from(slot.queue) << (OFFSET_BITS + TAG_BITS)
                | u64::from(slot.tag) << OFFSET_BITS
                | u64::from(offset))
    }
}

/// The device that a loop serves.
#[derive(Debug)]
pub(crate) struct Port {
    device: UblkDevice,
    fd: FdRef,
    /// By slot: the kernel has it.
    with_kernel: Vec<bool>,
    count: usize,
    /// Commands that the ring has.
    commands: usize,
    bounce: Option<Bounce>,
    batch: Option<Batch>,
}

impl Drop for Port {
    fn drop(&mut self) {
        if self.commands > 0 {
            // The kernel may still write to what they name, until the process ends.
            Box::leak(Box::new((self.bounce.take(), self.batch.take())));
        }
    }
}

/// `struct ublksrv_io_cmd`. `address`: where the kernel copies payload; 0 with user copy.
fn command(slot: UblkSlot, result: i32, address: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&slot.queue.to_le_bytes());
    bytes[2..4].copy_from_slice(&slot.tag.to_le_bytes());
    bytes[4..8].copy_from_slice(&result.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes
}

impl Port {
    /// Where the kernel copies a slot's payload.
    fn address(&self, index: u32) -> u64 {
        self.bounce
            .as_ref()
            .map_or(0, |bounce| bounce.address(index as usize))
    }

    /// The slot is ours again, or was.
    fn taken_back(&mut self, index: u32) -> bool {
        let Some(with_kernel) = self.with_kernel.get_mut(index as usize) else {
            return false;
        };
        let was = core::mem::take(with_kernel);
        self.count -= usize::from(was);
        was
    }

    /// What a slot has brought.
    fn fetched(&mut self, index: u32, result: i32) -> UblkFetched {
        let slot = self.device.slot(index);
        let result = match self.device.map() {
            _ if result < 0 => Err(Errno(-result)),
            Ok(()) => Ok(self.device.descriptor(slot)),
            Err(error) => {
                tracing::error!(%error, "cannot map the queues of a ublk device");
                Err(Errno::IO)
            }
        };
        UblkFetched { slot, result }
    }
}

impl Io {
    /// Takes over an open ublk device: one a loop. Then [`Io::ublk_fetch`] every slot of it.
    ///
    /// # Errors
    /// When the loop does not run on io_uring, or has a device, or there is no memory.
    pub fn ublk_attach(&mut self, device: UblkDevice) -> Result<(), RuntimeError> {
        let what = || format!("serve /dev/ublkc{}", device.number);
        let own = |kind, why: &str| Err(RuntimeError::own(what(), kind, why));
        if self.driver.backend() != Backend::Uring {
            let why = "ublk needs io_uring, which is not in use here";
            return own(io::ErrorKind::Unsupported, why);
        }
        if self.ublk.is_some() {
            return own(io::ErrorKind::AlreadyExists, "a loop serves one device");
        }
        // Not a registered file: kernels before 6.13 let go of one only when everything that was
        // submitted before has ended, and waiting for a signal never does. The device could not be
        // deleted.
        let fd = FdRef {
            raw: device.file.as_raw_fd(),
            fixed: None,
        };
        let shape = device.shape;
        let failed = |error| RuntimeError::new(what(), error);
        let bounce = match shape.bounce_bytes() {
            0 => None,
            _ => Some(Bounce::new(shape.slots(), shape.request_bytes_max).map_err(failed)?),
        };
        let batch = match shape.batch {
            false => None,
            true => Some(Batch::new(&mut self.driver, shape).map_err(failed)?),
        };
        self.ublk = Some(Port {
            device,
            fd,
            with_kernel: vec![false; shape.slots()],
            count: 0,
            commands: 0,
            bounce,
            batch,
        });
        Ok(())
    }

    /// The device attached.
    pub fn ublk_device(&self) -> Option<&UblkDevice> {
        self.ublk.as_ref().map(|port| &port.device)
    }

    /// Slots that the kernel has.
    pub fn ublk_with_kernel(&self) -> usize {
        self.ublk.as_ref().map_or(0, |port| port.count)
    }

    /// Commands that the ring has.
    pub(crate) fn ublk_commands(&self) -> usize {
        self.ublk.as_ref().map_or(0, |port| port.commands)
    }

    /// Waits for a slot's first request. [`crate::Handler::ublk`] tells when it is there. Once for
    /// each slot, by this thread alone: it becomes the one that serves the queue. Ignored without a
    /// device.
    ///
    /// # Panics
    /// When the device has no such slot or the kernel has it: a bug of the caller.
    pub fn ublk_fetch(&mut self, slot: UblkSlot) {
        self.ublk_command(slot, FETCH, -1);
    }

    /// Ends the slot's request and waits for the next one. `result`: bytes read or written, 0 for
    /// other operations, or a negative `errno`. Ignored without a device.
    ///
    /// # Panics
    /// As [`Io::ublk_fetch`].
    pub fn ublk_commit(&mut self, slot: UblkSlot, result: i32) {
        self.ublk_command(slot, COMMIT_AND_FETCH, result);
    }

    fn ublk_command(&mut self, slot: UblkSlot, op: u32, result: i32) {
        let Some(port) = &mut self.ublk else { return };
        let index = port.device.index(slot);
        let address = port.address(index);
        let with_kernel = &mut port.with_kernel[index as usize];
        assert!(!*with_kernel, "the kernel has {slot:?}");
        *with_kernel = true;
        port.count += 1;
        if let Some(batch) = &mut port.batch {
            return batch.add(slot, (op == COMMIT_AND_FETCH).then_some(result), address);
        }
        port.commands += 1;
        let command = SysOp::Command {
            op,
            bytes: command(slot, result, address),
            elements: 0,
        };
        // SAFETY: the slot's place is mapped until the port is dropped, and is left mapped then while
        // there are commands; our side uses it only while the kernel does not have the slot.
        unsafe {
            self.driver
                .submit(Key::Ublk(index).pack(), port.fd, command)
        };
    }

    /// Hands over what has been collected, at the end of a turn.
    pub(crate) fn ublk_flush(&mut self) {
        if let Some(port) = &mut self.ublk
            && let Some(batch) = &mut port.batch
        {
            port.commands += batch.flush(&mut self.driver, port.fd);
        }
    }

    /// Copies the payload of the write in `slot`, from its first byte on, to `target`. Blocks for
    /// the copy only.
    ///
    /// # Errors
    /// What the driver says; the request is gone when the device is being stopped.
    ///
    /// # Panics
    /// When the kernel has the slot: a bug of the caller.
    pub fn ublk_pull(&mut self, slot: UblkSlot, target: BufSlice) -> Result<(), Errno> {
        let Some(port) = &self.ublk else {
            return Err(Errno::IO);
        };
        let bytes = self.arena.bytes_mut(target);
        if let Some(bounce) = &port.bounce {
            let index = port.device.index(slot) as usize;
            assert!(!port.with_kernel[index], "the kernel has {slot:?}");
            return bounce.read(index, bytes);
        }
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = UblkDevice::position(slot, u32::try_from(done).unwrap_or(u32::MAX));
            match rustix::io::pread(&port.device.file, rest, at) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Errno(error.raw_os_error())),
            }
        }
        Ok(())
    }

    /// Copies `source` to the pages of the read in `slot`, from its first byte on. Blocks for the
    /// copy only.
    ///
    /// # Errors
    /// As [`Io::ublk_pull`].
    ///
    /// # Panics
    /// As [`Io::ublk_pull`].
    pub fn ublk_push(&mut self, slot: UblkSlot, source: BufSlice) -> Result<(), Errno> {
        let Some(port) = &mut self.ublk else {
            return Err(Errno::IO);
        };
        let bytes = self.arena.bytes(source);
        if let Some(bounce) = &mut port.bounce {
            let index = port.device.index(slot) as usize;
            assert!(!port.with_kernel[index], "the kernel has {slot:?}");
            return bounce.write(index, bytes);
        }
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = UblkDevice::position(slot, u32::try_from(done).unwrap_or(u32::MAX));
            match rustix::io::pwrite(&port.device.file, rest, at) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Errno(error.raw_os_error())),
            }
        }
        Ok(())
    }

    /// Lets go of the device, so that it can be deleted. False, and nothing done, while the kernel
    /// has a command of it: stop the device first.
    pub fn ublk_detach(&mut self) -> bool {
        let Some(port) = &mut self.ublk else {
            return true;
        };
        if port.count > 0 || port.commands > 0 {
            return false;
        }
        if let Some(batch) = &port.batch {
            batch.end(&mut self.driver);
        }
        self.ublk = None;
        true
    }

    /// A command of one slot has ended.
    pub(crate) fn ublk_completed(&mut self, index: u32, result: i32) {
        let Some(port) = &mut self.ublk else { return };
        port.commands -= 1;
        if port.taken_back(index) {
            let fetched = port.fetched(index, result);
            self.events.push_back(Event::Ublk(fetched));
        }
    }

    /// A command of a queue has completed.
    pub(crate) fn ublk_batch_completed(&mut self, completion: &Completion, kind: BatchKey) {
        let Some(port) = &mut self.ublk else { return };
        let Some(mut batch) = port.batch.take() else {
            return;
        };
        let depth = u32::from(port.device.shape.depth);
        let queue = match kind {
            BatchKey::Prepare(place) | BatchKey::Commit(place) => {
                port.commands -= 1;
                batch.carried_out(place, completion.result)
            }
            BatchKey::Fetch(queue) => {
                port.commands -= usize::from(!completion.more);
                batch.fetched(queue, completion);
                queue
            }
        };
        while let Some(tag) = batch.tag() {
            let index = queue * depth + u32::from(tag);
            if u32::from(tag) < depth && port.taken_back(index) {
                let fetched = port.fetched(index, 0);
                self.events.push_back(Event::Ublk(fetched));
            }
        }
        if let Some(errno) = batch.is_over(queue) {
            for index in queue * depth..(queue + 1) * depth {
                if port.taken_back(index) {
                    let fetched = port.fetched(index, -errno);
                    self.events.push_back(Event::Ublk(fetched));
                }
            }
        }
        if batch.is_vain(queue) {
            self.driver.cancel(Key::UblkFetch(queue).pack(), port.fd);
        }
        port.batch = Some(batch);
    }
}

/// Which command of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BatchKey {
    /// With the elements in this place.
    Prepare(u32),
    /// With the elements in this place.
    Commit(u32),
    /// Of this queue.
    Fetch(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_laid_out_as_the_driver_reads_them() {
        let slot = UblkSlot {
            queue: 0x0102,
            tag: 0x0304,
        };
        let bytes = command(slot, -5, 0);
        assert_eq!(bytes[..8], [2, 1, 4, 3, 0xfb, 0xff, 0xff, 0xff]);
        assert_eq!(bytes[8..], [0; 8], "user copy names no buffer");
        assert_eq!(command(slot, 0, 0x0102)[8..], [2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn payload_of_each_slot_has_its_own_place() {
        let slot = UblkSlot { queue: 1, tag: 3 };
        let at = UblkDevice::position(slot, 512);
        assert_eq!(at, 0x8000_0000 + (1 << 41) + (3 << 25) + 512);
        let last = UblkSlot {
            queue: UBLK_QUEUES_MAX - 1,
            tag: UBLK_DEPTH_MAX - 1,
        };
        assert!(UblkDevice::position(last, (1 << 25) - 1) < i64::MAX.unsigned_abs());
    }

    #[test]
    fn device_of_an_impossible_shape_or_that_is_not_there_is_refused() {
        let good = UblkShape {
            queues: 1,
            depth: 1,
            request_bytes_max: 1 << 20,
            user_copy: true,
            batch: false,
        };
        let none = UblkShape { queues: 0, ..good };
        let deep = UblkShape {
            depth: UBLK_DEPTH_MAX + 1,
            ..good
        };
        let large = UblkShape {
            depth: UBLK_DEPTH_MAX,
            user_copy: false,
            ..good
        };
        for wrong in [none, deep, large] {
            let error = UblkDevice::open(0, wrong).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
        let error = UblkDevice::open(999_999, good).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
