//! What the engine knows of one member: its session, its promise, its place in the stream.

use crate::recovery::{MemberMaps, Promise};
use crate::syncset::Standing;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::histogram::Histogram;
use trilith_block::{BufSlice, ChunkMap, ConnId, ExtentNo, Idx, MemberId, Monotonic, Uuid};
use trilith_wire::auth::Nonce;
use trilith_wire::{Decoder, MapKind, Message, Reason, ReplicaState};

/// Where the session is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Link {
    /// No connection; dial at this time.
    Down { redial: Monotonic },
    /// `Action::Dial` is out, or the connection is being made. Given up at this time.
    Dialling { until: Monotonic },
    /// HELLO is out.
    Greeted { until: Monotonic },
    /// AUTH is out.
    Proved { until: Monotonic },
    /// WELCOME has come.
    Up,
}

/// What is being received.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Receive {
    /// A head.
    Head,
    /// Payload of a DATA for this flight; the buffer comes later when there is room.
    DataRoom { rid: u64, len: u32 },
    /// Payload of a DATA; one owner of the buffer is here.
    Data { rid: u64, buf: BufSlice },
    /// Payload of a MAP; the buffer comes later.
    MapRoom { piece: MapPiece, len: u32 },
    /// Payload of a MAP; one owner of the buffer is here.
    Map { piece: MapPiece, buf: BufSlice },
    /// Payload that nobody wants.
    Discard(u64),
}

/// The head of a MAP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapPiece {
    pub(crate) map: MapKind,
    /// Whose, for a dirty map.
    pub(crate) of: MemberId,
    pub(crate) last: bool,
    pub(crate) next: u64,
    pub(crate) crc: u32,
}

/// A frame that is not an entry and waits for its turn.
#[derive(Debug)]
pub(crate) enum Control {
    /// No payload.
    Message(Message<'static>),
    /// A map in pieces; those below `from` are sent.
    Chunks {
        map: ChunkMap,
        kind: MapKind,
        of: MemberId,
        from: ExtentNo,
    },
    /// DIRTYCLEAR in pieces, once every entry up to `after` is sent.
    Clear {
        map: ChunkMap,
        of: MemberId,
        from: ExtentNo,
        after: Idx,
    },
}

/// A member's maps being fetched after its promise.
#[derive(Debug)]
pub(crate) struct Survey {
    /// What has been fetched so far.
    pub(crate) promise: Promise,
    /// Which map is being fetched.
    pub(crate) step: usize,
    /// Where the piece that was asked for starts.
    pub(crate) from: u64,
    /// All of it is here.
    pub(crate) done: bool,
}

/// A request for block status or room that waits for a MAP(Allocated).
#[derive(Clone, Copy, Debug)]
pub(crate) enum MapOwner {
    /// The survey.
    Survey,
    /// A block-status request.
    Status { op: u64 },
    /// A write that needs to know whether its extent is allocated (M3).
    Room { extent: ExtentNo },
    /// What a newcomer lacks (C20).
    Newcomer,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) link: Link,
    pub(crate) conn: Option<ConnId>,
    pub(crate) backoff: Duration,
    pub(crate) nonce: Nonce,
    pub(crate) replica: Uuid,
    /// Why this engine and the replica are not for each other (secret, volume, capacity ...).
    pub(crate) refused: Option<Reason>,
    /// Protocol version of the session.
    pub(crate) protocol: u16,
    /// Generation of the configuration that is durable there, as far as is known.
    pub(crate) generation: u64,
    /// Generation of the last RECONFIGURE on this session.
    pub(crate) generation_sent: u64,
    /// Loss epoch that is durable there, as far as is known.
    pub(crate) loss: u32,
    /// Loss epoch of the last RECONCILE on this session.
    pub(crate) loss_sent: u32,
    pub(crate) lost_at: Monotonic,
    /// `None` only while a frame of this session is being handled.
    pub(crate) decoder: Option<Decoder>,
    pub(crate) receive: Receive,
    pub(crate) crcs: Vec<u8>,
    pub(crate) seen_at: Monotonic,
    /// When the oldest frame without any sign of life since was sent.
    pub(crate) asked_at: Option<Monotonic>,

    pub(crate) state: Option<ReplicaState>,
    /// It holds this engine's term, and this session may use it.
    pub(crate) promised: bool,
    pub(crate) survey: Option<Survey>,
    pub(crate) map_owner: Option<MapOwner>,
    pub(crate) control: VecDeque<Control>,

    pub(crate) standing: Standing,
    /// Entries are sent to it.
    pub(crate) fed: bool,
    /// Its `upto` speaks of this term's stream.
    pub(crate) synced: bool,
    /// The joining SYNCSET whose maps are staged on this session.
    pub(crate) staged_for: Option<Idx>,
    /// Chunks of other members whose DIRTYCLEAR it missed while it had no session.
    pub(crate) owed: MemberMaps,
    /// The next entry to be sent.
    pub(crate) cursor: Idx,
    /// Entries below it go with the resend flag: they were (or may have been) sent before.
    pub(crate) resend_below: Idx,
    pub(crate) upto: Idx,
    pub(crate) w: Idx,
    pub(crate) flushed: Idx,
    /// Highest epoch number of this term that is durable there.
    pub(crate) epoch_done: Option<u32>,
    /// A witness: the newest epoch of this term that it was sent on this session (W4).
    pub(crate) epoch_sent: Option<u32>,
    /// With a witness: the flush that waits for this member only, and since when (W7).
    pub(crate) flush_wanting: Option<(Idx, Monotonic)>,
    pub(crate) free_extents: u64,
    pub(crate) credit_entries: u64,
    pub(crate) credit_bytes: u64,
    pub(crate) in_flight_entries: u64,
    pub(crate) in_flight_bytes: u64,
    pub(crate) lag_entries: u64,
    pub(crate) lag_bytes: u64,
    /// Newest of our times that it has echoed in this term (lease).
    pub(crate) echo: Monotonic,
    /// When a frame that grants a lease was last sent.
    pub(crate) granted_at: Monotonic,
    pub(crate) heartbeat_at: Monotonic,
    /// When VOTE was sent in the current term on this session.
    pub(crate) vote_sent: bool,
    /// It refused the vote of this term because it had given it away.
    pub(crate) shut_out: bool,
    /// Its device failed or refused an entry: it does not count and is to be demoted.
    pub(crate) broken: bool,
    pub(crate) sealed: Option<bool>,
    /// Joins after healing in place in this term.
    pub(crate) heals: u32,
    /// Not tracked again before this time, after it was too slow or its device failed.
    pub(crate) rest_until: Monotonic,
    pub(crate) rest: Duration,
    pub(crate) joined_at: Monotonic,
    pub(crate) reads_in_flight: u32,
    pub(crate) write_latency: Histogram,
    pub(crate) read_latency: Histogram,
    pub(crate) wire_latency: Histogram,
}

impl Peer {
    pub(crate) fn new(now: Monotonic, backoff: Duration) -> Peer {
        Peer {
            link: Link::Down { redial: now },
            conn: None,
            backoff,
            nonce: [0; 32],
            replica: Uuid::NONE,
            refused: None,
            protocol: 0,
            generation: 0,
            generation_sent: 0,
            loss: 0,
            loss_sent: 0,
            lost_at: now,
            decoder: Some(Decoder::new()),
            receive: Receive::Head,
            crcs: Vec::new(),
            seen_at: now,
            asked_at: None,
            state: None,
            promised: false,
            survey: None,
            map_owner: None,
            control: VecDeque::new(),
            standing: Standing::Unknown,
            fed: false,
            synced: false,
            staged_for: None,
            owed: MemberMaps::new(),
            cursor: Idx(0),
            resend_below: Idx(0),
            upto: Idx(0),
            w: Idx(0),
            flushed: Idx(0),
            epoch_done: None,
            epoch_sent: None,
            flush_wanting: None,
            free_extents: 0,
            credit_entries: 0,
            credit_bytes: 0,
            in_flight_entries: 0,
            in_flight_bytes: 0,
            lag_entries: 0,
            lag_bytes: 0,
            echo: Monotonic(0),
            granted_at: Monotonic(0),
            heartbeat_at: Monotonic(0),
            vote_sent: false,
            shut_out: false,
            broken: false,
            sealed: None,
            heals: 0,
            rest_until: Monotonic(0),
            rest: crate::limits::REST_MIN,
            joined_at: Monotonic(0),
            reads_in_flight: 0,
            write_latency: Histogram::default(),
            read_latency: Histogram::default(),
            wire_latency: Histogram::default(),
        }
    }

    /// The session stands.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up)
    }

    /// The session stands and holds the current term.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_up() && self.promised
    }

    /// Forgets what belongs to a term.
    pub(crate) fn reset_term(&mut self) {
        self.promised = false;
        self.vote_sent = false;
        self.shut_out = false;
        self.survey = None;
        self.control.clear();
        self.standing = Standing::Unknown;
        self.fed = false;
        self.synced = false;
        self.staged_for = None;
        self.owed = MemberMaps::new();
        self.cursor = Idx(0);
        self.resend_below = Idx(0);
        self.upto = Idx(0);
        self.flushed = Idx(0);
        self.epoch_done = None;
        self.epoch_sent = None;
        self.flush_wanting = None;
        self.in_flight_entries = 0;
        self.in_flight_bytes = 0;
        self.lag_entries = 0;
        self.lag_bytes = 0;
        self.echo = Monotonic(0);
        self.broken = false;
        self.sealed = None;
        self.heals = 0;
    }
}
