//! The volume machine: its state, and the order in which its parts are looked at.

use crate::admit::Part;
use crate::api::{Action, Event, ExitReason, Mode, Waiting};
use crate::campaign::{Campaign, PlanAttempt};
use crate::config::{ConfigError, EngineConfig};
use crate::heal::{Lock, Running};
use crate::limits::SWEEP;
use crate::ops::Operation;
use crate::peer::Peer;
use crate::read::{Flight, Halves, ReadOp};
use crate::rebuild::RebuildStep;
use crate::reconfigure::Change;
use crate::recover::Repair;
use crate::recovery::{Recovery, RecoveryStep};
use crate::rng::Rng;
use crate::scrub::{Scrub, ScrubStep};
use crate::scrubbing::Rewrite;
use crate::slab::Slab;
use crate::slowest::Slowest;
use crate::sorted::Sorted;
use crate::status::{Counters, Latencies};
use crate::stop::Stop;
use crate::stream::StreamState;
use crate::syncset::SyncState;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::histogram::Histogram;
use trilith_block::limits::{BLOCK_BYTES, MEMBERS_MAX, TRANSFER_BYTES_MAX};
use trilith_block::request::Target;
use trilith_block::{
    Actions, BufId, Buffers, Capabilities, ChunkMap, Completion, ConnId, ExtentNo, Idx, Machine,
    MemberId, MemberSet, Membership, Monotonic, Overlap, Request, Stream, Term, VolumeInfo, Want,
};
use trilith_wire::Encoder;

/// What a call brings along.
pub(crate) struct Cx<'a> {
    pub(crate) now: Monotonic,
    pub(crate) data: &'a mut dyn Buffers,
    pub(crate) out: &'a mut Actions<Action>,
}

/// Rounds of one `settle`: each is caused by the one before; more go into the next `settle`.
const ROUNDS_MAX: usize = 64;

/// The leader of one volume.
#[derive(Debug)]
pub struct Engine {
    pub(crate) cfg: EngineConfig,
    /// What decides.
    pub(crate) membership: Membership,
    /// Who is dealt with: the members, and who is on its way out.
    pub(crate) members: MemberSet,
    pub(crate) change: Change,
    /// Highest generation of a configuration that was heard of.
    pub(crate) generation_heard: u64,
    pub(crate) now: Monotonic,
    pub(crate) rng: Rng,
    pub(crate) encoder: Encoder,
    /// By member index; those not in the configuration are never used.
    pub(crate) peers: Vec<Peer>,
    pub(crate) conns: BTreeMap<ConnId, MemberId>,
    /// Connections being closed, with the buffer that may still be received into.
    pub(crate) closing: BTreeMap<ConnId, Option<BufId>>,

    // Leadership.
    pub(crate) term: Term,
    pub(crate) max_term: Term,
    pub(crate) campaign: Campaign,
    pub(crate) campaign_backoff: Duration,
    pub(crate) plan_attempt: PlanAttempt,
    pub(crate) other_leader: bool,
    pub(crate) recovery: Option<Recovery>,
    pub(crate) recovery_steps: Vec<RecoveryStep>,
    pub(crate) recovery_running: bool,
    pub(crate) repairs: Slab<Repair>,
    /// TERMSTART has been carried out: entries and reads of `term` are possible.
    pub(crate) open: bool,
    /// R8: a majority holds the term start.
    pub(crate) opened: bool,
    pub(crate) lossy: bool,
    pub(crate) loss: u32,
    pub(crate) loss_bound: Option<u32>,
    pub(crate) loss_wait: bool,
    pub(crate) defer_until: Monotonic,
    pub(crate) deferring: bool,
    pub(crate) grant: Monotonic,
    pub(crate) limbo: ChunkMap,

    // The stream.
    pub(crate) stream: StreamState,
    pub(crate) sync: SyncState,
    /// By member: what in-sync members have in dirty[member], and may lack there.
    pub(crate) absent: Vec<ChunkMap>,
    /// By member that is joining: what in-sync members still have in dirty[member].
    pub(crate) uncleared: Vec<ChunkMap>,
    pub(crate) rebuilds: Vec<Option<Running>>,
    pub(crate) rebuild_steps: Vec<RebuildStep>,
    pub(crate) locks: Slab<Lock>,
    pub(crate) locks_moved: bool,
    pub(crate) scrub: Scrub,
    pub(crate) scrub_steps: Vec<ScrubStep>,
    /// What the scrub has written again and does not know to be flushed.
    pub(crate) rewrite: Option<Rewrite>,

    // Requests.
    pub(crate) capacity: u64,
    pub(crate) ops: Slab<Operation>,
    /// When a client asked for something last.
    pub(crate) requested_at: Monotonic,
    pub(crate) unchecked: Vec<u64>,
    pub(crate) inbox: VecDeque<u64>,
    pub(crate) parts: Slab<Part>,
    pub(crate) gate: Overlap,
    pub(crate) freed: Vec<u64>,
    pub(crate) ready: VecDeque<u64>,
    pub(crate) reissued: VecDeque<u64>,
    pub(crate) flush_wait: Vec<u64>,
    pub(crate) flush_ops: VecDeque<(Idx, u64)>,
    pub(crate) flush_out: VecDeque<Idx>,
    pub(crate) flushes_moved: bool,
    pub(crate) completions: Vec<Completion>,

    // Reads.
    pub(crate) read_inbox: VecDeque<u64>,
    pub(crate) status_inbox: VecDeque<u64>,
    pub(crate) reads: Slab<ReadOp>,
    pub(crate) flights: Slab<Flight>,
    pub(crate) halves: BTreeMap<u64, Halves>,
    pub(crate) joins_waiting: Vec<u64>,
    pub(crate) read_waits: BTreeSet<(Idx, u64)>,
    pub(crate) read_due: Vec<(Idx, u64)>,
    pub(crate) read_retries: VecDeque<u64>,
    pub(crate) retry_at: Option<Monotonic>,
    pub(crate) reads_stirred: bool,
    pub(crate) confirms: Vec<u64>,
    pub(crate) hedges: Sorted<(Monotonic, u64)>,
    pub(crate) hedge_delay: Duration,
    pub(crate) read_rtt: Histogram,

    // Room (M3).
    pub(crate) allocated: Vec<u64>,
    pub(crate) room_asked: bool,
    pub(crate) no_room: Option<ExtentNo>,

    // The whole.
    pub(crate) mode: Mode,
    pub(crate) mode_dirty: bool,
    pub(crate) unserved_since: Option<Monotonic>,
    pub(crate) ineligible_since: Option<Monotonic>,
    pub(crate) stop: Option<Stop>,
    pub(crate) exit: Option<ExitReason>,
    /// Another round is wanted in this `settle`.
    pub(crate) again: bool,
    /// A buffer was wanted and none was free: look again soon.
    pub(crate) starved: bool,
    pub(crate) swept_at: Monotonic,
    pub(crate) loaded_at: Monotonic,
    pub(crate) load_completed: u64,
    pub(crate) load_latency: Histogram,
    pub(crate) latencies: Latencies,
    pub(crate) slowest: Slowest,
    pub(crate) counters: Counters,
    pub(crate) scratch: Vec<u8>,
}

impl Engine {
    /// An engine that starts to dial at its first `settle`.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(cfg: EngineConfig, now: Monotonic) -> Result<Engine, ConfigError> {
        cfg.validate()?;
        let timing = cfg.timing;
        let peers = (0..MEMBERS_MAX)
            .map(|_| Peer::new(now, timing.redial_min))
            .collect();
        let capacity = cfg.capacity_bytes;
        let mut engine = Engine {
            membership: Membership {
                generation: cfg.cfg_gen,
                ..cfg.members.into()
            },
            members: cfg.members,
            change: Change::default(),
            generation_heard: cfg.cfg_gen,
            now,
            rng: Rng::new(&cfg.entropy),
            encoder: Encoder::new(),
            peers,
            conns: BTreeMap::new(),
            closing: BTreeMap::new(),
            term: Term(0),
            max_term: Term(0),
            campaign: Campaign::Idle { at: None },
            campaign_backoff: timing.campaign_retry_min,
            plan_attempt: PlanAttempt::default(),
            other_leader: false,
            recovery: None,
            recovery_steps: Vec::new(),
            recovery_running: false,
            repairs: Slab::default(),
            open: false,
            opened: false,
            lossy: false,
            loss: 0,
            loss_bound: cfg.loss_bound,
            loss_wait: false,
            defer_until: Monotonic(0),
            deferring: false,
            grant: Monotonic(0),
            limbo: ChunkMap::new(),
            stream: StreamState::default(),
            sync: SyncState::default(),
            absent: (0..MEMBERS_MAX).map(|_| ChunkMap::new()).collect(),
            uncleared: (0..MEMBERS_MAX).map(|_| ChunkMap::new()).collect(),
            rebuilds: (0..MEMBERS_MAX).map(|_| None).collect(),
            rebuild_steps: Vec::new(),
            locks: Slab::default(),
            locks_moved: false,
            scrub: Scrub::new(cfg.scrub, crate::rng::mixed(&cfg.entropy), now),
            scrub_steps: Vec::new(),
            rewrite: None,
            capacity: 0,
            ops: Slab::default(),
            requested_at: Monotonic(0),
            unchecked: Vec::new(),
            inbox: VecDeque::new(),
            parts: Slab::default(),
            gate: Overlap::new(),
            freed: Vec::new(),
            ready: VecDeque::new(),
            reissued: VecDeque::new(),
            flush_wait: Vec::new(),
            flush_ops: VecDeque::new(),
            flush_out: VecDeque::new(),
            flushes_moved: false,
            completions: Vec::new(),
            read_inbox: VecDeque::new(),
            status_inbox: VecDeque::new(),
            reads: Slab::default(),
            flights: Slab::default(),
            halves: BTreeMap::new(),
            joins_waiting: Vec::new(),
            read_waits: BTreeSet::new(),
            read_due: Vec::new(),
            read_retries: VecDeque::new(),
            retry_at: None,
            reads_stirred: false,
            confirms: Vec::new(),
            hedges: Sorted::default(),
            hedge_delay: timing.hedge_max,
            read_rtt: Histogram::default(),
            allocated: Vec::new(),
            room_asked: false,
            no_room: None,
            mode: Mode::Waiting(Waiting::Replicas),
            mode_dirty: true,
            unserved_since: Some(now),
            ineligible_since: None,
            stop: None,
            exit: None,
            again: false,
            starved: false,
            swept_at: now,
            loaded_at: now,
            load_completed: 0,
            load_latency: Histogram::default(),
            latencies: Latencies::default(),
            slowest: Slowest::new(now),
            counters: Counters::default(),
            scratch: Vec::new(),
            cfg,
        };
        if capacity > 0 {
            engine.learn_capacity(capacity);
        }
        Ok(engine)
    }

    /// How the volume is served now.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What frontends need to know; `None` until a replica has told the capacity.
    pub fn info(&self) -> Option<VolumeInfo> {
        (self.capacity > 0).then_some(VolumeInfo {
            volume: self.cfg.volume,
            capabilities: Capabilities {
                capacity_bytes: self.capacity,
                block_bytes: BLOCK_BYTES,
                transfer_bytes_max: TRANSFER_BYTES_MAX,
                optimal_bytes: TRANSFER_BYTES_MAX,
            },
        })
    }

    /// Loss epoch that the clients of this engine are bound to: for the `loss_bound` of the next
    /// engine that serves the same clients. `None` before the first term.
    pub fn loss(&self) -> Option<u32> {
        self.loss_bound
    }

    /// One look at everything, in this order: who is there, who counts, what may be told, what may
    /// be taken.
    fn round(&mut self, cx: &mut Cx<'_>) {
        self.again = false;
        self.tend_sessions(cx);
        self.tend_campaign(cx);
        self.check_early(cx);
        if self.defer_until <= cx.now && core::mem::take(&mut self.deferring) {
            self.flushes_moved = true;
            self.reads_stirred = true;
            self.recount(cx);
        }
        self.deferring = cx.now < self.defer_until;
        let moved = self.advance(cx);
        self.tend_epochs(cx);
        self.tend_mode(cx);
        self.tend_members(cx);
        self.tend_change(cx);
        self.tend_rebuilds(moved, cx);
        self.tend_scrub(cx);
        self.admit(cx);
        self.issue_flushes(cx);
        let moved = self.advance(cx) || moved;
        self.check_flushes(cx);
        self.note_flush_wants(cx.now);
        self.admit_reads(cx);
        self.tend_reads(moved, cx);
        self.tend_hedges(cx);
        self.tend_status(cx);
        self.tend_stop(cx);
    }

    /// What needs only be looked at now and then.
    fn sweep(&mut self, cx: &mut Cx<'_>) {
        if cx.now < self.swept_at.after(SWEEP) && !self.starved {
            return;
        }
        self.swept_at = cx.now;
        self.starved = false;
        self.expire_requests(cx);
        for key in core::mem::take(&mut self.joins_waiting) {
            self.join_halves(key, cx);
        }
        for member in self.members.iter() {
            self.pump(member, cx);
        }
        let timing = &self.cfg.timing;
        if self.read_rtt.count() > 0 {
            let p95 = self.read_rtt.quantile(950);
            self.hedge_delay = p95.clamp(timing.hedge_min, timing.hedge_max);
        }
        if self.loaded_at.after(Duration::from_secs(1)) <= cx.now {
            self.loaded_at = cx.now;
            self.report_load(cx);
            self.read_rtt = Histogram::default();
        }
        self.reads_stirred = true;
        self.again = true;
    }

    fn sweep_deadline(&self) -> Option<Monotonic> {
        let busy =
            self.starved || !self.ops.is_empty() || self.rebuilds.iter().any(Option::is_some);
        let busy = busy || self.scrub.is_comparing();
        busy.then(|| self.swept_at.after(SWEEP))
    }

    fn sessions_deadline(&self) -> Option<Monotonic> {
        let silence = self.cfg.timing.session_silence_max;
        let due = |member: MemberId| {
            let peer = &self.peers[member.index()];
            match peer.link {
                crate::peer::Link::Down { redial } => Some(redial),
                crate::peer::Link::Dialling { until }
                | crate::peer::Link::Greeted { until }
                | crate::peer::Link::Proved { until } => Some(until),
                crate::peer::Link::Up => match peer.asked_at {
                    Some(at) => Some(at.after(silence)),
                    None => self.probe_at(member),
                },
            }
        };
        self.members.iter().filter_map(due).min()
    }
}

impl Machine for Engine {
    type Event<'a> = Event<'a>;
    type Action = Action;

    fn step(
        &mut self,
        now: Monotonic,
        event: Event<'_>,
        data: &mut dyn Buffers,
        out: &mut Actions<Action>,
    ) {
        self.now = self.now.max(now);
        let cx = &mut Cx {
            now: self.now,
            data,
            out,
        };
        match event {
            Event::Stream(conn, event) => self.stream_event(conn, event, cx),
            Event::Dialled { member, conn } => self.dialled(member, conn, cx),
            Event::Operator(wish) => self.operator(wish, cx),
            Event::Grant { until } => {
                self.grant = self.grant.max(until);
                self.mode_dirty = true;
            }
        }
    }

    fn settle(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Actions<Action>) {
        self.now = self.now.max(now);
        let cx = &mut Cx {
            now: self.now,
            data,
            out,
        };
        if !self.is_finished() {
            for _ in 0..ROUNDS_MAX {
                self.round(cx);
                if self.is_finished() || !(self.again || self.stream.moved || self.flushes_moved) {
                    break;
                }
            }
            if !self.is_finished() {
                self.sweep(cx);
                self.tend_heartbeats(cx);
            }
        }
        for completion in self.completions.drain(..) {
            cx.out.push(Action::Complete(completion));
        }
        if let Some(reason) = self.exit.take() {
            cx.out.push(Action::ModeChanged(self.mode));
            cx.out.push(Action::Exit(reason));
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        if self.is_finished() {
            return None;
        }
        if self.again || self.stream.moved {
            return Some(self.now);
        }
        let parts = [
            self.sessions_deadline(),
            self.campaign_deadline(),
            self.heartbeat_deadline(),
            self.mode_deadline(),
            self.members_deadline(self.now),
            self.change_deadline(),
            self.rebuilds_deadline(),
            self.scrub.deadline(),
            self.sweep_deadline(),
            self.retry_at,
            self.deferring.then_some(self.defer_until),
            self.hedges.first().map(|(at, _)| *at),
            self.stop.map(|s| s.until),
        ];
        parts.into_iter().flatten().min()
    }
}

impl Stream for Engine {
    fn want(&mut self, conn: ConnId, data: &mut dyn Buffers) -> Want {
        self.wanted(conn, data)
    }
}

impl Target for Engine {
    fn submit(
        &mut self,
        now: Monotonic,
        request: Request,
        data: &mut dyn Buffers,
    ) -> Result<(), Request> {
        self.take_request(now, request, data)
    }
}
