//! What each frame means. `e->r` is from engine to replica, `r->e` the other way. Rule names (V1,
//! R5, D1, M24 ...) are those of `docs/protocol.md`.
//!
//! Session: TCP or unix stream, opened by the engine. HELLO, CHALLENGE, AUTH, WELCOME (or REFUSED
//! at any point, after which the replica closes). Then requests and entries. Every `e->r` frame
//! after WELCOME carries the engine's term; a replica that promised a higher one answers NACK.

use crate::auth::{Nonce, Proof};
use crate::frame::u64_at;
pub use crate::kinds::{EntryOp, EntryStatus, Kind, MapKind, Reason};
use crate::state::ReplicaState;
use trilith_block::{BlockRange, Blocks, Idx, MemberId, MemberSet, Membership, Term, Uuid};

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
    /// RECONCILEDONE. In an open term, with nothing staged: the loss epoch for a member that missed
    /// the TERMSTART (C22). `a1` loss.
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
    /// e->r (C20): make this configuration durable and go by it, if it is newer than the one that is
    /// known; a member that is new in it may lack all that is allocated. Protocol 2. `a0` generation;
    /// `a1` voters; `a2` next voters; flags bit 0 joint, bits 1 to 7 the witness (protocol 4).
    Reconfigure {
        /// Engine's term.
        term: Term,
        /// The configuration.
        config: Membership,
    },
    /// r->e: it, or a newer one, is durable. `a0` generation of what is.
    ReconfigureDone {
        /// Term of the RECONFIGURE.
        term: Term,
        /// Generation that is durable.
        generation: u64,
    },
    /// e->r (6.9): digests of these blocks as they are (no order with the stream), one for each
    /// `unit` blocks. Protocol 3. Answered by EXTENTHASHDONE, or by NACK when the replica promised a
    /// higher term. `a0` lba; `a1` blocks; `a2` blocks of a unit; `a3` seed; `a4` rid.
    ExtentHash {
        /// Engine's term.
        term: Term,
        /// The blocks, within one extent, from a whole unit on.
        range: BlockRange,
        /// Names the answer.
        rid: u64,
        /// What a digest is of: a block or a chunk. The last one may be of fewer.
        unit: Blocks,
        /// Key of the digests.
        seed: u64,
    },
    /// r->e. `a0` lba; `a1` status; `a2` blocks; `a3` blocks of a unit; `a4` rid. Ext: the digests
    /// ([`crate::digest::of`]), none unless the status is done.
    ExtentHashDone {
        /// Term of the EXTENTHASH.
        term: Term,
        /// Its rid.
        rid: u64,
        /// How it ended. Not done: somewhere in the range a copy cannot be read.
        status: EntryStatus,
        /// The blocks.
        range: BlockRange,
        /// See [`Message::ExtentHash`].
        unit: Blocks,
        /// One digest a unit.
        digests: &'a [u8],
    },
    /// e->r: the engine gives up its lease and its leadership.
    StepDown {
        /// Engine's term.
        term: Term,
    },
}

/// The positions in the extension of an ACK.
pub fn further_positions(further: &[u8]) -> impl Iterator<Item = Idx> + '_ {
    further
        .chunks_exact(8)
        .map(|b| u64_at(b, 0))
        .filter(|v| *v != 0)
        .map(Idx)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
