//! The data path of a ublk device (`/dev/ublkcN`) on this loop's ring, so that requests of a local
//! block device, links and timers share one loop. Only the moving parts are here; what a request
//! means, and how a device is made and removed, is decided elsewhere.
//!
//! Each tag of each queue has one command: it is *fetched* (the kernel keeps it until a request
//! comes), then *committed* with the request's result, which fetches the next one. The request's
//! description lies in memory that the driver shares; its payload is copied by `pread` and `pwrite`
//! on the device ("user copy", Linux 6.5), which copies between the request's pages and ours in the
//! caller's context and never waits. Format: `include/uapi/linux/ublk_cmd.h`.
//!
//! The commands name no memory, so a loop that is dropped while the kernel has them leaves nothing
//! behind: closing the ring cancels them, and the driver keeps the requests for a successor.

use crate::backend::{Backend, FdRef, SysOp};
use crate::error::{Errno, RuntimeError};
use crate::io::{Event, Io, Key};
use crate::limits::{UBLK_DEPTH_MAX, UBLK_QUEUES_MAX};
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

/// An open `/dev/ublkcN` with its shared descriptors. Only one process can have it open.
#[derive(Debug)]
pub struct UblkDevice {
    file: File,
    number: u32,
    queues: u16,
    depth: u16,
    descriptors: Vec<MmapRaw>,
}

impl UblkDevice {
    /// Opens the character device `number`, which was added with so many queues of such a depth.
    /// Blocks little; any thread may do it.
    ///
    /// # Errors
    /// When it is not there, open already (`ResourceBusy`), or has another shape.
    pub fn open(number: u32, queues: u16, depth: u16) -> Result<UblkDevice, RuntimeError> {
        let path = format!("/dev/ublkc{number}");
        let what = || format!("open {path}");
        if !(1..=UBLK_QUEUES_MAX).contains(&queues) || !(1..=UBLK_DEPTH_MAX).contains(&depth) {
            let why = format!("expected at most {UBLK_QUEUES_MAX} queues of {UBLK_DEPTH_MAX}");
            return Err(RuntimeError::own(
                what(),
                io::ErrorKind::InvalidInput,
                format!("{why}, found {queues} of {depth}"),
            ));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| RuntimeError::new(what(), error))?;
        Ok(UblkDevice {
            file,
            number,
            queues,
            depth,
            descriptors: Vec::new(),
        })
    }

    /// Maps the descriptors, once the kernel has the slots. Not before: Linux 6.12 remembers who has
    /// mapped them, and a process that dies between that and its last fetch would leave a device
    /// that nobody can take over any more.
    fn map(&mut self) -> io::Result<()> {
        let page = rustix::param::page_size();
        let used = (usize::from(self.depth) * DESCRIPTOR_BYTES).next_multiple_of(page);
        let apart = (LAYOUT_DEPTH * DESCRIPTOR_BYTES).next_multiple_of(page);
        for queue in self.descriptors.len()..usize::from(self.queues) {
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
        self.queues
    }

    /// Requests in flight in each queue.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    fn index(&self, slot: UblkSlot) -> u32 {
        assert!(
            slot.queue < self.queues && slot.tag < self.depth,
            "{slot:?} of {} queues of {}",
            self.queues,
            self.depth
        );
        u32::from(slot.queue) * u32::from(self.depth) + u32::from(slot.tag)
    }

    fn slot(&self, index: u32) -> UblkSlot {
        let depth = u32::from(self.depth);
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
    /// By slot: the kernel has its command.
    with_kernel: Vec<bool>,
    count: usize,
}

/// `struct ublksrv_io_cmd`.
fn command(slot: UblkSlot, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&slot.queue.to_le_bytes());
    bytes[2..4].copy_from_slice(&slot.tag.to_le_bytes());
    bytes[4..8].copy_from_slice(&result.to_le_bytes());
    bytes
}

impl Io {
    /// Takes over an open ublk device: one a loop. Then [`Io::ublk_fetch`] every slot of it.
    ///
    /// # Errors
    /// When the loop does not run on io_uring, or has a device.
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
        let slots = usize::from(device.queues) * usize::from(device.depth);
        self.ublk = Some(Port {
            device,
            fd,
            with_kernel: vec![false; slots],
            count: 0,
        });
        Ok(())
    }

    /// The device attached.
    pub fn ublk_device(&self) -> Option<&UblkDevice> {
        self.ublk.as_ref().map(|port| &port.device)
    }

    /// Slots whose command the kernel has.
    pub fn ublk_with_kernel(&self) -> usize {
        self.ublk.as_ref().map_or(0, |port| port.count)
    }

    /// Waits for a slot's first request. [`crate::Handler::ublk`] tells when it is there. Once for
    /// each slot, by this thread alone: it becomes the one that serves the queue. Ignored without a
    /// device.
    ///
    /// # Panics
    /// When the device has no such slot or the kernel has its command: a bug of the caller.
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
        let with_kernel = &mut port.with_kernel[index as usize];
        assert!(!*with_kernel, "the kernel has the command of {slot:?}");
        *with_kernel = true;
        port.count += 1;
        let command = SysOp::Command {
            op,
            bytes: command(slot, result),
        };
        // SAFETY: the command names no memory, and its bytes are copied into the ring's entry.
        unsafe {
            self.driver
                .submit(Key::Ublk(index).pack(), port.fd, command)
        };
    }

    /// Copies the payload of the write in `slot`, from its first byte on, to `target`. Blocks for
    /// the copy only.
    ///
    /// # Errors
    /// What the driver says; the request is gone when the device is being stopped.
    pub fn ublk_pull(&mut self, slot: UblkSlot, target: BufSlice) -> Result<(), Errno> {
        let Some(port) = &self.ublk else {
            return Err(Errno::IO);
        };
        let bytes = self.arena.bytes_mut(target);
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
    pub fn ublk_push(&mut self, slot: UblkSlot, source: BufSlice) -> Result<(), Errno> {
        let Some(port) = &self.ublk else {
            return Err(Errno::IO);
        };
        let bytes = self.arena.bytes(source);
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
        let free = self.ublk.as_ref().is_none_or(|port| port.count == 0);
        if free {
            self.ublk = None;
        }
        free
    }

    pub(crate) fn ublk_completed(&mut self, index: u32, result: i32) {
        let Some(port) = &mut self.ublk else { return };
        let Some(with_kernel) = port.with_kernel.get_mut(index as usize) else {
            return;
        };
        *with_kernel = false;
        port.count -= 1;
        let slot = port.device.slot(index);
        let result = match port.device.map() {
            _ if result < 0 => Err(Errno(-result)),
            Ok(()) => Ok(port.device.descriptor(slot)),
            Err(error) => {
                tracing::error!(%error, "cannot map the queues of a ublk device");
                Err(Errno::IO)
            }
        };
        self.events
            .push_back(Event::Ublk(UblkFetched { slot, result }));
    }
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
        let bytes = command(slot, -5);
        assert_eq!(bytes[..8], [2, 1, 4, 3, 0xfb, 0xff, 0xff, 0xff]);
        assert_eq!(bytes[8..], [0; 8], "user copy names no buffer");
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
        let shape = UblkDevice::open(0, 0, 128).unwrap_err();
        assert_eq!(shape.kind(), io::ErrorKind::InvalidInput);
        let deep = UblkDevice::open(0, 1, UBLK_DEPTH_MAX + 1).unwrap_err();
        assert_eq!(deep.kind(), io::ErrorKind::InvalidInput);
        assert!(UblkDevice::open(999_999, 1, 1).is_err());
    }
}
