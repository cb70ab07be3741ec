//! READ, EXTENTHASH and REPAIR: blocks outside the stream.

use crate::calls::{Call, What};
use crate::limits::READ_BLOCKS_MAX;
use crate::machine::{Context, Replica, entry_status, send};
use crate::session::{PendingRead, Wanted};
use crate::store::{Change, DiskError, StoreError};
use trilith_block::limits::BLOCK_BYTES;
use trilith_block::{BlockRange, Blocks, BufSlice, Buffers, ConnId, Idx, Term};
use trilith_wire::{EntryStatus, Kind, Message, Reason, digest};

/// True when each block of `payload` has its checksum.
pub(crate) fn checksums_right(payload: BufSlice, crcs: &[u8], data: &dyn Buffers) -> bool {
    let blocks = data.bytes(payload).chunks_exact(BLOCK_BYTES as usize);
    blocks.len() == crcs.len() / 4
        && blocks
            .zip(crcs.chunks_exact(4))
            .all(|(block, crc)| data.crc32c(0, block).to_le_bytes() == crc)
}

impl Replica {
    /// True when the range lies in the volume.
    pub(crate) fn in_volume(&self, range: BlockRange) -> bool {
        range.end().byte_offset() <= self.facts().capacity
    }

    /// READ or EXTENTHASH: taken, started when a buffer is there.
    pub(crate) fn read(
        &mut self,
        conn: ConnId,
        range: BlockRange,
        rid: u64,
        wanted: Wanted,
        cx: &mut Context<'_>,
    ) {
        let ask = PendingRead {
            conn,
            rid,
            range,
            wanted,
        };
        if !self.in_volume(range) || range.count.0 > READ_BLOCKS_MAX {
            return self.malformed(conn, cx);
        }
        // A block under repair is not agreed on. Limbo is the engine's to judge, and in a recovery
        // (before TERMSTART) it reads whatever it needs.
        let facts = self.facts();
        let repairing = self.store.as_ref().is_some_and(|s| s.needs(range));
        if repairing && facts.se.term == facts.term {
            return self.found(ask, EntryStatus::Refused, None, cx);
        }
        if let Some(session) = self.session(conn) {
            session.reads += 1;
            self.reads.push_back(ask);
        }
        self.start_reads(cx);
    }

    /// Starts reads that wait, in order, as long as there are buffers.
    pub(crate) fn start_reads(&mut self, cx: &mut Context<'_>) {
        while let Some(pending) = self.reads.front().copied() {
            let Ok(len) = u32::try_from(pending.range.bytes()) else {
                return;
            };
            let Some(buf) = cx.data.alloc(len) else {
                self.counters.pauses += 1;
                return;
            };
            let PendingRead {
                conn,
                rid,
                range,
                wanted,
            } = pending;
            let what = What::Read {
                rid,
                range,
                buf,
                wanted,
            };
            let token = self.calls.add(Call {
                conn,
                term: self.promised_term(),
                what,
            });
            let Some(store) = self.store.as_mut() else {
                return;
            };
            let result = store.read(token, range, buf, cx.data, &mut self.store_out);
            if let Err(error) = result {
                self.calls.take(token);
                cx.data.release(buf.buf);
                if error == StoreError::Busy {
                    return;
                }
                self.found(pending, EntryStatus::Io, None, cx);
                self.read_ended(conn);
            }
            self.reads.pop_front();
        }
    }

    fn read_ended(&mut self, conn: ConnId) {
        if let Some(session) = self.session(conn) {
            session.reads -= 1;
        }
    }

    /// A connection is gone: its reads that have not started are dropped.
    pub(crate) fn forget_reads(&mut self, conn: ConnId) {
        self.reads.retain(|r| r.conn != conn);
    }

    /// The store has ended a read.
    pub(crate) fn read_done(
        &mut self,
        call: Call,
        result: Result<bool, DiskError>,
        cx: &mut Context<'_>,
    ) {
        let What::Read {
            rid,
            range,
            buf,
            wanted,
        } = call.what
        else {
            return;
        };
        self.read_ended(call.conn);
        let status = entry_status(result.map(|_| ()));
        let asked = PendingRead {
            conn: call.conn,
            rid,
            range,
            wanted,
        };
        if result == Ok(false) {
            self.found(asked, status, Some(buf), cx);
        } else {
            cx.data.release(buf.buf);
            self.found(asked, status, None, cx);
        }
    }

    /// The answer, or NACK when another engine has the promise by now. Takes the buffer; done
    /// without one: zeroes.
    fn found(
        &mut self,
        asked: PendingRead,
        status: EntryStatus,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        self.counters.reads += 1;
        let leader = self.leader() == Some(asked.conn);
        match asked.wanted {
            Wanted::Bytes if leader => self.data(asked, status, payload, cx),
            Wanted::Digests { unit, seed } if leader => {
                self.digests(asked, (unit, seed), status, payload, cx);
            }
            Wanted::Bytes | Wanted::Digests { .. } => {
                crate::streams::release(payload, cx);
                let kind = match asked.wanted {
                    Wanted::Bytes => Kind::Read,
                    Wanted::Digests { .. } => Kind::ExtentHash,
                };
                self.nack(asked.conn, Reason::Term, kind, Idx(0), asked.rid, cx);
            }
        }
    }

    /// EXTENTHASHDONE.
    fn digests(
        &mut self,
        asked: PendingRead,
        (unit, seed): (Blocks, u64),
        status: EntryStatus,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        self.scratch.clear();
        match payload {
            Some(slice) => {
                digest::append(seed, cx.data.bytes(slice), unit, &mut self.scratch);
            }
            None if status == EntryStatus::Done => {
                digest::append_zeroes(seed, asked.range, unit, &mut self.scratch);
            }
            None => {}
        }
        crate::streams::release(payload, cx);
        let message = Message::ExtentHashDone {
            term: self.promised_term(),
            rid: asked.rid,
            status,
            range: asked.range,
            unit,
            digests: &self.scratch,
        };
        send(&mut self.encoder, asked.conn, &message, None, cx);
    }

    /// DATA. Takes the buffer.
    fn data(
        &mut self,
        asked: PendingRead,
        status: EntryStatus,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        let PendingRead {
            conn, rid, range, ..
        } = asked;
        self.scratch.clear();
        if let Some(slice) = payload {
            for block in cx.data.bytes(slice).chunks_exact(BLOCK_BYTES as usize) {
                self.scratch
                    .extend_from_slice(&cx.data.crc32c(0, block).to_le_bytes());
            }
        }
        let message = Message::Data {
            term: self.promised_term(),
            rid,
            status,
            range,
            zero: status == EntryStatus::Done && payload.is_none(),
            crcs: &self.scratch,
        };
        send(&mut self.encoder, conn, &message, payload, cx);
        // The driver has an owner of its own from the action on.
        crate::streams::release(payload, cx);
    }

    /// REPAIR: blocks of a recovery or a rebuild. The term has been checked; takes the payload.
    pub(crate) fn repair(
        &mut self,
        conn: ConnId,
        message: &Message<'_>,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        let Message::Repair {
            term,
            range,
            tag,
            zero,
            rebuild,
            crcs,
        } = *message
        else {
            return;
        };
        let refused = self.repair_refusal(rebuild);
        let change = match payload {
            Some(slice) if !checksums_right(slice, crcs, cx.data) => {
                cx.data.release(slice.buf);
                self.counters.checksums_wrong += 1;
                return self.repair_answer(conn, term, tag, EntryStatus::Checksum, cx);
            }
            Some(slice) => Change::Write(slice),
            None if zero => Change::Discard,
            // The payload was thrown away for a term that has changed since: not ours to take.
            None => return self.nack(conn, Reason::Term, Kind::Repair, Idx(0), tag, cx),
        };
        if refused || !self.in_volume(range) {
            crate::streams::release(payload, cx);
            if refused {
                return self.repair_answer(conn, term, tag, EntryStatus::Refused, cx);
            }
            return self.malformed(conn, cx);
        }
        let token = self.calls.add(Call {
            conn,
            term,
            what: What::Repair { tag },
        });
        let Some(store) = self.store.as_mut() else {
            return;
        };
        let result = store.repair(token, range, change, cx.data, &mut self.store_out);
        // The store has its own count of the buffer.
        crate::streams::release(payload, cx);
        match result {
            Ok(()) => {
                if let Some(session) = self.session(conn) {
                    session.repairs += 1;
                }
            }
            Err(error) => {
                self.calls.take(token);
                self.store_refused(conn, error, (Kind::Repair, Idx(0), tag), cx);
            }
        }
    }

    /// A rebuild copy on a member that is in sync would revert newer entries.
    fn repair_refusal(&self, rebuild: bool) -> bool {
        let facts = self.facts();
        rebuild
            && facts.se.term == facts.term
            && facts.iss.contains(facts.member)
            && !facts.tainted
            && self.store.as_ref().is_some_and(|s| !s.has_need())
    }

    /// The store has ended a repair.
    pub(crate) fn repaired(&mut self, call: Call, status: EntryStatus, cx: &mut Context<'_>) {
        let What::Repair { tag } = call.what else {
            return;
        };
        if let Some(session) = self.session(call.conn) {
            session.repairs -= 1;
        }
        self.counters.repairs += 1;
        if self.answers(&call) {
            self.repair_answer(call.conn, call.term, tag, status, cx);
        }
    }

    fn repair_answer(
        &mut self,
        conn: ConnId,
        term: Term,
        tag: u64,
        status: EntryStatus,
        cx: &mut Context<'_>,
    ) {
        self.send(conn, &Message::RepairDone { term, tag, status }, cx);
    }
}
