//! What happens to a request: it is judged, waits for memory, goes to the engine in parts, and is
//! answered when all parts have ended. An answer never precedes the completion that it promises.

use crate::command::{Command, Verdict, Work};
use crate::conn::{AfterSkip, Phase};
use crate::error::NbdError;
use crate::extents::{CONTEXTS, Shape, append};
use crate::limits::REQUEST_BYTES_MAX;
use crate::proto::{chunk, flag};
use crate::reply::{Answer, ReplyMode};
use crate::server::{NbdServer, Out, send};
use crate::tag::TagParts;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    BufSlice, Buffers, ByteRange, Completion, ErrorKind, FrontendAction, Op, Outcome, Request,
};

impl NbdServer {
    /// A request header has arrived.
    pub(crate) fn command(
        &mut self,
        slot: usize,
        bytes: &[u8],
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let session = self.conns[slot].session;
        let Some(command) = Command::decode(bytes, session.mode) else {
            self.close(slot, data, out);
            return;
        };
        self.status.requests += 1;
        let answer = command.answer(session.mode);
        match command.judge(&self.export, session.mode, session.contexts != 0) {
            Verdict::Hangup => self.close(slot, data, out),
            Verdict::Disconnect => {
                self.conns[slot].phase = Phase::Leaving;
                self.close_if_done(slot, data, out);
            }
            Verdict::Refuse(error, payload) => {
                let error = if self.serving {
                    error
                } else {
                    NbdError::Shutdown
                };
                self.refuse(slot, answer, error, payload, data, out);
            }
            Verdict::Run(work) if !self.serving => {
                let payload = if work == Work::Write { command.len } else { 0 };
                self.refuse(slot, answer, NbdError::Shutdown, payload, data, out);
            }
            Verdict::Nothing if !self.serving => {
                self.refuse(slot, answer, NbdError::Shutdown, 0, data, out);
            }
            Verdict::Nothing => send(out, self.conns[slot].id, answer.success().bytes(), None),
            Verdict::Run(work) => self.run(slot, command, work, data, out),
        }
    }

    /// Answers with an error, after the payload if there is one.
    fn refuse(
        &mut self,
        slot: usize,
        answer: Answer,
        error: NbdError,
        payload: u64,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let conn = &mut self.conns[slot];
        if payload > 0 {
            conn.phase = Phase::Skip {
                len: payload,
                after: AfterSkip::Refuse(answer, error),
            };
            return;
        }
        self.status.requests_failed += 1;
        send(out, conn.id, answer.failure(error).bytes(), None);
        self.close_if_done(slot, data, out);
    }

    fn run(
        &mut self,
        slot: usize,
        command: Command,
        work: Work,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let mut range = ByteRange::new(command.offset, command.len);
        if work == Work::Cache {
            // A hint: what is beyond the longest request is not worth remembering.
            range.len = range.len.min(REQUEST_BYTES_MAX);
        }
        let Some(request) = self.conns[slot].take(command, work, range) else {
            // `want` pauses before this can happen.
            self.close(slot, data, out);
            return;
        };
        self.status.requests_in_flight += 1;
        match work {
            Work::Read | Work::Write => {
                self.conns[slot].incoming = Some(request);
                self.admit_or_wait(slot, data, out);
            }
            Work::Flush | Work::Trim | Work::Cache | Work::WriteZeroes | Work::BlockStatus => {
                self.submit_all(slot, request, out);
            }
        }
    }

    fn admit_or_wait(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let behind = !self.pool.waiting.is_empty();
        if !self.admit(slot, behind, data, out) {
            self.conns[slot].phase = Phase::Waiting;
            self.pool.waiting.push_back(slot);
        }
    }

    /// Gives the incoming request of a connection the memory it needs next and lets it go on.
    /// False when it must wait.
    pub(crate) fn admit(
        &mut self,
        slot: usize,
        behind: bool,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) -> bool {
        let conn = &mut self.conns[slot];
        let Some(request) = conn.incoming else {
            return true;
        };
        let live = &mut conn.lives[usize::from(request)];
        if !self.serving {
            live.error.get_or_insert(NbdError::Shutdown);
        }
        if live.error.is_some() {
            self.skip_rest(slot, request, data, out);
            return true;
        }
        if live.work == Work::Read {
            if !self.pool.draw(&mut conn.held_bytes, live.range.len, behind) {
                return false;
            }
            conn.incoming = None;
            conn.phase = Phase::Command;
            self.submit_all(slot, request, out);
            return true;
        }
        let len = live.part(live.issued).len;
        if !self.pool.draw(&mut conn.held_bytes, len, behind) {
            return false;
        }
        let Some(slice) = data.alloc(u32::try_from(len).unwrap_or(0)) else {
            self.pool.give(&mut conn.held_bytes, len);
            self.arena_empty = true;
            return false;
        };
        conn.receiving = Some(slice);
        conn.phase = Phase::Payload;
        true
    }

    /// A part of the incoming write has arrived.
    pub(crate) fn part_received(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let (Some(slice), Some(request)) = (conn.receiving.take(), conn.incoming) else {
            self.close(slot, data, out);
            return;
        };
        let live = &mut conn.lives[usize::from(request)];
        if !self.serving {
            live.error.get_or_insert(NbdError::Shutdown);
        }
        if live.error.is_some() {
            data.release(slice.buf);
            self.pool.give(&mut conn.held_bytes, u64::from(slice.len));
            live.issued += 1;
        } else {
            self.submit_part(slot, request, Some(slice), out);
        }
        let live = &self.conns[slot].lives[usize::from(request)];
        if live.left() == 0 {
            self.skip_rest(slot, request, data, out);
        } else {
            self.admit_or_wait(slot, data, out);
        }
    }

    /// The incoming request has failed or is all there: throws away what is left of its payload.
    fn skip_rest(&mut self, slot: usize, request: u16, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let live = &conn.lives[usize::from(request)];
        let left = if live.work == Work::Write {
            live.left()
        } else {
            0
        };
        if left > 0 {
            conn.phase = Phase::Skip {
                len: left,
                after: AfterSkip::Complete,
            };
        } else {
            self.incoming_is_complete(slot, data, out);
        }
    }

    /// Payload has been thrown away.
    pub(crate) fn skipped(
        &mut self,
        slot: usize,
        after: AfterSkip,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        match after {
            AfterSkip::Refuse(answer, error) => {
                self.conns[slot].phase = Phase::Command;
                self.refuse(slot, answer, error, 0, data, out);
            }
            AfterSkip::Complete => self.incoming_is_complete(slot, data, out),
        }
    }

    fn incoming_is_complete(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        conn.phase = Phase::Command;
        if let Some(request) = conn.incoming.take() {
            conn.lives[usize::from(request)].complete = true;
            self.finish_if_over(slot, request, data, out);
        }
    }

    /// Gives all parts of a request without payload to the engine.
    fn submit_all(&mut self, slot: usize, request: u16, out: &mut Out) {
        let parts = self.conns[slot].lives[usize::from(request)].parts();
        for _ in 0..parts {
            self.submit_part(slot, request, None, out);
        }
        self.conns[slot].lives[usize::from(request)].complete = true;
    }

    /// Gives the next part of a request to the engine.
    fn submit_part(&mut self, slot: usize, request: u16, data: Option<BufSlice>, out: &mut Out) {
        let conn = &mut self.conns[slot];
        let live = &mut conn.lives[usize::from(request)];
        let tag = TagParts {
            part: u8::try_from(live.issued).unwrap_or(u8::MAX),
            request,
            slot: u16::try_from(slot).unwrap_or(u16::MAX),
            generation: conn.generation,
        };
        let op = match live.work {
            Work::Read => Op::Read,
            Work::Write => Op::Write,
            Work::Flush if mutant::on(Mutant::NbdFlushDropped) => Op::Prefetch,
            Work::Flush => Op::Flush,
            Work::Trim => Op::Discard,
            Work::Cache => Op::Prefetch,
            Work::WriteZeroes => Op::WriteZeroes,
            Work::BlockStatus => Op::BlockStatus,
        };
        out.push(FrontendAction::Submit(Request {
            tag: tag.tag(),
            op,
            range: live.part(live.issued),
            flags: live.command.request_flags(),
            data,
        }));
        live.issued += 1;
        live.pending += 1;
    }

    /// The engine has ended a part.
    pub(crate) fn completed(
        &mut self,
        completion: Completion,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let parts = TagParts::of(completion.tag);
        let (slot, request) = (usize::from(parts.slot), parts.request);
        let brought = match completion.result {
            Ok(Outcome::Data(slice) | Outcome::Extents(slice)) => Some(slice),
            Ok(Outcome::Done) | Err(_) => None,
        };
        let live = self
            .conns
            .get_mut(slot)
            .filter(|conn| conn.generation == parts.generation);
        let live = live.and_then(|conn| conn.lives.get_mut(usize::from(request)));
        let Some(live) = live.filter(|live| live.used && live.pending > 0) else {
            // Not a request of ours: a bug of the wiring, that must not cost a buffer as well.
            if let Some(slice) = brought {
                data.release(slice.buf);
            }
            return;
        };
        live.pending -= 1;
        let index = u64::from(parts.part);
        let part = live.part(index);
        let fast_zero = live.command.has(flag::FAST_ZERO);
        let result = match (live.work, completion.result) {
            (_, Err(kind)) => Err(NbdError::from_kind(kind, fast_zero)),
            (Work::Read, Ok(Outcome::Data(slice))) if u64::from(slice.len) == part.len => Ok(()),
            (Work::BlockStatus, Ok(Outcome::Extents(_))) => Ok(()),
            (Work::Read | Work::BlockStatus, Ok(_)) => {
                Err(NbdError::from_kind(ErrorKind::Io, fast_zero))
            }
            (Work::Write | Work::Flush | Work::Trim | Work::Cache | Work::WriteZeroes, Ok(_)) => {
                Ok(())
            }
        };
        if let Err(error) = result {
            live.error.get_or_insert(error);
        }
        let work = live.work;
        match brought {
            Some(slice) if work == Work::Read || work == Work::BlockStatus => {
                self.keep_or_send(slot, request, parts.part, slice, data, out);
            }
            Some(slice) => data.release(slice.buf),
            None if work == Work::Read => self.uncharge(slot, part.len),
            None => {}
        }
        if work == Work::Write {
            self.uncharge(slot, part.len);
            if result.is_ok() {
                self.status.bytes_written += part.len;
            }
        }
        self.finish_if_over(slot, request, data, out);
    }

    /// Sends what a part brought if it may go out alone, else keeps it for the end.
    fn keep_or_send(
        &mut self,
        slot: usize,
        request: u16,
        index: u8,
        slice: BufSlice,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let conn = &mut self.conns[slot];
        let talking = conn.is_talking();
        let live = &mut conn.lives[usize::from(request)];
        let part = live.part(u64::from(index));
        let alone = live.work == Work::Read
            && conn.session.mode != ReplyMode::Simple
            && !live.command.has(flag::DF);
        if talking && live.error.is_none() && !alone {
            let index = usize::from(index);
            if live.held.len() <= index {
                live.held.resize(index + 1, None);
            }
            live.held[index] = Some(slice);
            return;
        }
        if talking && live.error.is_none() {
            // Structured replies: the last chunk ends the reply if every other part went well.
            let head = live.command.answer(conn.session.mode);
            let head = head.content(live.is_over(), part.offset, part.len);
            send(out, conn.id, head.bytes(), Some(slice));
            self.status.bytes_read += part.len;
        }
        data.release(slice.buf);
        if self.conns[slot].lives[usize::from(request)].work == Work::Read {
            self.uncharge(slot, part.len);
        }
    }

    fn uncharge(&mut self, slot: usize, len: u64) {
        self.pool.give(&mut self.conns[slot].held_bytes, len);
    }

    /// Answers a request whose last part has ended, and forgets it.
    fn finish_if_over(&mut self, slot: usize, request: u16, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &self.conns[slot];
        let live = &conn.lives[usize::from(request)];
        if !live.is_over() {
            return;
        }
        if conn.is_talking() {
            self.answer(slot, request, data, out);
        }
        self.swallow_if_over(slot, request, data);
        self.free_orphan(slot);
        self.close_if_done(slot, data, out);
    }

    /// The last, or only, message of a reply.
    fn answer(&mut self, slot: usize, request: u16, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &self.conns[slot];
        let live = &conn.lives[usize::from(request)];
        let mode = conn.session.mode;
        let answer = live.command.answer(mode);
        if let Some(error) = live.error {
            self.status.requests_failed += 1;
            send(out, conn.id, answer.failure(error).bytes(), None);
            return;
        }
        match live.work {
            Work::Read if mode != ReplyMode::Simple && !live.command.has(flag::DF) => {}
            Work::Read => {
                let head = answer.content(true, live.range.offset, live.range.len);
                // One head, then the parts in order; nothing comes between as all is one step.
                for (index, slice) in live.held.iter().enumerate() {
                    let head = if index == 0 { head.bytes() } else { &[] };
                    send(out, conn.id, head, *slice);
                }
                self.status.bytes_read += live.range.len;
            }
            Work::BlockStatus => self.answer_status(slot, request, data, out),
            Work::Write | Work::Flush | Work::Trim | Work::Cache | Work::WriteZeroes => {
                send(out, conn.id, answer.success().bytes(), None);
            }
        }
    }

    /// One chunk per selected context.
    fn answer_status(&mut self, slot: usize, request: u16, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &self.conns[slot];
        let live = &conn.lives[usize::from(request)];
        let session = conn.session;
        let answer = live.command.answer(session.mode);
        let records = live.held.first().copied().flatten();
        let records = records.map_or(&[][..], |slice| data.bytes(slice));
        let shape = Shape {
            mode: session.mode,
            len: live.range.len,
            one: live.command.has(flag::REQ_ONE),
        };
        let kind = match session.mode {
            ReplyMode::Extended => chunk::BLOCK_STATUS_EXT,
            ReplyMode::Simple | ReplyMode::Structured => chunk::BLOCK_STATUS,
        };
        let mut left = session.contexts;
        for context in CONTEXTS
            .iter()
            .filter(|context| session.contexts & context.bit() != 0)
        {
            left &= !context.bit();
            self.scratch.clear();
            if append(&mut self.scratch, *context, records, shape) == 0 {
                // An answer that covers nothing; the same for every context.
                self.status.requests_failed += 1;
                send(out, conn.id, answer.failure(NbdError::Io).bytes(), None);
                return;
            }
            let flags = if left == 0 { chunk::DONE } else { 0 };
            let head = answer.chunk(flags, kind, self.scratch.len() as u64);
            send(out, conn.id, head.bytes(), None);
            send(out, conn.id, &self.scratch, None);
        }
    }

    /// Releases what a request that is over still holds, and its slot. No answer.
    pub(crate) fn swallow_if_over(&mut self, slot: usize, request: u16, data: &mut dyn Buffers) {
        let conn = &mut self.conns[slot];
        let live = &mut conn.lives[usize::from(request)];
        if !live.is_over() {
            return;
        }
        let mut freed = 0;
        for slice in live.held.drain(..).flatten() {
            data.release(slice.buf);
            if live.work == Work::Read {
                freed += u64::from(slice.len);
            }
        }
        self.pool.give(&mut conn.held_bytes, freed);
        conn.put(request);
        self.status.requests_in_flight -= 1;
    }

    /// Answers everything in flight on a connection with `NBD_ESHUTDOWN`. The connection is closed
    /// next, so that nothing else is sent when the engine completes it.
    pub(crate) fn fail_all(&mut self, slot: usize, out: &mut Out) {
        let conn = &self.conns[slot];
        if !conn.is_talking() {
            return;
        }
        for live in conn.lives.iter().filter(|live| live.used) {
            let answer = live.command.answer(conn.session.mode);
            send(
                out,
                conn.id,
                answer.failure(NbdError::Shutdown).bytes(),
                None,
            );
            self.status.requests_failed += 1;
        }
    }
}
