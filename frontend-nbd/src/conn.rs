//! One connection slot: its phase, what it negotiated, its requests in flight.

use crate::command::{Command, Work, part, part_count};
use crate::error::NbdError;
use crate::handshake::Session;
use crate::limits::REQUESTS_MAX;
use crate::reply::Answer;
use alloc::vec::Vec;
use trilith_block::{BufSlice, ByteRange, ConnId, Monotonic};

/// What follows a payload that is thrown away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AfterSkip {
    /// The request, which has no slot, is answered with an error.
    Refuse(Answer, NbdError),
    /// The incoming request has all its parts.
    Complete,
}

/// Where a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The slot is not used.
    Free,
    /// The client flags are next.
    ClientFlags,
    /// An option's head is next.
    OptionHead,
    /// An option's data is next.
    OptionData { kind: u32, len: u32 },
    /// An option's data is thrown away; then this reply is given.
    OptionSkip { kind: u32, len: u32, reply: u32 },
    /// A request header is next.
    Command,
    /// The incoming request waits for memory.
    Waiting,
    /// Payload of the incoming write is next.
    Payload,
    /// Payload is thrown away.
    Skip { len: u64, after: AfterSkip },
    /// The client said goodbye; the connection is closed when its requests have ended.
    Leaving,
    /// The driver was told to close.
    Closing,
    /// The connection is gone, some of its requests are not.
    Orphan,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) used: bool,
    pub(crate) command: Command,
    pub(crate) work: Work,
    /// The bytes it is about; a prefetch may be shorter than the command.
    pub(crate) range: ByteRange,
    /// Parts given to the engine (or, of a write that has failed, thrown away).
    pub(crate) issued: u64,
    /// Parts that the engine has not completed.
    pub(crate) pending: u64,
    /// No part will be added.
    pub(crate) complete: bool,
    /// The first error.
    pub(crate) error: Option<NbdError>,
    /// Buffers of completed parts that wait for the others, by part.
    pub(crate) held: Vec<Option<BufSlice>>,
}

impl Live {
    /// Part `index` of the range.
    pub(crate) fn part(&self, index: u64) -> ByteRange {
        match self.work {
            Work::Read | Work::Write | Work::Cache => part(self.range, index),
            Work::Flush | Work::Trim | Work::WriteZeroes | Work::BlockStatus => self.range,
        }
    }

    /// Number of parts of the range.
    pub(crate) fn parts(&self) -> u64 {
        match self.work {
            Work::Read | Work::Write | Work::Cache => part_count(self.range),
            Work::Flush | Work::Trim | Work::WriteZeroes | Work::BlockStatus => 1,
        }
    }

    /// Bytes of a write that have not been received after its first `issued` parts.
    pub(crate) fn left(&self) -> u64 {
        if self.issued == self.parts() {
            return 0;
        }
        self.range.len - (self.part(self.issued).offset - self.range.offset)
    }

    /// True when nothing more will happen to it.
    pub(crate) fn is_over(&self) -> bool {
        self.complete && self.pending == 0
    }
}

/// A connection slot.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    /// Counts the uses of the slot, so that a late completion cannot be taken for a new one.
    pub(crate) generation: u16,
    pub(crate) phase: Phase,
    pub(crate) session: Session,
    /// Options so far.
    pub(crate) options: u32,
    /// When negotiation must be over.
    pub(crate) negotiation_end: Monotonic,
    /// The request whose parts are being received, or that waits for memory.
    pub(crate) incoming: Option<u16>,
    /// The buffer that is being received into.
    pub(crate) receiving: Option<BufSlice>,
    /// Payload bytes in flight.
    pub(crate) held_bytes: u64,
    /// Requests in flight.
    pub(crate) in_flight: usize,
    pub(crate) lives: Vec<Live>,
    free: Vec<u16>,
}

impl Conn {
    /// A slot that is not used.
    pub(crate) fn new() -> Conn {
        Conn {
            id: ConnId(0),
            generation: 0,
            phase: Phase::Free,
            session: Session::default(),
            options: 0,
            negotiation_end: Monotonic(0),
            incoming: None,
            receiving: None,
            held_bytes: 0,
            in_flight: 0,
            lives: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Starts a connection in a free slot.
    pub(crate) fn open(&mut self, id: ConnId, negotiation_end: Monotonic) {
        assert!(self.phase == Phase::Free && self.in_flight == 0 && self.held_bytes == 0);
        self.id = id;
        self.generation = self.generation.wrapping_add(1);
        self.phase = Phase::ClientFlags;
        self.session = Session::default();
        self.options = 0;
        self.negotiation_end = negotiation_end;
    }

    /// True while options are haggled over.
    pub(crate) fn is_negotiating(&self) -> bool {
        matches!(
            self.phase,
            Phase::ClientFlags
                | Phase::OptionHead
                | Phase::OptionData { .. }
                | Phase::OptionSkip { .. }
        )
    }

    /// True when replies can still be sent.
    pub(crate) fn is_talking(&self) -> bool {
        !matches!(self.phase, Phase::Free | Phase::Closing | Phase::Orphan)
    }

    /// Takes a request slot, or `None` when all [`REQUESTS_MAX`] are used.
    pub(crate) fn take(&mut self, command: Command, work: Work, range: ByteRange) -> Option<u16> {
        let request = match self.free.pop() {
            Some(request) => request,
            None if self.lives.len() < REQUESTS_MAX => {
                let request = u16::try_from(self.lives.len()).ok()?;
                self.lives.push(Live {
                    used: false,
                    command,
                    work,
                    range,
                    issued: 0,
                    pending: 0,
                    complete: false,
                    error: None,
                    held: Vec::new(),
                });
                request
            }
            None => return None,
        };
        let live = &mut self.lives[usize::from(request)];
        assert!(!live.used, "request slot {request} is used twice");
        live.used = true;
        live.command = command;
        live.work = work;
        live.range = range;
        live.issued = 0;
        live.pending = 0;
        live.complete = false;
        live.error = None;
        live.held.clear();
        self.in_flight += 1;
        Some(request)
    }

    /// Gives a request slot back.
    pub(crate) fn put(&mut self, request: u16) {
        let live = &mut self.lives[usize::from(request)];
        assert!(
            live.used && live.is_over(),
            "request slot {request} is given back in use"
        );
        live.used = false;
        live.held.clear();
        self.free.push(request);
        self.in_flight -= 1;
    }
}
