//! Sends, receives and the end of connections: the loop's side of `conn.rs`.

use crate::backend::{FdRef, Piece, SysOp};
use crate::conn::{Link, Phase, Receiving};
use crate::io::{Event, Io, Key};
use crate::kernel_buf::KernelBuf;
use crate::limits::{
    DIRECT_RECEIVE_BYTES_MIN, DRAIN_TIME_MAX, LINGER_TIME_MAX, QUICK_SEND_BYTES_MAX,
    RECEIVE_BUFFER_BYTES,
};
use core::cmp::Reverse;
use socket2::Socket;
use std::io;
use std::net::Shutdown;
use trilith_block::limits::HEADER_BYTES_MAX;
use trilith_block::{Buffers, ConnId, Want};

/// What to do next with what a connection has received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Ask the handler what it wants.
    Ask,
    /// These header bytes are there: take them out of the scratch.
    Header,
    /// The payload or discard is complete.
    Payload,
    /// More must be received.
    Wait,
    /// The connection is not open.
    Gone,
}

impl Io {
    pub(crate) fn mark_dirty(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get(slot)
            && !conn.is_dirty
        {
            conn.is_dirty = true;
            self.dirty.push(slot);
        }
    }

    pub(crate) fn mark_ready(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get(slot)
            && !conn.is_ready
        {
            conn.is_ready = true;
            self.ready.push_back(slot);
        }
    }

    /// Starts sends and receives and moves closing connections on.
    pub(crate) fn flush(&mut self) {
        self.register_arena();
        let mut dirty = core::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            let Some(conn) = self.conns.get(slot) else {
                continue;
            };
            conn.is_dirty = false;
            self.start_send(slot);
            self.progress(slot);
            self.start_receive(slot);
        }
        // `progress` may have marked some again: they come with the next turn.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
        self.ublk_flush();
    }

    /// While the loop is being dropped: only the ends of connections matter.
    pub(crate) fn reap_dirty(&mut self) {
        let dirty = core::mem::take(&mut self.dirty);
        for slot in dirty {
            if let Some(conn) = self.conns.get(slot) {
                conn.is_dirty = false;
                self.progress(slot);
            }
        }
    }

    fn start_send(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        if !matches!(conn.phase, Phase::Open | Phase::Draining) {
            return;
        }
        let Some((_, fd)) = conn.socket() else {
            return;
        };
        if conn.is_held() {
            return;
        }
        let Some(message) = conn.output.start(&self.arena) else {
            return;
        };
        // Someone who waits for memory, or for the end of the output, waits for the completion.
        let quick = conn.phase == Phase::Open && self.paused.is_empty();
        let len = u32::try_from(conn.output.next_bytes()).unwrap_or(u32::MAX);
        let quick = quick && len <= QUICK_SEND_BYTES_MAX;
        self.stats.sends += 1;
        let op = SysOp::Send {
            message,
            len,
            quick,
        };
        // SAFETY: message, pieces and heads belong to the connection's flying batch, which does not
        // change before the completion, and the connection is not dropped before; payloads are lent
        // by the arena.
        unsafe { self.driver.submit(Key::Send(slot).pack(), fd, op) };
    }

    pub(crate) fn send_completed(&mut self, slot: u32, result: i32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        conn.output.landed();
        match usize::try_from(result) {
            Ok(bytes) => {
                conn.output.sent(bytes, &mut self.arena);
                self.stats.sent_bytes += bytes as u64;
            }
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) => {}
            Err(_) => self.failed(slot, "send", result),
        }
        self.mark_dirty(slot);
    }

    /// Starts the receive that the connection needs, if any.
    fn start_receive(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        if !matches!(conn.receiving, Receiving::Idle) || conn.ended || conn.connecting {
            return;
        }
        let Some((_, fd)) = conn.socket() else {
            return;
        };
        let discards = match conn.phase {
            Phase::Open => false,
            Phase::Draining | Phase::Lingering => true,
            Phase::Connecting | Phase::Dead => return,
        };
        if !discards {
            // Nothing is wanted (paused, or not asked yet), or what is there comes first.
            if conn.want.is_none() || conn.is_ready {
                return;
            }
            if let Some(Want::Payload(slice)) = conn.want {
                let filled = u32::try_from(conn.filled).unwrap_or(slice.len);
                let missing = slice.len - filled;
                if missing >= DIRECT_RECEIVE_BYTES_MIN && conn.unread() == 0 {
                    return self.receive_direct(slot, fd, slice.slice(filled, missing));
                }
            }
        }
        self.receive_buffered(slot, fd);
    }

    fn receive_direct(&mut self, slot: u32, fd: FdRef, slice: trilith_block::BufSlice) {
        let loan = self.arena.lend(slice, true);
        let start = self.arena.loan_address(&loan);
        let Some(conn) = self.conns.get(slot) else {
            return self.arena.give_back(loan);
        };
        conn.receiving = Receiving::Direct(loan);
        let piece = Piece {
            start,
            len: slice.len,
            region: None,
        };
        let op = SysOp::Receive {
            piece,
            all: true,
            expect_wait: !conn.more,
        };
        self.stats.direct_receives += 1;
        // SAFETY: the arena has lent the memory, until `receive_completed` gives it back.
        unsafe { self.driver.submit(Key::Receive(slot).pack(), fd, op) };
    }

    fn receive_buffered(&mut self, slot: u32, fd: FdRef) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        let buffer = match &mut conn.buffer {
            Some(buffer) => buffer,
            none => match KernelBuf::new(RECEIVE_BUFFER_BYTES) {
                Ok(buffer) => none.insert(buffer),
                Err(error) => {
                    tracing::warn!(peer = %conn.peer, %error, "no memory to receive with");
                    return self.kill(slot);
                }
            },
        };
        let (start, end) = (conn.start, conn.end);
        if start > 0 && (start == end || buffer.len() - end < HEADER_BYTES_MAX * 2) {
            // What is left here is shorter than a header: a cheap move.
            buffer.move_down(start, end);
            (conn.start, conn.end) = (0, end - start);
        }
        let (start, len) = buffer.lend(conn.end);
        conn.receiving = Receiving::Buffered;
        let piece = Piece {
            start,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            region: None,
        };
        let op = SysOp::Receive {
            piece,
            all: false,
            expect_wait: !conn.more,
        };
        // SAFETY: the tail of the buffer is lent until `receive_completed` takes it back, and the
        // connection is not dropped before.
        unsafe { self.driver.submit(Key::Receive(slot).pack(), fd, op) };
    }

    pub(crate) fn receive_completed(&mut self, slot: u32, result: i32, more: bool) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        conn.more = more;
        let bytes = usize::try_from(result).unwrap_or(0);
        match core::mem::replace(&mut conn.receiving, Receiving::Idle) {
            Receiving::Idle => {}
            Receiving::Buffered => {
                if let Some(buffer) = &mut conn.buffer {
                    buffer.take_back();
                }
                conn.end += bytes;
            }
            Receiving::Direct(loan) => {
                self.arena.give_back(loan);
                conn.filled += bytes as u64;
            }
        }
        self.stats.received_bytes += bytes as u64;
        match result {
            1.. => {
                self.stats.receives += 1;
                if conn.phase == Phase::Open {
                    self.mark_ready(slot);
                } else {
                    (conn.start, conn.end) = (0, 0);
                }
            }
            0 => {
                conn.ended = true;
                match conn.phase {
                    Phase::Open => self.begin_drain(slot),
                    Phase::Lingering => self.kill(slot),
                    Phase::Draining | Phase::Connecting | Phase::Dead => {}
                }
            }
            _ if matches!(-result, libc::EAGAIN | libc::EINTR | libc::ECANCELED) => {}
            _ => self.failed(slot, "receive", result),
        }
        self.mark_dirty(slot);
    }

    pub(crate) fn connect_completed(&mut self, slot: u32, result: i32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        conn.connecting = false;
        conn.target = None;
        if conn.phase == Phase::Connecting {
            if result == 0 {
                conn.phase = Phase::Open;
                conn.deadline = None;
                let id = conn.id;
                self.stats.connections += 1;
                self.events.push_back(Event::Opened(id));
            } else {
                self.failed(slot, "dial", result);
            }
        }
        self.mark_dirty(slot);
    }

    fn failed(&mut self, slot: u32, what: &str, result: i32) {
        if let Some(conn) = self.conns.get(slot)
            && conn.phase != Phase::Dead
        {
            let error = io::Error::from_raw_os_error(-result);
            tracing::debug!(peer = %conn.peer, %error, "{what} fails: connection is over");
        }
        self.kill(slot);
    }

    /// Nothing more is delivered; what is queued still leaves.
    pub(crate) fn begin_drain(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        conn.phase = Phase::Draining;
        conn.want = None;
        if !matches!(conn.receiving, Receiving::Buffered) {
            (conn.start, conn.end) = (0, 0);
        }
        let id = conn.id;
        let direct = matches!(conn.receiving, Receiving::Direct(_));
        let deadline = self.now.after(DRAIN_TIME_MAX);
        conn.deadline = Some(deadline);
        self.timers.push(Reverse((deadline, id)));
        match (&conn.link, direct) {
            (Link::Socket { fd, .. }, true) => self.driver.cancel(Key::Receive(slot).pack(), *fd),
            (Link::Socket { .. }, false) => {}
            (Link::Own(other), _) => {
                let other = *other;
                self.refuse_input(other);
                self.offer(slot);
            }
        }
        self.mark_dirty(slot);
    }

    /// Ends a connection now; it goes once the kernel has given its memory back.
    pub(crate) fn kill(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        if conn.phase != Phase::Dead {
            conn.phase = Phase::Dead;
            conn.want = None;
            match &conn.link {
                Link::Socket { socket, .. } => {
                    if let Err(error) = socket.shutdown(Shutdown::Both) {
                        tracing::trace!(%error, "shutdown of a socket that is not connected");
                    }
                }
                Link::Own(other) => {
                    let other = *other;
                    conn.output.abandon(&mut self.arena);
                    self.refuse_input(other);
                }
            }
        }
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        if let (Link::Socket { fd, .. }, false) = (&conn.link, conn.cancelled) {
            let fd = *fd;
            conn.cancelled = true;
            let flying = [
                (conn.connecting, Key::Connect(slot)),
                (conn.output.in_flight(), Key::Send(slot)),
                (
                    !matches!(conn.receiving, Receiving::Idle),
                    Key::Receive(slot),
                ),
            ];
            for (_, key) in flying.into_iter().filter(|(in_flight, _)| *in_flight) {
                self.driver.cancel(key.pack(), fd);
            }
        }
        self.mark_dirty(slot);
    }

    /// Moves a closing connection on.
    fn progress(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        match conn.phase {
            Phase::Connecting | Phase::Open | Phase::Lingering => {}
            Phase::Draining => {
                let direct = matches!(conn.receiving, Receiving::Direct(_));
                if conn.output.queued() > 0 || conn.output.in_flight() || direct {
                    return;
                }
                conn.told = true;
                let id = conn.id;
                self.events.push_back(Event::Closed(id));
                if conn.ended {
                    return self.kill(slot);
                }
                // Our end of stream goes out; the socket is closed after the peer's has come,
                // since closing with unread input would reset the connection and lose output.
                let half = |(socket, _): (&Socket, _)| socket.shutdown(Shutdown::Write).is_ok();
                if !conn.socket().is_some_and(half) {
                    return self.kill(slot);
                }
                conn.phase = Phase::Lingering;
                let deadline = self.now.after(LINGER_TIME_MAX);
                conn.deadline = Some(deadline);
                self.timers.push(Reverse((deadline, id)));
            }
            Phase::Dead => {
                if !conn.is_busy() {
                    self.drop_connection(slot);
                }
            }
        }
    }

    fn drop_connection(&mut self, slot: u32) {
        let was_full = self.conns.is_full();
        let Some(mut conn) = self.conns.remove(slot) else {
            return;
        };
        conn.output.abandon(&mut self.arena);
        if !conn.told {
            self.events.push_back(Event::Closed(conn.id));
        }
        match conn.link {
            Link::Socket { fd, .. } => self.driver.detach(fd),
            Link::Own(other) => self.other_is_gone(other),
        }
        drop(conn);
        if was_full {
            self.accept_all();
        }
    }

    /// A deadline of a connection has come.
    pub(crate) fn connection_expired(&mut self, id: ConnId) {
        let now = self.now;
        let Some(slot) = self.conns.slot_of(id) else {
            return;
        };
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        if conn.deadline.is_none_or(|at| at > now) {
            return;
        }
        match conn.phase {
            Phase::Open | Phase::Dead => return,
            Phase::Connecting => tracing::debug!(peer = %conn.peer, "dial takes too long"),
            Phase::Draining => {
                let queued_bytes = conn.output.queued();
                tracing::warn!(peer = %conn.peer, queued_bytes, "peer does not read: output lost");
            }
            Phase::Lingering => {}
        }
        self.kill(slot);
    }

    /// The handler's answer. False when it wants nothing for now.
    pub(crate) fn wanted(&mut self, slot: u32, want: Want) -> bool {
        if let Want::Header(len) = want {
            assert!(
                (1..=HEADER_BYTES_MAX).contains(&len),
                "header of {len} bytes wanted"
            );
        }
        let Some(conn) = self.conns.get(slot) else {
            return false;
        };
        if conn.phase != Phase::Open {
            return false;
        }
        conn.filled = 0;
        if want == Want::Pause {
            let id = conn.id;
            self.paused.push(id);
            return false;
        }
        conn.want = Some(want);
        true
    }

    /// True when received bytes wait to be delivered.
    pub(crate) fn has_unread(&mut self, slot: u32) -> bool {
        match self.conns.get(slot) {
            Some(conn) if conn.socket().is_some() => conn.unread() > 0,
            Some(_) => self.has_unread_own(slot),
            None => false,
        }
    }

    /// Delivers from what has been received, as far as it goes. `scratch` takes header bytes.
    pub(crate) fn step(&mut self, slot: u32, id: ConnId, scratch: &mut Vec<u8>) -> Step {
        let Some(conn) = self.conns.get(slot) else {
            return Step::Gone;
        };
        if conn.id != id || conn.phase != Phase::Open || !conn.announced {
            return Step::Gone;
        }
        if let Link::Own(other) = conn.link {
            return self.step_own(slot, other, scratch);
        }
        let complete = match conn.want {
            None => return Step::Ask,
            Some(Want::Pause) => return Step::Wait,
            Some(Want::Header(len)) => {
                if conn.unread() < len {
                    return Step::Wait;
                }
                scratch.clear();
                scratch.extend_from_slice(conn.peek(len));
                conn.consume(len);
                conn.want = None;
                self.stats.frames += 1;
                return Step::Header;
            }
            Some(Want::Payload(slice)) => {
                let filled = u32::try_from(conn.filled).unwrap_or(slice.len);
                let unread = u32::try_from(conn.unread()).unwrap_or(u32::MAX);
                let take = unread.min(slice.len - filled);
                if take > 0 {
                    let source = conn.peek(take as usize);
                    self.arena
                        .bytes_mut(slice.slice(filled, take))
                        .copy_from_slice(source);
                    conn.consume(take as usize);
                    conn.filled += u64::from(take);
                }
                conn.filled == u64::from(slice.len)
            }
            Some(Want::Discard(len)) => {
                let unread = conn.unread() as u64;
                let take = unread.min(len - conn.filled);
                conn.consume(usize::try_from(take).unwrap_or(0));
                conn.filled += take;
                conn.filled == len
            }
        };
        if !complete {
            return Step::Wait;
        }
        conn.want = None;
        self.stats.frames += 1;
        Step::Payload
    }
}
