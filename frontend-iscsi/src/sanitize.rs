//! SANITIZE (SBC-3 4.11, 5.30): OVERWRITE and BLOCK ERASE write every block of the volume, through
//! the engine and so on all replicas that are in sync (others are brought up by a rebuild), then
//! flush; BLOCK ERASE unmaps the blocks after that. It goes on through resets and ends of
//! sessions. It does not go on after a restart of this process: therefore IMMED is refused, so that
//! nobody is told GOOD before all is done.

use crate::bytes::{be16, byte};
use crate::conn::Conn;
use crate::limits::SANITIZE_BYTES_PER_SECOND_MAX;
use crate::scsi::disk::Disk;
use crate::scsi::plan::{Job, List, Plan, Work};
use crate::scsi::sense::{Sense, status};
use crate::target::{IscsiTarget, Out};
use crate::task::{Failure, Task};
use crate::work::fill;
use core::time::Duration;
use trilith_block::{BufSlice, Buffers, Monotonic};

/// Service actions.
const OVERWRITE: u8 = 0x01;
const BLOCK_ERASE: u8 = 0x02;
const EXIT_FAILURE_MODE: u8 = 0x1f;
/// Number of a state that is never kept: the command waits until it is told to end.
pub(crate) const NEVER: u64 = u64::MAX;

/// How far the unit's sanitizing is.
#[derive(Debug, Default)]
pub(crate) struct Sanitize {
    /// The slot that tasks of ours belong to: that of no connection.
    slot: Option<usize>,
    /// The task that does it.
    pub(crate) task: Option<usize>,
    /// The command that waits for its end.
    asked: Option<(usize, u32)>,
    /// Blocks are unmapped at the end.
    erases: bool,
    /// What comes after the overwriting: counts the steps.
    step: u8,
    /// The last one has failed, and nobody has left the failure mode.
    pub(crate) failed: bool,
    /// When the next part may be written.
    pub(crate) wake: Option<Monotonic>,
    next: Monotonic,
}

/// Judges a SANITIZE command.
pub(crate) fn plan(disk: &Disk, cdb: &[u8; 16]) -> Result<Plan, Sense> {
    // IMMED (see the head of this file), ZNR; AUSE is accepted: failure mode can always be left.
    if cdb[1] & 0xc0 != 0 {
        return Err(Sense::cdb(1));
    }
    if let Some(at) = (2u16..7).find(|at| cdb[usize::from(*at)] != 0) {
        return Err(Sense::cdb(at));
    }
    let len = u64::from(be16(cdb, 7));
    match cdb[1] & 0x1f {
        OVERWRITE if (5..=u64::from(disk.block_bytes()) + 4).contains(&len) => Ok(Plan::Run(Job {
            work: Work::Take(List::Sanitize),
            lba: 0,
            blocks: 0,
            fua: false,
            out_bytes: len,
            in_bytes: 0,
        })),
        BLOCK_ERASE | EXIT_FAILURE_MODE if len == 0 => Ok(Plan::Sanitize {
            erase: cdb[1] & 0x1f == BLOCK_ERASE,
        }),
        OVERWRITE | BLOCK_ERASE | EXIT_FAILURE_MODE => Err(Sense::cdb(7)),
        _ => Err(Sense::cdb(1)),
    }
}

/// The pattern of an OVERWRITE parameter list.
fn pattern(disk: &Disk, bytes: &[u8], list: BufSlice) -> Result<BufSlice, Sense> {
    let len = u32::from(be16(bytes, 2));
    let count = byte(bytes, 0) & 0x1f;
    // INVERT and TEST are not supported. One pass stands for any number of them: what is written
    // once over a block device cannot be read back through it.
    if byte(bytes, 0) & 0xe0 != 0 || count != 1 {
        return Err(Sense::INVALID_FIELD);
    }
    if len == 0 || len > disk.block_bytes() || list.len != 4 + len {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(list.slice(4, len))
}

impl IscsiTarget {
    /// Refuses commands that must wait for the end of sanitizing, or for the end of its failure.
    pub(crate) fn judge_sanitizing(&self, cdb: &[u8; 16]) -> Result<(), Failure> {
        let excused = matches!(cdb[0], 0x12 | 0xa0 | 0x03);
        match self.sanitizing_sense() {
            Some(sense) if !excused => Err(Failure::Sense(sense)),
            _ => Ok(()),
        }
        .and_then(|()| {
            let medium = !excused && !matches!(cdb[0], 0x00 | 0x48 | 0x5e | 0xa3 | 0x25 | 0x9e);
            if self.sanitize.failed && medium {
                return Err(Failure::Sense(Sense::SANITIZE_FAILED));
            }
            Ok(())
        })
    }

    /// NOT READY with the progress, while sanitizing.
    pub(crate) fn sanitizing_sense(&self) -> Option<Sense> {
        let task = &self.tasks[self.sanitize.task?];
        let done = task.next.min(task.total) / (task.total / 0x1_0000).max(1);
        Some(Sense {
            progress: Some(u16::try_from(done).unwrap_or(u16::MAX)),
            ..Sense::SANITIZING
        })
    }

    /// Leaves the failure mode.
    pub(crate) fn exit_failure_mode(&mut self) {
        self.sanitize.failed = false;
    }

    /// Starts sanitizing for task `t`. `list`: the parameter list of OVERWRITE; BLOCK ERASE has
    /// none.
    pub(crate) fn start_sanitize(
        &mut self,
        t: usize,
        list: Option<BufSlice>,
        data: &mut dyn Buffers,
    ) -> Result<(), Failure> {
        if self.disk.is_protected() {
            return Err(Failure::Sense(Sense::WRITE_PROTECTED));
        }
        // What is still being written could be written after its place was overwritten.
        let busy = |(at, task): (usize, &Task)| at != t && task.active;
        if self.sanitize.task.is_some() || self.tasks.iter().enumerate().any(busy) {
            return Err(Failure::Status(status::BUSY));
        }
        let source = match list {
            Some(list) => {
                let found = pattern(&self.disk, data.bytes(list), list);
                Some(found.map_err(Failure::Sense)?)
            }
            None => None,
        };
        let Some(block) = data.alloc(self.disk.block_bytes()) else {
            return Err(Failure::Status(status::BUSY));
        };
        match source {
            Some(source) => fill(block, source, data),
            None => data.bytes_mut(block).fill(0),
        }
        let slot = *self.sanitize.slot.get_or_insert_with(|| {
            self.conns.push(Conn::new());
            self.conns.len() - 1
        });
        let own = self.take_task_slot();
        self.next_seq += 1;
        let total = self.disk.bytes(self.disk.blocks);
        let task = &mut self.tasks[own];
        task.renew(slot, self.next_seq);
        task.internal = true;
        task.work = Work::Fill;
        task.total = total;
        task.pattern = Some(block);
        self.tasks[t].keeping = Some(NEVER);
        self.sanitize = Sanitize {
            slot: Some(slot),
            task: Some(own),
            asked: Some((t, self.tasks[t].generation)),
            erases: list.is_none(),
            wake: Some(self.now),
            next: self.now,
            ..Sanitize::default()
        };
        Ok(())
    }

    /// True when a part of `len` bytes may be written now; if not, `settle` looks again.
    pub(crate) fn may_sanitize(&mut self, len: u64) -> bool {
        if self.now < self.sanitize.next {
            self.sanitize.wake = Some(self.sanitize.next);
            return false;
        }
        let span = Duration::from_secs(len.saturating_mul(1000) / SANITIZE_BYTES_PER_SECOND_MAX);
        self.sanitize.next = self.now.after(span / 1000);
        true
    }

    /// Goes on, at the time that [`IscsiTarget::may_sanitize`] has set.
    pub(crate) fn go_on_sanitizing(&mut self, data: &mut dyn Buffers, out: &mut Out) {
        if self.sanitize.wake.is_some_and(|wake| wake <= self.now) {
            self.sanitize.wake = None;
            if let Some(t) = self.sanitize.task {
                self.feed(t, data, out);
            }
        }
    }

    /// A step is over: overwrite, flush, and for BLOCK ERASE discard, flush.
    pub(crate) fn sanitize_step(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        let task = &mut self.tasks[t];
        let failed = task.failure.is_some();
        self.sanitize.step += 1;
        let next = match self.sanitize.step {
            _ if failed => None,
            1 => Some(Work::Flush),
            2 if self.sanitize.erases => Some(Work::Discard),
            3 => Some(Work::Flush),
            _ => None,
        };
        if let Some(work) = next {
            task.turn_to(work);
            self.feed(t, data, out);
            return;
        }
        task.internal = false;
        task.aborted = true;
        self.end_if_over(t, data, out);
        self.sanitize.task = None;
        self.sanitize.wake = None;
        self.sanitize.failed = failed;
        let Some((asked, generation)) = self.sanitize.asked.take() else {
            return;
        };
        let task = &mut self.tasks[asked];
        if task.active && task.generation == generation {
            task.keeping = None;
            if failed {
                task.fail(Failure::Sense(Sense::SANITIZE_FAILED));
            }
            self.end_if_over(asked, data, out);
        }
    }
}
