//! The clients. Each has one request at a time; what it asks for is drawn from the mix of the run
//! and gathers at a few places, so that requests overlap. Values are unique per write.

use crate::check::volume::{Action, stamp};
use crate::cluster::{Cluster, Event};
use crate::config::EXTRAS_FROM;
use crate::entropy::Entropy;
use crate::nbd::{Answer, Nbd};
use crate::network::Host;
use crate::process::Node;
use crate::world::{MICROS, MILLIS};
use std::collections::{BTreeMap, VecDeque};
use trilith_block::limits::TRANSFER_BYTES_MAX;
use trilith_block::request::Target;
use trilith_block::{
    Buffers, ByteRange, Completion, ErrorKind, Monotonic, Op, Outcome, Request, RequestFlags, Tag,
};

/// A request before it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// What.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Durable when answered.
    pub fua: bool,
    /// Zeroes that keep the space.
    pub no_hole: bool,
    /// A write that is one only if the range holds what is expected (COMPARE AND WRITE).
    pub swap: bool,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    client: usize,
    host: Host,
    life: u64,
    wish: Wish,
    /// Power cuts before it was asked for.
    cuts: u64,
}

/// The clients.
#[derive(Debug)]
pub struct Workload {
    entropy: Entropy,
    /// Which engine host each client talks to.
    attached: Vec<Host>,
    open: BTreeMap<u64, Open>,
    /// Requests asked for.
    pub issued: u64,
    /// Requests answered with success.
    pub succeeded: u64,
    /// Requests answered with an error.
    pub failed: u64,
    places: Vec<u64>,
    /// Requests that must be asked for and succeed (healing phase).
    pub duty: VecDeque<Wish>,
    /// In the healing phase errors are failures.
    pub strict: bool,
    /// Nothing more of its own is asked for.
    pub quiet: bool,
    /// How often all clients were started anew.
    restarts: u64,
    /// What each client knows of a place: offset and bytes.
    known: Vec<Option<(u64, Vec<u8>)>>,
}

/// Most bytes of a place that a client remembers: a COMPARE AND WRITE has twice as many.
const KNOWN_BYTES: usize = 4 * BLOCK as usize;
const BLOCK: u64 = 4096;

impl Workload {
    /// Clients that have done nothing.
    pub fn new(mut entropy: Entropy, config: &crate::config::Config) -> Workload {
        let blocks = config.capacity / BLOCK;
        let places = (0..config.mix.places)
            .map(|_| match entropy.below(4) {
                // Borders of extents and chunks, the end, anywhere.
                0 => (1024 * entropy.below(blocks / 1024 + 1)).min(blocks - 1),
                1 => (16 * entropy.below(blocks / 16 + 1)).min(blocks - 1),
                2 => blocks - 1,
                _ => entropy.below(blocks),
            })
            .collect();
        Workload {
            entropy,
            attached: vec![config.replicas; config.mix.clients],
            open: BTreeMap::new(),
            issued: 0,
            succeeded: 0,
            failed: 0,
            places,
            duty: config.script.iter().copied().collect(),
            strict: false,
            quiet: false,
            restarts: 0,
            known: vec![None; config.mix.clients],
        }
    }

    /// Where a request is worked on, if it is open at the process of this life.
    pub fn host_of_request(&self, number: u64, life: u64) -> Option<Host> {
        let open = self.open.get(&number).filter(|open| open.life == life)?;
        Some(open.host)
    }

    /// A client learns what a range holds.
    fn learn(&mut self, client: usize, offset: u64, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(KNOWN_BYTES)];
        if let Some(known) = self.known.get_mut(client) {
            *known = Some((offset, bytes.to_vec()));
        }
    }

    /// Requests asked for and not answered.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// What is in flight, in words.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (number, open) in &self.open {
            text.push_str(&format!(
                " #{number} {:?} {}+{} on {};",
                open.wish.op, open.wish.offset, open.wish.len, open.host
            ));
        }
        text
    }

    fn draw(&mut self, config: &crate::config::Config) -> Wish {
        let mix = config.mix;
        let entropy = &mut self.entropy;
        let total: u64 = mix.weights.iter().sum();
        let mut choice = entropy.below(total);
        let mut kind = 0;
        while choice >= mix.weights[kind] {
            choice -= mix.weights[kind];
            kind += 1;
        }
        let op = [
            Op::Read,
            Op::Write,
            Op::Flush,
            Op::Discard,
            Op::WriteZeroes,
            Op::BlockStatus,
        ][kind];
        let fua =
            matches!(op, Op::Write | Op::Discard | Op::WriteZeroes) && entropy.chance(mix.fua, 256);
        if op == Op::Flush {
            return Wish {
                op,
                offset: 0,
                len: 0,
                fua: false,
                no_hole: false,
                swap: false,
            };
        }
        let place = self.places[entropy.index(self.places.len())];
        let long = entropy.chance(mix.long, 256);
        let transfer = matches!(op, Op::Read | Op::Write);
        let blocks = match (long, transfer) {
            (true, true) => entropy.range(1, config.transfer_blocks_max),
            (true, false) => entropy.skewed(1, config.capacity / BLOCK),
            (false, _) => entropy.range(1, 3),
        };
        let back = entropy.below(blocks);
        let mut offset = place.saturating_sub(back) * BLOCK;
        let mut len = (blocks * BLOCK).min(config.capacity - offset);
        if entropy.chance(mix.unaligned, 256) {
            let unit = entropy.pick(&[8, 512, 1024]);
            let skip = entropy.below(len.min(BLOCK) / unit) * unit;
            offset += skip;
            len -= skip;
            let cut = entropy.below(len.min(BLOCK) / unit) * unit;
            len -= cut;
        }
        let no_hole = op == Op::WriteZeroes && entropy.chance(1, 2);
        Wish {
            op,
            offset,
            len,
            fua,
            no_hole,
            swap: false,
        }
    }
}

impl Cluster {
    /// Requests that the process of this life has not answered.
    pub fn requests_at(&self, host: Host, life: u64) -> usize {
        self.workload
            .open
            .values()
            .filter(|o| o.host == host && o.life == life)
            .count()
    }

    /// A client asks for the next thing.
    pub fn client_wakes(&mut self, client: usize) {
        if self.workload.open.values().any(|o| o.client == client) {
            return;
        }
        let host = self.workload.attached[client];
        let mut soon = self.workload.entropy.skewed(MILLIS, 100 * MILLIS);
        if self.guide.is_some() {
            // The shortest time would be drawn, again and again.
            soon = if self.workload.quiet {
                100 * MILLIS
            } else {
                4 * MILLIS
            };
        }
        let ready = !self.hosts[host].paused
            && self.hosts[host].node.as_mut().is_some_and(|node| {
                node.engine()
                    .is_some_and(|e| e.machine.info().is_some() && !e.stopping)
            });
        if !ready {
            if self.hosts[host].node.is_none() && host != self.supervisor.active {
                self.workload.attached[client] = self.supervisor.active;
            }
            self.world.after(soon, Event::Client(client));
            return;
        }
        let duty = self.workload.duty.pop_front();
        let wish = match duty {
            Some(wish) => wish,
            None if self.workload.quiet => {
                self.world.after(soon, Event::Client(client));
                return;
            }
            None if self.workload.issued >= self.config.mix.requests_max => return,
            None => {
                let wish = self.draw_wish(host);
                self.fit_wish(client, wish)
            }
        };
        if !self.ask_for(client, host, wish) {
            if duty.is_some() {
                self.workload.duty.push_front(wish);
            }
            self.world.after(soon, Event::Client(client));
        }
    }

    /// What a client wants. At an engine that was replaced it mostly reads: a write would only hang
    /// there, and what matters is what such an engine lets its clients read.
    fn draw_wish(&mut self, host: Host) -> Wish {
        let mut wish = self.workload.draw(&self.config);
        let old = host != self.supervisor.active && self.config.seed >= EXTRAS_FROM;
        if old && wish.op == Op::Write {
            wish.op = Op::Read;
            wish.fua = false;
        }
        wish
    }

    /// A client of the iSCSI target asks for whole blocks, and now and then for a COMPARE AND WRITE of
    /// what it knows.
    fn fit_wish(&mut self, client: usize, mut wish: Wish) -> Wish {
        let Some(mix) = self.config.iscsi.filter(|_| client.is_multiple_of(2)) else {
            return wish;
        };
        let block = mix.manners.block;
        let end = (wish.offset + wish.len).next_multiple_of(block);
        wish.offset -= wish.offset % block;
        wish.len = end - wish.offset;
        wish.fua &= wish.op == Op::Write;
        if self.initiators.chance(mix.swaps, 256)
            && let Some((offset, bytes)) = &self.workload.known[client]
            && offset.is_multiple_of(block)
            && (bytes.len() as u64).is_multiple_of(block)
        {
            let fua = wish.fua;
            wish = Wish {
                op: Op::Write,
                offset: *offset,
                len: bytes.len() as u64,
                fua,
                no_hole: false,
                swap: true,
            };
        }
        wish
    }

    /// What a COMPARE AND WRITE of a client compares with: mostly what it knows.
    fn expected(&mut self, client: usize, wish: &Wish) -> Option<Vec<u8>> {
        if !wish.swap {
            return None;
        }
        let (_, bytes) = self.workload.known[client].clone()?;
        if self.initiators.chance(1, 16) {
            return Some(vec![0; bytes.len()]);
        }
        Some(bytes)
    }

    /// A client of the iSCSI target asks.
    fn ask_by_iscsi(&mut self, client: usize, host: Host, wish: Wish) -> bool {
        let clock = self.clock(host);
        let expected = self.expected(client, &wish);
        let Some(mut node) = self.hosts[host].node.take() else {
            return false;
        };
        let number = match &expected {
            Some(expected) => self.history.invoke_swap(wish.offset, wish.fua, expected),
            None => {
                let (action, fua) = (action_of(wish.op), wish.fua);
                self.history.invoke(action, wish.offset, wish.len, fua)
            }
        };
        let mut data = Vec::new();
        if wish.op == Op::Write {
            data.resize(wish.len as usize, 0);
            stamp(number, wish.offset, &mut data);
        }
        self.opens(number, client, host, node.life, wish);
        if let Some((engine, _)) = node.engine_and_arena() {
            self.make_frontends(engine);
        }
        let what = (client, number);
        self.ask_target(&mut node, clock, what, &wish, data, expected.as_deref());
        self.request_turn(host, &mut node);
        self.hosts[host].node = Some(node);
        true
    }

    /// A request is open from now on.
    fn opens(&mut self, number: u64, client: usize, host: Host, life: u64, wish: Wish) {
        self.workload.issued += 1;
        let cuts = self.supervisor.counts.power_cuts;
        let open = Open {
            client,
            host,
            life,
            wish,
            cuts,
        };
        self.workload.open.insert(number, open);
        let now = self.world.now();
        self.world.note(number);
        self.story.detail(now, || {
            format!(
                "client {client} asks #{number} {:?}{} {}+{}{} of {host}",
                wish.op,
                if wish.swap { " swap" } else { "" },
                wish.offset,
                wish.len,
                if wish.fua { " fua" } else { "" }
            )
        });
    }

    /// False: no memory for it now.
    fn ask_for(&mut self, client: usize, host: Host, wish: Wish) -> bool {
        if self.config.iscsi.is_some() && client.is_multiple_of(2) {
            return self.ask_by_iscsi(client, host, wish);
        }
        let clock = self.clock(host);
        let Some(mut node) = self.hosts[host].node.take() else {
            return false;
        };
        let data = match wish.op {
            Op::Write => match node.arena.alloc(wish.len as u32) {
                Some(slice) => Some(slice),
                None => {
                    self.hosts[host].node = Some(node);
                    return false;
                }
            },
            Op::Read
            | Op::Flush
            | Op::Discard
            | Op::WriteZeroes
            | Op::Prefetch
            | Op::BlockStatus => None,
        };
        let action = action_of(wish.op);
        let number = self.history.invoke(action, wish.offset, wish.len, wish.fua);
        if let Some(slice) = data {
            stamp(number, wish.offset, node.arena.bytes_mut(slice));
        }
        let flags = RequestFlags {
            fua: wish.fua,
            no_hole: wish.no_hole,
            fast_zero: false,
        };
        let range = ByteRange::new(wish.offset, wish.len);
        let request = Request {
            tag: Tag(number),
            op: wish.op,
            range,
            flags,
            data,
        };
        self.opens(number, client, host, node.life, wish);
        let by_nbd = self.config.nbd;
        if let Some((engine, arena)) = node.engine_and_arena() {
            self.make_frontends(engine);
            if by_nbd {
                let bytes = data.map_or(Vec::new(), |slice| arena.bytes(slice).to_vec());
                if let Some(slice) = data {
                    arena.release(slice.buf);
                }
                if let Some(volume) = engine.machine.info() {
                    let nbd = engine.nbd.get_or_insert_with(|| Box::new(Nbd::new(volume)));
                    let client = (client, self.workload.restarts);
                    nbd.ask(clock, client, number, &wish, &bytes, arena);
                }
            } else if let Err(request) = engine.machine.submit(clock, request, arena) {
                engine.refused.push_back(request);
            }
        }
        self.request_turn(host, &mut node);
        self.hosts[host].node = Some(node);
        true
    }

    /// Tries again what the engine did not take. True when it took something.
    pub fn submit_refused(&mut self, node: &mut Node, clock: Monotonic) -> bool {
        let Some((engine, arena)) = node.engine_and_arena() else {
            return false;
        };
        let mut taken = false;
        while let Some(request) = engine.refused.pop_front() {
            if let Err(request) = engine.machine.submit(clock, request, arena) {
                engine.refused.push_front(request);
                break;
            }
            taken = true;
        }
        taken
    }

    /// Moves what goes between frontend, engine and clients. True when something moved.
    pub fn frontend(&mut self, node: &mut Node, now: Monotonic) -> bool {
        let life = node.life;
        let Some((engine, arena)) = node.engine_and_arena() else {
            return false;
        };
        let (answers, worked) = crate::nbd::carry_out(engine, arena, now);
        for (number, answer) in answers {
            self.answered(
                life,
                number,
                answer.map_err(|code| format!("NBD error {code}")),
            );
        }
        self.target_turn(node, now) || worked
    }

    /// The engine has answered.
    pub fn completed(&mut self, node: &mut Node, now: Monotonic, completion: Completion) {
        let life = node.life;
        let Some((engine, arena)) = node.engine_and_arena() else {
            return;
        };
        if engine.nbd.is_some() || engine.iscsi.is_some() {
            return crate::iscsi::deliver(engine, now, completion, arena);
        }
        let answer = match completion.result {
            Ok(Outcome::Data(slice)) => {
                let bytes = arena.bytes(slice).to_vec();
                arena.release(slice.buf);
                Ok(Answer::Data(bytes))
            }
            Ok(Outcome::Extents(slice)) => {
                let bytes = arena.bytes(slice).to_vec();
                arena.release(slice.buf);
                Ok(Answer::Extents(bytes))
            }
            Ok(Outcome::Done) => Ok(Answer::Done),
            Err(kind @ (ErrorKind::InvalidRange | ErrorKind::NotSupported)) => {
                return self.fail(format!("#{} fails with {kind:?}", completion.tag.0));
            }
            Err(kind) => Err(format!("{kind:?}")),
        };
        self.answered(life, completion.tag.0, answer);
    }

    /// A client has its answer.
    pub fn answered(&mut self, life: u64, number: u64, answer: Result<Answer, String>) {
        let now = self.world.now();
        self.story.detail(now, || {
            let text = match &answer {
                Ok(Answer::Done) => "done".to_string(),
                Ok(Answer::Data(bytes) | Answer::Extents(bytes)) => {
                    format!("{} bytes", bytes.len())
                }
                Ok(Answer::Differs(at)) => format!("differs at {at}"),
                Err(why) => why.clone(),
            };
            format!("life {life} answers #{number}: {text}")
        });
        let known = self.workload.open.remove(&number);
        if let Some(open) = known.filter(|o| o.life == life) {
            self.world.note(number ^ 0x5a5a);
            self.record(number, &open, answer);
            let think = self.think();
            self.world.after(think, Event::Client(open.client));
        } else if known.is_some() {
            self.fail(format!("life {life} answers #{number} of another process"));
        } else if self.history.is_current(number) {
            self.fail(format!("life {life} answers #{number}, which is not open"));
        }
    }

    fn think(&mut self) -> u64 {
        let entropy = &mut self.workload.entropy;
        if self.workload.strict || entropy.chance(1, 4) {
            return entropy.below(20 * MICROS);
        }
        entropy.below(self.config.mix.think_max.max(1))
    }

    fn record(&mut self, number: u64, open: &Open, answer: Result<Answer, String>) {
        let wish = open.wish;
        let good = answer.is_ok();
        match (&answer, wish.op) {
            (Ok(Answer::Data(bytes)), Op::Read) => {
                self.workload.learn(open.client, wish.offset, bytes);
            }
            (Ok(Answer::Done), Op::Write) if self.config.iscsi.is_some() => {
                let mut bytes = vec![0; wish.len as usize];
                stamp(number, wish.offset, &mut bytes);
                self.workload.learn(open.client, wish.offset, &bytes);
            }
            _ => {}
        }
        let broken = match (wish.op, answer) {
            (Op::Read, Ok(Answer::Data(bytes))) if bytes.len() as u64 == wish.len => self
                .history
                .respond(number, Some(&bytes))
                .err()
                .map(|(at, word)| {
                    format!("#{number} reads {word:#018x} at byte {at}, which nobody wrote")
                }),
            (
                Op::Write | Op::Flush | Op::Discard | Op::WriteZeroes | Op::Prefetch,
                Ok(Answer::Done),
            ) => self
                .history
                .respond(number, None)
                .err()
                .map(|e| format!("{e:?}")),
            (Op::BlockStatus, Ok(Answer::Extents(bytes))) => check_extents(&bytes, wish.len),
            (Op::Write, Ok(Answer::Differs(at))) if wish.swap => {
                self.history.respond_differs(number, at);
                None
            }
            (_, Err(kind)) => {
                self.workload.failed += 1;
                self.workload
                    .strict
                    .then(|| format!("#{number} {wish:?} fails with {kind}"))
            }
            (_, Ok(answer)) => Some(format!("#{number} {wish:?} brings {answer:?}")),
        };
        match broken {
            Some(why) => self.fail(why),
            None => {
                self.workload.succeeded += u64::from(good);
                if good {
                    self.check_copies(number, open);
                    self.check_read(number, open);
                }
            }
        }
    }

    /// I4 and Q6 at the moment of the answer: a majority of disks holds what was written, on
    /// stable media where that was promised.
    fn check_copies(&mut self, number: u64, open: &Open) {
        let wish = open.wish;
        let entry = self.history.entries()[number as usize];
        if entry.action == Action::Differs {
            return;
        }
        let blocks: Vec<u64> = match wish.op {
            Op::Write => (wish.offset.div_ceil(BLOCK)..(wish.offset + wish.len) / BLOCK).collect(),
            Op::Flush => self.history.written_blocks().into_iter().collect(),
            Op::Read | Op::Discard | Op::WriteZeroes | Op::Prefetch | Op::BlockStatus => return,
        };
        let stable = wish.op == Op::Flush || wish.fua;
        // A replica may have lost its volatile data after its ack.
        if !stable && (self.config.loses_data() || open.cuts != self.supervisor.counts.power_cuts) {
            return;
        }
        for block in blocks {
            if self.betrayals.contains(block) {
                continue;
            }
            // A FUA write promises to be durable itself, not what was written over it meanwhile.
            let good = match wish.op {
                Op::Flush => self.history.acceptable(block, entry.invoked),
                _ if stable => self.history.acceptable_since(block, entry.invoked),
                _ => self.history.acceptable(block, self.history.instant()),
            };
            let Some(good) = good else { continue };
            let holders = self.holders(block, stable, &good);
            if !self.is_at_enough(holders) {
                let rule = if stable { "Q6" } else { "I4" };
                return self.fail(format!(
                    "{rule}: #{number} {:?} is answered, and {holders:?} hold block {block} ({good:?})",
                    wish.op
                ));
            }
        }
    }

    /// I14: what a read brings is committed before its reply. Where voters change, what was answered
    /// is: I4 saw to that then, maybe in an earlier configuration (C20). Told only while nothing
    /// volatile has been lost.
    fn check_read(&mut self, number: u64, open: &Open) {
        let cuts = self.supervisor.counts.power_cuts > 0;
        let volatile_lost = self.config.loses_data() || cuts;
        if open.wish.op != Op::Read || volatile_lost {
            return;
        }
        for (block, value) in self.history.whole_blocks_of(number) {
            let written = self.history.entries()[value as usize];
            if written.responded.is_some() && self.config.replacement.is_some() {
                continue;
            }
            let good = self.history.acceptable_since(block, written.invoked);
            let Some(good) = good else { continue };
            let holders = self.holders(block, false, &good);
            if !self.is_at_enough(holders) {
                return self.fail(format!(
                    "I14: #{number} reads #{value} in block {block}, which {holders:?} hold"
                ));
            }
        }
    }

    /// The process that clients talked to is gone: what they asked for stays open for ever.
    pub fn clients_lose(&mut self, host: Host) {
        let lost: Vec<(u64, Open)> = self
            .workload
            .open
            .iter()
            .filter(|(_, o)| o.host == host)
            .map(|(n, o)| (*n, *o))
            .collect();
        for (number, open) in lost {
            self.workload.open.remove(&number);
            if self.workload.strict {
                self.workload.duty.push_back(open.wish);
            }
            let delay = self.workload.entropy.skewed(MILLIS, 500 * MILLIS);
            self.world.after(delay, Event::Client(open.client));
        }
    }

    /// All clients are started anew and talk to the engine on `host`: a new history.
    pub fn restart_clients(&mut self, host: Host) {
        self.history.lose();
        self.workload.restarts += 1;
        let open = std::mem::take(&mut self.workload.open);
        for (_, open) in open {
            if self.workload.strict {
                self.workload.duty.push_back(open.wish);
            }
            let delay = self.workload.entropy.skewed(MILLIS, 500 * MILLIS);
            self.world.after(delay, Event::Client(open.client));
        }
        for attached in &mut self.workload.attached {
            *attached = host;
        }
    }

    /// A client moves to the active engine; what it has in flight it waits for.
    pub fn attach(&mut self, client: usize) {
        let active = self.supervisor.active;
        self.workload.attached[client] = active;
    }

    /// All clients talk to the active engine from now on.
    pub fn attach_all(&mut self) {
        for client in 0..self.config.mix.clients {
            self.attach(client);
        }
    }
}

fn action_of(op: Op) -> Action {
    match op {
        Op::Write => Action::Write,
        Op::Discard | Op::WriteZeroes => Action::Zero,
        Op::Flush => Action::Flush,
        Op::Read | Op::Prefetch | Op::BlockStatus => Action::Read,
    }
}

fn check_extents(bytes: &[u8], len: u64) -> Option<String> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(16) {
        return Some(format!("block status of {} bytes", bytes.len()));
    }
    let mut sum = 0;
    for record in bytes.chunks_exact(16) {
        let length = u64::from_le_bytes(record[..8].try_into().unwrap_or_default());
        if length == 0 {
            return Some("block status with an empty record".to_string());
        }
        sum += length;
    }
    (sum > len).then(|| format!("block status covers {sum} of {len} bytes"))
}

/// Splits runs of blocks into reads that a request can hold.
pub fn reads_of(blocks: impl Iterator<Item = u64>, blocks_max: u64) -> VecDeque<Wish> {
    let mut wishes: VecDeque<Wish> = VecDeque::new();
    let longest = (blocks_max * BLOCK).min(u64::from(TRANSFER_BYTES_MAX));
    for block in blocks {
        let offset = block * BLOCK;
        match wishes.back_mut() {
            Some(last) if last.offset + last.len == offset && last.len < longest => {
                last.len += BLOCK;
            }
            _ => wishes.push_back(Wish {
                op: Op::Read,
                offset,
                len: BLOCK,
                fua: false,
                no_hole: false,
                swap: false,
            }),
        }
    }
    wishes
}
