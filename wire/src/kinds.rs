//! Numbers on the wire: frame types, reasons, map kinds, operations and their outcomes.

macro_rules! byte_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$vmeta])* $variant),* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// Its byte on the wire.
            pub fn to_byte(self) -> u8 {
                match self { $($name::$variant => $value),* }
            }

            /// The value of a byte.
            pub fn from_byte(byte: u8) -> Option<$name> {
                match byte { $($value => Some($name::$variant),)* _ => None }
            }
        }
    };
}

byte_enum! {
    /// Frame types.
    Kind {
        /// e->r
        Hello = 1,
        /// r->e
        Challenge = 2,
        /// e->r
        Auth = 3,
        /// r->e
        Welcome = 4,
        /// r->e
        Refused = 5,
        /// e->r
        Prevote = 6,
        /// r->e
        PrevoteReply = 7,
        /// e->r
        Vote = 8,
        /// r->e
        Promise = 9,
        /// r->e
        Nack = 10,
        /// e->r
        GetMap = 11,
        /// both ways
        Map = 12,
        /// e->r
        Reconcile = 13,
        /// r->e
        ReconcileDone = 14,
        /// e->r
        Repair = 15,
        /// r->e
        RepairDone = 16,
        /// e->r
        TermStart = 17,
        /// r->e
        TermStartDone = 18,
        /// e->r
        Opened = 19,
        /// e->r
        Append = 20,
        /// r->e
        Ack = 21,
        /// r->e
        EntryFailed = 22,
        /// e->r
        Flush = 23,
        /// r->e
        FlushDone = 24,
        /// e->r
        SyncSet = 25,
        /// r->e
        SyncSetDone = 26,
        /// e->r
        Read = 27,
        /// r->e
        Data = 28,
        /// e->r
        Heartbeat = 29,
        /// r->e
        HeartbeatDone = 30,
        /// e->r
        Told = 31,
        /// r->e
        ToldDone = 32,
        /// e->r
        NeedSet = 33,
        /// r->e
        NeedSetDone = 34,
        /// e->r
        DirtyClear = 35,
        /// e->r
        Seal = 36,
        /// r->e
        SealDone = 37,
        /// e->r
        StepDown = 38,
        /// e->r
        Reconfigure = 39,
        /// r->e
        ReconfigureDone = 40,
        /// e->r
        ExtentHash = 41,
        /// r->e
        ExtentHashDone = 42,
    }
}

byte_enum! {
    /// Why a replica refuses.
    Reason {
        /// The frame makes no sense at this point of the session.
        Malformed = 1,
        /// Another volume lives here.
        WrongVolume = 2,
        /// No protocol version in common.
        Protocol = 3,
        /// The proof is wrong: the ends hold different secrets.
        Secret = 4,
        /// A higher attach epoch has been granted: this engine is fenced for ever (M12).
        AttachEpoch = 5,
        /// A higher term has been promised.
        Term = 6,
        /// The vote in this term went to another engine.
        Voted = 7,
        /// A live leader of the same attach epoch holds a lease here.
        LeaderAlive = 8,
        /// The engine's configuration is older than the replica's.
        Config = 9,
        /// The replica's store failed; it cannot do this any more.
        Failed = 10,
        /// A newer session of the same engine has replaced this one.
        Replaced = 11,
        /// A limit was reached (too many sessions).
        Busy = 12,
        /// Another capacity or member number than the engine expects.
        Mismatch = 13,
    }
}

byte_enum! {
    /// What a MAP frame carries, and GETMAP asks for.
    MapKind {
        /// Entries of the window ([`crate::WindowRecord`]), by rising position.
        Window = 1,
        /// Extents of the activity log ([`crate::ChunkRecord`], mask all ones).
        ActivityLog = 2,
        /// Chunks of this replica that may differ from the rest.
        Need = 3,
        /// Chunks that member `member` may lack.
        Dirty = 4,
        /// Chunks that may hold anything but zeroes.
        Allocated = 5,
        /// Chunks whose value is not agreed yet (with TERMSTART and a joiner's SYNCSET).
        Limbo = 6,
    }
}

byte_enum! {
    /// What an APPEND does to its range.
    EntryOp {
        /// Writes the payload.
        Write = 1,
        /// Makes it read zero and keeps the space.
        Zeroes = 2,
        /// Makes it read zero and gives the space back.
        Discard = 3,
    }
}

byte_enum! {
    /// How an operation on a replica's device ended.
    EntryStatus {
        /// Well.
        Done = 0,
        /// The payload's checksum was wrong on arrival; nothing was written. Send it again.
        Checksum = 1,
        /// The device failed.
        Io = 2,
        /// No space left.
        NoSpace = 3,
        /// The request is refused in this state (a read of blocks in `need`, a rebuild copy on an
        /// in-sync member).
        Refused = 4,
    }
}
