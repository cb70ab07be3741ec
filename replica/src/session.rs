//! One connection: where its byte stream stands, who is at the other end, and what it may do.
//! Owned by [`crate::machine::Replica`].

use alloc::boxed::Box;
use trilith_block::{BlockRange, Blocks, BufSlice, ConnId, Idx, MemberId, Monotonic, Uuid};
use trilith_wire::auth::Binding;
use trilith_wire::{Decoder, Hello, MapKind};

/// How far the handshake is.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Nothing has come yet: HELLO is due.
    Greeting,
    /// CHALLENGE was sent: AUTH is due.
    Challenged(Box<(Hello, Binding)>),
    /// WELCOME was sent.
    Ready,
    /// Close was asked for: whatever comes is not looked at.
    Closing,
}

/// What the byte stream is in the middle of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Receive {
    /// The head of a frame.
    Head,
    /// A head is complete; a buffer for its payload of this many bytes is not there yet.
    Room(u32),
    /// The payload is on its way into this buffer, which the session owns.
    Payload(BufSlice),
    /// The payload of a frame that is not wanted.
    Discard(u64),
}

/// A GETMAP that waits for a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingMap {
    pub(crate) map: MapKind,
    pub(crate) member: MemberId,
    pub(crate) from: u64,
}

/// A READ that waits for a buffer or for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingRead {
    pub(crate) conn: ConnId,
    pub(crate) rid: u64,
    pub(crate) range: BlockRange,
    pub(crate) wanted: Wanted,
}

/// What is to be answered to who asked for blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// The blocks (READ).
    Bytes,
    /// The digest of each unit of them (EXTENTHASH).
    Digests { unit: Blocks, seed: u64 },
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: ConnId,
    pub(crate) phase: Phase,
    /// `None` only while a frame of this session is being handled.
    pub(crate) decoder: Option<Decoder>,
    pub(crate) receive: Receive,
    /// The engine at the other end, once the phase is Ready.
    pub(crate) engine: Uuid,
    /// When the connection came, or the last frame.
    pub(crate) seen_at: Monotonic,
    /// Position after the last entry received on this session. `None`: none yet.
    pub(crate) next: Option<Idx>,
    /// READs not answered yet.
    pub(crate) reads: usize,
    /// REPAIRs not answered yet.
    pub(crate) repairs: usize,
    /// The GETMAP not answered yet.
    pub(crate) get_map: Option<PendingMap>,
    /// An ACK is due for entries that were already there when they came (a resend).
    pub(crate) ack_due: bool,
    /// `upto` of the last ACK, WELCOME or PROMISE.
    pub(crate) acked: Idx,
    /// Newest `sent_at` of this engine.
    pub(crate) echo: u64,
    /// `sent_at` of a HEARTBEAT not answered yet.
    pub(crate) heartbeat: Option<u64>,
    /// WELCOME is due.
    pub(crate) welcome_due: bool,
}

impl Session {
    pub(crate) fn new(conn: ConnId, now: Monotonic) -> Session {
        Session {
            conn,
            phase: Phase::Greeting,
            decoder: Some(Decoder::new()),
            receive: Receive::Head,
            engine: Uuid::NONE,
            seen_at: now,
            next: None,
            reads: 0,
            repairs: 0,
            get_map: None,
            ack_due: false,
            acked: Idx(0),
            echo: 0,
            heartbeat: None,
            welcome_due: false,
        }
    }

    /// True before the peer has proved itself.
    pub(crate) fn is_guest(&self) -> bool {
        matches!(self.phase, Phase::Greeting | Phase::Challenged(..))
    }

    /// True for a session that has been welcomed.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    /// True once Close was asked for.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing)
    }
}
