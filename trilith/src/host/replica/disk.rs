//! The store's disk operations on the loop's files, for a running replica and for formatting.
//!
//! What a file system cannot do is done another way here, so that the store need not know: a range
//! that cannot be punched or zeroed is overwritten with zeroes, space that cannot be reserved is
//! not reserved, and what lies beyond the end of a file reads as zeroes.
//!
//! The store gives all parts of one change or read the same tag, so what is in flight is known here
//! by a place of its own.

use crate::limits::ZERO_STEP_BYTES;
use std::collections::VecDeque;
use trilith_block::{BufSlice, Buffers};
use trilith_replica::store::{DiskError, DiskOp, DiskTag, FileRole};
use trilith_runtime::{self as runtime, DiskDone, DiskRequest, Errno, FileId, Io};

/// A completion for the store.
pub(crate) type Completed = (DiskTag, Result<(), DiskError>);

/// A range that is being overwritten with zeroes.
#[derive(Clone, Copy, Debug)]
struct Overwrite {
    role: FileRole,
    next: u64,
    end: u64,
}

/// An operation in flight.
#[derive(Clone, Copy, Debug)]
struct Started {
    tag: DiskTag,
    what: What,
}

/// What the completion of an operation must know besides its result.
#[derive(Clone, Copy, Debug)]
enum What {
    Read(BufSlice),
    Gap(Overwrite),
    Reservation,
    Overwriting(Overwrite),
    Plain,
}

impl What {
    fn of(op: DiskOp) -> What {
        match op {
            DiskOp::Read { buf, .. } => What::Read(buf),
            DiskOp::PunchHole { role, offset, len } | DiskOp::ZeroRange { role, offset, len } => {
                What::Gap(Overwrite {
                    role,
                    next: offset,
                    end: offset + len,
                })
            }
            DiskOp::Allocate { .. } => What::Reservation,
            DiskOp::Write { .. } | DiskOp::Flush { .. } => What::Plain,
        }
    }
}

/// The files of a store.
#[derive(Debug)]
pub(crate) struct StoreDisk {
    meta: FileId,
    /// `None` at a witness, whose store never asks for data.
    data: Option<FileId>,
    /// Operations that found the loop's queue full, oldest first. The store limits its own.
    waiting: VecDeque<(DiskTag, DiskOp)>,
    /// Operations in flight; the loop's token of one is its index. At most what the loop takes.
    started: Vec<Option<Started>>,
    free: Vec<usize>,
    zeroes: Option<BufSlice>,
}

impl StoreDisk {
    /// A store on two files, twice the same device, or on metadata alone.
    pub(crate) fn new(meta: FileId, data: Option<FileId>) -> StoreDisk {
        StoreDisk {
            meta,
            data,
            waiting: VecDeque::new(),
            started: Vec::new(),
            free: Vec::new(),
            zeroes: None,
        }
    }

    /// Operations that wait for a place in the loop's queue.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn file(&self, role: FileRole) -> FileId {
        match role {
            FileRole::Meta => self.meta,
            FileRole::Data => self
                .data
                .unwrap_or_else(|| unreachable!("a witness has no data")),
        }
    }

    /// Closes the files. What waits for a place is never started; what is in flight ends unheard.
    pub(crate) fn close(&mut self, io: &mut Io) {
        self.waiting.clear();
        for file in [Some(self.meta), self.data].into_iter().flatten() {
            io.close_file(file);
        }
    }

    /// Starts an operation, behind those that wait.
    pub(crate) fn start(&mut self, io: &mut Io, tag: DiskTag, op: DiskOp) {
        if !self.waiting.is_empty() || !self.try_start(io, tag, op) {
            self.waiting.push_back((tag, op));
        }
    }

    /// Starts what waits, as far as there is room.
    pub(crate) fn retry(&mut self, io: &mut Io) {
        while let Some((tag, op)) = self.waiting.pop_front() {
            if !self.try_start(io, tag, op) {
                self.waiting.push_front((tag, op));
                return;
            }
        }
    }

    fn try_start(&mut self, io: &mut Io, tag: DiskTag, op: DiskOp) -> bool {
        let (role, request) = match op {
            DiskOp::Read { role, offset, buf } => (role, runtime::DiskOp::Read { offset, buf }),
            DiskOp::Write {
                role,
                offset,
                buf,
                dsync,
            } => (role, runtime::DiskOp::Write { offset, buf, dsync }),
            DiskOp::Flush { role } => (role, runtime::DiskOp::Flush),
            DiskOp::Allocate { role, offset, len } => {
                (role, runtime::DiskOp::Allocate { offset, len })
            }
            DiskOp::PunchHole { role, offset, len } => {
                (role, runtime::DiskOp::PunchHole { offset, len })
            }
            DiskOp::ZeroRange { role, offset, len } => {
                (role, runtime::DiskOp::ZeroRange { offset, len })
            }
        };
        let what = What::of(op);
        self.submit(io, role, request, Started { tag, what })
    }

    /// False when the loop has no place.
    fn submit(
        &mut self,
        io: &mut Io,
        role: FileRole,
        op: runtime::DiskOp,
        started: Started,
    ) -> bool {
        let place = self.free.pop().unwrap_or_else(|| {
            self.started.push(None);
            self.started.len() - 1
        });
        let token = u64::try_from(place).unwrap_or(u64::MAX);
        let taken = io.disk(self.file(role), DiskRequest { op, token }).is_ok();
        if taken {
            self.started[place] = Some(started);
        } else {
            self.free.push(place);
        }
        taken
    }

    /// What a completion of the loop means for the store. `None`: the operation goes on.
    pub(crate) fn done(&mut self, io: &mut Io, done: DiskDone) -> Option<Completed> {
        let place = usize::try_from(done.token).ok()?;
        let Started { tag, what } = self.started.get_mut(place)?.take()?;
        self.free.push(place);
        let unsupported = done.result == Err(Errno::NOT_SUPPORTED);
        let result = match what {
            What::Read(buf) => done.result.map(|n| fill_rest(io, buf, n)),
            What::Gap(range) if unsupported => return self.overwrite(io, tag, range),
            What::Overwriting(range) if done.result.is_ok() => {
                return self.overwrite(io, tag, range);
            }
            What::Reservation if unsupported => Ok(()),
            What::Gap(_) | What::Overwriting(_) | What::Reservation | What::Plain => {
                done.result.map(|_| ())
            }
        };
        Some((tag, result.map_err(kind)))
    }

    /// Writes the next zeroes of a range. `Some` when it is over.
    fn overwrite(&mut self, io: &mut Io, tag: DiskTag, range: Overwrite) -> Option<Completed> {
        let left = range
            .end
            .saturating_sub(range.next)
            .min(u64::from(ZERO_STEP_BYTES));
        let left = u32::try_from(left).unwrap_or(0);
        if left == 0 {
            return Some((tag, Ok(())));
        }
        let rest = Overwrite {
            next: range.next + u64::from(left),
            ..range
        };
        let started = self.zeroes(io).is_some_and(|zeroes| {
            let op = runtime::DiskOp::Write {
                offset: range.next,
                buf: zeroes.slice(0, left),
                dsync: false,
            };
            let what = What::Overwriting(rest);
            self.submit(io, range.role, op, Started { tag, what })
        });
        // No memory or no place: the store treats the entry as failed and tries it again.
        (!started).then_some((tag, Err(DiskError::Io)))
    }

    fn zeroes(&mut self, io: &mut Io) -> Option<BufSlice> {
        if self.zeroes.is_none() {
            let buf = io.arena().alloc(ZERO_STEP_BYTES)?;
            io.arena().bytes_mut(buf).fill(0);
            self.zeroes = Some(buf);
        }
        self.zeroes
    }
}

/// A read that ended short ended at the end of the file.
fn fill_rest(io: &mut Io, buf: BufSlice, found: u32) {
    if found < buf.len {
        io.arena()
            .bytes_mut(buf.slice(found, buf.len - found))
            .fill(0);
    }
}

fn kind(error: Errno) -> DiskError {
    if error.is_no_space() {
        DiskError::NoSpace
    } else {
        DiskError::Io
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use trilith_block::{ConnId, Monotonic, StreamEvent, Want};
    use trilith_runtime::{
        ArenaConfig, Backend, DataFile, Handler, ListenerId, Loop, LoopConfig, OpenFile,
    };

    struct Host {
        disk: StoreDisk,
        completed: Vec<Completed>,
    }

    impl Handler for Host {
        fn accepted(&mut self, _io: &mut Io, _listener: ListenerId, _conn: ConnId) {}
        fn stream(&mut self, _io: &mut Io, _conn: ConnId, _event: StreamEvent<'_>) {}
        fn want(&mut self, _io: &mut Io, _conn: ConnId) -> Want {
            Want::Pause
        }
        fn disk(&mut self, io: &mut Io, done: DiskDone) {
            self.completed.extend(self.disk.done(io, done));
            self.disk.retry(io);
        }
        fn settle(&mut self, _io: &mut Io, _now: Monotonic) {}
        fn deadline(&self) -> Option<Monotonic> {
            None
        }
    }

    /// A loop and a store on one file of 1 MiB of ones in `dir`.
    fn set_up(dir: &std::path::Path) -> (Loop, Host) {
        let arena = ArenaConfig {
            budget_bytes: 4 << 20,
            huge_pages: false,
        };
        let mut turns = Loop::new(LoopConfig {
            backend: Backend::Plain,
            arena,
            ..LoopConfig::default()
        })
        .unwrap();
        std::fs::write(dir.join("file"), vec![1; 1 << 20]).unwrap();
        let how = OpenFile {
            direct: false,
            ..OpenFile::existing(dir.join("file"))
        };
        let file = turns.io().adopt(DataFile::open(&how).unwrap()).unwrap();
        (
            turns,
            Host {
                disk: StoreDisk::new(file, Some(file)),
                completed: Vec::new(),
            },
        )
    }

    fn run(turns: &mut Loop, host: &mut Host, op: DiskOp) -> Completed {
        host.disk.start(turns.io(), DiskTag(7), op);
        while host.completed.is_empty() {
            turns.turn(host, Duration::from_secs(10)).unwrap();
        }
        host.completed.remove(0)
    }

    #[test]
    fn ranges_become_zero_whatever_the_file_system_can() {
        // tmpfs cannot zero a range, so that one is overwritten; the other may be able to.
        for base in [std::path::Path::new("/dev/shm"), &std::env::temp_dir()] {
            let dir = tempfile::tempdir_in(base).unwrap();
            let (mut turns, mut host) = set_up(dir.path());
            let (role, offset, len) = (FileRole::Data, 4096, 600 * 1024);
            let op = DiskOp::ZeroRange { role, offset, len };
            assert_eq!(run(&mut turns, &mut host, op), (DiskTag(7), Ok(())));
            let op = DiskOp::PunchHole {
                role,
                offset: 700 * 1024,
                len: 4096,
            };
            assert_eq!(run(&mut turns, &mut host, op), (DiskTag(7), Ok(())));
            let found = std::fs::read(dir.path().join("file")).unwrap();
            let zero = |at: usize| {
                (4096..4096 + 600 * 1024).contains(&at) || (700 * 1024..704 * 1024).contains(&at)
            };
            for (at, byte) in found.iter().enumerate() {
                assert_eq!(*byte == 0, zero(at), "byte {at} in {}", base.display());
            }
        }
    }

    #[test]
    fn what_lies_beyond_the_end_of_a_file_reads_zero() {
        let dir = tempfile::tempdir().unwrap();
        let (mut turns, mut host) = set_up(dir.path());
        let buf = turns.io().arena().alloc(8192).unwrap();
        turns.io().arena().bytes_mut(buf).fill(9);
        let op = DiskOp::Read {
            role: FileRole::Meta,
            offset: (1 << 20) - 4096,
            buf,
        };
        assert_eq!(run(&mut turns, &mut host, op), (DiskTag(7), Ok(())));
        let bytes = turns.io().arena().bytes(buf).to_vec();
        assert!(bytes[..4096].iter().all(|b| *b == 1) && bytes[4096..].iter().all(|b| *b == 0));
    }

    #[test]
    fn parts_of_one_read_share_a_tag_and_keep_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut turns, mut host) = set_up(dir.path());
        let buf = turns.io().arena().alloc(1 << 20).unwrap();
        for round in 0..20 {
            turns.io().arena().bytes_mut(buf).fill(9);
            // A short part, a hole, a long part: the short one ends first.
            for part in [buf.slice(0, 4096), buf.slice(65536, 900 * 1024)] {
                let offset = u64::from(part.offset);
                let (role, buf) = (FileRole::Data, part);
                let op = DiskOp::Read { role, offset, buf };
                host.disk.start(turns.io(), DiskTag(7), op);
            }
            while host.completed.len() < 2 {
                turns.turn(&mut host, Duration::from_secs(10)).unwrap();
            }
            assert_eq!(host.completed, [(DiskTag(7), Ok(())); 2]);
            host.completed.clear();
            let bytes = turns.io().arena().bytes(buf);
            assert!(bytes[..4096].iter().all(|b| *b == 1), "round {round}");
            assert!(bytes[4096..65536].iter().all(|b| *b == 9), "round {round}");
            let long = &bytes[65536..65536 + 900 * 1024];
            assert!(long.iter().all(|b| *b == 1), "round {round}");
        }
    }
}
