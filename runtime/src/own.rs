//! Connections of the loop with itself: a machine that dials a listener of its own loop gets one.
//!
//! Bytes stay in the output of the end that has sent them until the other end wants them, and are then
//! copied once, straight into the wanted payload; nothing goes through the kernel. For the handler it
//! is a connection like others: same order, same limits, same end. The two ends are two connections
//! that know each other by id, so either may be gone at any time.
//!
//! What was sent in one round is delivered in the next one of the same turn, or in the next turn, which
//! does not sleep: whoever has something to read is in `ready`.

use crate::arena::Arena;
use crate::conn::{Conn, Link, Phase};
use crate::io::{Event, Io, ListenerId};
use crate::output::Part;
use crate::streams::Step;
use std::path::PathBuf;
use trilith_block::{BufSlice, Buffers, ConnId, Want};

/// Bytes that one end has for the other.
fn offered(conn: &Conn) -> usize {
    if conn.is_held() {
        0
    } else {
        conn.output.queued()
    }
}

/// Copies the next bytes of a payload: `target` is as long as all parts together.
struct Filling {
    target: BufSlice,
    done: u32,
}

impl Filling {
    fn add(&mut self, arena: &mut Arena, part: Part<'_>) {
        match part {
            Part::Bytes(bytes) => {
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let target = self.target.slice(self.done, len);
                arena.bytes_mut(target).copy_from_slice(bytes);
                self.done += len;
            }
            Part::Slice(source) => {
                arena.copy(source, self.target.slice(self.done, source.len));
                self.done += source.len;
            }
        }
    }
}

impl Io {
    /// Starts a connection to a listener of this loop, without a socket. `Opened` tells that it is
    /// there, and the listener's end is announced by [`crate::Handler::accepted`]; `Closed` if it
    /// does not listen any more, or if there is no room for two connections.
    pub fn dial_own(&mut self, listener: ListenerId) -> ConnId {
        let (near, place) = self.conns.reserve();
        let (far, other_place) = self.conns.reserve();
        let target = self.open_listener(listener).cloned();
        let (Some(slot), Some(other), Some(peer)) = (place, other_place, target) else {
            tracing::debug!(?listener, "dial within the loop fails");
            for slot in [place, other_place].into_iter().flatten() {
                self.conns.unreserve(slot);
            }
            self.events.push_back(Event::Closed(near));
            return near;
        };
        let unnamed = crate::Address::Unix(PathBuf::new());
        for (slot, id, other, peer) in [(slot, near, far, peer), (other, far, near, unnamed)] {
            let conn = Conn::new(id, Phase::Open, Link::Own(other), peer);
            self.conns.put(slot, Box::new(conn));
        }
        self.stats.connections += 2;
        self.events.push_back(Event::Accepted(listener, far));
        self.events.push_back(Event::Opened(far));
        self.events.push_back(Event::Opened(near));
        near
    }

    /// Queues a frame for the other end. Nobody reads it when that is closing.
    pub(crate) fn send_own(
        &mut self,
        slot: u32,
        other: ConnId,
        head: &[u8],
        payload: Option<BufSlice>,
    ) {
        let reads = |conn: &Conn| conn.phase == Phase::Open;
        if !self.conns.find(other).is_some_and(reads) {
            return;
        }
        if let Some(conn) = self.conns.get(slot) {
            conn.output.push(head, payload, &mut self.arena);
        }
        self.offer(slot);
    }

    /// Has the other end look at what this one has for it, if anything. Nothing for one with a socket.
    pub(crate) fn offer(&mut self, slot: u32) {
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        let Link::Own(other) = conn.link else { return };
        if offered(conn) > 0
            && let Some(other) = self.conns.slot_of(other)
        {
            self.mark_ready(other);
        }
    }

    /// The other end reads no more: what this one has for it is dropped.
    pub(crate) fn refuse_input(&mut self, from: ConnId) {
        let Some(slot) = self.conns.slot_of(from) else {
            return;
        };
        if let Some(conn) = self.conns.get(slot) {
            conn.output.abandon(&mut self.arena);
        }
        self.mark_dirty(slot);
    }

    /// The other end of this connection has gone.
    pub(crate) fn other_is_gone(&mut self, id: ConnId) {
        let Some(slot) = self.conns.slot_of(id) else {
            return;
        };
        let Some(conn) = self.conns.get(slot) else {
            return;
        };
        conn.ended = true;
        if conn.phase == Phase::Open {
            conn.output.abandon(&mut self.arena);
            self.begin_drain(slot);
        } else {
            self.mark_dirty(slot);
        }
    }

    /// True when the other end has something for this one.
    pub(crate) fn has_unread_own(&mut self, slot: u32) -> bool {
        let Some(conn) = self.conns.get(slot) else {
            return false;
        };
        let Link::Own(other) = conn.link else {
            return false;
        };
        self.conns
            .find(other)
            .is_some_and(|other| offered(other) > 0)
    }

    /// [`Io::step`] for an end of such a connection, which is open: delivers from the output of the
    /// other end.
    pub(crate) fn step_own(&mut self, slot: u32, other: ConnId, scratch: &mut Vec<u8>) -> Step {
        let Some(other_slot) = self.conns.slot_of(other) else {
            return Step::Wait;
        };
        let Some((conn, source)) = self.conns.two(slot, other_slot) else {
            return Step::Wait;
        };
        let there = offered(source);
        let arena = &mut *self.arena;
        let step = match conn.want {
            None => return Step::Ask,
            Some(Want::Pause) => return Step::Wait,
            Some(Want::Header(len)) => {
                if there < len {
                    return Step::Wait;
                }
                scratch.clear();
                source.output.take(len, arena, |arena, part| match part {
                    Part::Bytes(bytes) => scratch.extend_from_slice(bytes),
                    Part::Slice(slice) => scratch.extend_from_slice(arena.bytes(slice)),
                });
                Step::Header
            }
            Some(Want::Payload(slice)) => {
                let filled = u32::try_from(conn.filled).unwrap_or(slice.len);
                let there = u32::try_from(there).unwrap_or(u32::MAX);
                let len = there.min(slice.len - filled);
                let target = slice.slice(filled, len);
                let mut filling = Filling { target, done: 0 };
                source
                    .output
                    .take(len as usize, arena, |arena, part| filling.add(arena, part));
                conn.filled += u64::from(len);
                if conn.filled < u64::from(slice.len) {
                    Step::Wait
                } else {
                    Step::Payload
                }
            }
            Some(Want::Discard(len)) => {
                let take = (len - conn.filled).min(there as u64);
                let bytes = usize::try_from(take).unwrap_or(0);
                source.output.take(bytes, arena, |_, _| {});
                conn.filled += take;
                if conn.filled < len {
                    Step::Wait
                } else {
                    Step::Payload
                }
            }
        };
        if step != Step::Wait {
            conn.want = None;
            self.stats.frames += 1;
        }
        let drained = source.phase == Phase::Draining && source.output.queued() == 0;
        if drained {
            self.mark_dirty(other_slot);
        }
        step
    }
}
