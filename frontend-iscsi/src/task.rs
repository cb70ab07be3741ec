//! One SCSI task: a command from its arrival to its status, and the parts that it is done in.

use crate::limits::{PART_BYTES_MAX, PARTS_MAX};
use crate::scsi::copy::Span;
use crate::scsi::plan::{List, Work};
use crate::scsi::sense::Sense;
use alloc::vec::Vec;
use trilith_block::BufSlice;

/// How a task ends before all of it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    Sense(Sense),
    /// A status without sense data.
    Status(u8),
}

/// Where a part is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Stage {
    #[default]
    Idle,
    /// Data of the initiator is coming.
    Collect,
    /// Waits for its turn among conflicting parts.
    Waiting,
    /// The engine reads.
    Read,
    /// The engine writes, discards, flushes or looks.
    Write,
    /// The engine reads back what was written.
    Verify,
    /// Data that waits until all before it is sent.
    Ready,
}

/// A part of a task: at most one request at the engine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Part {
    pub(crate) stage: Stage,
    /// Place within the task's data, in bytes.
    pub(crate) at: u64,
    /// Bytes of the volume.
    pub(crate) len: u64,
    /// Bytes that the initiator sends for it.
    pub(crate) want: u32,
    /// Place in the volume to read from.
    pub(crate) source: u64,
    /// Place in the volume to write to.
    pub(crate) target: u64,
    pub(crate) buf: Option<BufSlice>,
    /// Bytes drawn from the pool.
    pub(crate) held: u64,
    /// Bytes that have arrived.
    pub(crate) got: u32,
    /// Where the current sequence of Data-Out PDUs ends, in bytes of the part.
    pub(crate) burst_end: u32,
    pub(crate) ttt: u32,
    pub(crate) data_sn: u32,
}

impl Part {
    /// True when a request of it is at the engine.
    pub(crate) fn is_at_engine(&self) -> bool {
        matches!(self.stage, Stage::Read | Stage::Write | Stage::Verify)
    }
}

/// What a new part is to cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) want: u32,
    pub(crate) source: u64,
    pub(crate) target: u64,
}

/// A task slot.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) active: bool,
    pub(crate) generation: u32,
    /// Connection slot of its session.
    pub(crate) slot: usize,
    /// Order of arrival over all sessions.
    pub(crate) seq: u64,
    pub(crate) itt: u32,
    pub(crate) lun: [u8; 8],
    pub(crate) immediate: bool,
    /// Task attribute ORDERED.
    pub(crate) ordered: bool,
    pub(crate) work: Work,
    pub(crate) fua: bool,
    /// Expected data transfer length, and whether it is for data to the initiator.
    pub(crate) expected: u32,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    /// Data that the command wants to move, in bytes; for residuals.
    pub(crate) required: u64,
    /// First byte of the volume.
    pub(crate) base: u64,
    /// Bytes of the volume that the work covers.
    pub(crate) total: u64,
    /// Bytes handed to parts.
    pub(crate) next: u64,
    /// Work that is one request has been handed out.
    pub(crate) started: bool,
    /// Data sent to the initiator, in bytes.
    pub(crate) sent: u64,
    /// Data that has arrived from the initiator, in bytes.
    pub(crate) received: u64,
    /// Its status has been sent.
    pub(crate) answered: bool,
    /// It counts for the session's window.
    pub(crate) windowed: bool,
    pub(crate) data_sn: u32,
    pub(crate) r2t_sn: u32,
    /// Data-In: bytes left of the current burst.
    pub(crate) burst_left: u32,
    /// Unsolicited data: how far it may go.
    pub(crate) unsolicited_end: u32,
    pub(crate) parts: [Part; PARTS_MAX],
    pub(crate) failure: Option<Failure>,
    /// No response is sent; it ends when nothing of it is in flight.
    pub(crate) aborted: bool,
    /// Waits in the pool's queue.
    pub(crate) waiting: bool,
    /// The connection receives into a buffer of it.
    pub(crate) receiving: bool,
    /// Waits until reservations are kept: number of the state.
    pub(crate) keeping: Option<u64>,
    /// A task of ours that no initiator has asked for.
    pub(crate) internal: bool,
    /// Waits until tasks that it has aborted are gone.
    pub(crate) fencing: bool,
    /// Ranges of UNMAP and EXTENDED COPY.
    pub(crate) spans: Vec<Span>,
    pub(crate) span: usize,
    pub(crate) list_id: u8,
    /// The block of WRITE SAME.
    pub(crate) pattern: Option<BufSlice>,
    pub(crate) cdb: [u8; 16],
}

impl Task {
    pub(crate) fn new() -> Task {
        Task {
            active: false,
            generation: 0,
            slot: 0,
            seq: 0,
            itt: 0,
            lun: [0; 8],
            immediate: false,
            ordered: false,
            work: Work::Flush,
            fua: false,
            expected: 0,
            reads: false,
            writes: false,
            required: 0,
            base: 0,
            total: 0,
            next: 0,
            started: false,
            sent: 0,
            received: 0,
            answered: false,
            windowed: false,
            data_sn: 0,
            r2t_sn: 0,
            burst_left: 0,
            unsolicited_end: 0,
            parts: [Part::default(); PARTS_MAX],
            failure: None,
            aborted: false,
            waiting: false,
            receiving: false,
            keeping: None,
            internal: false,
            fencing: false,
            spans: Vec::new(),
            span: 0,
            list_id: 0,
            pattern: None,
            cdb: [0; 16],
        }
    }

    /// Makes the slot that of a new command; its memory is reused.
    pub(crate) fn renew(&mut self, slot: usize, seq: u64) {
        let mut spans = core::mem::take(&mut self.spans);
        spans.clear();
        *self = Task {
            active: true,
            generation: self.generation,
            slot,
            seq,
            spans,
            ..Task::new()
        };
    }

    /// True when nothing more is started.
    pub(crate) fn is_stopped(&self) -> bool {
        self.aborted || self.failure.is_some()
    }

    /// True when no part is in use.
    pub(crate) fn is_idle(&self) -> bool {
        self.parts.iter().all(|part| part.stage == Stage::Idle)
    }

    /// Parts that wait for data of the initiator.
    fn collecting(&self) -> usize {
        let parts = self.parts.iter();
        parts.filter(|part| part.stage == Stage::Collect).count()
    }

    /// Keeps the first failure.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// What the next part is to do, if there is something left and it may start now. `r2ts`:
    /// parts that may collect at one time.
    pub(crate) fn next_piece(&self, r2ts: u32) -> Option<Piece> {
        if self.work.collects() && self.collecting() >= r2ts as usize {
            return None;
        }
        match self.work {
            Work::Take(_) | Work::CompareWrite => {
                let want = u32::try_from(self.required.min(u64::from(self.expected))).ok()?;
                (!self.started).then_some(Piece {
                    at: 0,
                    len: self.total,
                    want,
                    source: self.base,
                    target: self.base,
                })
            }
            Work::Flush | Work::WriteZeroes | Work::Discard | Work::Prefetch | Work::LbaStatus => {
                (!self.started).then_some(Piece {
                    at: 0,
                    len: self.total,
                    want: 0,
                    source: self.base,
                    target: self.base,
                })
            }
            Work::Unmap => self.next_span(u64::MAX),
            Work::Copy if self.is_idle() => self.next_span(u64::from(PART_BYTES_MAX)),
            Work::Copy => None,
            Work::Read
            | Work::Write
            | Work::WriteVerify { .. }
            | Work::VerifyMedium
            | Work::VerifyData
            | Work::OrWrite
            | Work::Fill => {
                let len = (self.total - self.next).min(u64::from(PART_BYTES_MAX));
                let want = if self.work.collects() {
                    u32::try_from(len).ok()?
                } else {
                    0
                };
                (len > 0).then_some(Piece {
                    at: self.next,
                    len,
                    want,
                    source: self.base + self.next,
                    target: self.base + self.next,
                })
            }
        }
    }

    fn next_span(&self, len_max: u64) -> Option<Piece> {
        let span = self.spans.get(self.span)?;
        Some(Piece {
            at: self.next,
            len: (span.len - self.next).min(len_max),
            want: 0,
            source: span.source + self.next,
            target: span.target + self.next,
        })
    }

    /// Notes that a part does `piece`.
    pub(crate) fn took(&mut self, piece: &Piece) {
        self.started = true;
        self.next += piece.len;
        if matches!(self.work, Work::Unmap | Work::Copy) {
            let over = self
                .spans
                .get(self.span)
                .is_none_or(|span| self.next >= span.len);
            if over {
                self.span += 1;
                self.next = 0;
            }
        }
    }

    /// True when it is a list that decides what is done.
    pub(crate) fn list(&self) -> Option<List> {
        match self.work {
            Work::Take(list) => Some(list),
            _ => None,
        }
    }

    /// Turns to the work that a list asks for.
    pub(crate) fn turn_to(&mut self, work: Work) {
        self.work = work;
        self.started = false;
        self.next = 0;
        self.span = 0;
    }
}
