//! What each frame means. `e->r` is from engine to replica, `r->e` the other way. Rule names (V1,
//! R5, D1, M24 ...) are those of `docs/protocol.md`.
//!
//! Session: TCP or unix stream, opened by the engine. HELLO, CHALLENGE, AUTH, WELCOME (or REFUSED
//! at any point, after which the replica closes). Then requests and entries. Every `e->r` frame
//! after WELCOME carries the engine's term; a replica that promised a higher one answers NACK.

use crate::auth::{Nonce, Proof};
use crate::frame::{Header, WireError, u32_at, u64_at};
use crate::limits::{ACK_FURTHER_MAX, PAYLOAD_BYTES_MAX};
use crate::state::ReplicaState;
use alloc::vec::Vec;
use trilith_block::limits::{BLOCK_BYTES, EXTENT_BLOCKS};
use trilith_block::{BlockRange, Blocks, Idx, Lba, MemberId, MemberSet, Term, Uuid};

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

/// e->r, first frame of a session.
/// Header: `term` the engine's last known term; `a0` attach_epoch; `a1` protocol_min | protocol_max
/// << 16; `a2` loss; `a3` cfg_gen; `a4` capacity in bytes. Ext (112 B): `0 volume[16]; 16
/// engine[16]; 32 supersedes[16]; 48 nonce[32]; 80 member u32; 84 reserved; 88 reserved[24]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Volume that the engine serves.
    pub volume: Uuid,
    /// The engine's identity, new for each process.
    pub engine: Uuid,
    /// An engine that the same supervisor knows to be dead (it holds the host's lock): its lease
    /// may be released at once (M14). None otherwise.
    pub supersedes: Uuid,
    /// For the challenge.
    pub nonce: Nonce,
    /// Last term the engine knows.
    pub term: Term,
    /// Its attach epoch.
    pub attach_epoch: u64,
    /// Lowest protocol version it speaks.
    pub protocol_min: u16,
    /// Highest protocol version it speaks.
    pub protocol_max: u16,
    /// Loss epoch that its clients are bound to, 0 when none.
    pub loss: u32,
    /// Generation of its configuration.
    pub cfg_gen: u64,
    /// Size of the volume in bytes, 0 when the engine does not know it yet.
    pub capacity: u64,
    /// Member that it expects at this address.
    pub member: MemberId,
}

/// e->r: would a vote be granted? Changes nothing. Granted when term > promised term, attach_epoch
/// and cfg_gen are not lower than the replica's, and no other live leader holds a lease here
/// (`take_over`, i.e. an attach epoch above the replica's, skips the lease test, M11; so does a
/// lease held by `release_lease_of`).
/// Header: `a0` attach_epoch; `a3` cfg_gen. Ext (16 B): release_lease_of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prevote {
    /// Term that the engine would campaign for.
    pub term: Term,
    /// Its attach epoch.
    pub attach_epoch: u64,
    /// Generation of its configuration.
    pub cfg_gen: u64,
    /// Engine known to be dead, or none.
    pub release_lease_of: Uuid,
}

/// e->r: vote for me. The replica makes (term, engine, attach_epoch) durable (V1), admits nothing
/// of older sessions (V2), waits until every write in flight has completed (V3), then answers
/// PROMISE (V4), or NACK. Same layout as [`Prevote`].
pub type Vote = Prevote;

/// e->r, an entry of the stream. Header: `idx`; `flags` bits 0-2 [`EntryOp`], bit 3 header_only,
/// bit 4 resend; `a0` lba; `a1` blocks; `a2` skip set; `a3` tidx; `a4` sent_at. Ext: CRC-32C of each
/// block (u32 LE), for a write with payload. Payload: `blocks` x 4096 bytes for a write that is not
/// header_only, else none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Append<'a> {
    /// Term of the engine.
    pub term: Term,
    /// Its position.
    pub idx: Idx,
    /// What it does.
    pub op: EntryOp,
    /// Its blocks, within one extent.
    pub range: BlockRange,
    /// Members that are not sent the payload: the receiver marks the chunks dirty for them before
    /// anything else.
    pub skip: MemberSet,
    /// The receiver is itself in `skip`: it records the entry (slot Skipped) and acks it, but
    /// writes nothing.
    pub header_only: bool,
    /// Sent again after a reconnect.
    pub resend: bool,
    /// Every entry up to it has been accepted by all of trk: window slots up to it may be freed.
    pub tidx: Idx,
    /// The engine's clock, echoed in ACK (grants the lease).
    pub sent_at: u64,
    /// Checksums, `range.count` x 4 bytes; empty without a payload.
    pub crcs: &'a [u8],
}

/// A frame. Variants without a documented layout use only `term` and what is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// Opens a session.
    Hello(Hello),
    /// r->e: who I am, prove yourself. `a1` protocol; ext: replica[16], nonce[32], proof[32].
    Challenge {
        /// Version agreed on.
        protocol: u16,
        /// The replica's identity.
        replica: Uuid,
        /// For the engine's proof.
        nonce: Nonce,
        /// The replica's proof.
        proof: Proof,
    },
    /// e->r: the engine's proof. Ext: proof[32].
    Auth {
        /// The proof.
        proof: Proof,
    },
    /// r->e: the session stands. Ext: state.
    Welcome(ReplicaState),
    /// r->e: the session ends. `a1` reason; `term` promised term; `a0` attach epoch known; `a3` for
    /// Protocol: min | max << 16 of the replica.
    Refused {
        /// Why.
        reason: Reason,
        /// Term promised here.
        term: Term,
        /// Highest attach epoch known here.
        attach_epoch: u64,
        /// Details of the reason, else 0.
        detail: u64,
    },
    /// Would you vote for me?
    Prevote(Prevote),
    /// r->e. `term` the replica's promised term; `a0` its attach epoch; `a1` reason, 0 = granted;
    /// `a2` lease_left_ms.
    PrevoteReply {
        /// None when granted.
        refused: Option<Reason>,
        /// Term promised here.
        term: Term,
        /// Highest attach epoch known here.
        attach_epoch: u64,
        /// What is left of the live leader's lease, in milliseconds.
        lease_left_ms: u32,
    },
    /// Vote for me.
    Vote(Vote),
    /// r->e: the vote, with the state after the drain. `term` is the promised term. The engine
    /// then fetches WINDOW, ACTIVITYLOG, NEED and DIRTY maps by GETMAP.
    Promise {
        /// The term promised.
        term: Term,
        /// State after V3.
        state: ReplicaState,
    },
    /// r->e: refused. `term` promised term; `a0` attach epoch; `a1` reason; `a2` kind of the frame
    /// refused; `idx` copied from it; `a4` copied from it (rid, tag).
    Nack {
        /// Why.
        reason: Reason,
        /// Type of the frame that is refused.
        refused: Kind,
        /// Term promised here.
        term: Term,
        /// Highest attach epoch known here.
        attach_epoch: u64,
        /// `idx` of the frame refused.
        idx: Idx,
        /// `a4` of the frame refused.
        tag: u64,
    },
    /// e->r: send a piece of a map, from extent (or, for the window, from record number) `from` on.
    /// `a0` from; `a1` map kind; `a2` member. Allowed to the engine that holds the promise. At most
    /// one is outstanding per session. Answered by MAP.
    GetMap {
        /// Engine's term.
        term: Term,
        /// Which map.
        map: MapKind,
        /// Whose, for Dirty; else member 0.
        member: MemberId,
        /// Where to start.
        from: u64,
    },
    /// r->e: answer to GETMAP. e->r: records staged for the next RECONCILE (Need), NEEDSET (Need),
    /// TERMSTART or SYNCSET (Limbo, Dirty); they are added to what is staged and used up by that
    /// frame. `a0` next place to ask for; `a1` map kind; `a2` member; flags bit 0 last. Ext: CRC-32C
    /// of the payload u32, reserved u32. Payload: records, at most 64 KiB.
    Map {
        /// Engine's term, echoed.
        term: Term,
        /// Which map.
        map: MapKind,
        /// Whose, for Dirty.
        member: MemberId,
        /// Nothing follows.
        last: bool,
        /// Where the next piece starts, when not last.
        next: u64,
        /// Checksum of the payload.
        crc: u32,
    },
    /// e->r (R5): make the staged Need chunks and the loss epoch durable, then answer
    /// RECONCILEDONE. `a1` loss.
    Reconcile {
        /// Engine's term.
        term: Term,
        /// Loss epoch; taken over when higher.
        loss: u32,
    },
    /// r->e.
    ReconcileDone {
        /// Term of the RECONCILE.
        term: Term,
    },
    /// e->r: make these blocks hold this payload (or zeroes), outside the stream: R6 of a recovery
    /// and the copies of a rebuild. The replica orders it with overlapping entries (O1), covers it
    /// by the activity log (L1) and answers when it has completed at the device. `a0` lba; `a1`
    /// blocks; `a4` tag; flags bit 0 zero (no payload, no ext), bit 1 rebuild. Ext: CRC-32C per
    /// block.
    Repair {
        /// Engine's term.
        term: Term,
        /// The blocks, within one extent.
        range: BlockRange,
        /// Names the answer.
        tag: u64,
        /// They become zero.
        zero: bool,
        /// Copy of a rebuild (target outside iss) rather than R6.
        rebuild: bool,
        /// Checksums; empty with `zero`.
        crcs: &'a [u8],
    },
    /// r->e. `a4` tag; `a1` status.
    RepairDone {
        /// Term of the REPAIR.
        term: Term,
        /// Its tag.
        tag: u64,
        /// How it ended.
        status: EntryStatus,
    },
    /// e->r (R7): fdatasync, then one durable record { se = (term, 0), iss, trk = iss, loss, w =
    /// start, need := staged Limbo }, window emptied, dirty maps := staged Dirty, untainted. The
    /// first entry of the term is start + 1. `idx` start; `a1` iss; `a2` loss.
    TermStart {
        /// Engine's term.
        term: Term,
        /// Above every position that the engine has seen.
        start: Idx,
        /// The first in-sync set.
        iss: MemberSet,
        /// Loss epoch.
        loss: u32,
    },
    /// r->e: it is durable. `idx` start.
    TermStartDone {
        /// Term of the TERMSTART.
        term: Term,
        /// Its start.
        start: Idx,
    },
    /// e->r (R8): a majority holds the term start; the limbo part of `need` may be dropped. Also
    /// sent to a member that joins later.
    Opened {
        /// Engine's term.
        term: Term,
    },
    /// An entry.
    Append(Append<'a>),
    /// r->e, batched. `idx` upto: highest position up to which all are accepted; `a0` free extents;
    /// `a1` credit entries; `a2` credit bytes (both: how much may be in flight beyond what was
    /// accepted, absolute); `a3` w; `a4` echo: newest `sent_at` seen. Ext: further accepted
    /// positions (u64 LE, 0 = padding).
    Ack {
        /// Term of the entries.
        term: Term,
        /// All up to it are accepted.
        upto: Idx,
        /// Extents that can still be allocated.
        free_extents: u64,
        /// Entries that may be in flight.
        credit_entries: u32,
        /// Payload bytes that may be in flight.
        credit_bytes: u32,
        /// Durable watermark.
        w: Idx,
        /// Newest `sent_at` seen.
        echo: u64,
        /// Accepted positions above `upto`, 8 bytes each; zeroes are padding.
        further: &'a [u8],
    },
    /// r->e: this entry is not on this replica. With Checksum: send it again. Else the replica
    /// holds a Failed slot and never acks a FLUSH, SYNCSET or TERMSTART at or above it (M3). `idx`;
    /// `a1` status.
    EntryFailed {
        /// Term of the entry.
        term: Term,
        /// Its position.
        idx: Idx,
        /// What went wrong.
        status: EntryStatus,
    },
    /// e->r, an entry: all earlier ones durable. It is accepted (in the sense of ACK) at once; its
    /// effect is told by FLUSHDONE. `idx`; `a3` tidx; `a4` sent_at.
    Flush {
        /// Engine's term.
        term: Term,
        /// Its position.
        idx: Idx,
        /// See [`Append`].
        tidx: Idx,
        /// See [`Append`].
        sent_at: u64,
    },
    /// r->e: watermark `w` >= `idx` is durable (F1). One FLUSHDONE may answer several flushes: it
    /// speaks for all up to `idx`.
    FlushDone {
        /// Term of the FLUSH.
        term: Term,
        /// Flushes up to it are done.
        idx: Idx,
    },
    /// e->r, an entry and a full barrier (5.4): wait for what is in flight, convert window slots to
    /// dirty maps for members leaving, fdatasync, durable { se, iss, trk, W = idx }; a joining
    /// receiver also takes the staged Dirty maps and Limbo (as need) and is untainted. Accepted
    /// (ACK) when done. `idx`; `a0` n; `a1` iss; `a2` trk; `a3` tidx; `a4` joiner + 1, 0 = none.
    SyncSet {
        /// Engine's term.
        term: Term,
        /// Its position.
        idx: Idx,
        /// Number of the epoch within the term.
        n: u32,
        /// The new in-sync set.
        iss: MemberSet,
        /// The new tracked set.
        trk: MemberSet,
        /// See [`Append`].
        tidx: Idx,
        /// Member that joins by this epoch.
        join: Option<MemberId>,
    },
    /// r->e: it is durable here. `idx`; `a0` n.
    SyncSetDone {
        /// Term of the SYNCSET.
        term: Term,
        /// Its position.
        idx: Idx,
        /// Its number.
        n: u32,
    },
    /// e->r: read blocks as they are (no order with the stream). `a0` lba; `a1` blocks; `a4` rid.
    /// Answered by DATA, or by NACK when the replica promised a higher term.
    Read {
        /// Engine's term.
        term: Term,
        /// The blocks; may cross extents.
        range: BlockRange,
        /// Names the answer.
        rid: u64,
    },
    /// r->e. `a4` rid; `a1` status; `a0` lba; `a2` blocks; flags bit 0 zero: all blocks are zeroes,
    /// no payload. Ext: CRC-32C per block.
    Data {
        /// Term of the READ.
        term: Term,
        /// Its rid.
        rid: u64,
        /// How it ended; no payload unless Done.
        status: EntryStatus,
        /// The blocks.
        range: BlockRange,
        /// All zeroes.
        zero: bool,
        /// Checksums of the payload.
        crcs: &'a [u8],
    },
    /// e->r: lease, commit notice. `a0` commit idx; `a3` tidx; `a4` sent_at.
    Heartbeat {
        /// Engine's term.
        term: Term,
        /// Every entry up to it is committed.
        commit: Idx,
        /// See [`Append`].
        tidx: Idx,
        /// See [`Append`].
        sent_at: u64,
    },
    /// r->e. `idx` upto; `a0` free extents; `a3` w; `a4` echo. The lease runs from the echoed time.
    HeartbeatDone {
        /// Term of the HEARTBEAT.
        term: Term,
        /// Highest position up to which all are accepted.
        upto: Idx,
        /// Extents that can still be allocated.
        free_extents: u64,
        /// Durable watermark.
        w: Idx,
        /// `sent_at` of the heartbeat.
        echo: u64,
    },
    /// e->r (D1 holds): you are out of the in-sync set. The receiver makes { se, iss, trk } durable,
    /// drops its window, keeps its AL extents and need as `need`. From then on it takes rebuild
    /// copies and, once in trk, entries. `a0` n; `a1` iss; `a2` trk; `idx`: entries that follow
    /// (if it is in trk) start above it.
    Told {
        /// Engine's term.
        term: Term,
        /// Current epoch number.
        n: u32,
        /// Current in-sync set.
        iss: MemberSet,
        /// Current tracked set.
        trk: MemberSet,
        /// The receiver's upto and tidx become this.
        start: Idx,
    },
    /// r->e.
    ToldDone {
        /// Term of the TOLD.
        term: Term,
    },
    /// e->r: record the staged Need chunks durably before copies come (6.2, R11).
    NeedSet {
        /// Engine's term.
        term: Term,
    },
    /// r->e.
    NeedSetDone {
        /// Term of the NEEDSET.
        term: Term,
    },
    /// e->r: these chunks of member `member` are durable there; clear its dirty bits (masks are
    /// what to clear). To the member itself: clear these chunks of its need. `a2` member. Ext:
    /// CRC-32C of the payload u32, reserved u32. Payload: chunk records.
    DirtyClear {
        /// Engine's term.
        term: Term,
        /// Whose dirty map.
        member: MemberId,
        /// Checksum of the payload.
        crc: u32,
    },
    /// e->r: the engine stops. Drain, fdatasync, durable W = upto, AL empty, clean record. `idx`
    /// last position of the engine.
    Seal {
        /// Engine's term.
        term: Term,
        /// Last position.
        idx: Idx,
    },
    /// r->e: sealed. `a1` 1 when the clean record is durable, 0 when it could not be (e.g. need is
    /// not empty: the replica stays unsealed).
    SealDone {
        /// Term of the SEAL.
        term: Term,
        /// The clean record is durable.
        sealed: bool,
    },
    /// e->r: the engine gives up its lease and its leadership.
    StepDown {
        /// Engine's term.
        term: Term,
    },
}

/// Reads fields of one frame and names the one that is wrong.
struct Fields<'a> {
    header: &'a Header,
    ext: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bad(&self, field: &'static str) -> WireError {
        WireError::Field { kind: self.header.kind, field }
    }

    fn term(&self) -> Term {
        Term(self.header.term)
    }

    fn idx(&self) -> Idx {
        Idx(self.header.idx)
    }

    fn exact_ext(&self, len: usize) -> Result<(), WireError> {
        if self.ext.len() == len.next_multiple_of(8) {
            Ok(())
        } else {
            let len = u32::try_from(self.ext.len()).unwrap_or(u32::MAX);
            Err(WireError::ExtLength { kind: self.header.kind, len })
        }
    }

    fn range(&self, start: u64, count: u32, one_extent: bool) -> Result<BlockRange, WireError> {
        let range = BlockRange::new(Lba(start), Blocks(count));
        let limit = trilith_block::limits::VOLUME_BYTES_MAX / u64::from(BLOCK_BYTES);
        let ok = start < limit && count > 0 && count <= EXTENT_BLOCKS && range.end().0 <= limit;
        if ok && (!one_extent || range.in_one_extent()) { Ok(range) } else { Err(self.bad("range")) }
    }

    /// Checksums and payload must agree with `blocks`; without data both must be absent.
    fn data(&self, blocks: Blocks, present: bool) -> Result<&'a [u8], WireError> {
        let (want_ext, want_payload) = if present {
            (blocks.0 as usize * 4, blocks.bytes())
        } else {
            (0, 0)
        };
        if want_payload > u64::from(PAYLOAD_BYTES_MAX)
            || u64::from(self.header.payload_len) != want_payload
        {
            let len = self.header.payload_len;
            return Err(WireError::PayloadLength { kind: self.header.kind, len });
        }
        self.exact_ext(want_ext)?;
        Ok(&self.ext[..want_ext])
    }

    fn member(&self, value: u64) -> Result<MemberId, WireError> {
        usize::try_from(value).ok().and_then(MemberId::new).ok_or(self.bad("member"))
    }

    fn set(&self, value: u32) -> Result<MemberSet, WireError> {
        let all = MemberSet::first(trilith_block::limits::MEMBERS_MAX);
        if value & !all.0 == 0 { Ok(MemberSet(value)) } else { Err(self.bad("member set")) }
    }

    fn reason(&self, value: u32) -> Result<Reason, WireError> {
        u8::try_from(value).ok().and_then(Reason::from_byte).ok_or(self.bad("reason"))
    }

    fn status(&self, value: u32) -> Result<EntryStatus, WireError> {
        u8::try_from(value).ok().and_then(EntryStatus::from_byte).ok_or(self.bad("status"))
    }

    fn map(&self, value: u32) -> Result<MapKind, WireError> {
        u8::try_from(value).ok().and_then(MapKind::from_byte).ok_or(self.bad("map kind"))
    }

    fn number(&self, value: u64) -> Result<u32, WireError> {
        u32::try_from(value).map_err(|_| self.bad("number"))
    }

    fn state(&self) -> Result<ReplicaState, WireError> {
        self.exact_ext(ReplicaState::BYTES)?;
        let state = ReplicaState::decode(self.ext).ok_or(self.bad("member"))?;
        for set in [state.iss, state.trk, state.voters] {
            self.set(set.0)?;
        }
        Ok(state)
    }

    fn uuid(&self, at: usize) -> Uuid {
        let mut raw = [0u8; 16];
        raw.copy_from_slice(&self.ext[at..at + 16]);
        Uuid(raw)
    }

    fn bytes32(&self, at: usize) -> [u8; 32] {
        let mut raw = [0u8; 32];
        raw.copy_from_slice(&self.ext[at..at + 32]);
        raw
    }

    fn prevote(&self) -> Result<Prevote, WireError> {
        self.exact_ext(16)?;
        Ok(Prevote {
            term: self.term(),
            attach_epoch: self.header.a0,
            cfg_gen: self.header.a3,
            release_lease_of: self.uuid(0),
        })
    }

    fn hello(&self) -> Result<Hello, WireError> {
        self.exact_ext(112)?;
        Ok(Hello {
            volume: self.uuid(0),
            engine: self.uuid(16),
            supersedes: self.uuid(32),
            nonce: self.bytes32(48),
            member: self.member(u64::from(u32_at(self.ext, 80)))?,
            term: self.term(),
            attach_epoch: self.header.a0,
            protocol_min: low16(self.header.a1),
            protocol_max: low16(self.header.a1 >> 16),
            loss: self.header.a2,
            cfg_gen: self.header.a3,
            capacity: self.header.a4,
        })
    }

    fn append(&self) -> Result<Append<'a>, WireError> {
        let h = self.header;
        let op = u8::try_from(h.flags & 7).ok().and_then(EntryOp::from_byte);
        let op = op.ok_or(self.bad("op"))?;
        let header_only = h.flags & 8 != 0;
        let range = self.range(h.a0, h.a1, true)?;
        Ok(Append {
            term: self.term(),
            idx: self.idx(),
            op,
            range,
            skip: self.set(h.a2)?,
            header_only,
            resend: h.flags & 16 != 0,
            tidx: Idx(h.a3),
            sent_at: h.a4,
            crcs: self.data(range.count, op == EntryOp::Write && !header_only)?,
        })
    }

    fn crc_ext(&self) -> Result<u32, WireError> {
        self.exact_ext(8)?;
        Ok(u32_at(self.ext, 0))
    }
}

fn low16(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(0)
}

fn member_number(member: MemberId) -> u32 {
    u32::try_from(member.index()).unwrap_or(0)
}

impl<'a> Message<'a> {
    /// The message of a decoded header and its extension.
    pub(crate) fn from_header(h: &'a Header, ext: &'a [u8]) -> Result<Message<'a>, WireError> {
        let f = Fields { header: h, ext };
        let kind = Kind::from_byte(h.kind).ok_or(WireError::Type(h.kind))?;
        let term = f.term();
        let message = match kind {
            Kind::Hello => Message::Hello(f.hello()?),
            Kind::Challenge => {
                f.exact_ext(80)?;
                Message::Challenge {
                    protocol: low16(h.a1),
                    replica: f.uuid(0),
                    nonce: f.bytes32(16),
                    proof: f.bytes32(48),
                }
            }
            Kind::Auth => {
                f.exact_ext(32)?;
                Message::Auth { proof: f.bytes32(0) }
            }
            Kind::Welcome => Message::Welcome(f.state()?),
            Kind::Refused => Message::Refused {
                reason: f.reason(h.a1)?,
                term,
                attach_epoch: h.a0,
                detail: h.a3,
            },
            Kind::Prevote => Message::Prevote(f.prevote()?),
            Kind::PrevoteReply => Message::PrevoteReply {
                refused: if h.a1 == 0 { None } else { Some(f.reason(h.a1)?) },
                term,
                attach_epoch: h.a0,
                lease_left_ms: h.a2,
            },
            Kind::Vote => Message::Vote(f.prevote()?),
            Kind::Promise => Message::Promise { term, state: f.state()? },
            Kind::Nack => Message::Nack {
                reason: f.reason(h.a1)?,
                refused: u8::try_from(h.a2)
                    .ok()
                    .and_then(Kind::from_byte)
                    .ok_or(f.bad("refused kind"))?,
                term,
                attach_epoch: h.a0,
                idx: f.idx(),
                tag: h.a4,
            },
            Kind::GetMap => Message::GetMap {
                term,
                map: f.map(h.a1)?,
                member: f.member(u64::from(h.a2))?,
                from: h.a0,
            },
            Kind::Map => Message::Map {
                term,
                map: f.map(h.a1)?,
                member: f.member(u64::from(h.a2))?,
                last: h.flags & 1 != 0,
                next: h.a0,
                crc: f.crc_ext()?,
            },
            Kind::Reconcile => Message::Reconcile { term, loss: h.a1 },
            Kind::ReconcileDone => Message::ReconcileDone { term },
            Kind::Repair => {
                let range = f.range(h.a0, h.a1, true)?;
                let zero = h.flags & 1 != 0;
                Message::Repair {
                    term,
                    range,
                    tag: h.a4,
                    zero,
                    rebuild: h.flags & 2 != 0,
                    crcs: f.data(range.count, !zero)?,
                }
            }
            Kind::RepairDone => {
                Message::RepairDone { term, tag: h.a4, status: f.status(h.a1)? }
            }
            Kind::TermStart => {
                Message::TermStart { term, start: f.idx(), iss: f.set(h.a1)?, loss: h.a2 }
            }
            Kind::TermStartDone => Message::TermStartDone { term, start: f.idx() },
            Kind::Opened => Message::Opened { term },
            Kind::Append => Message::Append(f.append()?),
            Kind::Ack => Message::Ack {
                term,
                upto: f.idx(),
                free_extents: h.a0,
                credit_entries: h.a1,
                credit_bytes: h.a2,
                w: Idx(h.a3),
                echo: h.a4,
                further: ext,
            },
            Kind::EntryFailed => {
                Message::EntryFailed { term, idx: f.idx(), status: f.status(h.a1)? }
            }
            Kind::Flush => {
                Message::Flush { term, idx: f.idx(), tidx: Idx(h.a3), sent_at: h.a4 }
            }
            Kind::FlushDone => Message::FlushDone { term, idx: f.idx() },
            Kind::SyncSet => Message::SyncSet {
                term,
                idx: f.idx(),
                n: f.number(h.a0)?,
                iss: f.set(h.a1)?,
                trk: f.set(h.a2)?,
                tidx: Idx(h.a3),
                join: if h.a4 == 0 { None } else { Some(f.member(h.a4 - 1)?) },
            },
            Kind::SyncSetDone => {
                Message::SyncSetDone { term, idx: f.idx(), n: f.number(h.a0)? }
            }
            Kind::Read => Message::Read { term, range: f.range(h.a0, h.a1, false)?, rid: h.a4 },
            Kind::Data => {
                let range = f.range(h.a0, h.a2, false)?;
                let status = f.status(h.a1)?;
                let zero = h.flags & 1 != 0;
                let crcs = f.data(range.count, status == EntryStatus::Done && !zero)?;
                Message::Data { term, rid: h.a4, status, range, zero, crcs }
            }
            Kind::Heartbeat => Message::Heartbeat {
                term,
                commit: Idx(h.a0),
                tidx: Idx(h.a3),
                sent_at: h.a4,
            },
            Kind::HeartbeatDone => Message::HeartbeatDone {
                term,
                upto: f.idx(),
                free_extents: h.a0,
                w: Idx(h.a3),
                echo: h.a4,
            },
            Kind::Told => Message::Told {
                term,
                n: f.number(h.a0)?,
                iss: f.set(h.a1)?,
                trk: f.set(h.a2)?,
                start: f.idx(),
            },
            Kind::ToldDone => Message::ToldDone { term },
            Kind::NeedSet => Message::NeedSet { term },
            Kind::NeedSetDone => Message::NeedSetDone { term },
            Kind::DirtyClear => Message::DirtyClear {
                term,
                member: f.member(u64::from(h.a2))?,
                crc: f.crc_ext()?,
            },
            Kind::Seal => Message::Seal { term, idx: f.idx() },
            Kind::SealDone => Message::SealDone { term, sealed: h.a1 != 0 },
            Kind::StepDown => Message::StepDown { term },
        };
        Ok(message)
    }

    /// Its frame type.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) => Kind::Hello,
            Message::Challenge { .. } => Kind::Challenge,
            Message::Auth { .. } => Kind::Auth,
            Message::Welcome(_) => Kind::Welcome,
            Message::Refused { .. } => Kind::Refused,
            Message::Prevote(_) => Kind::Prevote,
            Message::PrevoteReply { .. } => Kind::PrevoteReply,
            Message::Vote(_) => Kind::Vote,
            Message::Promise { .. } => Kind::Promise,
            Message::Nack { .. } => Kind::Nack,
            Message::GetMap { .. } => Kind::GetMap,
            Message::Map { .. } => Kind::Map,
            Message::Reconcile { .. } => Kind::Reconcile,
            Message::ReconcileDone { .. } => Kind::ReconcileDone,
            Message::Repair { .. } => Kind::Repair,
            Message::RepairDone { .. } => Kind::RepairDone,
            Message::TermStart { .. } => Kind::TermStart,
            Message::TermStartDone { .. } => Kind::TermStartDone,
            Message::Opened { .. } => Kind::Opened,
            Message::Append(_) => Kind::Append,
            Message::Ack { .. } => Kind::Ack,
            Message::EntryFailed { .. } => Kind::EntryFailed,
            Message::Flush { .. } => Kind::Flush,
            Message::FlushDone { .. } => Kind::FlushDone,
            Message::SyncSet { .. } => Kind::SyncSet,
            Message::SyncSetDone { .. } => Kind::SyncSetDone,
            Message::Read { .. } => Kind::Read,
            Message::Data { .. } => Kind::Data,
            Message::Heartbeat { .. } => Kind::Heartbeat,
            Message::HeartbeatDone { .. } => Kind::HeartbeatDone,
            Message::Told { .. } => Kind::Told,
            Message::ToldDone { .. } => Kind::ToldDone,
            Message::NeedSet { .. } => Kind::NeedSet,
            Message::NeedSetDone { .. } => Kind::NeedSetDone,
            Message::DirtyClear { .. } => Kind::DirtyClear,
            Message::Seal { .. } => Kind::Seal,
            Message::SealDone { .. } => Kind::SealDone,
            Message::StepDown { .. } => Kind::StepDown,
        }
    }

    /// The header of the message; its extension is appended to `out`. Lengths are filled in by the
    /// encoder.
    pub(crate) fn to_header(self, out: &mut Vec<u8>) -> Header {
        let mut h = Header { kind: self.kind().to_byte(), ..Header::default() };
        match self {
            Message::Hello(hello) => hello.fill(&mut h, out),
            Message::Challenge { protocol, replica, nonce, proof } => {
                h.a1 = u32::from(protocol);
                out.extend_from_slice(&replica.0);
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&proof);
            }
            Message::Auth { proof } => out.extend_from_slice(&proof),
            Message::Welcome(state) => {
                h.term = state.term.0;
                state.encode(out);
            }
            Message::Refused { reason, term, attach_epoch, detail } => {
                (h.a1, h.term) = (u32::from(reason.to_byte()), term.0);
                (h.a0, h.a3) = (attach_epoch, detail);
            }
            Message::Prevote(p) | Message::Vote(p) => {
                (h.term, h.a0, h.a3) = (p.term.0, p.attach_epoch, p.cfg_gen);
                out.extend_from_slice(&p.release_lease_of.0);
            }
            Message::PrevoteReply { refused, term, attach_epoch, lease_left_ms } => {
                h.a1 = refused.map_or(0, |r| u32::from(r.to_byte()));
                (h.term, h.a0, h.a2) = (term.0, attach_epoch, lease_left_ms);
            }
            Message::Promise { term, state } => {
                h.term = term.0;
                state.encode(out);
            }
            Message::Nack { reason, refused, term, attach_epoch, idx, tag } => {
                (h.a1, h.a2) = (u32::from(reason.to_byte()), u32::from(refused.to_byte()));
                (h.term, h.a0, h.idx, h.a4) = (term.0, attach_epoch, idx.0, tag);
            }
            Message::GetMap { term, map, member, from } => {
                (h.term, h.a1, h.a0) = (term.0, u32::from(map.to_byte()), from);
                h.a2 = member_number(member);
            }
            Message::Map { term, map, member, last, next, crc } => {
                (h.term, h.a1, h.a0) = (term.0, u32::from(map.to_byte()), next);
                (h.a2, h.flags) = (member_number(member), u16::from(last));
                out.extend_from_slice(&u64::from(crc).to_le_bytes());
            }
            Message::Reconcile { term, loss } => (h.term, h.a1) = (term.0, loss),
            Message::Repair { term, range, tag, zero, rebuild, crcs } => {
                (h.term, h.a0, h.a1, h.a4) = (term.0, range.start.0, range.count.0, tag);
                h.flags = u16::from(zero) | u16::from(rebuild) << 1;
                out.extend_from_slice(crcs);
            }
            Message::RepairDone { term, tag, status } => {
                (h.term, h.a4, h.a1) = (term.0, tag, u32::from(status.to_byte()));
            }
            Message::TermStart { term, start, iss, loss } => {
                (h.term, h.idx, h.a1, h.a2) = (term.0, start.0, iss.0, loss);
            }
            Message::TermStartDone { term, start } => (h.term, h.idx) = (term.0, start.0),
            Message::Append(a) => {
                (h.term, h.idx, h.a0, h.a1) = (a.term.0, a.idx.0, a.range.start.0, a.range.count.0);
                (h.a2, h.a3, h.a4) = (a.skip.0, a.tidx.0, a.sent_at);
                h.flags = u16::from(a.op.to_byte())
                    | u16::from(a.header_only) << 3
                    | u16::from(a.resend) << 4;
                out.extend_from_slice(a.crcs);
            }
            Message::Ack {
                term,
                upto,
                free_extents,
                credit_entries,
                credit_bytes,
                w,
                echo,
                further,
            } => {
                (h.term, h.idx, h.a0, h.a1) = (term.0, upto.0, free_extents, credit_entries);
                (h.a2, h.a3, h.a4) = (credit_bytes, w.0, echo);
                let count = further.len() / 8;
                assert!(count <= ACK_FURTHER_MAX, "{count} positions, at most {ACK_FURTHER_MAX}");
                out.extend_from_slice(further);
            }
            Message::EntryFailed { term, idx, status } => {
                (h.term, h.idx, h.a1) = (term.0, idx.0, u32::from(status.to_byte()));
            }
            Message::Flush { term, idx, tidx, sent_at } => {
                (h.term, h.idx, h.a3, h.a4) = (term.0, idx.0, tidx.0, sent_at);
            }
            Message::FlushDone { term, idx } => (h.term, h.idx) = (term.0, idx.0),
            Message::SyncSet { term, idx, n, iss, trk, tidx, join } => {
                (h.term, h.idx, h.a0, h.a1) = (term.0, idx.0, u64::from(n), iss.0);
                (h.a2, h.a3) = (trk.0, tidx.0);
                h.a4 = join.map_or(0, |m| u64::from(member_number(m)) + 1);
            }
            Message::SyncSetDone { term, idx, n } => {
                (h.term, h.idx, h.a0) = (term.0, idx.0, u64::from(n));
            }
            Message::Read { term, range, rid } => {
                (h.term, h.a0, h.a1, h.a4) = (term.0, range.start.0, range.count.0, rid);
            }
            Message::Data { term, rid, status, range, zero, crcs } => {
                (h.term, h.a4, h.a1) = (term.0, rid, u32::from(status.to_byte()));
                (h.a0, h.a2, h.flags) = (range.start.0, range.count.0, u16::from(zero));
                out.extend_from_slice(crcs);
            }
            Message::Heartbeat { term, commit, tidx, sent_at } => {
                (h.term, h.a0, h.a3, h.a4) = (term.0, commit.0, tidx.0, sent_at);
            }
            Message::HeartbeatDone { term, upto, free_extents, w, echo } => {
                (h.term, h.idx, h.a0, h.a3, h.a4) = (term.0, upto.0, free_extents, w.0, echo);
            }
            Message::Told { term, n, iss, trk, start } => {
                (h.term, h.a0, h.a1, h.a2) = (term.0, u64::from(n), iss.0, trk.0);
                h.idx = start.0;
            }
            Message::DirtyClear { term, member, crc } => {
                (h.term, h.a2) = (term.0, member_number(member));
                out.extend_from_slice(&u64::from(crc).to_le_bytes());
            }
            Message::Seal { term, idx } => (h.term, h.idx) = (term.0, idx.0),
            Message::SealDone { term, sealed } => (h.term, h.a1) = (term.0, u32::from(sealed)),
            Message::ReconcileDone { term }
            | Message::Opened { term }
            | Message::ToldDone { term }
            | Message::NeedSet { term }
            | Message::NeedSetDone { term }
            | Message::StepDown { term } => h.term = term.0,
        }
        h
    }
}

impl Hello {
    fn fill(self, h: &mut Header, out: &mut Vec<u8>) {
        (h.term, h.a0, h.a2) = (self.term.0, self.attach_epoch, self.loss);
        h.a1 = u32::from(self.protocol_min) | u32::from(self.protocol_max) << 16;
        (h.a3, h.a4) = (self.cfg_gen, self.capacity);
        for id in [self.volume, self.engine, self.supersedes] {
            out.extend_from_slice(&id.0);
        }
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&member_number(self.member).to_le_bytes());
        out.extend_from_slice(&[0; 28]);
    }
}

/// The positions in the extension of an ACK.
pub fn further_positions(further: &[u8]) -> impl Iterator<Item = Idx> + '_ {
    further.chunks_exact(8).map(|b| u64_at(b, 0)).filter(|v| *v != 0).map(Idx)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
