//! A short name of all that decides how a run goes on: machines, memory, disks, links, what is
//! scheduled, what clients did and what the checkers remember. Left out are counters of the report,
//! the story, and how an event that is late came to be so. Two states of the same name are taken for
//! the same (128 bits).

use crate::cluster::{Cluster, Event};
use crate::entropy::mix;
use crate::explore::is_chosen;
use crate::process::{HostState, Program};
use crate::world::Nanos;
use core::fmt::{Debug, Write};

/// Takes facts in, in their order.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    halves: [u64; 2],
    text: String,
}

impl Sum {
    /// A number.
    pub fn word(&mut self, word: u64) {
        let folded = |x: u64, y: u64| {
            let wide = u128::from(x) * u128::from(y);
            (wide >> 64) as u64 ^ wide as u64
        };
        let [a, b] = self.halves;
        self.halves = [
            folded(a ^ word, 0x9e37_79b9_7f4a_7c15).wrapping_add(b),
            (b ^ word.rotate_left(32))
                .wrapping_mul(0xd6e8_feb8_6659_fd93)
                .rotate_left(29)
                ^ a,
        ];
    }

    /// Bytes; their number is a part of it.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
    }

    /// All that the text of something tells.
    pub fn text(&mut self, thing: &dyn Debug) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        write!(text, "{thing:?}").expect("a string takes all");
        self.bytes(text.as_bytes());
        self.text = text;
    }

    /// The name.
    pub fn name(&self) -> u128 {
        let [a, b] = self.halves;
        u128::from(mix(a ^ b.rotate_left(32))) << 64 | u128::from(mix(b))
    }
}

fn digest_host(state: &HostState) -> u128 {
    let mut sum = Sum::default();
    sum.text(&(
        &state.clock,
        state.boot,
        state.lives,
        state.paused,
        &state.backlog,
    ));
    sum.text(&(
        state.powered,
        state.gone,
        state.start_ticket,
        state.next_operation,
    ));
    state.words.digest(&mut sum);
    if let Some(disk) = &state.disk {
        disk.digest(&mut sum);
    }
    let Some(node) = &state.node else {
        return sum.name();
    };
    match &node.program {
        Program::Engine(p) => {
            sum.text(&(&p.machine, p.uuid, p.attach_epoch, &p.refused, p.stopping));
        }
        Program::Replica(p) => sum.text(&p.machine),
    }
    node.arena.digest(&mut sum);
    sum.text(&(node.life, &node.conns, &node.waiting, node.next_conn));
    sum.text(&(node.timer_at, node.turn));
    for (number, flight) in &node.disk {
        sum.text(&(number, flight.tag, flight.buffer, flight.is_read));
    }
    sum.name()
}

impl Cluster {
    /// The state's name. `known`: names of the states of hosts, where nothing has happened since.
    pub fn digest(&self, known: &mut [Option<u128>]) -> u128 {
        let mut sum = Sum::default();
        sum.word(self.world.now());
        for (at, _, event) in self.in_order() {
            sum.word(at);
            sum.text(event);
        }
        for (state, known) in self.hosts.iter().zip(known) {
            let name = *known.get_or_insert_with(|| digest_host(state));
            sum.word(name as u64);
            sum.word((name >> 64) as u64);
        }
        self.network.digest(&mut sum);
        self.supervisor.digest(&mut sum);
        self.watcher.digest(&mut sum);
        sum.text(&(&self.workload, &self.history, &self.watches));
        sum.text(&self.healing.phase);
        sum.name()
    }

    /// What is scheduled in its usual order: time (now, if that has passed), name, event. What is a
    /// part of what came before goes first; equal times go by what the event is, so that the order
    /// does not tell which of two that do not meet was scheduled first.
    pub(crate) fn in_order(&self) -> Vec<(Nanos, u64, &Event)> {
        let now = self.world.now();
        let mut all: Vec<_> = self
            .world
            .scheduled()
            .map(|(at, name, event)| {
                let due = at.max(now);
                ((due, is_chosen(event), at, rank(event), name), event)
            })
            .collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        let slim = |(key, event): ((Nanos, _, _, _, u64), _)| (key.0, key.4, event);
        all.into_iter().map(slim).collect()
    }
}

fn rank(event: &Event) -> (u8, u64, u64) {
    match *event {
        Event::Client(client) => (0, client as u64, 0),
        Event::Arrive(line, from) => (1, line, from as u64),
        Event::Dial(line, _) => (2, line, 0),
        Event::DialEnd(line, _) => (3, line, 0),
        Event::Disk(host, number) => (4, host as u64, number),
        Event::Node(host, life, _) => (5, host as u64, life),
        Event::Start(host, ticket) => (6, host as u64, ticket),
        Event::StartEngine(host, ticket, _) => (7, host as u64, ticket),
        Event::Power(host) => (8, host as u64, 0),
        _ => (9, 0, 0),
    }
}
