//! A replica in memory that obeys the wire's semantics, without a disk: what it writes is durable
//! at once unless a test says otherwise.

use super::arena::Arena;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;
use trilith_block::limits::BLOCK_BYTES;
use trilith_block::{
    BlockRange, Blocks, Buffers, ChunkMap, ExtentNo, Idx, Lba, MemberId, MemberSet, Membership,
    SyncEpoch, Term, Uuid,
};
use trilith_wire::auth::{self, Binding, Role};
use trilith_wire::{
    Append, ChunkRecord, EntryOp, EntryStatus, Hello, Kind, MapKind, Message, Reason, ReplicaState,
    SlotStatus, StateFlags, WindowRecord,
};

pub(crate) const SECRET: [u8; 32] = [5; 32];
pub(crate) const VOLUME: Uuid = Uuid([1; 16]);
pub(crate) const LEASE_NS: u64 = 3_000_000_000;

/// A frame on its way: head and payload.
pub(crate) type Frame = (Vec<u8>, Vec<u8>);

#[derive(Clone, Debug)]
struct Slot {
    range: BlockRange,
    skip: MemberSet,
    acked: bool,
}

pub(crate) struct Session {
    hello: Hello,
    binding: Option<Binding>,
    ready: bool,
}

pub(crate) struct Fake {
    pub(crate) member: MemberId,
    pub(crate) voters: MemberSet,
    pub(crate) config: Membership,
    pub(crate) capacity: u64,
    pub(crate) blocks: BTreeMap<Lba, Box<[u8]>>,
    pub(crate) term: Term,
    pub(crate) voted: Uuid,
    pub(crate) attach_epoch: u64,
    pub(crate) se: SyncEpoch,
    pub(crate) iss: MemberSet,
    pub(crate) trk: MemberSet,
    pub(crate) loss: u32,
    pub(crate) w: Idx,
    pub(crate) upto: Idx,
    pub(crate) tidx: Idx,
    slots: BTreeMap<Idx, Slot>,
    /// Positions that are not data and were accepted.
    pub(crate) marks: BTreeMap<Idx, bool>,
    pub(crate) tainted: bool,
    pub(crate) sealed: bool,
    pub(crate) al: ChunkMap,
    pub(crate) need: ChunkMap,
    pub(crate) dirty: Vec<ChunkMap>,
    pub(crate) allocated: ChunkMap,
    staged: Vec<(MapKind, MemberId, ChunkMap)>,
    pub(crate) lease_until: u64,
    pub(crate) leader: Uuid,
    pub(crate) sessions: BTreeMap<u64, Session>,
    // Knobs and counts.
    pub(crate) free_extents: u64,
    /// Accepted entries are not acked while this is set.
    pub(crate) hold_acks: bool,
    /// A witness: epochs are lost on the way while this is set.
    pub(crate) lose_epochs: bool,
    /// RECONFIGUREs are lost while this is set.
    pub(crate) hold_configs: bool,
    /// A promise does not arrive while this is set.
    pub(crate) hold_promises: bool,
    /// RECONCILE is not answered, nor done.
    pub(crate) hold_reconciles: bool,
    pub(crate) protocol: u16,
    /// Flushes are not answered while this is set.
    pub(crate) hold_flushes: bool,
    /// READs are not answered while this is set.
    pub(crate) hold_reads: bool,
    pub(crate) fail_reads: bool,
    /// EXTENTHASHes here find a bad sector, until it is written.
    pub(crate) unreadable: Option<BlockRange>,
    /// EXTENTHASHes are not answered while this is set.
    pub(crate) hold_hashes: bool,
    pub(crate) hashes: u64,
    pub(crate) fail_writes: bool,
    /// APPENDs are lost on the way into the store.
    pub(crate) lose_appends: bool,
    pub(crate) deaf: bool,
    pub(crate) held: Vec<(u64, Vec<u8>, Vec<u8>)>,
    pub(crate) reads: u64,
    pub(crate) appends: u64,
    pub(crate) payload_appends: u64,
    pub(crate) resends: u64,
    pub(crate) repairs: u64,
    pub(crate) heartbeats: u64,
    /// Entries whose acks come later, for tests of odd orders.
    pub(crate) pending: Vec<(u64, Idx)>,
    pub(crate) ack_by_hand: bool,
}

pub(crate) struct Out<'a> {
    pub(crate) conn: u64,
    pub(crate) now: u64,
    pub(crate) arena: &'a mut Arena,
    pub(crate) frames: Vec<Frame>,
    pub(crate) close: bool,
}

impl Out<'_> {
    pub(crate) fn send(&mut self, message: &Message<'_>, payload: &[u8]) {
        let mut encoder = trilith_wire::Encoder::new();
        let len = u32::try_from(payload.len()).unwrap();
        let head = encoder.head(message, len, self.arena).to_vec();
        self.frames.push((head, payload.to_vec()));
    }
}

impl Fake {
    pub(crate) fn new(member: MemberId, voters: MemberSet, capacity: u64) -> Fake {
        Fake {
            member,
            voters,
            config: Membership {
                generation: 1,
                ..voters.into()
            },
            capacity,
            blocks: BTreeMap::new(),
            term: Term(0),
            voted: Uuid::NONE,
            attach_epoch: 0,
            se: SyncEpoch::default(),
            iss: voters,
            trk: voters,
            loss: 0,
            w: Idx(0),
            upto: Idx(0),
            tidx: Idx(0),
            slots: BTreeMap::new(),
            marks: BTreeMap::new(),
            tainted: false,
            sealed: false,
            al: ChunkMap::new(),
            need: ChunkMap::new(),
            dirty: vec![ChunkMap::new(); 7],
            allocated: ChunkMap::new(),
            staged: Vec::new(),
            lease_until: 0,
            leader: Uuid::NONE,
            sessions: BTreeMap::new(),
            free_extents: 1000,
            hold_acks: false,
            lose_epochs: false,
            hold_configs: false,
            hold_promises: false,
            hold_reconciles: false,
            protocol: trilith_wire::limits::PROTOCOL_MAX,
            hold_flushes: false,
            hold_reads: false,
            fail_reads: false,
            unreadable: None,
            hold_hashes: false,
            hashes: 0,
            fail_writes: false,
            lose_appends: false,
            deaf: false,
            held: Vec::new(),
            reads: 0,
            appends: 0,
            payload_appends: 0,
            resends: 0,
            repairs: 0,
            heartbeats: 0,
            pending: Vec::new(),
            ack_by_hand: false,
        }
    }

    /// Power loss: the window is gone, what was flushed stays.
    pub(crate) fn lose_power(&mut self) {
        self.tainted = true;
        self.slots.clear();
        self.marks.clear();
        self.upto = self.w;
        self.need.union(&core::mem::take(&mut self.al));
        self.lease_until = 0;
        self.crash();
    }

    /// Process crash: sessions are gone, all else stays.
    pub(crate) fn crash(&mut self) {
        self.sessions.clear();
        self.held.clear();
        self.pending.clear();
        for slot in self.slots.values_mut() {
            slot.acked = true;
        }
        self.settle_upto();
    }

    pub(crate) fn state(&self, now: u64) -> ReplicaState {
        let left = self.lease_until.saturating_sub(now) / 1_000_000;
        ReplicaState {
            replica: Uuid([0x10 + u8::try_from(self.member.index()).unwrap(); 16]),
            boot: Uuid([9; 16]),
            voted_engine: self.voted,
            leader: if left > 0 { self.leader } else { Uuid::NONE },
            term: self.term,
            attach_epoch: self.attach_epoch,
            se: self.se,
            iss: self.iss,
            trk: self.trk,
            loss: self.loss,
            w: self.w,
            upto: self.upto,
            tidx: self.tidx,
            max_idx: self
                .slots
                .keys()
                .last()
                .copied()
                .unwrap_or(Idx(0))
                .max(self.upto),
            capacity: self.capacity,
            free_extents: self.free_extents,
            credit_entries: 64,
            credit_bytes: 32 << 20,
            member: self.member,
            config: self.config,
            flags: StateFlags {
                tainted: self.tainted,
                sealed: self.sealed,
                need: !self.need.is_empty(),
                ..StateFlags::default()
            },
            lease_left_ms: u32::try_from(left).unwrap(),
            window_count: u32::try_from(self.slots.len()).unwrap(),
        }
    }

    fn settle_upto(&mut self) {
        loop {
            let next = self.upto.next();
            let data = self.slots.get(&next).is_some_and(|s| s.acked);
            if !data && !self.marks.contains_key(&next) {
                break;
            }
            self.upto = next;
        }
        let upto = self.upto;
        self.marks.retain(|idx, _| *idx > upto);
    }

    pub(crate) fn frame(&mut self, message: &Message<'_>, payload: &[u8], out: &mut Out<'_>) {
        let conn = out.conn;
        let ready = self.sessions.get(&conn).is_some_and(|s| s.ready);
        match message {
            Message::Hello(hello) if !ready => self.hello(*hello, out),
            Message::Auth { proof } if !ready => self.auth(proof, out),
            _ if !ready => out.close = true,
            Message::Prevote(p) => {
                let refused = self.refuses(p, conn, out.now);
                let left = self.lease_until.saturating_sub(out.now) / 1_000_000;
                let reply = Message::PrevoteReply {
                    refused,
                    term: self.term,
                    attach_epoch: self.attach_epoch,
                    lease_left_ms: u32::try_from(left).unwrap(),
                };
                out.send(&reply, &[]);
            }
            Message::Vote(p) => {
                let engine = self.sessions[&conn].hello.engine;
                let again = p.term == self.term && self.voted == engine;
                if let Some(reason) = self.refuses(p, conn, out.now).filter(|_| !again) {
                    return self.nack(reason, Kind::Vote, 0, out);
                }
                if p.release_lease_of == self.leader && !self.leader.is_none() {
                    self.lease_until = 0;
                }
                self.term = p.term;
                self.voted = engine;
                self.attach_epoch = p.attach_epoch;
                self.staged.clear();
                // The drain: everything that arrived is done.
                for slot in self.slots.values_mut() {
                    slot.acked = true;
                }
                self.pending.clear();
                self.settle_upto();
                let promise = Message::Promise {
                    term: self.term,
                    state: self.state(out.now),
                };
                if !self.hold_promises {
                    out.send(&promise, &[]);
                }
            }
            message => self.led(message, payload, out),
        }
    }

    fn hello(&mut self, hello: Hello, out: &mut Out<'_>) {
        if hello.attach_epoch < self.attach_epoch {
            let refused = Message::Refused {
                reason: Reason::AttachEpoch,
                term: self.term,
                attach_epoch: self.attach_epoch,
                detail: 0,
            };
            out.send(&refused, &[]);
            out.close = true;
            return;
        }
        let binding = Binding {
            engine_nonce: hello.nonce,
            replica_nonce: [8; 32],
            volume: hello.volume,
            engine: hello.engine,
            replica: Uuid([0x10 + u8::try_from(self.member.index()).unwrap(); 16]),
            protocol: self.protocol,
        };
        let proof = auth::proof(&SECRET, Role::Replica, &binding);
        let replica = binding.replica;
        out.send(
            &Message::Challenge {
                protocol: self.protocol,
                replica,
                nonce: [8; 32],
                proof,
            },
            &[],
        );
        self.sessions.insert(
            out.conn,
            Session {
                hello,
                binding: Some(binding),
                ready: false,
            },
        );
    }

    fn auth(&mut self, proof: &[u8; 32], out: &mut Out<'_>) {
        let Some(session) = self.sessions.get_mut(&out.conn) else {
            return;
        };
        let ok = session
            .binding
            .is_some_and(|binding| auth::verify(&SECRET, Role::Engine, &binding, proof));
        assert!(ok, "the engine's proof is right");
        session.ready = true;
        let state = self.state(out.now);
        out.send(&Message::Welcome(state), &[]);
    }

    fn refuses(&self, p: &trilith_wire::Prevote, conn: u64, now: u64) -> Option<Reason> {
        let engine = self.sessions[&conn].hello.engine;
        let leased = now < self.lease_until
            && self.leader != engine
            && self.leader != p.release_lease_of
            && p.attach_epoch <= self.attach_epoch;
        if p.attach_epoch < self.attach_epoch {
            Some(Reason::AttachEpoch)
        } else if p.cfg_gen < self.config.generation {
            Some(Reason::Config)
        } else if p.term <= self.term {
            Some(Reason::Term)
        } else if leased {
            Some(Reason::LeaderAlive)
        } else {
            None
        }
    }

    fn nack(&self, reason: Reason, refused: Kind, tag: u64, out: &mut Out<'_>) {
        let nack = Message::Nack {
            reason,
            refused,
            term: self.term,
            attach_epoch: self.attach_epoch,
            idx: Idx(0),
            tag,
        };
        out.send(&nack, &[]);
    }

    /// Frames of the engine that holds the promise.
    fn led(&mut self, message: &Message<'_>, payload: &[u8], out: &mut Out<'_>) {
        let engine = self.sessions[&out.conn].hello.engine;
        if engine != self.voted {
            let tag = if let Message::Read { rid, .. } = message {
                *rid
            } else {
                0
            };
            return self.nack(Reason::Term, message.kind(), tag, out);
        }
        let term = self.term;
        if self.config.witness.contains(self.member) && !self.is_for_everyone(message) {
            return self.led_as_witness(message, out);
        }
        match message {
            Message::GetMap {
                map, member, from, ..
            } => self.get_map(*map, *member, *from, out),
            Message::Map { map, member, .. } => {
                let mut chunks = ChunkMap::new();
                for record in ChunkRecord::decode_all(payload) {
                    chunks.add_mask(record.extent, record.mask);
                }
                self.staged.push((*map, *member, chunks));
            }
            Message::Reconcile { loss, .. } => {
                if self.hold_reconciles {
                    return;
                }
                self.take_staged();
                self.loss = self.loss.max(*loss);
                out.send(&Message::ReconcileDone { term }, &[]);
            }
            Message::Reconfigure { config, .. } => {
                if self.hold_configs {
                    return;
                }
                if self.config.generation < config.generation {
                    for new in config.members().minus(self.config.members()).iter() {
                        self.dirty[new.index()] = self.allocated.clone();
                    }
                    self.config = *config;
                }
                let generation = self.config.generation;
                out.send(&Message::ReconfigureDone { term, generation }, &[]);
            }
            Message::NeedSet { .. } => {
                self.take_staged();
                out.send(&Message::NeedSetDone { term }, &[]);
            }
            Message::Repair {
                range, tag, zero, ..
            } => {
                self.repairs += 1;
                self.store(*range, (!zero).then_some(payload));
                let status = EntryStatus::Done;
                out.send(
                    &Message::RepairDone {
                        term,
                        tag: *tag,
                        status,
                    },
                    &[],
                );
            }
            Message::TermStart {
                start, iss, loss, ..
            } => {
                self.need.clear();
                self.dirty = vec![ChunkMap::new(); 7];
                self.take_staged();
                self.se = SyncEpoch { term, n: 0 };
                (self.iss, self.trk, self.loss) = (*iss, *iss, *loss);
                (self.w, self.upto, self.tidx) = (*start, *start, *start);
                self.slots.clear();
                self.marks.clear();
                self.al.clear();
                (self.tainted, self.sealed) = (false, false);
                out.send(
                    &Message::TermStartDone {
                        term,
                        start: *start,
                    },
                    &[],
                );
            }
            Message::Opened { .. } => self.need.clear(),
            Message::Append(append) => self.append(append, payload, out),
            Message::Flush {
                idx, tidx, sent_at, ..
            } => {
                self.grant(engine, out.now);
                self.accept(*idx, *tidx);
                self.ack(*sent_at, out);
                if self.iss.contains(self.member) && !self.hold_flushes {
                    self.w = self.w.max(*idx);
                }
                self.answer(
                    self.hold_flushes,
                    &Message::FlushDone { term, idx: *idx },
                    out,
                );
            }
            Message::SyncSet {
                idx,
                n,
                iss,
                trk,
                tidx,
                join,
                ..
            } => {
                self.tidx = self.tidx.max(*tidx);
                for slot in self.slots.values_mut() {
                    slot.acked = true;
                }
                for leaving in self.trk.minus(*trk).iter() {
                    let tidx = self.tidx;
                    for (at, slot) in &self.slots {
                        if *at > tidx {
                            self.dirty[leaving.index()].add_range(slot.range);
                        }
                    }
                }
                if *join == Some(self.member) {
                    self.need.clear();
                    self.dirty = vec![ChunkMap::new(); 7];
                    self.take_staged();
                    self.tainted = false;
                    self.upto = *idx;
                }
                self.se = SyncEpoch { term, n: *n };
                (self.iss, self.trk, self.w) = (*iss, *trk, self.w.max(*idx));
                self.accept(*idx, *tidx);
                self.answer(
                    false,
                    &Message::SyncSetDone {
                        term,
                        idx: *idx,
                        n: *n,
                    },
                    out,
                );
                self.ack(0, out);
            }
            Message::Read { range, rid, .. } => self.read(*range, *rid, out),
            Message::ExtentHash {
                range,
                rid,
                unit,
                seed,
                ..
            } => self.digests(*range, *rid, *unit, *seed, out),
            Message::Heartbeat { tidx, sent_at, .. } => {
                self.heartbeats += 1;
                self.grant(engine, out.now);
                self.cut(*tidx);
                let done = Message::HeartbeatDone {
                    term,
                    upto: self.upto,
                    free_extents: self.free_extents,
                    w: self.w,
                    echo: *sent_at,
                };
                out.send(&done, &[]);
            }
            Message::Told {
                n, iss, trk, start, ..
            } => {
                assert!(
                    !iss.contains(self.member),
                    "told out while in the in-sync set"
                );
                self.se = SyncEpoch { term, n: *n };
                (self.iss, self.trk) = (*iss, *trk);
                self.slots.clear();
                self.marks.clear();
                (self.upto, self.tidx) = (*start, *start);
                self.need.union(&self.al.clone());
                out.send(&Message::ToldDone { term }, &[]);
            }
            Message::DirtyClear { member, .. } => {
                for record in ChunkRecord::decode_all(payload) {
                    let own = *member == self.member;
                    let map = if own {
                        &mut self.need
                    } else {
                        &mut self.dirty[member.index()]
                    };
                    map.remove_mask(record.extent, record.mask);
                }
            }
            Message::Seal { idx, .. } => {
                assert_eq!(*idx, self.upto, "sealed at what was accepted");
                self.w = self.upto;
                self.sealed = true;
                out.send(&Message::SealDone { term, sealed: true }, &[]);
            }
            Message::StepDown { .. } => self.lease_until = 0,
            other => panic!("an engine sent {other:?}"),
        }
    }

    /// What a witness takes just as any other member does (7.1, W1).
    fn is_for_everyone(&self, message: &Message<'_>) -> bool {
        matches!(
            message.kind(),
            Kind::Reconcile | Kind::Reconfigure | Kind::Heartbeat | Kind::StepDown | Kind::Opened
        )
    }

    /// W1, W4: an epoch is a record. It names nobody who has it not, and the witness never.
    fn led_as_witness(&mut self, message: &Message<'_>, out: &mut Out<'_>) {
        let term = self.term;
        if let Message::Seal { .. } = message {
            self.sealed = true;
            self.lease_until = 0;
            return out.send(&Message::SealDone { term, sealed: true }, &[]);
        }
        let (se, iss, trk, done) = match message {
            Message::TermStart { start, iss, .. } => {
                let start = *start;
                let done = Message::TermStartDone { term, start };
                (SyncEpoch { term, n: 0 }, *iss, *iss, done)
            }
            Message::SyncSet {
                idx, n, iss, trk, ..
            } => {
                let (idx, n) = (*idx, *n);
                let done = Message::SyncSetDone { term, idx, n };
                (SyncEpoch { term, n }, *iss, *trk, done)
            }
            other => panic!("an engine sent a witness {other:?}"),
        };
        assert!(!trk.contains(self.member) && iss.minus(trk).is_empty());
        if self.lose_epochs {
            return;
        }
        assert!(self.se <= se, "{se:?} after {:?}", self.se);
        if let Message::TermStart { loss, .. } = message {
            self.loss = self.loss.max(*loss);
        }
        (self.se, self.iss, self.trk, self.sealed) = (se, iss, trk, false);
        out.send(&done, &[]);
    }

    fn grant(&mut self, engine: Uuid, now: u64) {
        self.leader = engine;
        self.lease_until = now + LEASE_NS;
    }

    fn take_staged(&mut self) {
        for (kind, member, chunks) in core::mem::take(&mut self.staged) {
            match kind {
                MapKind::Need | MapKind::Limbo => self.need.union(&chunks),
                MapKind::Dirty => self.dirty[member.index()].union(&chunks),
                other => panic!("staged {other:?}"),
            }
        }
    }

    fn append(&mut self, append: &Append<'_>, payload: &[u8], out: &mut Out<'_>) {
        let engine = self.voted;
        self.grant(engine, out.now);
        if self.lose_appends {
            return;
        }
        self.appends += 1;
        self.payload_appends += u64::from(!payload.is_empty());
        self.resends += u64::from(append.resend);
        self.cut(append.tidx);
        if append.idx <= self.upto || self.slots.contains_key(&append.idx) {
            if let Some(slot) = self.slots.get_mut(&append.idx) {
                slot.acked = true;
            }
            self.settle_upto();
            return self.ack(append.sent_at, out);
        }
        for absent in append.skip.iter() {
            self.dirty[absent.index()].add_range(append.range);
        }
        if self.fail_writes {
            let (term, idx) = (self.term, append.idx);
            return out.send(
                &Message::EntryFailed {
                    term,
                    idx,
                    status: EntryStatus::Io,
                },
                &[],
            );
        }
        let mine = append.skip.contains(self.member);
        assert_eq!(mine, append.header_only);
        if !append.header_only {
            self.store(
                append.range,
                (append.op == EntryOp::Write).then_some(payload),
            );
            self.al.add_mask(append.range.start.extent(), u64::MAX);
        }
        let acked = !self.ack_by_hand;
        let slot = Slot {
            range: append.range,
            skip: append.skip,
            acked,
        };
        self.slots.insert(append.idx, slot);
        if self.ack_by_hand {
            self.pending.push((out.conn, append.idx));
            return;
        }
        self.settle_upto();
        self.ack(append.sent_at, out);
    }

    /// Acks one of the entries that wait for it.
    pub(crate) fn ack_one(&mut self, at: usize, out: &mut Out<'_>) {
        let (conn, idx) = self.pending.remove(at);
        // O1: an entry is done only after all earlier ones that it overlaps.
        let range = self.slots.get(&idx).map(|slot| slot.range);
        let blocked = self
            .slots
            .range(..idx)
            .any(|(_, slot)| !slot.acked && range.is_some_and(|range| range.overlaps(slot.range)));
        if blocked {
            self.pending.push((conn, idx));
            return;
        }
        if let Some(slot) = self.slots.get_mut(&idx) {
            slot.acked = true;
        }
        self.settle_upto();
        self.ack(0, out);
    }

    fn cut(&mut self, tidx: Idx) {
        self.tidx = self.tidx.max(tidx);
        let (tidx, upto) = (self.tidx, self.upto);
        self.slots.retain(|idx, _| *idx > tidx || *idx > upto);
    }

    fn accept(&mut self, idx: Idx, tidx: Idx) {
        self.cut(tidx);
        if idx > self.upto {
            self.marks.insert(idx, true);
            self.settle_upto();
        }
    }

    fn ack(&mut self, echo: u64, out: &mut Out<'_>) {
        let mut further = Vec::new();
        for (idx, slot) in self.slots.range(self.upto.next()..) {
            if slot.acked {
                further.extend_from_slice(&idx.0.to_le_bytes());
            }
        }
        for idx in self.marks.keys() {
            further.extend_from_slice(&idx.0.to_le_bytes());
        }
        let ack = Message::Ack {
            term: self.term,
            upto: self.upto,
            free_extents: self.free_extents,
            credit_entries: 64,
            credit_bytes: 32 << 20,
            w: self.w,
            echo,
            further: &further,
        };
        self.answer(self.hold_acks, &ack, out);
    }

    fn answer(&mut self, hold: bool, message: &Message<'_>, out: &mut Out<'_>) {
        let before = out.frames.len();
        out.send(message, &[]);
        if hold {
            for (head, payload) in out.frames.drain(before..) {
                self.held.push((out.conn, head, payload));
            }
        }
    }

    pub(crate) fn store(&mut self, range: BlockRange, payload: Option<&[u8]>) {
        self.sealed = false;
        if self.unreadable.is_some_and(|bad| bad.overlaps(range)) {
            self.unreadable = None;
        }
        if payload.is_some() {
            self.allocated.add_range(range);
        }
        for (at, lba) in (range.start.0..range.end().0).enumerate() {
            match payload {
                Some(bytes) => {
                    let from = at * BLOCK_BYTES as usize;
                    let block = bytes[from..from + BLOCK_BYTES as usize].into();
                    self.blocks.insert(Lba(lba), block);
                }
                None => {
                    self.blocks.remove(&Lba(lba));
                }
            }
        }
    }

    pub(crate) fn content(&self, range: BlockRange) -> Vec<u8> {
        let zero = [0u8; BLOCK_BYTES as usize];
        let block = |lba| self.blocks.get(&Lba(lba)).map_or(&zero[..], |b| b);
        (range.start.0..range.end().0)
            .flat_map(block)
            .copied()
            .collect()
    }

    fn digests(&mut self, range: BlockRange, rid: u64, unit: Blocks, seed: u64, out: &mut Out<'_>) {
        self.hashes += 1;
        let unreadable = self.unreadable.is_some_and(|bad| bad.overlaps(range));
        let status = if unreadable {
            EntryStatus::Io
        } else {
            EntryStatus::Done
        };
        let mut digests = Vec::new();
        let hole = self.blocks.range(range.start..range.end()).next().is_none();
        if hole && !unreadable {
            trilith_wire::digest::append_zeroes(seed, range, unit, &mut digests);
        } else if !unreadable {
            trilith_wire::digest::append(seed, &self.content(range), unit, &mut digests);
        }
        let done = Message::ExtentHashDone {
            term: self.term,
            rid,
            status,
            range,
            unit,
            digests: &digests,
        };
        let before = out.frames.len();
        out.send(&done, &[]);
        if self.hold_hashes {
            for (head, payload) in out.frames.drain(before..) {
                self.held.push((out.conn, head, payload));
            }
        }
    }

    fn read(&mut self, range: BlockRange, rid: u64, out: &mut Out<'_>) {
        self.reads += 1;
        let term = self.term;
        if self.fail_reads {
            let status = EntryStatus::Io;
            let data = Message::Data {
                term,
                rid,
                status,
                range,
                zero: false,
                crcs: &[],
            };
            return out.send(&data, &[]);
        }
        let bytes = self.content(range);
        let zero = bytes.iter().all(|b| *b == 0);
        let mut crcs = Vec::new();
        for block in bytes.chunks(BLOCK_BYTES as usize) {
            crcs.extend_from_slice(&out.arena.crc32c(0, block).to_le_bytes());
        }
        let status = EntryStatus::Done;
        let before = out.frames.len();
        if zero {
            out.send(
                &Message::Data {
                    term,
                    rid,
                    status,
                    range,
                    zero,
                    crcs: &[],
                },
                &[],
            );
        } else {
            out.send(
                &Message::Data {
                    term,
                    rid,
                    status,
                    range,
                    zero,
                    crcs: &crcs,
                },
                &bytes,
            );
        }
        if self.hold_reads {
            for (head, payload) in out.frames.drain(before..) {
                self.held.push((out.conn, head, payload));
            }
        }
    }

    fn get_map(&mut self, map: MapKind, member: MemberId, from: u64, out: &mut Out<'_>) {
        let mut payload = Vec::new();
        if map == MapKind::Window {
            for (idx, slot) in &self.slots {
                let status = if slot.skip.contains(self.member) {
                    SlotStatus::Skipped
                } else {
                    SlotStatus::Accepted
                };
                let record = WindowRecord {
                    idx: *idx,
                    range: slot.range,
                    status,
                    skip: slot.skip,
                };
                let mut bytes = [0; WindowRecord::BYTES];
                record.encode(&mut bytes);
                payload.extend_from_slice(&bytes);
            }
        } else {
            let chunks = match map {
                MapKind::ActivityLog => &self.al,
                MapKind::Need => &self.need,
                MapKind::Dirty => &self.dirty[member.index()],
                MapKind::Allocated => &self.allocated,
                MapKind::Window | MapKind::Limbo => panic!("asked for {map:?}"),
            };
            let from = ExtentNo(u32::try_from(from).unwrap());
            for (extent, mask) in chunks.iter_from(from) {
                let mut bytes = [0; ChunkRecord::BYTES];
                ChunkRecord { extent, mask }.encode(&mut bytes);
                payload.extend_from_slice(&bytes);
            }
        }
        assert!(payload.len() <= 64 * 1024);
        let crc = out.arena.crc32c(0, &payload);
        let term = self.term;
        out.send(
            &Message::Map {
                term,
                map,
                member,
                last: true,
                next: 0,
                crc,
            },
            &payload,
        );
    }
}
