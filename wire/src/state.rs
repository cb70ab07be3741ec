//! What a replica says of itself in WELCOME and PROMISE.

use crate::frame::{u32_at, u64_at};
use alloc::vec::Vec;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{Idx, MemberId, MemberSet, Membership, SyncEpoch, Term, Uuid};

/// Bit of `next` that says joint.
const JOINT_BIT: u32 = 31;
/// Bits of `next` that name the witness, a set of members.
const WITNESS_SHIFT: u32 = 24;
const WITNESS_BITS: u32 = (1 << MEMBERS_MAX) - 1;

/// Yes-or-no facts of a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateFlags {
    /// It lost its window (power loss, lost tmpfs) or a flush failed: its claims of accepted but
    /// unflushed entries are void. Cleared only by TERMSTART or by joining.
    pub tainted: bool,
    /// Its device has a volatile cache.
    pub volatile_cache: bool,
    /// It was stopped cleanly (SEAL) and has accepted nothing since.
    pub sealed: bool,
    /// Some of its blocks may differ from the rest (`need` is not empty).
    pub need: bool,
    /// Its device failed: it only votes.
    pub failed: bool,
}

impl StateFlags {
    fn to_bits(self) -> u32 {
        u32::from(self.tainted)
            | u32::from(self.volatile_cache) << 1
            | u32::from(self.sealed) << 2
            | u32::from(self.need) << 3
            | u32::from(self.failed) << 4
    }

    fn from_bits(bits: u32) -> StateFlags {
        StateFlags {
            tainted: bits & 1 != 0,
            volatile_cache: bits & 2 != 0,
            sealed: bits & 4 != 0,
            need: bits & 8 != 0,
            failed: bits & 16 != 0,
        }
    }
}

/// State of a replica. In PROMISE it is the state after all writes in flight have completed (V3),
/// and it does not change until the promised engine speaks again.
///
/// 192 bytes: `0 replica[16]; 16 boot[16]; 32 voted_engine[16]; 48 leader[16]; 64 term u64; 72
/// attach_epoch u64; 80 cfg_gen u64; 88 se_term u64; 96 se_n u32; 100 iss u32; 104 trk u32; 108 loss
/// u32; 112 w u64; 120 upto u64; 128 tidx u64; 136 capacity u64; 144 free_extents u64; 152
/// credit_entries u32; 156 credit_bytes u32; 160 member u32; 164 voters u32; 168 flags u32; 172
/// lease_left_ms u32; 176 window_count u32; 180 next u32
/// (members; bits 24 to 30 the witness, bit 31 joint); 184 max_idx u64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaState {
    /// Its identity; a wiped disk gets a new one.
    pub replica: Uuid,
    /// Boot id of its host.
    pub boot: Uuid,
    /// Engine that its durable vote in `term` went to; none before the first vote.
    pub voted_engine: Uuid,
    /// Engine that holds a lease here (also after a restart, M14); none when no lease runs.
    pub leader: Uuid,
    /// Highest term promised (durable).
    pub term: Term,
    /// Highest attach epoch seen in a granted vote (durable).
    pub attach_epoch: u64,
    /// Its configuration.
    pub config: Membership,
    /// Its durable sync epoch.
    pub se: SyncEpoch,
    /// In-sync set of that epoch.
    pub iss: MemberSet,
    /// Tracked set of that epoch: the in-sync set and members being rebuilt.
    pub trk: MemberSet,
    /// Loss epoch (durable).
    pub loss: u32,
    /// Durable watermark: every entry up to it is on stable media here.
    pub w: Idx,
    /// Every entry up to it has been accepted here.
    pub upto: Idx,
    /// Every entry up to it has been accepted by all of `trk`, as far as this replica was told.
    pub tidx: Idx,
    /// Highest entry that has a slot here, accepted or not; at least `upto`.
    pub max_idx: Idx,
    /// Size of the volume in bytes.
    pub capacity: u64,
    /// Extents that can still be allocated here (M3).
    pub free_extents: u64,
    /// Entries that the engine may have in flight here beyond `upto`.
    pub credit_entries: u32,
    /// Payload bytes that the engine may have in flight here.
    pub credit_bytes: u32,
    /// Which member it is.
    pub member: MemberId,
    /// Yes-or-no facts.
    pub flags: StateFlags,
    /// What is left of a lease that it granted to `leader`, in milliseconds.
    pub lease_left_ms: u32,
    /// Entries in its window.
    pub window_count: u32,
}

impl ReplicaState {
    /// Bytes on the wire.
    pub const BYTES: usize = 192;

    /// True when the replica is in the in-sync set of its own durable epoch.
    pub fn is_complete(&self) -> bool {
        self.iss.contains(self.member)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for id in [self.replica, self.boot, self.voted_engine, self.leader] {
            out.extend_from_slice(&id.0);
        }
        for v in [
            self.term.0,
            self.attach_epoch,
            self.config.generation,
            self.se.term.0,
        ] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        for v in [self.se.n, self.iss.0, self.trk.0, self.loss] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        for v in [
            self.w.0,
            self.upto.0,
            self.tidx.0,
            self.capacity,
            self.free_extents,
        ] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        let member = u32::try_from(self.member.index()).unwrap_or(0);
        for v in [
            self.credit_entries,
            self.credit_bytes,
            member,
            self.config.voters.0,
            self.flags.to_bits(),
            self.lease_left_ms,
            self.window_count,
            self.config.next.0
                | u32::from(self.config.joint) << JOINT_BIT
                | self.config.witness.0 << WITNESS_SHIFT,
        ] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.max_idx.0.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<ReplicaState> {
        if bytes.len() < Self::BYTES {
            return None;
        }
        let id = |at: usize| {
            let mut raw = [0u8; 16];
            raw.copy_from_slice(&bytes[at..at + 16]);
            Uuid(raw)
        };
        let next = u32_at(bytes, 180);
        Some(ReplicaState {
            replica: id(0),
            boot: id(16),
            voted_engine: id(32),
            leader: id(48),
            term: Term(u64_at(bytes, 64)),
            attach_epoch: u64_at(bytes, 72),
            se: SyncEpoch {
                term: Term(u64_at(bytes, 88)),
                n: u32_at(bytes, 96),
            },
            iss: MemberSet(u32_at(bytes, 100)),
            trk: MemberSet(u32_at(bytes, 104)),
            loss: u32_at(bytes, 108),
            w: Idx(u64_at(bytes, 112)),
            upto: Idx(u64_at(bytes, 120)),
            tidx: Idx(u64_at(bytes, 128)),
            capacity: u64_at(bytes, 136),
            free_extents: u64_at(bytes, 144),
            credit_entries: u32_at(bytes, 152),
            credit_bytes: u32_at(bytes, 156),
            member: MemberId::new(usize::try_from(u32_at(bytes, 160)).ok()?)?,
            config: Membership {
                generation: u64_at(bytes, 80),
                voters: MemberSet(u32_at(bytes, 164)),
                next: MemberSet(next & ((1 << WITNESS_SHIFT) - 1)),
                joint: next >> JOINT_BIT != 0,
                witness: MemberSet(next >> WITNESS_SHIFT & WITNESS_BITS),
            },
            flags: StateFlags::from_bits(u32_at(bytes, 168)),
            lease_left_ms: u32_at(bytes, 172),
            window_count: u32_at(bytes, 176),
            max_idx: Idx(u64_at(bytes, 184)),
        })
    }
}
