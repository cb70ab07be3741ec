//! Requests of clients and their completions: the seam between every frontend and the engine.

use crate::buffers::{BufSlice, Buffers};
use crate::machine::{Bytes, ConnId, StreamEvent};
use crate::units::ByteRange;

/// Names a request between submit and completion. Chosen by the frontend, opaque to the engine;
/// unique among the requests in flight of one engine (its wiring adds a frontend number).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u64);

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Read bytes. Completes with [`Outcome::Data`].
    Read,
    /// Write the bytes of `Request::data`.
    Write,
    /// Everything completed before this was submitted is durable when it completes. No range.
    Flush,
    /// The range reads back zero; its space may be given back. Any length.
    Discard,
    /// The range reads back zero. Any length.
    WriteZeroes,
    /// A hint that the range will be read.
    Prefetch,
    /// Which parts of the range hold data. Completes with [`Outcome::Extents`].
    BlockStatus,
}

/// Modifiers of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RequestFlags {
    /// Force unit access: durable (as by a flush of this request alone) before it completes.
    pub fua: bool,
    /// WriteZeroes: keep the space allocated.
    pub no_hole: bool,
    /// WriteZeroes: fail with [`ErrorKind::NotSupported`] rather than be as slow as a write.
    pub fast_zero: bool,
}

/// One request. `data` is given for [`Op::Write`] only, with `data.len == range.len`; its buffer
/// passes to the engine, which releases it. Reads, writes, prefetches and block status are at most
/// [`crate::limits::TRANSFER_BYTES_MAX`] bytes long (block status: any length, the answer may cover
/// less); discards and zeroes any length within the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Names the completion.
    pub tag: Tag,
    /// What to do.
    pub op: Op,
    /// Where, in bytes of the volume. Empty for a flush.
    pub range: ByteRange,
    /// How.
    pub flags: RequestFlags,
    /// The bytes of a write.
    pub data: Option<BufSlice>,
}

/// What a successful request brings. A buffer in it passes to the receiver, who releases it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing but success.
    Done,
    /// The bytes read, exactly as many as asked for.
    Data(BufSlice),
    /// Block status: records of 16 bytes, little-endian `{ len u64, flags u32, reserved u32 }`, in
    /// rising order from the start of the range, together covering a non-empty prefix of it.
    /// `flags`: see [`status_flags`].
    Extents(BufSlice),
}

/// Flags of a block-status record.
pub mod status_flags {
    /// No space is allocated there.
    pub const HOLE: u32 = 1;
    /// It reads as zeroes.
    pub const ZERO: u32 = 2;
    /// Some replica does not have it yet: a rebuild will copy it.
    pub const DIRTY: u32 = 4;
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: Tag,
    /// What came of it.
    pub result: Result<Outcome, ErrorKind>,
}

/// Why a request failed, as far as a frontend must tell cases apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// The range is not inside the volume, or lengths contradict each other.
    InvalidRange,
    /// No majority of replicas has room.
    NoSpace,
    /// The volume is read-only now, and stayed so for the time a write may wait.
    ReadOnly,
    /// No majority could be reached for the time a request may wait, or all copies are unreadable.
    Io,
    /// This engine may never serve again: another one has taken over, or it is stopping.
    Fenced,
    /// What was asked for cannot be done this way (a fast zero that would be slow).
    NotSupported,
}

impl ErrorKind {
    /// All kinds, for tests of tables over them.
    pub const ALL: [ErrorKind; 6] = [
        ErrorKind::InvalidRange,
        ErrorKind::NoSpace,
        ErrorKind::ReadOnly,
        ErrorKind::Io,
        ErrorKind::Fenced,
        ErrorKind::NotSupported,
    ];
}

/// What a volume can do; the same for every frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Size of the volume in bytes, a multiple of 4096.
    pub capacity_bytes: u64,
    /// Preferred request size in bytes, a power of two (4096). Any byte range works.
    pub block_bytes: u32,
    /// Longest read or write in one request, in bytes.
    pub transfer_bytes_max: u32,
    /// Best request size for streaming, in bytes.
    pub optimal_bytes: u32,
}

/// What a frontend must know of the volume it serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    /// Its identity.
    pub volume: crate::ids::Uuid,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What can happen to a frontend machine.
#[derive(Clone, Copy, Debug)]
pub enum FrontendEvent<'a> {
    /// Something on one of its connections.
    Stream(ConnId, StreamEvent<'a>),
    /// A request it submitted has ended.
    Complete(Completion),
    /// The volume serves again (`true`) or is going away for good (`false`): connections are told
    /// as the protocol allows.
    Serving(bool),
}

/// What a frontend machine wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontendAction {
    /// Give this to the engine. If the engine is full, the driver keeps it and tries again first
    /// thing; how many there can be is bounded by the frontend's own limit on requests in flight.
    Submit(Request),
    /// Send these head bytes, then the payload if there is one. The driver retains the payload's
    /// buffer until it is sent.
    Send {
        /// Where to.
        conn: ConnId,
        /// The head.
        head: Bytes,
        /// What follows it.
        payload: Option<BufSlice>,
    },
    /// Close the connection once everything sent on it has left. `Closed` follows.
    Close {
        /// Which one.
        conn: ConnId,
    },
}

/// Takes requests: the engine, or a stand-in for it in a frontend's tests.
pub trait Target {
    /// Takes `request`, or gives it back when it is full for now.
    ///
    /// # Errors
    /// The request itself, unchanged: try again after the next completion.
    fn submit(
        &mut self,
        now: crate::time::Monotonic,
        request: Request,
        data: &mut dyn Buffers,
    ) -> Result<(), Request>;
}
