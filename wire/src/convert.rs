//! Messages to and from the fields of a frame header.

use crate::digest;
use crate::frame::{Header, WireError, u32_at};
use crate::limits::{ACK_FURTHER_MAX, DIGESTS_MAX, PAYLOAD_BYTES_MAX};
use crate::message::{
    Append, EntryOp, EntryStatus, Hello, Kind, MapKind, Message, Prevote, Reason,
};
use crate::state::ReplicaState;
use alloc::vec::Vec;
use trilith_block::limits::{BLOCK_BYTES, EXTENT_BLOCKS};
use trilith_block::{BlockRange, Blocks, Idx, Lba, MemberId, MemberSet, Membership, Term, Uuid};

/// Reads fields of one frame and names the one that is wrong.
struct Fields<'a> {
    header: &'a Header,
    ext: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bad(&self, field: &'static str) -> WireError {
        WireError::Field {
            kind: self.header.kind,
            field,
        }
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
            Err(WireError::ExtLength {
                kind: self.header.kind,
                len,
            })
        }
    }

    fn range(&self, start: u64, count: u32, one_extent: bool) -> Result<BlockRange, WireError> {
        let range = BlockRange::new(Lba(start), Blocks(count));
        let limit = trilith_block::limits::VOLUME_BYTES_MAX / u64::from(BLOCK_BYTES);
        let ok = start < limit && count > 0 && count <= EXTENT_BLOCKS && range.end().0 <= limit;
        if ok && (!one_extent || range.in_one_extent()) {
            Ok(range)
        } else {
            Err(self.bad("range"))
        }
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
            return Err(WireError::PayloadLength {
                kind: self.header.kind,
                len,
            });
        }
        self.exact_ext(want_ext)?;
        Ok(&self.ext[..want_ext])
    }

    /// A range of whole units from its start on, and the unit.
    fn units(&self, start: u64, count: u32, unit: u32) -> Result<(BlockRange, Blocks), WireError> {
        let range = self.range(start, count, true)?;
        let unit = Blocks(unit);
        if digest::units(range, unit).is_some_and(|units| units <= DIGESTS_MAX) {
            Ok((range, unit))
        } else {
            Err(self.bad("unit"))
        }
    }

    fn member(&self, value: u64) -> Result<MemberId, WireError> {
        usize::try_from(value)
            .ok()
            .and_then(MemberId::new)
            .ok_or(self.bad("member"))
    }

    fn set(&self, value: u32) -> Result<MemberSet, WireError> {
        let all = MemberSet::first(trilith_block::limits::MEMBERS_MAX);
        if value & !all.0 == 0 {
            Ok(MemberSet(value))
        } else {
            Err(self.bad("member set"))
        }
    }

    fn membership(
        &self,
        generation: u64,
        voters: u32,
        next: u32,
        flags: u16,
    ) -> Result<Membership, WireError> {
        let config = Membership {
            generation,
            voters: self.set(voters)?,
            next: self.set(next)?,
            joint: flags & 1 != 0,
            witness: self.set(u32::from(flags >> 1))?,
        };
        if config.is_valid() {
            Ok(config)
        } else {
            Err(self.bad("configuration"))
        }
    }

    fn reason(&self, value: u32) -> Result<Reason, WireError> {
        u8::try_from(value)
            .ok()
            .and_then(Reason::from_byte)
            .ok_or(self.bad("reason"))
    }

    fn status(&self, value: u32) -> Result<EntryStatus, WireError> {
        u8::try_from(value)
            .ok()
            .and_then(EntryStatus::from_byte)
            .ok_or(self.bad("status"))
    }

    fn map(&self, value: u32) -> Result<MapKind, WireError> {
        u8::try_from(value)
            .ok()
            .and_then(MapKind::from_byte)
            .ok_or(self.bad("map kind"))
    }

    fn number(&self, value: u64) -> Result<u32, WireError> {
        u32::try_from(value).map_err(|_| self.bad("number"))
    }

    fn state(&self) -> Result<ReplicaState, WireError> {
        self.exact_ext(ReplicaState::BYTES)?;
        let state = ReplicaState::decode(self.ext).ok_or(self.bad("member"))?;
        for set in [state.iss, state.trk, state.config.voters, state.config.next] {
            self.set(set.0)?;
        }
        if !state.config.is_valid() {
            return Err(self.bad("configuration"));
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
                Message::Auth {
                    proof: f.bytes32(0),
                }
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
                refused: if h.a1 == 0 {
                    None
                } else {
                    Some(f.reason(h.a1)?)
                },
                term,
                attach_epoch: h.a0,
                lease_left_ms: h.a2,
            },
            Kind::Vote => Message::Vote(f.prevote()?),
            Kind::Promise => Message::Promise {
                term,
                state: f.state()?,
            },
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
            Kind::RepairDone => Message::RepairDone {
                term,
                tag: h.a4,
                status: f.status(h.a1)?,
            },
            Kind::TermStart => Message::TermStart {
                term,
                start: f.idx(),
                iss: f.set(h.a1)?,
                loss: h.a2,
            },
            Kind::TermStartDone => Message::TermStartDone {
                term,
                start: f.idx(),
            },
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
            Kind::EntryFailed => Message::EntryFailed {
                term,
                idx: f.idx(),
                status: f.status(h.a1)?,
            },
            Kind::Flush => Message::Flush {
                term,
                idx: f.idx(),
                tidx: Idx(h.a3),
                sent_at: h.a4,
            },
            Kind::FlushDone => Message::FlushDone { term, idx: f.idx() },
            Kind::SyncSet => Message::SyncSet {
                term,
                idx: f.idx(),
                n: f.number(h.a0)?,
                iss: f.set(h.a1)?,
                trk: f.set(h.a2)?,
                tidx: Idx(h.a3),
                join: if h.a4 == 0 {
                    None
                } else {
                    Some(f.member(h.a4 - 1)?)
                },
            },
            Kind::SyncSetDone => Message::SyncSetDone {
                term,
                idx: f.idx(),
                n: f.number(h.a0)?,
            },
            Kind::Read => Message::Read {
                term,
                range: f.range(h.a0, h.a1, false)?,
                rid: h.a4,
            },
            Kind::Data => {
                let range = f.range(h.a0, h.a2, false)?;
                let status = f.status(h.a1)?;
                let zero = h.flags & 1 != 0;
                let crcs = f.data(range.count, status == EntryStatus::Done && !zero)?;
                Message::Data {
                    term,
                    rid: h.a4,
                    status,
                    range,
                    zero,
                    crcs,
                }
            }
            Kind::ExtentHash => {
                let (range, unit) = f.units(h.a0, h.a1, h.a2)?;
                Message::ExtentHash {
                    term,
                    range,
                    rid: h.a4,
                    unit,
                    seed: h.a3,
                }
            }
            Kind::ExtentHashDone => {
                let (range, unit) = f.units(h.a0, h.a2, f.number(h.a3)?)?;
                let status = f.status(h.a1)?;
                let units = digest::units(range, unit).unwrap_or(0);
                let done = status == EntryStatus::Done;
                let len = if done {
                    units * digest::DIGEST_BYTES
                } else {
                    0
                };
                f.exact_ext(len)?;
                Message::ExtentHashDone {
                    term,
                    rid: h.a4,
                    status,
                    range,
                    unit,
                    digests: &ext[..len],
                }
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
            Kind::SealDone => Message::SealDone {
                term,
                sealed: h.a1 != 0,
            },
            Kind::StepDown => Message::StepDown { term },
            Kind::Reconfigure => Message::Reconfigure {
                term,
                config: f.membership(h.a0, h.a1, h.a2, h.flags)?,
            },
            Kind::ReconfigureDone => Message::ReconfigureDone {
                term,
                generation: h.a0,
            },
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
            Message::Reconfigure { .. } => Kind::Reconfigure,
            Message::ReconfigureDone { .. } => Kind::ReconfigureDone,
            Message::ExtentHash { .. } => Kind::ExtentHash,
            Message::ExtentHashDone { .. } => Kind::ExtentHashDone,
        }
    }

    /// The header of the message; its extension is appended to `out`. Lengths are filled in by the
    /// encoder.
    pub(crate) fn to_header(self, out: &mut Vec<u8>) -> Header {
        let mut h = Header {
            kind: self.kind().to_byte(),
            ..Header::default()
        };
        match self {
            Message::Hello(hello) => hello.fill(&mut h, out),
            Message::Challenge {
                protocol,
                replica,
                nonce,
                proof,
            } => {
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
            Message::Refused {
                reason,
                term,
                attach_epoch,
                detail,
            } => {
                (h.a1, h.term) = (u32::from(reason.to_byte()), term.0);
                (h.a0, h.a3) = (attach_epoch, detail);
            }
            Message::Prevote(p) | Message::Vote(p) => {
                (h.term, h.a0, h.a3) = (p.term.0, p.attach_epoch, p.cfg_gen);
                out.extend_from_slice(&p.release_lease_of.0);
            }
            Message::PrevoteReply {
                refused,
                term,
                attach_epoch,
                lease_left_ms,
            } => {
                h.a1 = refused.map_or(0, |r| u32::from(r.to_byte()));
                (h.term, h.a0, h.a2) = (term.0, attach_epoch, lease_left_ms);
            }
            Message::Promise { term, state } => {
                h.term = term.0;
                state.encode(out);
            }
            Message::Nack {
                reason,
                refused,
                term,
                attach_epoch,
                idx,
                tag,
            } => {
                (h.a1, h.a2) = (u32::from(reason.to_byte()), u32::from(refused.to_byte()));
                (h.term, h.a0, h.idx, h.a4) = (term.0, attach_epoch, idx.0, tag);
            }
            Message::GetMap {
                term,
                map,
                member,
                from,
            } => {
                (h.term, h.a1, h.a0) = (term.0, u32::from(map.to_byte()), from);
                h.a2 = member_number(member);
            }
            Message::Map {
                term,
                map,
                member,
                last,
                next,
                crc,
            } => {
                (h.term, h.a1, h.a0) = (term.0, u32::from(map.to_byte()), next);
                (h.a2, h.flags) = (member_number(member), u16::from(last));
                out.extend_from_slice(&u64::from(crc).to_le_bytes());
            }
            Message::Reconcile { term, loss } => (h.term, h.a1) = (term.0, loss),
            Message::Repair {
                term,
                range,
                tag,
                zero,
                rebuild,
                crcs,
            } => {
                (h.term, h.a0, h.a1, h.a4) = (term.0, range.start.0, range.count.0, tag);
                h.flags = u16::from(zero) | u16::from(rebuild) << 1;
                out.extend_from_slice(crcs);
            }
            Message::RepairDone { term, tag, status } => {
                (h.term, h.a4, h.a1) = (term.0, tag, u32::from(status.to_byte()));
            }
            Message::TermStart {
                term,
                start,
                iss,
                loss,
            } => {
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
                assert!(
                    count <= ACK_FURTHER_MAX,
                    "{count} positions, at most {ACK_FURTHER_MAX}"
                );
                out.extend_from_slice(further);
            }
            Message::EntryFailed { term, idx, status } => {
                (h.term, h.idx, h.a1) = (term.0, idx.0, u32::from(status.to_byte()));
            }
            Message::Flush {
                term,
                idx,
                tidx,
                sent_at,
            } => {
                (h.term, h.idx, h.a3, h.a4) = (term.0, idx.0, tidx.0, sent_at);
            }
            Message::FlushDone { term, idx } => (h.term, h.idx) = (term.0, idx.0),
            Message::SyncSet {
                term,
                idx,
                n,
                iss,
                trk,
                tidx,
                join,
            } => {
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
            Message::Data {
                term,
                rid,
                status,
                range,
                zero,
                crcs,
            } => {
                (h.term, h.a4, h.a1) = (term.0, rid, u32::from(status.to_byte()));
                (h.a0, h.a2, h.flags) = (range.start.0, range.count.0, u16::from(zero));
                out.extend_from_slice(crcs);
            }
            Message::ExtentHash {
                term,
                range,
                rid,
                unit,
                seed,
            } => {
                (h.term, h.a0, h.a1) = (term.0, range.start.0, range.count.0);
                (h.a2, h.a3, h.a4) = (unit.0, seed, rid);
            }
            Message::ExtentHashDone {
                term,
                rid,
                status,
                range,
                unit,
                digests,
            } => {
                (h.term, h.a0, h.a1) = (term.0, range.start.0, u32::from(status.to_byte()));
                (h.a2, h.a3, h.a4) = (range.count.0, u64::from(unit.0), rid);
                out.extend_from_slice(digests);
            }
            Message::Heartbeat {
                term,
                commit,
                tidx,
                sent_at,
            } => {
                (h.term, h.a0, h.a3, h.a4) = (term.0, commit.0, tidx.0, sent_at);
            }
            Message::HeartbeatDone {
                term,
                upto,
                free_extents,
                w,
                echo,
            } => {
                (h.term, h.idx, h.a0, h.a3, h.a4) = (term.0, upto.0, free_extents, w.0, echo);
            }
            Message::Told {
                term,
                n,
                iss,
                trk,
                start,
            } => {
                (h.term, h.a0, h.a1, h.a2) = (term.0, u64::from(n), iss.0, trk.0);
                h.idx = start.0;
            }
            Message::DirtyClear { term, member, crc } => {
                (h.term, h.a2) = (term.0, member_number(member));
                out.extend_from_slice(&u64::from(crc).to_le_bytes());
            }
            Message::Seal { term, idx } => (h.term, h.idx) = (term.0, idx.0),
            Message::SealDone { term, sealed } => (h.term, h.a1) = (term.0, u32::from(sealed)),
            Message::Reconfigure { term, config } => {
                (h.term, h.a0) = (term.0, config.generation);
                let witness = u16::try_from(config.witness.0).unwrap_or(0);
                h.flags = u16::from(config.joint) | witness << 1;
                (h.a1, h.a2) = (config.voters.0, config.next.0);
            }
            Message::ReconfigureDone { term, generation } => (h.term, h.a0) = (term.0, generation),
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
