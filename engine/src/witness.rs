//! The running term of a volume with a witness (`docs/protocol.md` 7.1): who decides is a majority of
//! the voters, who holds the data is all of the in-sync set.
//!
//! The recovery hands over by [`Engine::open_epochs`], once the first in-sync set has the term start;
//! from then on the witness is told here, and [`Engine::data_decides`] says what is committed.

use crate::engine::{Cx, Engine};
use crate::epochs::LiveEpochs;
use crate::peer::Peer;
use crate::syncset::Standing;
use core::time::Duration;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{Idx, MemberId, MemberSet, Monotonic};
use trilith_wire::Message;

impl Engine {
    /// W2: the term starts with epoch 0, which names `iss`. Nothing is committed before it or a later
    /// one is in force. Does nothing in a volume without a witness.
    pub(crate) fn open_epochs(&mut self, iss: MemberSet) {
        if !self.membership.has_witness() {
            return;
        }
        self.sync.live = Some(LiveEpochs::open(iss));
        for member in self.membership.witness.iter() {
            let peer = &mut self.peers[member.index()];
            peer.standing = Standing::Witness;
            peer.fed = false;
            peer.synced = false;
            peer.epoch_done = None;
            peer.epoch_sent = None;
            self.absent[member.index()].clear();
        }
    }

    /// The witness is connected and holds this term.
    pub(crate) fn witness_here(&self) -> bool {
        let here = |m: MemberId| self.peers[m.index()].is_ours();
        !self.membership.witness.is_empty() && self.membership.witness.iter().all(here)
    }

    /// What these members hold, all of which count, is as good as held for ever: by a majority, or
    /// with a witness by all of the live in-sync sets (W3).
    pub(crate) fn data_decides(&self, holders: MemberSet) -> bool {
        match &self.sync.live {
            Some(live) => live.commits(holders),
            None => self.membership.is_majority(holders),
        }
    }

    /// W12: the newest epoch is in force and all of its set count; else R8, a majority counts.
    pub(crate) fn may_open(&self) -> bool {
        let counted = self.sync.counted;
        match &self.sync.live {
            Some(live) => live.newest_in_force() && self.sync.iss.minus(counted).is_empty(),
            None => self.membership.is_majority(counted),
        }
    }

    /// W6: the rest can take the volume on alone, and the witness can say so.
    pub(crate) fn rest_goes_on(&self, member: MemberId) -> bool {
        let rest = self.sync.iss.without(member);
        let room = self.sync.live.is_some_and(|live| live.has_room(rest));
        let here = rest.minus(self.counted_here()).is_empty();
        let told = self.witness_here() || mutant::on(Mutant::DemotedWithoutWitness);
        self.open && room && !rest.is_empty() && here && told
    }

    /// One member of the in-sync set lacks something, and the rest goes on without it.
    pub(crate) fn goes_on_without(&self, lacking: MemberSet) -> bool {
        let mut lacking = lacking.iter();
        match (lacking.next(), lacking.next()) {
            (Some(member), None) => self.sync.live.is_some() && self.rest_goes_on(member),
            _ => false,
        }
    }

    /// A member that is out can be told so: entries can be issued, or with a witness, which may be
    /// away, the telling is what puts the first epoch in force (W8).
    pub(crate) fn can_tell(&self) -> bool {
        let set_here = self.sync.iss.minus(self.counted_here()).is_empty();
        let led = self
            .membership
            .is_majority(self.members_where(Peer::is_ours));
        self.can_issue() || (self.sync.live.is_some() && self.open && set_here && led)
    }

    /// What the volume waits for is on its way: no new term is needed.
    pub(crate) fn in_force_soon(&self) -> bool {
        self.shrinks_soon() || self.told_soon()
    }

    /// A demotion will help, or one is about to be in force.
    fn shrinks_soon(&self) -> bool {
        let here = self.counted_here();
        let needed = self.sync.live.map_or(MemberSet::EMPTY, |l| l.needed());
        let set_here = self.sync.iss.minus(here).is_empty();
        needed.minus(here).iter().any(|member| {
            let pending = !self.sync.iss.contains(member);
            self.rest_goes_on(member) || (pending && set_here && self.witness_here())
        })
    }

    /// A member that is out is being asked or told, and its record of the newest epoch puts that in
    /// force (W2, W8).
    fn told_soon(&self) -> bool {
        let pending = self.sync.live.is_some_and(|l| !l.newest_in_force());
        let tells = |p: &Peer| {
            let fails = p.state.is_some_and(|s| s.flags.failed) || p.broken;
            let out = matches!(p.standing, Standing::Out { .. } | Standing::Telling { .. });
            out && p.is_ours() && !fails
        };
        pending && self.can_tell() && !self.members_where(tells).is_empty()
    }

    /// Looks at what is in force now (W2), and tells the witness of the newest epoch (W4). Called in
    /// each `settle`.
    pub(crate) fn tend_epochs(&mut self, cx: &mut Cx<'_>) {
        let Some(mut live) = self.sync.live.filter(|_| self.open) else {
            return;
        };
        if live.look(&self.membership, |m| self.peers[m.index()].epoch_done) {
            self.note_in_force(&live);
            self.sync.live = Some(live);
            self.flushes_moved = true;
            self.mode_dirty = true;
            self.again = true;
            self.recount(cx);
            self.try_opened(cx);
        }
        for member in self.membership.witness.iter() {
            self.tell_witness(member, cx);
        }
    }

    /// What is worth knowing of an epoch that has got in force.
    fn note_in_force(&self, live: &LiveEpochs) {
        let alone = live.newest_in_force() && self.sync.iss.count() == 1;
        let knows = |m: MemberId| self.peers[m.index()].epoch_done >= Some(self.sync.n);
        let told = self.membership.witness.iter().all(knows);
        mark::reached_if(alone && self.opened && told, Mark::GoesOnAlone);
        mark::reached_if(alone && !told, Mark::InForceByTelling);
    }

    /// W4: only the newest epoch, and only when all that it names have it durable.
    fn tell_witness(&mut self, witness: MemberId, cx: &mut Cx<'_>) {
        let (n, iss) = (self.sync.n, self.sync.iss);
        let durable = |m: MemberId| self.peers[m.index()].epoch_done >= Some(n);
        let peer = &self.peers[witness.index()];
        let told = peer.epoch_done.max(peer.epoch_sent) >= Some(n);
        let all = iss.iter().all(durable) || mutant::on(Mutant::WitnessToldFirst);
        if told || !peer.is_ours() || !all {
            return;
        }
        let term = self.term;
        let message = if n == 0 {
            Message::TermStart {
                term,
                start: self.stream.start,
                iss,
                loss: self.loss,
            }
        } else {
            Message::SyncSet {
                term,
                idx: self.last_idx(),
                n,
                iss,
                trk: self.sync.trk,
                tidx: Idx(0),
                join: None,
            }
        };
        self.peers[witness.index()].epoch_sent = Some(n);
        self.control(witness, message, cx);
    }

    /// The witness has this epoch durable, or a newer one.
    pub(crate) fn witness_holds(&mut self, witness: MemberId, n: u32) {
        let peer = &mut self.peers[witness.index()];
        peer.epoch_done = peer.epoch_done.max(Some(n.min(self.sync.n)));
        self.again = true;
        self.mode_dirty = true;
    }

    /// The highest position that all of the live in-sync sets have reached: what is flushed (W3).
    pub(crate) fn reached_by_all(
        &self,
        live: &LiveEpochs,
        position: impl Fn(MemberId) -> Idx,
    ) -> Idx {
        if !live.commits(self.sync.counted) {
            return Idx(0);
        }
        live.needed().iter().map(position).min().unwrap_or(Idx(0))
    }

    /// W7: since when everybody else in the live sets has waited for this member, by an entry or by a
    /// flush.
    pub(crate) fn waited_for(&self, member: MemberId) -> Option<Monotonic> {
        let live = self.sync.live.filter(|l| l.needed().contains(member))?;
        let peer = &self.peers[member.index()];
        let next = peer.upto.next().max(self.stream.base);
        let entry = self.stream.get(next).and_then(|entry| {
            let lacks = live.needed().minus(entry.acks);
            entry
                .wanting_since
                .filter(|_| lacks == MemberSet::of(member))
        });
        [entry, peer.flush_wanting.map(|(_, at)| at)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Remembers since when a flush waits for one member only. Called in each `settle`.
    pub(crate) fn note_flush_wants(&mut self, now: Monotonic) {
        let Some(live) = self.sync.live else { return };
        let front = self.flush_out.front().copied();
        let front = front.filter(|_| !mutant::on(Mutant::FlushNotWaitedFor));
        for member in live.needed().iter() {
            let flushed = |m: MemberId, idx: Idx| idx <= self.peers[m.index()].flushed;
            let others = live.needed().without(member);
            let wanted = front.filter(|idx| {
                !others.is_empty()
                    && !flushed(member, *idx)
                    && others.iter().all(|m| flushed(m, *idx))
            });
            let peer: &mut Peer = &mut self.peers[member.index()];
            peer.flush_wanting = wanted.map(|idx| match peer.flush_wanting {
                Some((before, at)) if before == idx => (idx, at),
                Some(_) | None => (idx, now),
            });
        }
    }

    /// W7: how long that has been.
    pub(crate) fn waited_for_age(&self, member: MemberId, now: Monotonic) -> Duration {
        self.waited_for(member)
            .map_or(Duration::ZERO, |at| now.since(at))
    }
}
