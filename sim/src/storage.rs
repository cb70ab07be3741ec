//! The life of replicas: formatting, starting (after the drain barrier K1), their disks, and what
//! happens when a store gives up.

use crate::buffers::SimBuffers;
use crate::cluster::{Cluster, Event, NodeEvent};
use crate::disk::{Disk, Done, File, Operation};
use crate::network::Host;
use crate::process::{DiskFlight, Node, Program, ReplicaProgram};
use crate::world::{MICROS, MILLIS, SECONDS};
use std::rc::Rc;
use trilith_block::{Actions, BufSlice, Buffers, Machine, MemberId, MemberSet, Uuid};
use trilith_replica::store::{
    DiskError, DiskOp, DiskTag, FileRole, Format, FormatParams, OpenParams, StoreOut,
};
use trilith_replica::{Config, Fatal, Replica};

const EXTENT_BYTES: u64 = trilith_block::limits::EXTENT_BYTES;

/// The buffer that an operation names.
pub fn buffer_of(op: &DiskOp) -> Option<BufSlice> {
    match op {
        DiskOp::Read { buf, .. } | DiskOp::Write { buf, .. } => Some(*buf),
        DiskOp::Flush { .. }
        | DiskOp::Allocate { .. }
        | DiskOp::PunchHole { .. }
        | DiskOp::ZeroRange { .. } => None,
    }
}

fn file(role: FileRole) -> File {
    match role {
        FileRole::Meta => File::Meta,
        FileRole::Data => File::Data,
    }
}

/// The operation for the disk model; a write's bytes are taken from `arena`.
pub(crate) fn operation(op: &DiskOp, arena: &SimBuffers) -> Operation {
    match *op {
        DiskOp::Read { role, offset, buf } => Operation::Read {
            file: file(role),
            offset,
            len: u64::from(buf.len),
        },
        DiskOp::Write {
            role,
            offset,
            buf,
            dsync,
        } => {
            let bytes = Rc::new(arena.bytes(buf).to_vec());
            Operation::Write {
                file: file(role),
                offset,
                bytes,
                dsync,
            }
        }
        DiskOp::Flush { role } => Operation::Flush { file: file(role) },
        DiskOp::Allocate { role, offset, len } => Operation::Allocate {
            file: file(role),
            offset,
            len,
        },
        DiskOp::PunchHole { role, offset, len } => Operation::Zero {
            file: file(role),
            offset,
            len,
            keep: false,
        },
        DiskOp::ZeroRange { role, offset, len } => Operation::Zero {
            file: file(role),
            offset,
            len,
            keep: true,
        },
    }
}

fn verdict(done: &Done) -> Result<(), DiskError> {
    match done {
        Done::Ok(_) => Ok(()),
        Done::Error => Err(DiskError::Io),
        Done::NoSpace => Err(DiskError::NoSpace),
    }
}

/// Formats a disk outside of time.
///
/// # Panics
/// When formatting fails on a good disk.
pub fn format(disk: &mut Disk, params: &FormatParams, entropy: &mut crate::entropy::Entropy) {
    let mut arena = SimBuffers::new(1 << 24);
    let mut out = StoreOut::new();
    let mut machine = Format::new(params, &mut arena, &mut out).expect("valid parameters");
    let mut number = 0;
    loop {
        let ops = std::mem::take(&mut out.ops);
        assert!(!ops.is_empty(), "formatting waits for nothing");
        for (tag, op) in ops {
            number += 1;
            disk.submit(number, operation(&op, &arena));
            let done = disk.complete(number, false, entropy).expect("nobody died");
            if let (Done::Ok(bytes), DiskOp::Read { buf, .. }) = (&done, &op) {
                arena.bytes_mut(*buf).copy_from_slice(bytes);
            }
            if let Some(result) = machine.disk_done(tag, verdict(&done), &mut arena, &mut out) {
                result.expect("the disk is good");
                arena.reclaim();
                assert_eq!(arena.used(), 0, "formatting keeps buffers");
                return;
            }
        }
    }
}

impl Cluster {
    /// Parameters that a replica is formatted with.
    pub fn format_params(&self, host: Host, replica: Uuid) -> FormatParams {
        let first = MemberSet::first(self.config.replicas);
        let newcomer = host >= self.config.replicas;
        FormatParams {
            volume: self.supervisor.volume,
            replica,
            member: MemberId::new(self.config.member_of(host)).expect("few members"),
            voters: match self.config.replacement.filter(|_| newcomer) {
                Some(r) => crate::replace::voters_after(&self.config, &r),
                None => first,
            },
            newcomer,
            witness: self.config.witness_set(),
            iss: if newcomer {
                MemberSet::EMPTY
            } else {
                first.minus(self.config.witness_set())
            },
            capacity: self.config.capacity,
            geometry: self.config.geometry,
            same_device: false,
            zero_data: false,
            volatile_cache: self.config.volatile_cache,
            checksums: self.config.checksums,
        }
    }

    /// Schedules the start of a replica's process; an earlier schedule is void.
    pub fn schedule_start(&mut self, host: Host, delay: u64) {
        self.hosts[host].start_ticket += 1;
        let ticket = self.hosts[host].start_ticket;
        self.world.after(delay, Event::Start(host, ticket));
    }

    /// Starts a replica's process.
    pub fn start_replica(&mut self, host: Host, ticket: u64) {
        let now = self.world.now();
        let state = &mut self.hosts[host];
        let wanted = state.start_ticket == ticket && state.powered && !state.gone;
        if !wanted || state.node.is_some() {
            return;
        }
        if state.disk.as_ref().is_some_and(Disk::draining) {
            // K1: the lock of the data file frees when the last old write has landed or failed.
            self.world.after(100 * MICROS, Event::Start(host, ticket));
            return;
        }
        state.lives += 1;
        let life = state.lives;
        let open = OpenParams {
            boot: state.boot,
            allocate: true,
            allocate_ahead: 0,
        };
        let mut config = Config::new(
            self.supervisor.volume,
            self.supervisor.secret,
            self.supervisor.random32(),
            open,
        );
        config.lease = self.config.timing.lease;
        config.credit_bytes = self.config.credit_bytes;
        let program = ReplicaProgram {
            machine: Replica::new(config),
            out: Actions::new(),
        };
        let arena = SimBuffers::new(self.config.replica_arena);
        let mut node = Node::new(life, Program::Replica(Box::new(program)), arena);
        let clock = self.clock(host);
        if let Some(p) = node.replica_and_arena() {
            p.0.machine
                .step(clock, trilith_replica::Event::Start, p.1, &mut p.0.out);
        }
        self.story
            .tell(now, || format!("replica {host} starts (life {life})"));
        self.tell_space(host, &mut node);
        self.request_turn(host, &mut node);
        self.hosts[host].node = Some(node);
    }

    /// What the file system has left, as the driver tells it now and then.
    pub fn tell_space(&mut self, host: Host, node: &mut Node) {
        let clock = self.clock(host);
        let Some(disk) = &self.hosts[host].disk else {
            return;
        };
        // A replica counts down with each extent that it touches first since it started, whether the
        // file has it already or not; without a limit that must not bring it to nothing.
        let plenty = 2 * self.config.capacity / 4096 + 4096;
        let room = disk.faults.room.unwrap_or(plenty);
        let free_bytes = room.saturating_sub(disk.allocated()) * 4096 + EXTENT_BYTES;
        if let Some(p) = node.replica_and_arena() {
            let event = trilith_replica::Event::Space { free_bytes };
            p.0.machine.step(clock, event, p.1, &mut p.0.out);
        }
    }

    /// The window file of this host.
    pub fn give_words(&mut self, host: Host, node: &mut Node, len: usize) {
        let words = self.hosts[host].words.clone();
        words.grow(len);
        let clock = self.clock(host);
        if let Some(p) = node.replica_and_arena() {
            let event = trilith_replica::Event::Words(Box::new(words));
            p.0.machine.step(clock, event, p.1, &mut p.0.out);
        }
    }

    /// A disk operation begins; its buffer has been retained.
    pub fn disk_starts(&mut self, host: Host, node: &mut Node, tag: DiskTag, op: DiskOp) {
        let number = self.hosts[host].next_operation;
        self.hosts[host].next_operation += 1;
        let operation = operation(&op, &node.arena);
        let written = match &operation {
            Operation::Write { bytes, .. } => Some(Rc::clone(bytes)),
            Operation::Read { .. }
            | Operation::Zero { .. }
            | Operation::Allocate { .. }
            | Operation::Flush { .. } => None,
        };
        let change = match &operation {
            Operation::Write {
                file: File::Data,
                offset,
                bytes,
                ..
            } => Some((*offset, bytes.len() as u64)),
            Operation::Zero {
                file: File::Data,
                offset,
                len,
                ..
            } => Some((*offset, *len)),
            Operation::Write { .. }
            | Operation::Zero { .. }
            | Operation::Read { .. }
            | Operation::Allocate { .. }
            | Operation::Flush { .. } => None,
        };
        if let Some((offset, len)) = change {
            self.check_change(host, node, offset, len);
        }
        let label = change.and_then(|(offset, _)| Cluster::label_of(node, offset));
        let is_read = matches!(operation, Operation::Read { .. });
        let flush = matches!(operation, Operation::Flush { .. });
        self.watch_disk(host, node, number, &operation);
        let Some(disk) = self.hosts[host].disk.as_mut() else {
            return;
        };
        disk.submit(number, operation);
        disk.label(number, label.unwrap_or_default());
        let slow = disk.faults.slow.max(1);
        let base = self.config.disk_delay;
        let mut delay = self.entropy.range(base / 4, base * 2) * slow;
        if flush {
            delay *= 1 + self.entropy.below(4);
        }
        if self.entropy.chance(1, 256) {
            delay *= 1 + self.entropy.below(50);
        }
        node.disk.insert(
            number,
            DiskFlight {
                tag,
                buffer: buffer_of(&op),
                is_read,
                written,
            },
        );
        self.world.after(delay, Event::Disk(host, number));
    }

    /// A disk operation ends, whoever asked for it.
    pub fn disk_ends(&mut self, host: Host, number: u64) {
        let deaf = self.hosts[host].words.is_dying();
        let Some(disk) = self.hosts[host].disk.as_mut() else {
            return;
        };
        if disk.faults.hung && disk.in_flight(number) {
            self.world.after(5 * MILLIS, Event::Disk(host, number));
            return;
        }
        let done = disk.complete(number, deaf, &mut self.entropy);
        let well = done.as_ref().map(|done| matches!(done, Done::Ok(_)));
        self.watch_disk_end(host, number, well);
        let Some(done) = done else {
            return;
        };
        let Some(node) = self.hosts[host].node.as_mut() else {
            return;
        };
        let Some(flight) = node.disk.get(&number) else {
            return;
        };
        if let (Some(slice), Some(written)) = (flight.buffer, &flight.written)
            && node.arena.bytes(slice) != &written[..]
        {
            let why = format!("replica {host} changed a buffer while the disk wrote it");
            return self.fail(why);
        }
        if let (Done::Ok(bytes), Some(slice), true) = (&done, flight.buffer, flight.is_read) {
            node.arena.bytes_mut(slice).copy_from_slice(bytes);
        }
        let life = node.life;
        let event = NodeEvent::Disk(number, verdict(&done));
        if done == Done::NoSpace {
            self.space_changed(host);
        }
        self.handle(Event::Node(host, life, event));
    }

    /// The driver asks the file system again.
    pub fn space_changed(&mut self, host: Host) {
        if let Some(mut node) = self.hosts[host].node.take() {
            self.tell_space(host, &mut node);
            self.request_turn(host, &mut node);
            self.hosts[host].node = Some(node);
        }
    }

    /// A replica's process has ended by itself; its supervisor starts it again.
    pub fn replica_exited(&mut self, host: Host, mut node: Node, why: Option<Fatal>) {
        let now = self.world.now();
        self.story
            .tell(now, || format!("replica {host} ends: {why:?}"));
        match why {
            None => {
                let used = {
                    node.arena.reclaim();
                    node.arena.live()
                };
                let sending = self.unsent(host);
                if !used.is_empty() && !sending {
                    self.fail(format!("replica {host} stopped and holds buffers {used:?}"));
                }
            }
            Some(Fatal::Store(_)) => {}
            Some(why @ (Fatal::Open(_) | Fatal::WrongVolume { .. })) => {
                let errors = self.hosts[host].disk.as_ref().is_some_and(|d| {
                    d.faults.read_error > 0 || d.faults.write_error > 0 || d.faults.flush_error > 0
                });
                if !errors {
                    self.fail(format!("replica {host} cannot open its store: {why:?}"));
                }
            }
        }
        self.hosts[host].node = Some(node);
        self.kill(host);
        let delay = self.entropy.range(MILLIS, SECONDS);
        self.schedule_start(host, delay);
    }

    fn unsent(&mut self, host: Host) -> bool {
        let lines = self.network.at(host);
        lines.into_iter().any(|(line, end)| {
            self.network
                .get(line)
                .is_some_and(|c| !c.pipes[end].outgoing.is_empty())
        })
    }

    /// A host has power again: its replica starts.
    pub fn power_on(&mut self, host: Host) {
        if self.hosts[host].gone {
            return;
        }
        self.hosts[host].powered = true;
        if self.config.is_replica(host) {
            self.schedule_start(host, MILLIS);
        }
    }
}
