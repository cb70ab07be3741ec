//! Disk requests: submitted, continued when the kernel did less, completed as events.

use crate::arena::Loan;
use crate::backend::{FdRef, FdUse, Piece, SysOp};
use crate::error::{Errno, RuntimeError};
use crate::files::{DataFile, FileKind};
use crate::io::{Event, Io, Key};
use crate::limits::{DISK_IN_FLIGHT_MAX, DISK_RETRIES_MAX, FILES_MAX};
use std::io;
use std::os::fd::AsRawFd;
use trilith_block::BufSlice;

/// A data file of the loop.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileId {
    index: u16,
    serial: u16,
}

/// What to do with a file. Offsets and lengths in bytes; with O_DIRECT multiples of the device's
/// block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Fill the buffer. Short only at the end of the file.
    Read {
        /// Where in the file.
        offset: u64,
        /// What to fill.
        buf: BufSlice,
    },
    /// Write the buffer, all of it or an error.
    Write {
        /// Where in the file.
        offset: u64,
        /// What to write.
        buf: BufSlice,
        /// Complete only when this write is durable (RWF_DSYNC).
        dsync: bool,
    },
    /// fdatasync: what completed before this was submitted is durable when it completes.
    Flush,
    /// Allocate space; extends the file if need be. Nothing on a device.
    Allocate {
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Give the space back; the range reads zero.
    PunchHole {
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The range reads zero and stays allocated. The file's length stays.
    ZeroRange {
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
}

/// A request with the caller's name for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskRequest {
    /// What to do.
    pub op: DiskOp,
    /// Comes back in [`DiskDone`].
    pub token: u64,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskDone {
    /// The request's token.
    pub token: u64,
    /// Bytes read or written (0 for the others), or why it failed.
    pub result: Result<u32, Errno>,
}

/// An open file of the loop.
#[derive(Debug)]
pub(crate) struct FileEntry {
    data: DataFile,
    fd: FdRef,
    serial: u16,
    in_flight: u32,
    closing: bool,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct DiskSlot {
    file: u16,
    request: DiskRequest,
    loan: Option<Loan>,
    done: u32,
    retries: u8,
}

/// Files and requests of the loop.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: Vec<Option<FileEntry>>,
    slots: Vec<Option<DiskSlot>>,
    free: Vec<u32>,
    serial: u16,
    in_flight: usize,
}

impl DiskOp {
    fn buffer(&self) -> Option<(BufSlice, bool)> {
        match self {
            DiskOp::Read { buf, .. } => Some((*buf, true)),
            DiskOp::Write { buf, .. } => Some((*buf, false)),
            DiskOp::Flush
            | DiskOp::Allocate { .. }
            | DiskOp::PunchHole { .. }
            | DiskOp::ZeroRange { .. } => None,
        }
    }
}

impl Io {
    /// Takes over an open data file (its lock included) for disk requests.
    ///
    /// # Errors
    /// When [`FILES_MAX`] files are open.
    pub fn adopt(&mut self, data: DataFile) -> Result<FileId, RuntimeError> {
        let what = || format!("adopt {}", data.path().display());
        let free = self.disk.files.iter().position(Option::is_none);
        let index = match free {
            Some(index) => index,
            None if self.disk.files.len() < FILES_MAX => {
                self.disk.files.push(None);
                self.disk.files.len() - 1
            }
            None => {
                let why = format!("{FILES_MAX} files are open");
                return Err(RuntimeError::own(what(), io::ErrorKind::QuotaExceeded, why));
            }
        };
        let fd = self.driver.attach(data.file.as_raw_fd(), FdUse::Disk)?;
        self.disk.serial = self.disk.serial.wrapping_add(1);
        let serial = self.disk.serial;
        let entry = FileEntry {
            data,
            fd,
            serial,
            in_flight: 0,
            closing: false,
        };
        self.disk.files[index] = Some(entry);
        Ok(FileId {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            serial,
        })
    }

    /// Opens a data file and takes it over: [`DataFile::open`] and [`Io::adopt`].
    ///
    /// # Errors
    /// As those two.
    pub fn open_file(&mut self, how: &crate::files::OpenFile) -> Result<FileId, RuntimeError> {
        let data = DataFile::open(how)?;
        self.adopt(data)
    }

    /// The open file behind an id, for its length and kind.
    pub fn file(&self, file: FileId) -> Option<&DataFile> {
        let entry = self.disk.files.get(usize::from(file.index))?.as_ref()?;
        (entry.serial == file.serial && !entry.closing).then_some(&entry.data)
    }

    /// Closes a file once what is in flight on it has ended; new requests are refused from now on.
    /// The kernel lets go of the file, and of its lock, in one of the next turns.
    pub fn close_file(&mut self, file: FileId) {
        if let Some(Some(entry)) = self.disk.files.get_mut(usize::from(file.index))
            && entry.serial == file.serial
        {
            entry.closing = true;
        }
        self.reap_file(file.index);
    }

    /// Closes all files, on which nothing is in flight: the ring forgets them at once, so that their
    /// locks are free when the loop is gone.
    pub(crate) fn close_files(&mut self) {
        for index in 0..self.disk.files.len() {
            if let Some(entry) = &mut self.disk.files[index] {
                entry.closing = true;
            }
            self.reap_file(u16::try_from(index).unwrap_or(u16::MAX));
        }
    }

    fn reap_file(&mut self, index: u16) {
        let Some(place) = self.disk.files.get_mut(usize::from(index)) else {
            return;
        };
        if let Some(entry) = place.take_if(|entry| entry.closing && entry.in_flight == 0) {
            self.driver.detach(entry.fd);
        }
    }

    /// Starts a request; [`crate::Handler::disk`] tells how it ended. The buffer is retained until
    /// then, and must not be touched. Requests may be carried out in any order.
    ///
    /// # Errors
    /// The request itself when [`DISK_IN_FLIGHT_MAX`] are in flight: try again after a completion.
    ///
    /// # Panics
    /// When the file is not open, or the buffer not owned: a bug of the caller.
    pub fn disk(&mut self, file: FileId, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.disk.in_flight >= DISK_IN_FLIGHT_MAX {
            return Err(request);
        }
        let kind = self.file(file).map(DataFile::kind);
        assert!(
            kind.is_some(),
            "disk request for a file that is not open: {file:?}"
        );
        if kind == Some(FileKind::Device) && matches!(request.op, DiskOp::Allocate { .. }) {
            self.events.push_back(Event::Disk(DiskDone {
                token: request.token,
                result: Ok(0),
            }));
            return Ok(());
        }
        if let Some(Some(entry)) = self.disk.files.get_mut(usize::from(file.index)) {
            entry.in_flight += 1;
        }
        let loan = request
            .op
            .buffer()
            .map(|(slice, fills)| self.arena.lend(slice, fills));
        let slot = DiskSlot {
            file: file.index,
            request,
            loan,
            done: 0,
            retries: 0,
        };
        let index = match self.disk.free.pop() {
            Some(index) => {
                self.disk.slots[index as usize] = Some(slot);
                index
            }
            None => {
                self.disk.slots.push(Some(slot));
                u32::try_from(self.disk.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.disk.in_flight += 1;
        self.start_disk(index);
        Ok(())
    }

    /// Submits a request, or what is left of it.
    fn start_disk(&mut self, index: u32) {
        self.register_arena();
        let Some(slot) = &self.disk.slots[index as usize] else {
            return;
        };
        let Some(entry) = &self.disk.files[usize::from(slot.file)] else {
            return;
        };
        let (fd, done) = (entry.fd, slot.done);
        let piece = |len: u32| {
            let loan = slot.loan.as_ref()?;
            let region = self.arena.loan_region(loan);
            Some(Piece {
                // The rest of the lent run: `done` is below its length.
                start: self.arena.loan_address(loan).wrapping_add(done as usize),
                len: len - done,
                region: u16::try_from(region)
                    .ok()
                    .filter(|_| region < self.registered),
            })
        };
        let op = match slot.request.op {
            DiskOp::Read { offset, buf } => piece(buf.len).map(|piece| SysOp::Read {
                piece,
                offset: offset + u64::from(done),
            }),
            DiskOp::Write { offset, buf, dsync } => piece(buf.len).map(|piece| SysOp::Write {
                piece,
                offset: offset + u64::from(done),
                dsync,
            }),
            DiskOp::Flush => Some(SysOp::Sync),
            DiskOp::Allocate { offset, len } => Some(SysOp::Allocate {
                mode: 0,
                offset,
                len,
            }),
            DiskOp::PunchHole { offset, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                Some(SysOp::Allocate { mode, offset, len })
            }
            DiskOp::ZeroRange { offset, len } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                Some(SysOp::Allocate { mode, offset, len })
            }
        };
        let Some(op) = op else { return };
        // SAFETY: the memory is lent by the arena, which neither reuses nor unmaps it before
        // `finish_disk` gives it back, and that happens after the completion.
        unsafe { self.driver.submit(Key::Disk(index).pack(), fd, op) };
    }

    /// A completion of the kernel for a disk request.
    pub(crate) fn disk_completed(&mut self, index: u32, result: i32) {
        let Some(Some(slot)) = self.disk.slots.get_mut(index as usize) else {
            return;
        };
        let length = slot.request.op.buffer().map_or(0, |(slice, _)| slice.len);
        let is_write = matches!(slot.request.op, DiskOp::Write { .. });
        let again =
            (result == -libc::EINTR || result == -libc::EAGAIN) && slot.retries < DISK_RETRIES_MAX;
        if again {
            slot.retries += 1;
            return self.start_disk(index);
        }
        let Ok(bytes) = u32::try_from(result) else {
            return self.finish_disk(index, Err(Errno(-result)));
        };
        slot.done = slot.done.saturating_add(bytes).min(length);
        let done = slot.done;
        if done == length {
            return self.finish_disk(index, Ok(done));
        }
        if bytes == 0 {
            // A read at the end of the file; a write that makes no progress is an error.
            let result = if is_write { Err(Errno::IO) } else { Ok(done) };
            return self.finish_disk(index, result);
        }
        // O_DIRECT cannot go on at an odd place; only the end of a file stops a read there.
        let odd = !is_write && !done.is_multiple_of(512);
        if odd {
            self.finish_disk(index, Ok(done))
        } else {
            self.start_disk(index)
        }
    }

    fn finish_disk(&mut self, index: u32, result: Result<u32, Errno>) {
        let Some(slot) = self.disk.slots[index as usize].take() else {
            return;
        };
        self.disk.free.push(index);
        self.disk.in_flight -= 1;
        if let Some(loan) = slot.loan {
            self.arena.give_back(loan);
        }
        if let Some(entry) = &mut self.disk.files[usize::from(slot.file)] {
            entry.in_flight -= 1;
        }
        self.reap_file(slot.file);
        self.stats.disk_ops += 1;
        self.stats.disk_bytes += u64::from(result.unwrap_or(0));
        self.events.push_back(Event::Disk(DiskDone {
            token: slot.request.token,
            result,
        }));
    }
}
