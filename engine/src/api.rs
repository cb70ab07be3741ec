//! What goes into an engine and what comes out of it, besides requests ([`block::request`]).
//!
//! [`block::request`]: trilith_block::request

use crate::scrub::ScrubNews;
use trilith_block::{BufSlice, Bytes, Completion, ConnId, MemberId, Monotonic, StreamEvent};

/// What can happen to an engine.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// On a session with a replica.
    Stream(ConnId, StreamEvent<'a>),
    /// The answer to [`Action::Dial`], given at once: the connection's id. `Opened` or `Closed`
    /// of that connection follow when the dial has ended.
    Dialled {
        /// Which member.
        member: MemberId,
        /// Its new connection.
        conn: ConnId,
    },
    /// An operator's or supervisor's wish.
    Operator(Operator),
    /// The supervisor promises that no attach epoch above this engine's is issued before `until`
    /// (RO-M, M13). Replaces an earlier promise; never shortens it.
    Grant {
        /// End of the promise.
        until: Monotonic,
    },
}

/// What an operator or supervisor wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operator {
    /// Serve although acknowledged, unflushed writes were lost (M8). Every request taken before
    /// ends with `Io`. The driver ends those that `submit` gave back in the same way first: they
    /// are of the same clients (I17).
    AcceptLoss,
    /// Stop cleanly: drain, flush, seal the replicas, then [`ExitReason::Stopped`].
    Stop,
    /// Drain, give up lease and leadership, then [`ExitReason::SteppedDown`].
    StepDown,
    /// Replace a voter by a new, empty replica (C20). Nothing happens when
    /// [`crate::Engine::may_replace`] says no; how far it is stands in the status.
    Replace {
        /// The voter that leaves.
        old: MemberId,
        /// The member that takes its place: a number without a place so far.
        new: MemberId,
    },
    /// Give up a replacement whose newcomer does not vote yet.
    KeepOld,
    /// Compare the replicas now (6.9). Nothing happens when that is going on, or is switched off.
    Scrub,
}

/// What an engine wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Connect to this member. The driver answers [`Event::Dialled`] at once.
    Dial {
        /// Which member.
        member: MemberId,
    },
    /// Send these head bytes, then the payload if there is one. The driver retains the payload's
    /// buffer until it is sent. Sends of one connection stay in order.
    Send {
        /// Where to.
        conn: ConnId,
        /// The head.
        head: Bytes,
        /// What follows it.
        payload: Option<BufSlice>,
    },
    /// Close the connection. What was sent on it before may still leave, for a second at most (a
    /// last STEPDOWN gives the lease up; without it the next engine waits). `Closed` follows. Until
    /// then a payload may still be arriving.
    Close {
        /// Which one.
        conn: ConnId,
    },
    /// A request has ended. A buffer in it passes to the receiver.
    Complete(Completion),
    /// The mode has changed.
    ModeChanged(Mode),
    /// Something about the comparison of the replicas that is worth telling.
    Scrub(ScrubNews),
    /// This engine is done for ever; every request has been completed. The process should end.
    Exit(ExitReason),
}

/// Why an engine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitReason {
    /// A higher attach epoch exists, or the replicas follow another engine for good: the device is
    /// removed and the supervisor does not start this engine again (M11, M12).
    Fenced,
    /// Stopped on demand. `sealed`: every member of the volume has a clean-stop record.
    Stopped {
        /// All members sealed.
        sealed: bool,
    },
    /// Leadership was given up on demand.
    SteppedDown,
}

/// How a volume is served (5.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// All voters count.
    Healthy,
    /// A majority counts, not all.
    Degraded,
    /// RO-L: reads only, by lease or by asking a majority of promisers.
    ReadOnlyLease,
    /// RO-M: reads only, by the supervisor's promise of exclusivity.
    ReadOnlyGrant,
    /// Nothing is served for now; heals by itself.
    Waiting(Waiting),
    /// Draining for a stop; nothing new is taken.
    Stopping,
    /// Stopped on demand.
    Stopped,
    /// Another engine has taken over: final.
    Fenced,
}

impl Mode {
    /// Reads and writes are served.
    pub fn is_active(self) -> bool {
        matches!(self, Mode::Healthy | Mode::Degraded)
    }

    /// Reads are served.
    pub fn reads(self) -> bool {
        self.is_active() || matches!(self, Mode::ReadOnlyLease | Mode::ReadOnlyGrant)
    }

    /// Nothing will ever be served again.
    pub fn is_final(self) -> bool {
        matches!(self, Mode::Stopped | Mode::Fenced)
    }
}

/// What a waiting engine waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waiting {
    /// A majority of replicas to connect to.
    Replicas,
    /// Votes of a majority.
    Votes,
    /// Another engine's lease to end.
    OtherLeader,
    /// The merge of the replicas (5.3).
    Recovery,
    /// More members, because without them the recovery would lose writes (R2).
    MoreMembers,
    /// [`Operator::AcceptLoss`], because the recovery lost writes (M8).
    LossAccepted,
    /// A majority that counts.
    Quorum,
}
