//! What happens to a task: its parts get memory, data, a turn among conflicting ones, requests at
//! the engine; and it ends when nothing of it is left.

use crate::limits::PART_BYTES_MAX;
use crate::pdu::NO_TAG;
use crate::scsi::plan::Work;
use crate::scsi::sense::Sense;
use crate::tag::TagParts;
use crate::target::{IscsiTarget, Out};
use crate::task::{Failure, Part, Piece, Stage};
use trilith_block::{
    BufSlice, Buffers, ByteRange, Completion, ErrorKind, FrontendAction, Op, Outcome, Request,
    RequestFlags,
};

impl IscsiTarget {
    /// Starts as many parts of a task as there can be; ends it when nothing is left.
    pub(crate) fn feed(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        loop {
            let task = &self.tasks[t];
            if !task.active || task.is_stopped() || task.waiting {
                break;
            }
            let idle = task.parts.iter().position(|part| part.stage == Stage::Idle);
            let r2ts = self.conns[task.slot].params.r2ts;
            let (Some(p), Some(piece)) = (idle, task.next_piece(r2ts)) else {
                break;
            };
            if !self.arm(t, p, &piece, data, out) {
                if self.tasks[t].internal {
                    // Looked at again by the clock, so that nobody stands behind it.
                    self.sanitize.wake.get_or_insert(self.now);
                    break;
                }
                self.tasks[t].waiting = true;
                self.pool.waiting.push_back(t);
                break;
            }
        }
        self.end_if_over(t, data, out);
    }

    /// Lets tasks that wait for memory go on, in the order in which they came.
    pub(crate) fn feed_waiting(&mut self, data: &mut dyn Buffers, out: &mut Out) {
        let mut failed = false;
        for _ in 0..self.pool.waiting.len() {
            let Some(t) = self.pool.waiting.pop_front() else {
                break;
            };
            self.behind = Some(failed);
            self.tasks[t].waiting = false;
            let slot = self.tasks[t].slot;
            self.feed(t, data, out);
            failed |= self.tasks[t].waiting;
            self.resume(slot, data, out);
        }
        self.behind = None;
    }

    /// Gives a part its memory and starts it. False when it must wait.
    fn arm(
        &mut self,
        t: usize,
        p: usize,
        piece: &Piece,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) -> bool {
        let task = &self.tasks[t];
        let (slot, work) = (task.slot, task.work);
        if task.internal && work == Work::Fill && !self.may_sanitize(piece.len) {
            return false;
        }
        let collects = work.collects();
        let needs = match work {
            _ if collects => u64::from(piece.want),
            Work::Read | Work::VerifyMedium | Work::Copy | Work::Fill => piece.len,
            _ => 0,
        };
        let behind = self.behind.unwrap_or(!self.pool.waiting.is_empty());
        let held = &mut self.conns[slot].held;
        if needs > 0 && !self.pool.draw(held, needs, behind) {
            return false;
        }
        let mut buf = None;
        if needs > 0 && (collects || work == Work::Fill) {
            buf = data.alloc(u32::try_from(needs).unwrap_or(0));
            if buf.is_none() {
                self.pool.give(held, needs);
                self.arena_empty = true;
                return false;
            }
        }
        let task = &mut self.tasks[t];
        let first = !task.started;
        task.took(piece);
        let end = if first {
            task.unsolicited_end.min(piece.want)
        } else {
            0
        };
        task.parts[p] = Part {
            stage: if collects {
                Stage::Collect
            } else {
                Stage::Waiting
            },
            at: piece.at,
            len: piece.len,
            want: piece.want,
            source: piece.source,
            target: piece.target,
            buf,
            held: needs,
            got: 0,
            burst_end: end,
            ttt: NO_TAG,
            data_sn: 0,
        };
        if !collects {
            if let (Work::Fill, Some(buf), Some(pattern)) = (work, buf, task.pattern) {
                fill(buf, pattern, data);
            }
            self.take_turn(t, p, out);
            return true;
        }
        self.conns[slot].collecting += 1;
        if end == 0 {
            self.ask_for_data(t, p, data, out);
        }
        true
    }

    /// All data of a part is there.
    pub(crate) fn collected(&mut self, t: usize, p: usize, data: &mut dyn Buffers, out: &mut Out) {
        let task = &mut self.tasks[t];
        self.conns[task.slot].collecting -= 1;
        task.parts[p].stage = Stage::Waiting;
        if task.list().is_some() {
            self.taken(t, p, data);
            self.part_over(t, p, data, out);
            self.abort_victims(t, data, out);
        } else {
            self.take_turn(t, p, out);
        }
        self.feed(t, data, out);
    }

    /// Launches a part, or queues it behind those that it conflicts with.
    fn take_turn(&mut self, t: usize, p: usize, out: &mut Out) {
        if self.is_blocked(t, p) {
            self.tasks[t].parts[p].stage = Stage::Waiting;
            self.queue.push_back((t, p));
        } else {
            self.launch(t, p, out);
        }
    }

    /// True when an earlier part, or the order of the session's tasks, keeps a part back. Cheap
    /// while there are neither exclusive parts nor ordered tasks.
    fn is_blocked(&self, t: usize, p: usize) -> bool {
        let task = &self.tasks[t];
        if self.conns[task.slot].ordered_tasks > 0 && self.is_out_of_order(t) {
            return true;
        }
        let exclusive = task.work.is_exclusive();
        if !exclusive && !task.work.writes() {
            return false;
        }
        let conflicts = |other: &(usize, usize)| {
            let (t2, p2) = *other;
            let both = exclusive || self.tasks[t2].work.is_exclusive();
            *other != (t, p) && both && overlap(&self.tasks[t2].parts[p2], &task.parts[p])
        };
        if self.exclusive.iter().any(conflicts) || self.queue.iter().any(conflicts) {
            return true;
        }
        // Writes that are at the engine: looked for by exclusive parts only.
        exclusive
            && self.tasks.iter().any(|other| {
                other.active
                    && other.work.writes()
                    && other
                        .parts
                        .iter()
                        .any(|part| part.is_at_engine() && overlap(part, &task.parts[p]))
            })
    }

    /// SAM-5 8.6: an ORDERED task starts after all older ones of its set, before all younger ones.
    fn is_out_of_order(&self, t: usize) -> bool {
        let task = &self.tasks[t];
        self.conns[task.slot].tasks.iter().any(|(_, other)| {
            let other = &self.tasks[*other];
            other.seq < task.seq && (task.ordered || other.ordered)
        })
    }

    /// Looks at the queue again: something that kept others back is gone.
    fn retry_queue(&mut self, out: &mut Out) {
        if self.queue.is_empty() {
            return;
        }
        let queue = core::mem::take(&mut self.queue);
        for (t, p) in queue {
            self.take_turn(t, p, out);
        }
    }

    fn launch(&mut self, t: usize, p: usize, out: &mut Out) {
        let task = &mut self.tasks[t];
        let part = &mut task.parts[p];
        let (op, stage) = match task.work {
            Work::Read
            | Work::VerifyMedium
            | Work::VerifyData
            | Work::OrWrite
            | Work::CompareWrite
            | Work::Copy => (Op::Read, Stage::Read),
            Work::Write | Work::WriteVerify { .. } | Work::Fill => (Op::Write, Stage::Write),
            Work::WriteZeroes => (Op::WriteZeroes, Stage::Write),
            Work::Discard | Work::Unmap => (Op::Discard, Stage::Write),
            Work::Flush | Work::Take(_) => (Op::Flush, Stage::Write),
            Work::Prefetch => (Op::Prefetch, Stage::Write),
            Work::LbaStatus => (Op::BlockStatus, Stage::Write),
        };
        part.stage = stage;
        if task.work.is_exclusive() {
            self.exclusive.push((t, p));
        }
        let data = if op == Op::Write { part.buf } else { None };
        self.submit(t, p, op, data, out);
    }

    /// Submits a request for a part. The buffer, if there is one, passes to the engine.
    fn submit(&mut self, t: usize, p: usize, op: Op, data: Option<BufSlice>, out: &mut Out) {
        let task = &mut self.tasks[t];
        let part = &mut task.parts[p];
        let mut len = part.len;
        let mut offset = if op == Op::Read {
            part.source
        } else {
            part.target
        };
        if op == Op::Flush {
            (offset, len) = (0, 0);
        }
        if op == Op::Prefetch {
            // A hint: what is beyond the longest request is not worth remembering.
            len = len.min(u64::from(PART_BYTES_MAX));
        }
        if data.is_some() {
            part.buf = None;
        }
        let writes = matches!(op, Op::Write | Op::Discard | Op::WriteZeroes);
        let verified = matches!(task.work, Work::WriteVerify { .. });
        let tag = TagParts {
            part: p,
            task: t,
            generation: task.generation,
        };
        out.push(FrontendAction::Submit(Request {
            tag: tag.tag(),
            op,
            range: ByteRange::new(offset, len),
            flags: RequestFlags {
                fua: writes && (task.fua || verified),
                ..RequestFlags::default()
            },
            data,
        }));
    }

    /// A request has ended.
    pub(crate) fn completed(
        &mut self,
        completion: Completion,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let tag = TagParts::of(completion.tag);
        let (t, p) = (tag.task, tag.part);
        let known = self.tasks.get(t).is_some_and(|task| {
            task.active
                && task.generation == tag.generation
                && task.parts.get(p).is_some_and(Part::is_at_engine)
        });
        let brought = match completion.result {
            Ok(Outcome::Data(slice) | Outcome::Extents(slice)) => Some(slice),
            Ok(Outcome::Done) | Err(_) => None,
        };
        if !known {
            // Never submitted: the engine and this machine are out of step.
            debug_assert!(false, "completion of nothing: {tag:?}");
            brought.inspect(|slice| data.release(slice.buf));
            return;
        }
        if completion.result == Err(ErrorKind::Fenced) {
            // Whoever serves next, here or elsewhere, is to be asked again: an initiator keeps what
            // has no answer and sends it once it has logged in. Any sense data would end it.
            let slot = self.tasks[t].slot;
            self.close(slot, data, out);
        }
        let task = &mut self.tasks[t];
        if let Err(kind) = completion.result {
            let writes = task.work.writes() || task.parts[p].stage == Stage::Write;
            task.fail(Failure::Sense(Sense::of_engine(kind, writes)));
        }
        let written = task.parts[p].len;
        if task.parts[p].stage == Stage::Write && completion.result.is_ok() && task.work.writes() {
            self.status.bytes_written += written;
        }
        let task = &self.tasks[t];
        if task.aborted || completion.result.is_err() {
            brought.inspect(|slice| data.release(slice.buf));
            self.part_over(t, p, data, out);
        } else {
            match (task.parts[p].stage, brought) {
                (Stage::Read, Some(slice)) => self.was_read(t, p, slice, data, out),
                (Stage::Verify, Some(slice)) => self.was_read_back(t, p, slice, data, out),
                (_, brought) => self.was_done(t, p, brought, data, out),
            }
        }
        self.feed(t, data, out);
    }

    /// The medium's bytes are there.
    fn was_read(
        &mut self,
        t: usize,
        p: usize,
        slice: BufSlice,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let task = &mut self.tasks[t];
        let part = &mut task.parts[p];
        match task.work {
            Work::Read => {
                part.buf = Some(slice);
                part.stage = Stage::Ready;
                self.send_ready(t, data, out);
            }
            Work::Copy => {
                part.stage = Stage::Write;
                self.submit(t, p, Op::Write, Some(slice), out);
            }
            Work::OrWrite => {
                if let Some(buf) = part.buf {
                    merge(slice, buf, data);
                }
                data.release(slice.buf);
                part.stage = Stage::Write;
                let buf = part.buf;
                self.submit(t, p, Op::Write, buf, out);
            }
            Work::CompareWrite => {
                let Some(buf) = part.buf.filter(|buf| buf.len == slice.len * 2) else {
                    data.release(slice.buf);
                    self.part_over(t, p, data, out);
                    return;
                };
                if let Some(at) = mismatch(slice, buf.slice(0, slice.len), data) {
                    data.release(slice.buf);
                    task.fail(Failure::Sense(Sense::miscompare(at)));
                    self.part_over(t, p, data, out);
                    return;
                }
                data.copy(buf.slice(slice.len, slice.len), slice);
                data.release(buf.buf);
                part.stage = Stage::Write;
                part.buf = None;
                self.submit(t, p, Op::Write, Some(slice), out);
            }
            _ => {
                if let (Work::VerifyData, Some(buf)) = (task.work, part.buf)
                    && let Some(at) = mismatch(slice, buf, data)
                {
                    let at = part.at + at;
                    task.fail(Failure::Sense(Sense::miscompare(at)));
                }
                data.release(slice.buf);
                self.part_over(t, p, data, out);
            }
        }
    }

    /// What was written has been read back.
    fn was_read_back(
        &mut self,
        t: usize,
        p: usize,
        slice: BufSlice,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let task = &mut self.tasks[t];
        let part = &task.parts[p];
        if let Some(buf) = part.buf
            && let Some(at) = mismatch(slice, buf, data)
        {
            let at = part.at + at;
            task.fail(Failure::Sense(Sense::miscompare(at)));
        }
        data.release(slice.buf);
        self.part_over(t, p, data, out);
    }

    /// A write, discard, flush, hint or status has ended well.
    fn was_done(
        &mut self,
        t: usize,
        p: usize,
        brought: Option<BufSlice>,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let task = &mut self.tasks[t];
        match (task.work, brought) {
            (Work::WriteVerify { .. }, None) => {
                task.parts[p].stage = Stage::Verify;
                self.submit(t, p, Op::Read, None, out);
                return;
            }
            (Work::LbaStatus, Some(slice)) => {
                self.lba_status(t, slice, data, out);
                data.release(slice.buf);
            }
            (_, brought) => {
                brought.inspect(|slice| data.release(slice.buf));
            }
        }
        self.part_over(t, p, data, out);
    }

    /// A part is done with: gives its memory back and lets others have their turn.
    pub(crate) fn part_over(&mut self, t: usize, p: usize, data: &mut dyn Buffers, out: &mut Out) {
        let task = &mut self.tasks[t];
        let part = core::mem::take(&mut task.parts[p]);
        if let Some(buf) = part.buf {
            data.release(buf.buf);
        }
        let conn = &mut self.conns[task.slot];
        if part.stage == Stage::Collect {
            conn.collecting -= 1;
        }
        self.pool.give(&mut conn.held, part.held);
        if task.work.is_exclusive() {
            self.exclusive.retain(|other| *other != (t, p));
        }
        if task.work.writes() {
            self.retry_queue(out);
        }
    }

    /// Ends a task of which nothing is left.
    pub(crate) fn end_if_over(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        if !self.tasks[t].active {
            return;
        }
        if self.tasks[t].is_stopped() {
            self.shed(t, data, out);
        }
        let task = &self.tasks[t];
        if !task.active || task.receiving || !task.is_idle() {
            return;
        }
        if !task.aborted {
            let more = task.failure.is_none() && task.next_piece(1).is_some();
            if task.internal && !more {
                self.sanitize_step(t, data, out);
                return;
            }
            if task.keeping.is_some() || task.fencing {
                return;
            }
            if more {
                return;
            }
            if !task.answered {
                self.respond(t, data, out);
            }
        }
        self.free_task(t, data, out);
    }

    /// A stopped task gives up the parts that are not at the engine.
    fn shed(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        for p in 0..self.tasks[t].parts.len() {
            let task = &self.tasks[t];
            match task.parts[p].stage {
                Stage::Collect if !task.receiving => self.part_over(t, p, data, out),
                Stage::Waiting => {
                    self.queue.retain(|other| *other != (t, p));
                    self.part_over(t, p, data, out);
                }
                Stage::Ready => self.part_over(t, p, data, out),
                Stage::Idle | Stage::Collect | Stage::Read | Stage::Write | Stage::Verify => {}
            }
        }
    }

    /// Stops a task for good: no response is sent.
    pub(crate) fn abort(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        if self.tasks[t].active {
            self.tasks[t].aborted = true;
            self.end_if_over(t, data, out);
        }
    }

    /// Stops all tasks of a session.
    pub(crate) fn abort_tasks(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        for at in (0..self.conns[slot].tasks.len()).rev() {
            if let Some((_, t)) = self.conns[slot].tasks.get(at).copied() {
                self.abort(t, data, out);
            }
        }
    }

    /// A task counts no longer for its session's window: its status is next.
    pub(crate) fn leave_window(&mut self, t: usize) {
        let task = &mut self.tasks[t];
        if core::mem::take(&mut task.windowed) {
            self.conns[task.slot].window_tasks -= 1;
        }
    }

    fn free_task(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        self.leave_window(t);
        let task = &mut self.tasks[t];
        let slot = task.slot;
        task.active = false;
        task.generation = task.generation.wrapping_add(1);
        if let Some(pattern) = task.pattern.take() {
            data.release(pattern.buf);
        }
        if task.waiting {
            self.pool.waiting.retain(|other| *other != t);
        }
        let conn = &mut self.conns[slot];
        conn.tasks.retain(|(_, other)| *other != t);
        if task.immediate {
            conn.immediate_tasks -= 1;
        }
        if task.ordered {
            conn.ordered_tasks -= 1;
        }
        self.free_tasks.push(t);
        self.retry_queue(out);
        self.task_gone(t, data, out);
        self.resume(slot, data, out);
        self.close_if_done(slot, data, out);
        self.free_orphan(slot);
    }
}

/// True when parts touch a byte in common.
fn overlap(a: &Part, b: &Part) -> bool {
    a.target < b.target.saturating_add(b.len) && b.target < a.target.saturating_add(a.len)
}

/// First byte in which two slices of one length differ.
fn mismatch(a: BufSlice, b: BufSlice, data: &dyn Buffers) -> Option<u64> {
    let (a, b) = (data.bytes(a), data.bytes(b));
    if a == b {
        return None;
    }
    a.iter()
        .zip(b)
        .position(|(x, y)| x != y)
        .map(|at| at as u64)
}

/// ORs `source` into `target`.
fn merge(source: BufSlice, target: BufSlice, data: &mut dyn Buffers) {
    const STEP: u32 = 512;
    let mut chunk = [0; STEP as usize];
    let mut at = 0;
    while at < target.len {
        let len = STEP.min(target.len - at);
        let chunk = &mut chunk[..len as usize];
        chunk.copy_from_slice(data.bytes(source.slice(at, len)));
        for (into, from) in data
            .bytes_mut(target.slice(at, len))
            .iter_mut()
            .zip(&*chunk)
        {
            *into |= from;
        }
        at += len;
    }
}

/// Fills a buffer with copies of a block.
pub(crate) fn fill(buf: BufSlice, pattern: BufSlice, data: &mut dyn Buffers) {
    let mut at = 0;
    while at < buf.len {
        let len = pattern.len.min(buf.len - at);
        data.copy(pattern.slice(0, len), buf.slice(at, len));
        at += len;
    }
}
