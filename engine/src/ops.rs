//! Requests of clients from submit to completion.

use crate::api::Mode;
use crate::engine::{Cx, Engine};
use crate::slowest::Answers;
use crate::status::StageLatency;
use crate::stream::PartTiming;
use core::time::Duration;
use trilith_block::limits::TRANSFER_BYTES_MAX;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    BufSlice, Buffers, ByteRange, Completion, ErrorKind, Idx, Monotonic, Op, Outcome, Request,
    RequestFlags, Tag,
};

/// Whether a request still needs a FLUSH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FlushNeed {
    /// Not now.
    None,
    /// It waits for one to be issued or to be durable.
    Waiting,
    /// It has had it.
    Done,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) tag: Tag,
    pub(crate) op: Op,
    pub(crate) flags: RequestFlags,
    pub(crate) range: ByteRange,
    /// The client's buffer; one owner is here.
    pub(crate) data: Option<BufSlice>,
    pub(crate) submitted: Monotonic,
    /// When it last got anywhere.
    pub(crate) progress: Monotonic,
    /// First byte that is not in a part yet (M20).
    pub(crate) next: u64,
    /// Parts without a place in the stream.
    pub(crate) unissued: u32,
    /// Parts not committed, those without a place included.
    pub(crate) parts: u32,
    /// It has all the parts it may have at once and is not in the inbox.
    pub(crate) parked: bool,
    pub(crate) flush: FlushNeed,
    pub(crate) last_idx: Idx,
    pub(crate) issued_at: Monotonic,
    /// First send; 0: nothing was sent yet.
    pub(crate) sent_at: Monotonic,
    pub(crate) committed_at: Monotonic,
    /// After its submission.
    pub(crate) answers: Answers,
    pub(crate) error: Option<ErrorKind>,
}

/// How long an operation was in each stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Times {
    pub(crate) admit: Duration,
    pub(crate) queue: Duration,
    pub(crate) replicate: Duration,
    pub(crate) reply: Duration,
}

impl Operation {
    /// The stages up to `now`, when it ends. They add up to the whole.
    pub(crate) fn times(&self, now: Monotonic) -> Times {
        let issued = self.issued_at.max(self.submitted);
        let sent = self.sent_at.max(issued);
        let committed = self.committed_at.max(sent);
        Times {
            admit: issued.since(self.submitted),
            queue: sent.since(issued),
            replicate: committed.since(sent),
            reply: now.since(committed),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.range.offset.saturating_add(self.range.len)
    }

    pub(crate) fn expanded(&self) -> bool {
        self.next >= self.end()
    }
}

/// What is wrong with a request by itself, given the size of the volume.
fn check(request: &Request, capacity: u64) -> Result<(), ErrorKind> {
    let range = request.range;
    let data_ok = match (request.op, request.data) {
        (Op::Write, Some(data)) => u64::from(data.len) == range.len,
        (Op::Write, None) => false,
        (_, data) => data.is_none(),
    };
    let inside = range.end().is_some_and(|end| end <= capacity);
    let len_ok = match request.op {
        Op::Flush => true,
        Op::Read | Op::Write | Op::Prefetch => {
            range.len > 0 && range.len <= u64::from(TRANSFER_BYTES_MAX)
        }
        Op::Discard | Op::WriteZeroes | Op::BlockStatus => range.len > 0,
    };
    let inside = inside || request.op == Op::Flush;
    if data_ok && inside && len_ok {
        Ok(())
    } else {
        Err(ErrorKind::InvalidRange)
    }
}

impl Engine {
    /// Takes a request, or gives it back when there are too many.
    pub(crate) fn take_request(
        &mut self,
        now: Monotonic,
        request: Request,
        data: &mut dyn Buffers,
    ) -> Result<(), Request> {
        self.now = self.now.max(now);
        self.requested_at = self.now;
        if self.ops.len() >= self.cfg.sizes.requests_max {
            return Err(request);
        }
        if self.is_finished() || self.stop.is_some() {
            self.refuse_request(&request, ErrorKind::Fenced, data);
            return Ok(());
        }
        if self.capacity > 0
            && let Err(kind) = check(&request, self.capacity)
        {
            self.refuse_request(&request, kind, data);
            return Ok(());
        }
        let key = self.ops.insert(Operation {
            tag: request.tag,
            op: request.op,
            flags: request.flags,
            range: request.range,
            data: request.data,
            submitted: now,
            progress: now,
            next: request.range.offset,
            unissued: 0,
            parts: 0,
            parked: false,
            flush: FlushNeed::None,
            last_idx: Idx(0),
            issued_at: now,
            sent_at: Monotonic(0),
            committed_at: now,
            answers: Answers::default(),
            error: None,
        });
        if self.capacity == 0 {
            self.unchecked.push(key);
        } else {
            self.dispatch(key, data);
        }
        Ok(())
    }

    fn refuse_request(&mut self, request: &Request, kind: ErrorKind, data: &mut dyn Buffers) {
        if let Some(buf) = request.data {
            data.release(buf.buf);
        }
        self.counters.errors += 1;
        self.completions.push(Completion {
            tag: request.tag,
            result: Err(kind),
        });
    }

    /// Requests that came before the size of the volume was known.
    pub(crate) fn check_early(&mut self, cx: &mut Cx<'_>) {
        if self.capacity == 0 || self.unchecked.is_empty() {
            return;
        }
        let keys = core::mem::take(&mut self.unchecked);
        for key in keys {
            let Some(op) = self.ops.get(key) else {
                continue;
            };
            let request = Request {
                tag: op.tag,
                op: op.op,
                range: op.range,
                flags: op.flags,
                data: op.data,
            };
            match check(&request, self.capacity) {
                Ok(()) => self.dispatch(key, cx.data),
                Err(kind) => self.finish_op(key, Err(kind), cx.data),
            }
        }
    }

    fn dispatch(&mut self, key: u64, data: &mut dyn Buffers) {
        let Some(op) = self.ops.get_mut(key) else {
            return;
        };
        match op.op {
            Op::Read => self.read_inbox.push_back(key),
            Op::Write | Op::Discard | Op::WriteZeroes => self.inbox.push_back(key),
            Op::Flush => {
                op.next = op.end();
                op.flush = FlushNeed::Waiting;
                self.flush_wait.push(key);
            }
            Op::Prefetch => self.finish_op(key, Ok(Outcome::Done), data),
            Op::BlockStatus => self.status_inbox.push_back(key),
        }
    }

    /// A part of a request has its place in the stream.
    pub(crate) fn part_issued(&mut self, key: u64, idx: Idx, now: Monotonic) {
        let Some(op) = self.ops.get_mut(key) else {
            return;
        };
        op.unissued -= 1;
        op.last_idx = op.last_idx.max(idx);
        op.issued_at = now;
        // The flush of a FUA write goes right behind its last part (4.1).
        if op.flags.fua && op.unissued == 0 && op.expanded() && op.flush == FlushNeed::None {
            op.flush = FlushNeed::Waiting;
            self.flush_wait.push(key);
        }
    }

    /// A part of a request is committed.
    pub(crate) fn part_committed(
        &mut self,
        key: u64,
        idx: Idx,
        timing: &PartTiming,
        cx: &mut Cx<'_>,
    ) {
        let Some(op) = self.ops.get_mut(key) else {
            return;
        };
        op.parts -= 1;
        op.last_idx = op.last_idx.max(idx);
        op.issued_at = timing.issued_at;
        op.sent_at = timing.sent_at;
        let later = timing.issued_at.since(op.submitted);
        op.answers.merge(&timing.answers, later);
        op.progress = cx.now;
        op.committed_at = cx.now;
        if op.parked && !op.expanded() {
            op.parked = false;
            self.inbox.push_back(key);
        }
        self.try_finish(key, cx.data);
    }

    /// Completes a write-like request whose last part or flush is done.
    pub(crate) fn try_finish(&mut self, key: u64, data: &mut dyn Buffers) {
        let Some(op) = self.ops.get(key) else { return };
        if let Some(kind) = op.error {
            if op.unissued == 0 && op.parts == 0 {
                self.finish_op(key, Err(kind), data);
            }
        } else if op.expanded()
            && op.parts == 0
            && (op.flush == FlushNeed::Done
                || (op.flush == FlushNeed::None && !op.flags.fua)
                || (op.flags.fua && mutant::on(Mutant::FuaWithoutFlush)))
        {
            self.finish_op(key, Ok(Outcome::Done), data);
        }
    }

    /// Ends a request. Its parts, if there are any left, end without it.
    pub(crate) fn finish_op(
        &mut self,
        key: u64,
        result: Result<Outcome, ErrorKind>,
        data: &mut dyn Buffers,
    ) {
        let Some(op) = self.ops.remove(key) else {
            if let Ok(Outcome::Data(buf) | Outcome::Extents(buf)) = result {
                data.release(buf.buf);
            }
            return;
        };
        if let Some(buf) = op.data {
            data.release(buf.buf);
        }
        self.account(&op, result.is_ok());
        self.completions.push(Completion {
            tag: op.tag,
            result,
        });
    }

    fn account(&mut self, op: &Operation, ok: bool) {
        self.load_completed += 1;
        self.slowest.note(op, ok, self.now);
        if !ok {
            self.counters.errors += 1;
            return;
        }
        let total = self.now.since(op.submitted);
        let stages = match op.op {
            Op::Read => {
                self.counters.reads += 1;
                self.counters.read_bytes += op.range.len;
                &mut self.latencies.read
            }
            Op::Write => {
                self.counters.writes += 1;
                self.counters.write_bytes += op.range.len;
                &mut self.latencies.write
            }
            Op::Discard | Op::WriteZeroes => {
                self.counters.discards += 1;
                &mut self.latencies.write
            }
            Op::Flush => {
                self.counters.flushes += 1;
                &mut self.latencies.flush
            }
            Op::Prefetch | Op::BlockStatus => return,
        };
        record(stages, &op.times(self.now), total);
        self.load_latency.record(total);
    }

    /// Fails every request that cannot be served now, once it has been so for `quorum_wait`
    /// (M12), and requests that got nowhere for that long.
    pub(crate) fn expire_requests(&mut self, cx: &mut Cx<'_>) {
        let wait = self.cfg.timing.quorum_wait;
        let outage = self
            .unserved_since
            .is_some_and(|at| at.after(wait) <= cx.now);
        let mode = self.mode;
        let kind = if mode.reads() {
            ErrorKind::ReadOnly
        } else {
            ErrorKind::Io
        };
        let late = self.ops.keys(|op| {
            let stuck = op.progress.after(wait) <= cx.now;
            stuck || (outage && !(mode.reads() && matches!(op.op, Op::Read | Op::BlockStatus)))
        });
        for key in late {
            let Some(op) = self.ops.get(key) else {
                continue;
            };
            let read = matches!(op.op, Op::Read | Op::BlockStatus);
            let kind = if read || mode.is_active() {
                ErrorKind::Io
            } else {
                kind
            };
            self.abandon(key, kind, cx);
        }
    }

    /// Ends a request early. What it has in the stream stays there (M3).
    pub(crate) fn abandon(&mut self, key: u64, kind: ErrorKind, cx: &mut Cx<'_>) {
        for entry in &mut self.stream.entries {
            if entry.op == Some(key) {
                entry.op = None;
            }
        }
        self.finish_op(key, Err(kind), cx.data);
        self.drop_orphans(cx);
    }

    /// Ends all requests: the engine is done for.
    pub(crate) fn abandon_all(&mut self, kind: ErrorKind, cx: &mut Cx<'_>) {
        for entry in &mut self.stream.entries {
            entry.op = None;
        }
        for key in self.ops.keys(|_| true) {
            self.finish_op(key, Err(kind), cx.data);
        }
        self.drop_orphans(cx);
    }

    /// True when the engine is in a mode that never ends.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.mode, Mode::Stopped | Mode::Fenced)
    }
}

fn record(stages: &mut StageLatency, times: &Times, total: Duration) {
    stages.admit.record(times.admit);
    stages.queue.record(times.queue);
    stages.replicate.record(times.replicate);
    stages.reply.record(times.reply);
    stages.total.record(total);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A write of a block.
    pub(crate) fn operation(submitted: Monotonic) -> Operation {
        Operation {
            tag: Tag(1),
            op: Op::Write,
            flags: RequestFlags::default(),
            range: ByteRange::new(0, 4096),
            data: None,
            submitted,
            progress: submitted,
            next: 4096,
            unissued: 0,
            parts: 0,
            parked: false,
            flush: FlushNeed::None,
            last_idx: Idx(0),
            issued_at: submitted,
            sent_at: Monotonic(0),
            committed_at: submitted,
            answers: Answers::default(),
            error: None,
        }
    }

    #[test]
    fn stages_add_up_to_the_whole() {
        let ns = Duration::from_nanos;
        for (issued, sent, committed, expected) in [
            (110, 130, 160, [10, 20, 30, 40]),
            (110, 0, 160, [10, 0, 50, 40]),
            (100, 0, 100, [0, 0, 0, 100]),
            (150, 120, 100, [50, 0, 0, 50]),
        ] {
            let mut op = operation(Monotonic(100));
            op.issued_at = Monotonic(issued);
            op.sent_at = Monotonic(sent);
            op.committed_at = Monotonic(committed);
            let times = op.times(Monotonic(200));
            let found = [times.admit, times.queue, times.replicate, times.reply];
            assert_eq!(found, expected.map(ns));
            assert_eq!(found.iter().sum::<Duration>(), ns(100));
        }
    }
}
