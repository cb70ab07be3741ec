//! Reads (4.3): which replica, when its answer may be given to the client, hedging, repair.

use crate::engine::{Cx, Engine};
use crate::limits::READ_RETRY;
use trilith_block::limits::{BLOCK_BYTES, TRANSFER_BYTES_MAX};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    BlockRange, Blocks, BufSlice, Buffers, ErrorKind, Idx, MemberId, MemberSet, Monotonic, Outcome,
};
use trilith_wire::EntryStatus;

/// What became of a READ. A buffer passes to the receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ReadResult {
    Bytes(BufSlice),
    Zero,
    Failed(EntryStatus),
}

/// Whose READ it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FlightOwner {
    /// Of a [`ReadOp`].
    Read {
        read: u64,
    },
    Recovery {
        token: u64,
    },
    Rebuild {
        target: MemberId,
        token: u64,
        /// Those whose copy could not be read.
        bad: MemberSet,
    },
    /// Of the scrub, for what is right.
    Scrub {
        token: u64,
    },
    /// An EXTENTHASH.
    Digests {
        token: u64,
        unit: Blocks,
    },
}

/// A READ without an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) owner: FlightOwner,
    pub(crate) member: MemberId,
    pub(crate) range: BlockRange,
    pub(crate) sent_at: Monotonic,
}

/// Who wants the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadOwner {
    /// A client's read.
    Client { op: u64 },
    /// Half of a client's read that touches one block more than a frame can carry.
    Half { op: u64, second: bool },
    /// The rest of a block for an unaligned write.
    Merge { part: u64 },
}

/// How far a read is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// A replica has to be chosen.
    Start,
    /// Until this entry is committed, then Start again.
    Commit,
    /// READ is out.
    Asked,
    /// The bytes are here; until everything up to this entry is committed.
    Settle(Idx),
    /// Until the lease, or a majority, confirms that this engine led after this time.
    Confirm(Monotonic),
}

/// A read in flight.
#[derive(Debug)]
pub(crate) struct ReadOp {
    owner: ReadOwner,
    range: BlockRange,
    /// Where the bytes go; one owner is here.
    dest: Option<BufSlice>,
    /// A session receives into `dest`, or has.
    claimed: bool,
    flights: [Option<(u64, MemberId)>; 2],
    hedge_at: Monotonic,
    /// Members whose device or bytes were bad.
    bad: MemberSet,
    /// Members that refuse for now.
    refused: MemberSet,
    /// Members that have not answered for a while.
    slow: MemberSet,
    /// Entries up to it were there before the read was sent first.
    floor: Option<Idx>,
    /// The entry it waits for, when it waits for one.
    waits_on: Idx,
    source: Option<MemberId>,
    stage: Stage,
}

/// The two halves of a read.
#[derive(Debug, Default)]
pub(crate) struct Halves {
    first: Option<BufSlice>,
    second: Option<BufSlice>,
}

impl Engine {
    /// Starts the reads that clients asked for.
    pub(crate) fn admit_reads(&mut self, cx: &mut Cx<'_>) {
        while self.reads_allowed() {
            let Some(key) = self.read_inbox.pop_front() else {
                return;
            };
            let Some(op) = self.ops.get_mut(key) else {
                continue;
            };
            op.issued_at = cx.now;
            op.next = op.end();
            let (first, end) = op.range.block_bounds();
            let count = u32::try_from(end.0 - first.0).unwrap_or(u32::MAX);
            let most = TRANSFER_BYTES_MAX / BLOCK_BYTES;
            let range = BlockRange::new(first, Blocks(count.min(most)));
            if count <= most {
                self.start_read(ReadOwner::Client { op: key }, range, cx);
            } else {
                let rest = BlockRange::new(range.end(), Blocks(count - most));
                self.halves.insert(key, Halves::default());
                self.start_read(
                    ReadOwner::Half {
                        op: key,
                        second: false,
                    },
                    range,
                    cx,
                );
                self.start_read(
                    ReadOwner::Half {
                        op: key,
                        second: true,
                    },
                    rest,
                    cx,
                );
            }
        }
    }

    /// Reads may be sent now (5.6). In a lossy recovery they wait like acks (5.5).
    pub(crate) fn reads_allowed(&self) -> bool {
        let held = self.lossy && self.now < self.defer_until;
        self.open && !self.loss_wait && !held && (self.mode.reads() || self.stop.is_some())
    }

    pub(crate) fn start_read(&mut self, owner: ReadOwner, range: BlockRange, cx: &mut Cx<'_>) {
        let key = self.reads.insert(ReadOp {
            owner,
            range,
            dest: None,
            claimed: false,
            flights: [None; 2],
            slow: MemberSet::EMPTY,
            hedge_at: Monotonic(0),
            bad: MemberSet::EMPTY,
            refused: MemberSet::EMPTY,
            floor: None,
            waits_on: Idx(0),
            source: None,
            stage: Stage::Start,
        });
        self.choose(key, cx);
    }

    /// Steps 1 to 3: waits for what must be committed, then asks a replica.
    fn choose(&mut self, key: u64, cx: &mut Cx<'_>) {
        let Some(read) = self.reads.get(key) else {
            return;
        };
        let (range, floor) = (read.range, read.floor);
        // R9: what no majority has agreed on is not readable.
        if !self.reads_allowed() || self.limbo.touches(range) {
            self.read_retries.push_back(key);
            return;
        }
        let uncommitted = self.stream.uncommitted(range);
        let holders = match (uncommitted, floor) {
            (None, _) => self.holders(range),
            // A stream of overlapping writes must not starve a read: it waits for those that were
            // there when it came, once; step 4 waits for what may have come since.
            (Some(_), Some(floor)) => self
                .members_where(|p| p.synced && floor <= p.upto)
                .and(self.sync.counted),
            (Some(idx), None) => {
                let last = self.last_idx();
                if let Some(read) = self.reads.get_mut(key) {
                    read.floor = Some(last);
                    read.waits_on = idx;
                    read.stage = Stage::Commit;
                    mark::reached(Mark::ReadWaitsForWrite);
                }
                self.read_waits.insert((idx, key));
                return;
            }
        };
        let Some(read) = self.reads.get_mut(key) else {
            return;
        };
        let able = holders.minus(read.bad);
        // Who counts and lags behind will hold it soon, or no longer count.
        if !holders.is_empty() && self.sync.counted.minus(read.bad).is_empty() {
            return self.read_failed(key, cx);
        }
        if read.dest.is_none() {
            let len = u32::try_from(range.bytes()).unwrap_or(u32::MAX);
            read.dest = cx.data.alloc(len);
            read.claimed = false;
        }
        let have_dest = read.dest.is_some();
        let willing = able.minus(read.refused);
        if willing.is_empty() {
            read.refused = MemberSet::EMPTY;
        }
        match self.best_of(willing) {
            Some(member) if have_dest => self.ask(key, member, cx),
            _ => self.read_retries.push_back(key),
        }
    }

    /// Local members first, then the least loaded.
    fn best_of(&self, members: MemberSet) -> Option<MemberId> {
        let ours = members.iter().filter(|m| self.peers[m.index()].is_ours());
        ours.min_by_key(|m| {
            (
                !self.cfg.local.contains(*m),
                self.peers[m.index()].reads_in_flight,
                m.index(),
            )
        })
    }

    fn ask(&mut self, key: u64, member: MemberId, cx: &mut Cx<'_>) {
        let Some(range) = self.reads.get(key).map(|r| r.range) else {
            return;
        };
        let Some(rid) = self.send_read(member, range, FlightOwner::Read { read: key }, cx) else {
            self.read_retries.push_back(key);
            return;
        };
        let hedge_at = cx.now.after(self.hedge_delay);
        let Some(read) = self.reads.get_mut(key) else {
            return;
        };
        let slot = usize::from(read.flights[0].is_some());
        read.flights[slot] = Some((rid, member));
        if let ReadOwner::Client { op } | ReadOwner::Half { op, .. } = read.owner
            && let Some(op) = self.ops.get_mut(op)
            && op.sent_at == Monotonic(0)
        {
            op.sent_at = cx.now;
        }
        if slot == 0 {
            read.stage = Stage::Asked;
            read.hedge_at = hedge_at;
            self.hedges.insert((hedge_at, key));
        }
    }

    /// Sends slow reads to a second replica as well.
    pub(crate) fn tend_hedges(&mut self, cx: &mut Cx<'_>) {
        while let Some((at, key)) = self.hedges.first().copied() {
            if at > cx.now {
                return;
            }
            self.hedges.pop_first();
            let Some(read) = self.reads.get_mut(key) else {
                continue;
            };
            let Some((rid, first)) = read.flights[0] else {
                continue;
            };
            if read.stage != Stage::Asked {
                continue;
            }
            // Whoever is slow is not asked again for this read.
            let second = read.flights[1].map(|(_, member)| member);
            read.slow = read.slow.with(first);
            let tried = read.bad.or(read.refused).or(read.slow);
            let tried = second.map_or(tried, |member| tried.with(member));
            let (range, floor) = (read.range, read.floor);
            let holders = match (self.stream.uncommitted(range), floor) {
                (Some(_), Some(floor)) => self
                    .members_where(|p| p.synced && floor <= p.upto)
                    .and(self.sync.counted),
                (Some(_), None) => MemberSet::EMPTY,
                (None, _) => self.holders(range),
            };
            if let Some(member) = self.best_of(holders.minus(tried)) {
                if second.is_some() {
                    self.end_flight(rid);
                }
                self.counters.hedges += 1;
                mark::reached(Mark::Hedged);
                self.ask(key, member, cx);
                // Both are slow: the next one takes the place of the first after a longer while.
                let at = cx
                    .now
                    .after((self.hedge_delay * 4).max(self.cfg.timing.hedge_max));
                if let Some(read) = self.reads.get_mut(key) {
                    read.hedge_at = at;
                }
                self.hedges.insert((at, key));
            }
        }
    }

    /// The buffer for the payload of a DATA. `Ok(None)`: nobody wants it. `Err`: none is free now.
    pub(crate) fn claim_buffer(
        &mut self,
        rid: u64,
        len: u32,
        data: &mut dyn Buffers,
    ) -> Result<Option<BufSlice>, ()> {
        let Some(flight) = self.flights.get(rid).copied() else {
            return Ok(None);
        };
        let FlightOwner::Read { read: key } = flight.owner else {
            return data.alloc(len).map(Some).ok_or(());
        };
        // Once one has answered, nothing more may land in what it brought: it may have been zeroes,
        // which no session received (seed 60000000109905).
        let Some(read) = self.reads.get_mut(key).filter(|r| r.stage == Stage::Asked) else {
            return Ok(None);
        };
        if let (false, Some(dest)) = (read.claimed, read.dest) {
            // The first to answer receives into the destination; a later one elsewhere.
            read.claimed = true;
            data.retain(dest.buf);
            return Ok(Some(dest));
        }
        let scratch = data.alloc(len);
        if scratch.is_none() {
            self.end_flight(rid);
        }
        Ok(scratch)
    }

    /// Forgets a READ.
    pub(crate) fn end_flight(&mut self, rid: u64) -> Option<Flight> {
        let flight = self.flights.remove(rid)?;
        let peer = &mut self.peers[flight.member.index()];
        peer.reads_in_flight = peer.reads_in_flight.saturating_sub(1);
        if let FlightOwner::Read { read } = flight.owner
            && let Some(read) = self.reads.get_mut(read)
        {
            for slot in &mut read.flights {
                if slot.is_some_and(|(id, _)| id == rid) {
                    *slot = None;
                }
            }
            if read.flights[0].is_none() {
                read.flights.swap(0, 1);
            }
        }
        Some(flight)
    }

    /// The answer to a READ.
    pub(crate) fn data_arrived(&mut self, rid: u64, result: ReadResult, cx: &mut Cx<'_>) {
        let Some(flight) = self.end_flight(rid) else {
            return release(result, cx.data);
        };
        let latency = cx.now.since(flight.sent_at);
        self.peers[flight.member.index()]
            .read_latency
            .record(latency);
        match flight.owner {
            FlightOwner::Recovery { token } => self.recovery_data(token, result, cx),
            FlightOwner::Rebuild { target, token, bad } => {
                let bad = bad.with(flight.member);
                if !self.copy_read_elsewhere((target, token), &result, (flight.range, bad), cx) {
                    self.copy_read(target, token, result, cx);
                }
            }
            FlightOwner::Scrub { token } => self.scrub_read(token, result, cx),
            FlightOwner::Digests { token, .. } => {
                release(result, cx.data);
                self.digests_lost(flight.member, token, cx);
            }
            FlightOwner::Read { read } => {
                self.read_rtt.record(latency);
                self.read_data(read, flight.member, result, cx);
            }
        }
    }

    fn read_data(&mut self, key: u64, member: MemberId, result: ReadResult, cx: &mut Cx<'_>) {
        let Some(read) = self.reads.get_mut(key).filter(|r| r.stage == Stage::Asked) else {
            return release(result, cx.data);
        };
        if let ReadOwner::Client { op } | ReadOwner::Half { op, .. } = read.owner
            && let Some(op) = self.ops.get_mut(op)
        {
            op.answers.note(member.index(), cx.now.since(op.submitted));
        }
        match result {
            ReadResult::Failed(status) => {
                match status {
                    EntryStatus::Io | EntryStatus::Checksum => read.bad = read.bad.with(member),
                    EntryStatus::Done | EntryStatus::NoSpace | EntryStatus::Refused => {
                        read.refused = read.refused.with(member);
                    }
                }
                self.counters.read_retries += 1;
                if read.flights[0].is_none() {
                    self.restart_read(key, cx);
                }
                return;
            }
            ReadResult::Bytes(buf) => {
                if let Some(old) = read.dest.replace(buf) {
                    cx.data.release(old.buf);
                }
            }
            ReadResult::Zero => {
                if read.claimed {
                    // Another session is filling the destination.
                    let len = u32::try_from(read.range.bytes()).unwrap_or(u32::MAX);
                    let Some(fresh) = cx.data.alloc(len) else {
                        return self.restart_read(key, cx);
                    };
                    if let Some(old) = read.dest.replace(fresh) {
                        cx.data.release(old.buf);
                    }
                }
                if let Some(dest) = read.dest {
                    cx.data.bytes_mut(dest).fill(0);
                }
            }
        }
        read.source = Some(member);
        let range = read.range;
        // Step 4: an overlapping write that was sent since may be in the answer.
        match self.stream.uncommitted(range) {
            Some(idx) if !mutant::on(Mutant::ReadUnverified) => {
                mark::reached(Mark::ReadOvertaken);
                self.set_stage(key, Stage::Settle(idx));
                self.read_waits.insert((idx, key));
            }
            Some(_) | None => self.settled(key, cx),
        }
    }

    fn set_stage(&mut self, key: u64, stage: Stage) {
        if let Some(read) = self.reads.get_mut(key) {
            read.stage = stage;
        }
    }

    /// Everything that may be in the answer is committed.
    fn settled(&mut self, key: u64, cx: &mut Cx<'_>) {
        let Some(read) = self.reads.get(key) else {
            return;
        };
        let (bad, range, owner) = (read.bad, read.range, read.owner);
        // Step 4: the member that answered must still count.
        let counts = read.source.is_some_and(|m| self.sync.counted.contains(m));
        mark::reached_if(!counts, Mark::ReadSourceLost);
        if !counts {
            return self.restart_read(key, cx);
        }
        if !bad.is_empty() {
            mark::reached(Mark::ReadRepair);
            self.rewrite(range, cx);
        }
        if matches!(owner, ReadOwner::Merge { .. }) || self.lease_runs(cx.now) {
            return self.read_done(key, cx);
        }
        // Step 5, the lease check, comes last: without a lease a majority is asked (ReadIndex).
        self.set_stage(key, Stage::Confirm(cx.now));
        self.confirms.push(key);
        self.counters.read_index += 1;
        mark::reached(Mark::ReadIndex);
        self.ask_majority(cx);
    }

    /// Reads that wait for a commit or a confirmation.
    pub(crate) fn tend_reads(&mut self, moved: bool, cx: &mut Cx<'_>) {
        if moved && !self.read_waits.is_empty() {
            let mut due = core::mem::take(&mut self.read_due);
            due.extend(self.read_waits.iter().copied().filter(|(idx, key)| {
                match self.reads.get(*key).map(|r| r.stage) {
                    Some(Stage::Settle(bound)) => bound <= self.stream.commit,
                    Some(_) => self.stream.get(*idx).is_none_or(|e| e.committed),
                    None => true,
                }
            }));
            for (idx, key) in due.drain(..) {
                self.read_waits.remove(&(idx, key));
                match self.reads.get(key).map(|r| r.stage) {
                    Some(Stage::Settle(_)) => self.settled(key, cx),
                    Some(Stage::Commit) => self.choose(key, cx),
                    Some(Stage::Start | Stage::Asked | Stage::Confirm(_)) | None => {}
                }
            }
            self.read_due = due;
        }
        self.tend_confirms(cx);
        if moved || self.reads_stirred || self.retry_at.is_some_and(|at| at <= cx.now) {
            self.reads_stirred = false;
            for _ in 0..self.read_retries.len() {
                if let Some(key) = self.read_retries.pop_front() {
                    self.choose(key, cx);
                }
            }
        }
        self.retry_at = (!self.read_retries.is_empty()).then(|| cx.now.after(READ_RETRY));
    }

    fn tend_confirms(&mut self, cx: &mut Cx<'_>) {
        let mut at = 0;
        while let Some(key) = self.confirms.get(at).copied() {
            let Some(Stage::Confirm(since)) = self.reads.get(key).map(|r| r.stage) else {
                self.confirms.swap_remove(at);
                continue;
            };
            if self.leads_after(since, cx.now) {
                self.confirms.swap_remove(at);
                let counts = self.reads.get(key).and_then(|r| r.source);
                if counts.is_some_and(|m| self.sync.counted.contains(m)) {
                    self.read_done(key, cx);
                } else {
                    self.restart_read(key, cx);
                }
            } else {
                at += 1;
            }
        }
    }

    fn read_done(&mut self, key: u64, cx: &mut Cx<'_>) {
        let granted = self.mode == crate::api::Mode::ReadOnlyGrant;
        mark::reached_if(granted, Mark::ReadByGrant);
        let Some(read) = self.reads.remove(key) else {
            return;
        };
        self.cancel(key, &read);
        let Some(dest) = read.dest else { return };
        match read.owner {
            ReadOwner::Merge { part } => self.merge_read(part, Ok(dest), cx),
            ReadOwner::Client { op: key } => {
                let Some(op) = self.ops.get_mut(key) else {
                    cx.data.release(dest.buf);
                    return;
                };
                op.committed_at = cx.now;
                let skip = op.range.offset - read.range.start.byte_offset();
                let skip = u32::try_from(skip).unwrap_or(u32::MAX);
                let bytes = dest.slice(skip, u32::try_from(op.range.len).unwrap_or(u32::MAX));
                self.finish_op(key, Ok(Outcome::Data(bytes)), cx.data);
            }
            ReadOwner::Half { op, second } => {
                let Some(halves) = self.halves.get_mut(&op) else {
                    cx.data.release(dest.buf);
                    return;
                };
                let half = if second {
                    &mut halves.second
                } else {
                    &mut halves.first
                };
                *half = Some(dest);
                self.join_halves(op, cx);
            }
        }
    }

    /// Puts a read of 257 blocks together once both halves are here.
    pub(crate) fn join_halves(&mut self, key: u64, cx: &mut Cx<'_>) {
        let Some(Halves {
            first: Some(first),
            second: Some(second),
        }) = self.halves.get(&key)
        else {
            return;
        };
        let (first, second) = (*first, *second);
        let Some(range) = self.ops.get(key).map(|op| op.range) else {
            return;
        };
        let len = u32::try_from(range.len).unwrap_or(u32::MAX);
        let Some(whole) = cx.data.alloc(len) else {
            self.joins_waiting.push(key);
            return;
        };
        let skip = u32::try_from(range.offset % u64::from(BLOCK_BYTES)).unwrap_or(0);
        let head = first.len - skip;
        cx.data.copy(first.slice(skip, head), whole.slice(0, head));
        cx.data
            .copy(second.slice(0, len - head), whole.slice(head, len - head));
        self.drop_halves(key, cx);
        self.finish_op(key, Ok(Outcome::Data(whole)), cx.data);
    }

    fn drop_halves(&mut self, key: u64, cx: &mut Cx<'_>) {
        if let Some(halves) = self.halves.remove(&key) {
            for half in [halves.first, halves.second].into_iter().flatten() {
                cx.data.release(half.buf);
            }
        }
    }

    /// No copy can be read.
    fn read_failed(&mut self, key: u64, cx: &mut Cx<'_>) {
        let Some(owner) = self.drop_read(key, cx) else {
            return;
        };
        match owner {
            ReadOwner::Merge { part } => self.merge_read(part, Err(ErrorKind::Io), cx),
            ReadOwner::Client { op } | ReadOwner::Half { op, .. } => {
                self.abandon(op, ErrorKind::Io, cx);
            }
        }
    }

    fn drop_read(&mut self, key: u64, cx: &mut Cx<'_>) -> Option<ReadOwner> {
        let read = self.reads.remove(key)?;
        self.cancel(key, &read);
        if let Some(dest) = read.dest {
            cx.data.release(dest.buf);
        }
        Some(read.owner)
    }

    /// The other READ of a finished one is not waited for.
    fn cancel(&mut self, key: u64, read: &ReadOp) {
        self.hedges.remove(&(read.hedge_at, key));
        if let Stage::Settle(idx) = read.stage {
            self.read_waits.remove(&(idx, key));
        }
        if read.stage == Stage::Commit {
            self.read_waits.remove(&(read.waits_on, key));
        }
        for (rid, _) in read.flights.into_iter().flatten() {
            self.end_flight(rid);
        }
    }

    /// From the start again.
    fn restart_read(&mut self, key: u64, cx: &mut Cx<'_>) {
        let Some(read) = self.reads.get_mut(key) else {
            return;
        };
        let (hedge_at, flights) = (read.hedge_at, read.flights);
        read.stage = Stage::Start;
        read.slow = MemberSet::EMPTY;
        read.source = None;
        if read.claimed {
            // A session may still be receiving into it.
            if let Some(dest) = read.dest.take() {
                cx.data.release(dest.buf);
            }
        }
        read.claimed = false;
        self.hedges.remove(&(hedge_at, key));
        for (rid, _) in flights.into_iter().flatten() {
            self.end_flight(rid);
        }
        self.read_retries.push_back(key);
        self.reads_stirred = true;
    }

    /// A member will not answer its READs.
    pub(crate) fn flights_lost(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        for rid in self.flights.keys(|f| f.member == member) {
            let Some(flight) = self.end_flight(rid) else {
                continue;
            };
            match flight.owner {
                FlightOwner::Read { read: key } => {
                    let idle = self.reads.get(key).is_some_and(|r| r.flights[0].is_none());
                    let asked = self.reads.get(key).is_some_and(|r| r.stage == Stage::Asked);
                    if idle && asked {
                        self.restart_read(key, cx);
                    }
                }
                // Told of the member's loss as such.
                FlightOwner::Recovery { .. } => {}
                FlightOwner::Rebuild { target, token, .. } => {
                    let lost = ReadResult::Failed(EntryStatus::Refused);
                    self.copy_read(target, token, lost, cx);
                }
                FlightOwner::Scrub { token } => {
                    self.scrub_read(token, ReadResult::Failed(EntryStatus::Refused), cx);
                }
                FlightOwner::Digests { token, .. } => self.digests_lost(member, token, cx),
            }
        }
        self.peers[member.index()].reads_in_flight = 0;
    }

    /// READs of a rebuild that has ended.
    pub(crate) fn forget_copies(&mut self, member: MemberId) {
        let of_copy =
            |f: &Flight| matches!(f.owner, FlightOwner::Rebuild { target, .. } if target == member);
        for rid in self.flights.keys(of_copy) {
            self.end_flight(rid);
        }
    }

    /// The term is over: all reads start again in the next one.
    pub(crate) fn freeze_reads(&mut self, cx: &mut Cx<'_>) {
        self.read_waits.clear();
        self.confirms.clear();
        self.read_retries.clear();
        for key in self.reads.keys(|_| true) {
            if let Some(read) = self.reads.get_mut(key) {
                read.floor = None;
                read.bad = MemberSet::EMPTY;
                read.refused = MemberSet::EMPTY;
            }
            self.restart_read(key, cx);
        }
        for rid in self.flights.keys(|_| true) {
            self.end_flight(rid);
        }
    }

    /// Reads whose request has ended early.
    pub(crate) fn drop_orphan_reads(&mut self, cx: &mut Cx<'_>) {
        let (ops, parts) = (&self.ops, &self.parts);
        let orphans = self.reads.keys(|read| match read.owner {
            ReadOwner::Client { op } | ReadOwner::Half { op, .. } => ops.get(op).is_none(),
            ReadOwner::Merge { part } => parts.get(part).is_none(),
        });
        for key in orphans {
            self.drop_read(key, cx);
        }
        self.read_retries
            .retain(|key| self.reads.get(*key).is_some());
        self.confirms.retain(|key| self.reads.get(*key).is_some());
        let gone: alloc::vec::Vec<u64> = self
            .halves
            .keys()
            .copied()
            .filter(|key| self.ops.get(*key).is_none())
            .collect();
        for key in gone {
            self.drop_halves(key, cx);
        }
    }
}

fn release(result: ReadResult, data: &mut dyn Buffers) {
    if let ReadResult::Bytes(buf) = result {
        data.release(buf.buf);
    }
}
