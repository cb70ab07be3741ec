//! Replacing a voter (2.7, 6.7, C20): the newcomer learns, then old and new voters decide together,
//! then the new ones alone; who was replaced is told and forgotten.
//!
//! A configuration counts for its engine from the moment it is sent to anyone, as in Raft, but the
//! last step only once it is durable at a majority of the new voters. It is spread by RECONFIGURE to
//! every member; a new leader takes the newest one of its promisers, says it again under its own
//! term before it goes on, and so finishes what the one before has begun.

use crate::campaign::Campaign;
use crate::engine::{Cx, Engine};
use crate::peer::{MapOwner, MapPiece, Peer};
use crate::recovery::Promise;
use crate::survey::add_records;
use crate::syncset::Standing;
use core::time::Duration;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    BufSlice, ChunkMap, ExtentNo, MemberId, MemberSet, Membership, Monotonic, Uuid,
};
use trilith_wire::limits::PROTOCOL_RECONFIGURE;
use trilith_wire::{MapKind, Message, Reason, ReplicaState};

/// Time that a replaced member has to make its retirement durable.
const RETIRE_WAIT: Duration = Duration::from_secs(2);

/// What is known of a newcomer that learns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Newcomer {
    /// There is none, or it votes.
    #[default]
    Nobody,
    /// Begun in this term: it is empty, and what it lacks is not known yet.
    Fresh,
    /// A member is being asked what is allocated, from this extent on.
    Asked(u64),
    /// What it lacks is in `absent`, as of any other member.
    Known,
}

/// A change on its way, as far as the configuration does not tell it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    /// The last step: spread, but not in force before it is durable at a majority of its voters.
    pub(crate) pending: Option<Membership>,
    /// Sync epoch that must be durable at both majorities before the last step.
    barrier: Option<u32>,
    newcomer: Newcomer,
    /// Members without a place that are still to be let go.
    pub(crate) departing: MemberSet,
    depart_until: Option<Monotonic>,
}

/// Why a replacement cannot begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeError {
    /// The volume is not served: a majority that counts is needed.
    NotServing,
    /// Another change has not ended.
    Running,
    /// The member to be replaced does not vote.
    NotAVoter(MemberId),
    /// The number of the new member is taken.
    Taken(MemberId),
    /// This replica runs a version that cannot change its configuration.
    TooOld(MemberId),
    /// The volume has a witness (W16).
    HasWitness,
}

impl core::fmt::Display for ChangeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ChangeError::NotServing => {
                f.write_str("the volume is not served: a majority of in-sync replicas is needed")
            }
            ChangeError::Running => {
                f.write_str("another replacement is running: one at a time, see the status")
            }
            ChangeError::NotAVoter(member) => {
                write!(f, "the volume has no replica {member}")
            }
            ChangeError::Taken(member) => {
                write!(f, "the number {member} is that of another replica")
            }
            ChangeError::HasWitness => f.write_str(
                "no member of a volume with a witness can be replaced: copy it to a new volume",
            ),
            ChangeError::TooOld(member) => {
                write!(
                    f,
                    "replica {member} is of an older version: update it first"
                )
            }
        }
    }
}

impl core::error::Error for ChangeError {}

/// How far a change is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeStep {
    /// The newcomer is being rebuilt and does not vote.
    Learning,
    /// Old and new voters decide together.
    Joint,
    /// The new voters decide; who was replaced is being let go.
    Retiring,
}

impl Engine {
    /// Generation that this engine knows of, its own or a newer one: what it tells others.
    pub(crate) fn generation_known(&self) -> u64 {
        self.membership.generation.max(self.generation_heard)
    }

    /// What a member says of the configuration. False: its session has been ended.
    pub(crate) fn meet_config(
        &mut self,
        member: MemberId,
        state: &ReplicaState,
        cx: &mut Cx<'_>,
    ) -> bool {
        let (told, known) = (state.config, self.membership);
        self.generation_heard = self.generation_heard.max(told.generation);
        let peer = &mut self.peers[member.index()];
        (peer.generation, peer.generation_sent) = (told.generation, 0);
        (peer.loss, peer.loss_sent) = (state.loss, 0);
        // T18: an empty replica has no say. It may only learn.
        let learns = known.generation > 0 && !known.joint && known.joining().contains(member);
        let odd = told.generation == known.generation && told != known;
        let blank = told.generation == 0 && !mutant::on(Mutant::BlankHeard);
        if (blank && !learns) || odd {
            self.unfit(member, Reason::Mismatch, cx);
            return false;
        }
        // An engine that leads, or is about to, goes by what its promisers knew: what others know
        // was never decided, and is overruled when they come (`spread_to`).
        let leads = self.open || self.campaign == Campaign::Recover;
        if known.generation < told.generation && !leads {
            self.adopt(told, cx);
        }
        self.members.contains(member)
    }

    /// Goes by a newer configuration. Votes that were asked for under another one are void.
    fn adopt(&mut self, config: Membership, cx: &mut Cx<'_>) {
        let gone = self.members.minus(config.members());
        self.membership = config;
        self.members = config.members();
        self.plan_attempt = crate::campaign::PlanAttempt::default();
        self.mode_dirty = true;
        self.again = true;
        for member in gone.iter() {
            self.drop_session(member, cx);
            self.peers[member.index()].standing = Standing::Unknown;
        }
        if matches!(self.campaign, Campaign::Vote { .. }) {
            self.campaign_failed(cx.now);
        }
    }

    /// C20: a promiser that does not know a member cannot say what that one lacks: everything.
    pub(crate) fn fill_unknown(&self, promises: &mut [Promise]) {
        let extents = ExtentNo::count_for(self.capacity);
        for promise in promises {
            let known = promise.state.config.members();
            for member in self.membership.members().minus(known).iter() {
                let map = promise.dirty.get_mut(member);
                for extent in 0..extents {
                    map.set_mask(ExtentNo(extent), u64::MAX);
                }
            }
        }
    }

    /// A plan is made: its configuration is that of the term. One that is not settled everywhere is
    /// said again under this term, so that nothing older can overrule it.
    pub(crate) fn take_up_config(&mut self, cx: &mut Cx<'_>) {
        let generation = self.membership.generation;
        let behind = self.members_where(|p| p.is_ours() && p.generation != generation);
        let settled = self.membership.is_simple() && generation == self.generation_known();
        if !settled || !behind.is_empty() {
            self.renew();
        }
        self.spread(cx);
    }

    fn renew(&mut self) {
        if let Some(config) = self.membership.renewed(self.term) {
            self.change.pending = None;
            self.membership = config;
            self.generation_heard = self.generation_heard.max(config.generation);
        }
    }

    /// What a member is to know.
    fn target(&self, member: MemberId) -> Membership {
        self.change
            .pending
            .filter(|c| c.members().contains(member))
            .unwrap_or(self.membership)
    }

    fn spread(&mut self, cx: &mut Cx<'_>) {
        for member in self.membership.members().iter() {
            self.spread_to(member, cx);
        }
    }

    /// RECONFIGURE to a member that holds this term, if it is behind.
    pub(crate) fn spread_to(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &self.peers[member.index()];
        if !peer.is_ours() || (peer.generation == 0 && !self.is_fresh()) {
            return;
        }
        if self.target(member).generation < peer.generation {
            // Something that an engine before told it and that was never decided.
            self.renew();
        }
        let config = self.target(member);
        let peer = &mut self.peers[member.index()];
        if config.generation <= peer.generation.max(peer.generation_sent) {
            return;
        }
        if peer.protocol < PROTOCOL_RECONFIGURE {
            return self.unfit(member, Reason::Protocol, cx);
        }
        peer.generation_sent = config.generation;
        let term = self.term;
        self.control(member, Message::Reconfigure { term, config }, cx);
    }

    /// RECONFIGUREDONE.
    pub(crate) fn config_durable(&mut self, member: MemberId, generation: u64) {
        let peer = &mut self.peers[member.index()];
        peer.generation = peer.generation.max(generation);
        self.mode_dirty = true;
        self.again = true;
    }

    fn is_durable(&self, config: &Membership) -> bool {
        config.is_majority(self.members_where(|p| config.generation <= p.generation))
    }

    /// Every member whose maps a later leader may go by knows the configuration, and the sync epoch
    /// that says who they are is durable.
    fn everyone_knows(&self) -> bool {
        let generation = self.membership.generation;
        let know = self.members_where(|p| generation <= p.generation);
        let all = self.sync.iss.or(self.membership.joining());
        all.minus(know).is_empty() && self.may_be_told(self.sync.n)
    }

    fn is_fresh(&self) -> bool {
        matches!(self.change.newcomer, Newcomer::Fresh | Newcomer::Asked(_))
    }

    /// False for a newcomer as long as the in-sync members may not know what it lacks, and for who
    /// is being let go.
    pub(crate) fn may_be_tracked(&self, member: MemberId) -> bool {
        let learns = !self.membership.joint && self.membership.joining().contains(member);
        let known = self.change.newcomer == Newcomer::Known && self.everyone_knows();
        (known || !learns) && !self.change.departing.contains(member)
    }

    /// The term is open: a change that was found goes on.
    pub(crate) fn inherit_change(&mut self) {
        if self.membership.joint {
            // TERMSTART is a barrier as a SYNCSET is.
            self.change.barrier = Some(0);
        } else if !self.membership.is_simple() {
            self.change.newcomer = Newcomer::Known;
        }
    }

    /// Whether `old` may be replaced by `new` now.
    ///
    /// # Errors
    /// Why not.
    pub fn may_replace(&self, old: MemberId, new: MemberId) -> Result<(), ChangeError> {
        if self.membership.has_witness() {
            return Err(ChangeError::HasWitness);
        }
        if !self.membership.is_simple() || !self.change.departing.is_empty() {
            return Err(ChangeError::Running);
        }
        if !self.membership.voters.contains(old) {
            return Err(ChangeError::NotAVoter(old));
        }
        if self.members.contains(new) {
            return Err(ChangeError::Taken(new));
        }
        if !self.can_issue() || self.stop.is_some() {
            return Err(ChangeError::NotServing);
        }
        let old_version = |p: &Peer| p.is_up() && p.protocol < PROTOCOL_RECONFIGURE;
        match self.members_where(old_version).iter().next() {
            Some(member) => Err(ChangeError::TooOld(member)),
            None => Ok(()),
        }
    }

    /// The first step: `new` learns.
    pub(crate) fn replace(&mut self, old: MemberId, new: MemberId, cx: &mut Cx<'_>) {
        if self.may_replace(old, new).is_err() {
            return;
        }
        let Some(config) = self.membership.replacing(old, new, self.term) else {
            return;
        };
        self.drop_session(new, cx);
        let at = new.index();
        self.peers[at] = Peer::new(cx.now, self.cfg.timing.redial_min);
        self.peers[at].standing = Standing::Out { since: self.sync.n };
        self.forget_maps(new);
        self.set_config(config);
        self.members = self.members.with(new);
        self.change.newcomer = Newcomer::Fresh;
        // Members mark the chunks of what they have when they hear of the newcomer; what they are
        // still to be sent says so itself.
        for entry in &mut self.stream.entries {
            if !entry.range.is_empty() {
                entry.skip = entry.skip.with(new);
                self.absent[at].add_range(entry.range);
            }
        }
        self.spread(cx);
    }

    fn set_config(&mut self, config: Membership) {
        self.membership = config;
        self.generation_heard = self.generation_heard.max(config.generation);
        self.mode_dirty = true;
        self.again = true;
    }

    /// The newcomer is given up.
    pub(crate) fn keep_old(&mut self, cx: &mut Cx<'_>) {
        if self.membership.joint || self.membership.is_simple() || !self.can_issue() {
            return;
        }
        if let Some(config) = self.membership.settled(self.term) {
            self.enter(config, cx);
            self.spread(cx);
        }
    }

    /// A configuration without a change is in force.
    fn enter(&mut self, config: Membership, cx: &mut Cx<'_>) {
        let departing = self.members.minus(config.members());
        self.set_config(config);
        self.change = Change {
            departing,
            ..Change::default()
        };
        self.flushes_moved = true;
        self.recount(cx);
    }

    /// Moves a change on. Called in each `settle`.
    pub(crate) fn tend_change(&mut self, cx: &mut Cx<'_>) {
        let quiet = self.membership.is_simple() && self.change.departing.is_empty();
        if !self.open || quiet {
            return;
        }
        self.spread(cx);
        self.let_go(cx);
        if !self.can_issue() || self.stop.is_some() {
            return;
        }
        if let Some(config) = self.change.pending {
            if self.is_durable(&config) {
                self.enter(config, cx);
            }
        } else if self.membership.joint {
            self.tend_joint();
        } else if !self.membership.is_simple() {
            self.tend_newcomer(cx);
        }
    }

    fn tend_newcomer(&mut self, cx: &mut Cx<'_>) {
        let Some(new) = self.membership.joining().iter().next() else {
            return;
        };
        let peer = &self.peers[new.index()];
        // It was emptied, or never heard of: what the others have on record is not what it lacks. Its
        // promise says so: since its WELCOME an engine before may have told it. Or it is not empty,
        // and nobody knows what it holds.
        let emptied = peer.generation == 0 && self.change.newcomer == Newcomer::Known;
        let filled = peer.state.is_some_and(|s| s.se.term.0 > 0) && self.is_fresh();
        if (peer.is_ours() && emptied) || (peer.is_up() && filled) {
            return self.keep_old(cx);
        }
        if self.change.newcomer == Newcomer::Fresh && self.everyone_knows() {
            return self.ask_newcomer(0, None, cx);
        }
        let here = self.counted_here();
        let ready = self.change.newcomer == Newcomer::Known
            && here.contains(new)
            && self.everyone_knows()
            && self.is_durable(&self.membership);
        if !ready {
            return;
        }
        let aware = self.aware_of_loss();
        let joint = self
            .membership
            .joined(self.term)
            .filter(|c| c.is_majority(here) && c.is_majority(aware) && aware.contains(new));
        if let Some(config) = joint {
            self.set_config(config);
            self.change = Change::default();
            self.spread(cx);
            // What was decided by the old voters alone is before this barrier, and durable at a
            // majority of the new ones when it is.
            let (iss, trk) = (self.sync.iss, self.sync.trk);
            self.issue_syncset(iss, trk, None, trk, cx);
            self.change.barrier = Some(self.sync.n);
        }
    }

    /// C22: RECONCILE with the loss epoch to a member that may not know it. TERMSTART has told those
    /// of the first in-sync set; a vote is given to nobody else before its answer.
    pub(crate) fn tell_loss(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &self.peers[member.index()];
        let told = self.loss <= peer.loss.max(peer.loss_sent);
        if told || !peer.is_ours() || mutant::on(Mutant::LossNotHandedOn) {
            return;
        }
        mark::reached(Mark::LossHandedOn);
        let (term, loss) = (self.term, self.loss);
        self.peers[member.index()].loss_sent = loss;
        self.control(member, Message::Reconcile { term, loss }, cx);
    }

    /// RECONCILEDONE, or the answer to a TERMSTART.
    pub(crate) fn loss_durable(&mut self, member: MemberId, loss: u32) {
        let peer = &mut self.peers[member.index()];
        peer.loss = peer.loss.max(loss);
        self.again = true;
    }

    /// Members where the loss epoch of this term is durable.
    fn aware_of_loss(&self) -> MemberSet {
        let any = mutant::on(Mutant::LossNotHandedOn);
        self.members_where(|p| self.loss <= p.loss || any)
    }

    fn tend_joint(&mut self) {
        let Some(barrier) = self.change.barrier else {
            return;
        };
        let passed = |p: &Peer| p.epoch_done.is_some_and(|n| barrier <= n);
        let holders = self.members_where(passed).and(self.sync.counted);
        if !self.membership.is_majority(holders) || !self.is_durable(&self.membership) {
            return;
        }
        // `renewed` has no number left when the generation is not of this term.
        let ours = self.membership.generation_after(self.term);
        if ours == self.membership.generation.checked_add(1) {
            self.change.pending = self.membership.settled(self.term);
            if let Some(config) = self.change.pending {
                self.generation_heard = self.generation_heard.max(config.generation);
            }
            self.again = true;
        }
    }

    /// Lets go of who has no place any more: out of the sync sets, told if it can be reached.
    fn let_go(&mut self, cx: &mut Cx<'_>) {
        for member in self.change.departing.iter() {
            let at = member.index();
            if self.sync.trk.contains(member) || self.sync.iss.contains(member) {
                if !self.can_issue() {
                    continue;
                }
                self.leave_trk(member);
                let (iss, trk) = (self.sync.iss.without(member), self.sync.trk.without(member));
                self.sync.counted = self.sync.counted.without(member);
                self.issue_syncset(iss, trk, None, trk, cx);
                let peer = &mut self.peers[at];
                peer.standing = Standing::Out { since: self.sync.n };
                (peer.fed, peer.synced, peer.survey) = (false, false, None);
                (peer.in_flight_entries, peer.in_flight_bytes) = (0, 0);
                peer.control.clear();
                self.recount(cx);
            }
            if !self.is_durable(&self.membership) {
                continue;
            }
            // It is told only what is decided: a retired member helps nobody any more.
            self.spread_to(member, cx);
            let until = *self
                .change
                .depart_until
                .get_or_insert(cx.now.after(RETIRE_WAIT));
            let peer = &self.peers[at];
            let told = self.membership.generation <= peer.generation;
            if told || !peer.is_ours() || until <= cx.now {
                self.forget(member, cx);
            }
        }
    }

    /// A member has no place any more.
    fn forget(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        self.stop_rebuild(member);
        self.drop_session(member, cx);
        self.members = self.members.without(member);
        self.change.departing = self.change.departing.without(member);
        self.peers[member.index()].standing = Standing::Unknown;
        self.forget_maps(member);
        self.mode_dirty = true;
        self.again = true;
    }

    fn forget_maps(&mut self, member: MemberId) {
        self.absent[member.index()].clear();
        self.uncleared[member.index()].clear();
        for peer in &mut self.peers {
            peer.owed.get_mut(member).clear();
        }
    }

    /// What a change knows of the term ends with it.
    pub(crate) fn freeze_change(&mut self) {
        self.change = Change {
            departing: self.change.departing,
            ..Change::default()
        };
    }

    /// The term is over: so is what it still had to say to those without a place.
    pub(crate) fn drop_departing(&mut self, cx: &mut Cx<'_>) {
        for member in self.change.departing.iter() {
            self.forget(member, cx);
        }
    }

    /// When a change wants to be looked at.
    pub(crate) fn change_deadline(&self) -> Option<Monotonic> {
        self.change.depart_until.filter(|at| *at > self.now)
    }

    /// Asks a counted member what is allocated: what an empty newcomer lacks.
    fn ask_newcomer(&mut self, from: u64, at: Option<MemberId>, cx: &mut Cx<'_>) {
        let Some(source) = at.or_else(|| self.map_source()) else {
            return;
        };
        self.change.newcomer = Newcomer::Asked(from);
        self.ask_map(source, MapOwner::Newcomer, from, cx);
    }

    /// A piece of that map.
    pub(crate) fn newcomer_map(
        &mut self,
        source: MemberId,
        piece: MapPiece,
        buf: Option<BufSlice>,
        cx: &mut Cx<'_>,
    ) {
        let (Newcomer::Asked(from), Some(new)) = (
            self.change.newcomer,
            self.membership.joining().iter().next(),
        ) else {
            return;
        };
        let extents = ExtentNo::count_for(self.capacity);
        let bytes = buf.map_or(&[][..], |b| cx.data.bytes(b));
        let map: &mut ChunkMap = &mut self.absent[new.index()];
        let sound = piece.map == MapKind::Allocated && add_records(map, bytes, extents);
        let progress = piece.last || (!bytes.is_empty() && from < piece.next);
        if !sound || !progress {
            self.newcomer_unasked();
            return self.drop_session(source, cx);
        }
        if piece.last {
            self.change.newcomer = Newcomer::Known;
            self.mode_dirty = true;
            self.again = true;
        } else {
            self.ask_newcomer(piece.next, Some(source), cx);
        }
    }

    /// The member that was asked is gone: another one is asked, from the start.
    pub(crate) fn newcomer_unasked(&mut self) {
        if self.is_fresh() {
            self.change.newcomer = Newcomer::Fresh;
            self.again = true;
        }
    }

    /// Everyone with whom this engine deals: the members, and who is being let go.
    pub fn dealt_with(&self) -> MemberSet {
        self.members
    }

    /// From now on only the replica of this identity is taken for a member.
    pub fn expect_identity(&mut self, member: MemberId, identity: Uuid) {
        self.cfg.identities[member.index()] = identity;
    }

    /// The configuration that this engine goes by.
    pub fn membership(&self) -> Membership {
        self.membership
    }

    /// How far a change is, who leaves and who comes.
    pub(crate) fn change_status(&self) -> Option<(ChangeStep, MemberSet, MemberSet)> {
        let config = &self.membership;
        let (leaving, joining) = (config.leaving(), config.joining());
        if config.joint {
            Some((ChangeStep::Joint, leaving, joining))
        } else if !config.is_simple() {
            Some((ChangeStep::Learning, leaving, joining))
        } else if !self.change.departing.is_empty() {
            let departing = self.change.departing;
            Some((ChangeStep::Retiring, departing, MemberSet::EMPTY))
        } else {
            None
        }
    }
}
