//! Runs the scrub machine: questions to the members, the lock of a chunk, what is written again.

use crate::api::{Action, Mode};
use crate::engine::{Cx, Engine};
use crate::peer::Peer;
use crate::read::{Flight, FlightOwner, ReadResult};
use crate::rebuild::CopyData;
use crate::scrub::{Compared, ScrubEvent, ScrubStep};
use crate::stream::EntryKind;
use alloc::vec::Vec;
use trilith_block::{BlockRange, Blocks, BufSlice, Idx, MemberId};
use trilith_wire::limits::PROTOCOL_EXTENT_HASH;
use trilith_wire::{EntryOp, EntryStatus, Message};

/// An entry of a scrub that is not flushed at all members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewrite {
    token: u64,
    /// The flush that covers it, once it has a place.
    flush: Option<Idx>,
}

impl Engine {
    /// Whose copies must be equal wherever nothing is in flight: all voters, all in sync, nothing
    /// else under way with any of them.
    fn compared(&self) -> Option<Compared> {
        let members = self.sync.counted;
        let able = |m: MemberId| {
            let peer = &self.peers[m.index()];
            peer.is_ours() && peer.synced && !peer.broken && peer.protocol >= PROTOCOL_EXTENT_HASH
        };
        let whole = self.mode == Mode::Healthy
            && self.can_issue()
            && self.stop.is_none()
            && self.limbo.is_empty()
            && self.rebuilds.iter().all(Option::is_none)
            && self.change_status().is_none()
            && (self.membership.electors().and(self.membership.data()))
                .minus(members)
                .is_empty()
            && members.iter().all(able);
        whole.then_some(Compared {
            members,
            membership: self.membership,
            capacity_bytes: self.capacity,
        })
    }

    /// Moves the scrub on. Called in each `settle`.
    pub(crate) fn tend_scrub(&mut self, cx: &mut Cx<'_>) {
        if !self.scrub.is_awake(cx.now) {
            return;
        }
        let compared = self.compared();
        if let (Some(compared), Some(rewrite)) = (compared, self.rewrite)
            && let Some(flush) = rewrite.flush
            && (compared.members.iter()).all(|m| self.peers[m.index()].flushed >= flush)
        {
            self.rewrite = None;
            let token = rewrite.token;
            self.scrub_event(ScrubEvent::Rewritten { token, done: true }, cx);
        }
        let mut steps = core::mem::take(&mut self.scrub_steps);
        self.scrub.settle(cx.now, compared, &mut steps);
        self.run_scrub(steps, cx);
    }

    /// The term is over, or the end has come.
    pub(crate) fn interrupt_scrub(&mut self, cx: &mut Cx<'_>) {
        let mut steps = core::mem::take(&mut self.scrub_steps);
        self.scrub.interrupt(&mut steps);
        self.run_scrub(steps, cx);
        self.rewrite = None;
    }

    pub(crate) fn scrub_event(&mut self, event: ScrubEvent<'_>, cx: &mut Cx<'_>) {
        let mut steps = core::mem::take(&mut self.scrub_steps);
        self.scrub.event(cx.now, event, cx.data, &mut steps);
        self.again = true;
        self.run_scrub(steps, cx);
    }

    fn run_scrub(&mut self, mut steps: Vec<ScrubStep>, cx: &mut Cx<'_>) {
        for step in steps.drain(..) {
            self.scrub_step(step, cx);
        }
        // A step may have caused events with steps of their own, which then used another list.
        if self.scrub_steps.capacity() < steps.capacity() {
            self.scrub_steps = steps;
        }
    }

    fn scrub_step(&mut self, step: ScrubStep, cx: &mut Cx<'_>) {
        match step {
            ScrubStep::Ask {
                token,
                range,
                unit,
                seed,
                members,
            } => {
                for member in members.iter() {
                    self.ask_digests(member, token, (range, unit, seed), cx);
                }
            }
            ScrubStep::Lock { token, range } => self.lock(None, token, range, cx.now),
            ScrubStep::Unlock { token } => self.unlock(None, token),
            ScrubStep::Read { token, range, from } => {
                let owner = FlightOwner::Scrub { token };
                let sent = self
                    .source_of(from)
                    .and_then(|m| self.send_read(m, range, owner, cx));
                if sent.is_none() {
                    self.scrub_read(token, ReadResult::Failed(EntryStatus::Refused), cx);
                }
            }
            ScrubStep::Rewrite { token, range, data } => self.rewrite_as(token, range, data, cx),
            ScrubStep::Tell(news) => cx.out.push(Action::Scrub(news)),
        }
    }

    fn ask_digests(
        &mut self,
        member: MemberId,
        token: u64,
        (range, unit, seed): (BlockRange, Blocks, u64),
        cx: &mut Cx<'_>,
    ) {
        if !self.peers[member.index()].is_ours() {
            return self.digests_lost(member, token, cx);
        }
        let rid = self.flights.insert(Flight {
            owner: FlightOwner::Digests { token, unit },
            member,
            range,
            sent_at: cx.now,
        });
        self.peers[member.index()].reads_in_flight += 1;
        let message = Message::ExtentHash {
            term: self.term,
            range,
            rid,
            unit,
            seed,
        };
        self.send(member, &message, None, cx);
    }

    /// A member will not answer.
    pub(crate) fn digests_lost(&mut self, member: MemberId, token: u64, cx: &mut Cx<'_>) {
        let result = Err(EntryStatus::Refused);
        let event = ScrubEvent::Digests {
            token,
            member,
            result,
        };
        self.scrub_event(event, cx);
    }

    /// EXTENTHASHDONE.
    pub(crate) fn digests_arrived(
        &mut self,
        member: MemberId,
        rid: u64,
        (asked, of): (BlockRange, Blocks),
        result: Result<&[u8], EntryStatus>,
        cx: &mut Cx<'_>,
    ) {
        let Some(flight) = self.flights.get(rid).copied() else {
            return;
        };
        let FlightOwner::Digests { token, unit } = flight.owner else {
            return self.drop_session(member, cx);
        };
        if (flight.member, flight.range, unit) != (member, asked, of) {
            return self.drop_session(member, cx);
        }
        self.end_flight(rid);
        let event = ScrubEvent::Digests {
            token,
            member,
            result,
        };
        self.scrub_event(event, cx);
    }

    /// A DATA for a scrub.
    pub(crate) fn scrub_read(&mut self, token: u64, result: ReadResult, cx: &mut Cx<'_>) {
        let result = match result {
            ReadResult::Bytes(buf) => Ok(CopyData::Bytes(buf)),
            ReadResult::Zero => Ok(CopyData::Zero),
            ReadResult::Failed(status) => Err(status),
        };
        self.scrub_event(ScrubEvent::ReadDone { token, result }, cx);
    }

    /// Gives blocks that most members hold a place in the stream, so that all do. Nothing has been
    /// issued there since they were read: it is as if a client wrote what it has just read, with
    /// nothing in between.
    fn rewrite_as(
        &mut self,
        token: u64,
        range: BlockRange,
        data: Option<BufSlice>,
        cx: &mut Cx<'_>,
    ) {
        let kind = match data {
            Some(_) => EntryOp::Write,
            None => EntryOp::Zeroes,
        };
        let room = self.can_issue()
            && self.stream.len() < self.cfg.sizes.window_entries
            && self.room_for(kind, range, cx) == Some(true);
        if !room {
            if let Some(data) = data {
                cx.data.release(data.buf);
            }
            return self.scrub_event(ScrubEvent::Rewritten { token, done: false }, cx);
        }
        self.issue(EntryKind::Data(kind), range, data, None, cx);
        self.rewrite = Some(Rewrite { token, flush: None });
        self.again = true;
    }

    /// A scrub waits for a flush that has not been issued.
    pub(crate) fn scrub_wants_flush(&self) -> bool {
        self.rewrite.is_some_and(|r| r.flush.is_none())
    }

    pub(crate) fn scrub_flush_issued(&mut self, idx: Idx) {
        if let Some(rewrite) = self.rewrite.as_mut() {
            rewrite.flush.get_or_insert(idx);
        }
    }

    /// Every counted member can be reached and has accepted all that is in flight at `range`.
    pub(crate) fn at_all(&self, range: BlockRange) -> bool {
        let here = self.members_where(Peer::is_ours);
        let holders = self.holders(range).and(here);
        self.sync.counted.minus(holders).is_empty() && self.stream.uncommitted(range).is_none()
    }
}
