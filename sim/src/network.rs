//! Byte streams between processes. Each direction of a connection is in order and loses nothing
//! while the connection lives (A4), but bytes arrive late, in pieces, and a part of them may have
//! arrived when it breaks. A cut link delivers nothing in the cut direction until it is healed;
//! long cuts and lost power may break connections on either side at different times, or leave one
//! side believing in them (half open).
//!
//! This module keeps the state; [`crate::cluster`] moves the bytes in and out of processes.

use crate::entropy::Entropy;
use crate::limits::RECEIVED_BYTES_MAX;
use crate::world::{MICROS, MILLIS, Nanos};
use std::collections::{BTreeMap, VecDeque};
use trilith_block::{BufSlice, ConnId, Want};

/// Index of a host.
pub type Host = usize;
/// Number of a connection, unique in the run.
pub type Line = u64;

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    /// Which host.
    pub host: Host,
    /// Which life of the host's process.
    pub life: u64,
    /// Name of the connection inside that process.
    pub conn: ConnId,
    /// How far it is.
    pub state: EndState,
    /// What the process wants to receive next; `None`: it has to be asked.
    pub want: Option<Want>,
    /// Bytes of the wanted payload that have arrived.
    pub filled: usize,
}

/// State of an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndState {
    /// Not there yet.
    Dialling,
    /// Its process has been told Opened.
    Open,
    /// Its process has asked for Close and will be told Closed.
    Closing,
    /// Its process has been told Closed, or is gone.
    Gone,
}

/// Something to be sent that its process still holds.
#[derive(Debug)]
pub struct Outgoing {
    /// First these bytes.
    pub head: Vec<u8>,
    /// Then these, retained in the sender's arena.
    pub payload: Option<BufSlice>,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Pipe {
    /// Not yet given to the network.
    pub outgoing: VecDeque<Outgoing>,
    /// A transmit event is on its way.
    pub transmit_scheduled: bool,
    /// On the way, with arrival times.
    flight: VecDeque<(Nanos, Vec<u8>)>,
    last_arrival: Nanos,
    /// Arrived, not yet taken.
    received: VecDeque<u8>,
    /// The sender will send nothing more; `true`: what has not been read is dropped (reset).
    end: Option<bool>,
    end_at: Nanos,
}

/// A connection. End 0 has dialled; pipe `i` leads away from end `i`.
#[derive(Debug)]
pub struct Connection {
    /// Its ends.
    pub ends: [End; 2],
    /// Its directions.
    pub pipes: [Pipe; 2],
}

/// How links behave in this run.
#[derive(Clone, Copy, Debug)]
pub struct Character {
    /// Shortest one-way delay.
    pub delay_min: Nanos,
    /// Longest usual one-way delay.
    pub delay_max: Nanos,
    /// Chance in 1/256 that a delay is up to 100 times longer.
    pub spike: u64,
    /// Chance in 1/256 that what arrives is split at a random byte.
    pub split: u64,
    /// What was sent at different times arrives at different times, however late it is.
    pub singly: bool,
}

impl Default for Character {
    fn default() -> Character {
        Character {
            delay_min: 20 * MICROS,
            delay_max: 200 * MICROS,
            spike: 0,
            split: 0,
            singly: false,
        }
    }
}

/// What a process finds when it looks at its end of a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Bytes or nothing; the stream goes on.
    More,
    /// The peer is gone and everything has been read.
    End,
}

/// All connections and links.
#[derive(Debug)]
pub struct Network {
    lines: BTreeMap<Line, Connection>,
    next: Line,
    /// `cut[from][to]`: number of cuts in force.
    cut: Vec<Vec<u32>>,
    /// Extra delay of everything from a host.
    pub lag: Vec<Nanos>,
    /// How links behave.
    pub character: Character,
    /// Bytes delivered.
    pub delivered: u64,
}

impl Network {
    /// A network of `hosts` hosts without connections.
    pub fn new(hosts: usize, character: Character) -> Network {
        Network {
            lines: BTreeMap::new(),
            next: 1,
            cut: vec![vec![0; hosts]; hosts],
            lag: vec![0; hosts],
            character,
            delivered: 0,
        }
    }

    /// A connection that is being dialled.
    pub fn dial(&mut self, from: Host, life: u64, conn: ConnId, to: Host) -> Line {
        let line = self.next;
        self.next += 1;
        let end = |host, life, conn| End {
            host,
            life,
            conn,
            state: EndState::Dialling,
            want: None,
            filled: 0,
        };
        let ends = [end(from, life, conn), end(to, 0, ConnId(0))];
        self.lines.insert(
            line,
            Connection {
                ends,
                pipes: Default::default(),
            },
        );
        line
    }

    /// A connection, unless both ends are gone.
    pub fn get(&mut self, line: Line) -> Option<&mut Connection> {
        self.lines.get_mut(&line)
    }

    /// Forgets a connection once both ends are gone.
    pub fn reap(&mut self, line: Line) {
        let gone = |c: &Connection| c.ends.iter().all(|e| e.state == EndState::Gone);
        if self.lines.get(&line).is_some_and(gone) {
            self.lines.remove(&line);
        }
    }

    /// Numbers of all connections between two hosts.
    pub fn between(&self, a: Host, b: Host) -> Vec<Line> {
        self.lines
            .iter()
            .filter(|(_, c)| {
                let (x, y) = (c.ends[0].host, c.ends[1].host);
                (x, y) == (a, b) || (x, y) == (b, a)
            })
            .map(|(line, _)| *line)
            .collect()
    }

    /// Connections with an end at `host` that is not gone: number and which end.
    pub fn at(&self, host: Host) -> Vec<(Line, usize)> {
        self.lines
            .iter()
            .flat_map(|(line, c)| (0..2).map(move |i| (*line, i, &c.ends[i])))
            .filter(|(_, _, end)| end.host == host && end.state != EndState::Gone)
            .map(|(line, i, _)| (line, i))
            .collect()
    }

    /// Adds or lifts a cut of one direction. Cuts are counted.
    pub fn set_cut(&mut self, from: Host, to: Host, on: bool) {
        let count = &mut self.cut[from][to];
        *count = if on {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
    }

    /// Lifts all cuts.
    pub fn heal(&mut self) {
        self.cut.iter_mut().flatten().for_each(|count| *count = 0);
        self.lag.iter_mut().for_each(|lag| *lag = 0);
    }

    /// True when nothing gets from one host to another.
    pub fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cut[from][to] > 0
    }

    /// True when nothing gets from end `from` of a connection to its other end.
    pub fn is_blocked(&self, line: Line, from: usize) -> bool {
        let ends = self.lines.get(&line).map(|c| &c.ends);
        ends.is_some_and(|ends| self.is_cut(ends[from].host, ends[1 - from].host))
    }

    /// The host of one end of a connection.
    pub fn host_of(&self, line: Line, end: usize) -> Option<Host> {
        Some(self.lines.get(&line)?.ends[end].host)
    }

    /// All connections and what is on its way, for the name of a state.
    pub fn digest(&self, sum: &mut crate::digest::Sum) {
        for (line, connection) in &self.lines {
            sum.word(*line);
            sum.text(&connection.ends);
            for pipe in &connection.pipes {
                sum.text(&(&pipe.outgoing, pipe.transmit_scheduled));
                for (at, bytes) in &pipe.flight {
                    sum.word(*at);
                    sum.bytes(bytes);
                }
                sum.text(&(pipe.last_arrival, &pipe.received, pipe.end, pipe.end_at));
            }
        }
        sum.text(&(&self.cut, &self.lag, self.next));
    }

    /// A one-way delay.
    pub fn delay(&self, from: Host, entropy: &mut Entropy) -> Nanos {
        let Character {
            delay_min,
            delay_max,
            spike,
            ..
        } = self.character;
        let mut delay = entropy.range(delay_min, delay_max);
        if entropy.chance(spike, 256) {
            delay *= 1 + entropy.below(100);
        }
        delay + self.lag[from]
    }

    /// Puts bytes on the way. Returns when they arrive.
    pub fn transmit(
        &mut self,
        line: Line,
        from: usize,
        bytes: Vec<u8>,
        now: Nanos,
        entropy: &mut Entropy,
    ) -> Option<Nanos> {
        let host = self.lines.get(&line)?.ends[from].host;
        let delay = self.delay(host, entropy);
        let pipe = &mut self.lines.get_mut(&line)?.pipes[from];
        let at = (now + delay).max(pipe.last_arrival);
        pipe.last_arrival = at;
        pipe.flight.push_back((at, bytes));
        Some(at)
    }

    /// The sender at end `from` is done. Returns when the other end can know.
    pub fn finish(
        &mut self,
        line: Line,
        from: usize,
        reset: bool,
        now: Nanos,
        entropy: &mut Entropy,
    ) -> Option<Nanos> {
        let host = self.lines.get(&line)?.ends[from].host;
        let delay = self.delay(host, entropy);
        let pipe = &mut self.lines.get_mut(&line)?.pipes[from];
        if pipe.end.is_some() {
            return None;
        }
        pipe.end = Some(reset);
        pipe.end_at = (now + delay).max(pipe.last_arrival);
        Some(pipe.end_at)
    }

    /// Moves what is due out of flight. Returns the time to come back for the rest of a split
    /// piece.
    pub fn arrive(
        &mut self,
        line: Line,
        from: usize,
        now: Nanos,
        entropy: &mut Entropy,
    ) -> Option<Nanos> {
        let split = self.character.split;
        let connection = self.lines.get_mut(&line)?;
        let (a, b) = (connection.ends[from].host, connection.ends[1 - from].host);
        if self.cut[a][b] > 0 {
            return None;
        }
        let pipe = &mut connection.pipes[from];
        while let Some((at, bytes)) = pipe.flight.front_mut() {
            if *at > now {
                break;
            }
            if bytes.len() > 1 && entropy.chance(split, 256) {
                let part = 1 + entropy.index(bytes.len() - 1);
                self.delivered += part as u64;
                pipe.received.extend(bytes.drain(..part));
                let again = now + 1 + entropy.below(MILLIS);
                *at = again;
                pipe.last_arrival = pipe.last_arrival.max(again);
                return Some(again);
            }
            self.delivered += bytes.len() as u64;
            pipe.received.extend(bytes.drain(..));
            pipe.flight.pop_front();
            if self.character.singly {
                break;
            }
        }
        let count = pipe.received.len();
        assert!(
            count <= RECEIVED_BYTES_MAX,
            "{count} bytes wait in a socket: no back-pressure"
        );
        None
    }

    /// What is there for end `to` to read.
    pub fn received(&mut self, line: Line, to: usize) -> Option<&mut VecDeque<u8>> {
        Some(&mut self.lines.get_mut(&line)?.pipes[1 - to].received)
    }

    /// Whether end `to` has reached the end of its stream.
    pub fn arrival(&mut self, line: Line, to: usize, now: Nanos) -> Arrival {
        let Some(connection) = self.lines.get_mut(&line) else {
            return Arrival::More;
        };
        let (a, b) = (connection.ends[1 - to].host, connection.ends[to].host);
        let pipe = &mut connection.pipes[1 - to];
        let Some(reset) = pipe.end else {
            return Arrival::More;
        };
        if pipe.end_at > now || self.cut[a][b] > 0 {
            return Arrival::More;
        }
        if reset || (pipe.flight.is_empty() && pipe.received.is_empty()) {
            Arrival::End
        } else {
            Arrival::More
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_over_splits_and_cuts() {
        for seed in 0..200 {
            let mut entropy = Entropy::from_seed(seed);
            let character = Character {
                split: 128,
                spike: 64,
                ..Character::default()
            };
            let mut network = Network::new(2, character);
            let line = network.dial(0, 1, ConnId(1), 1);
            let mut now = 0;
            let mut sent = 0u8;
            let mut found = Vec::new();
            for round in 0..50 {
                if round % 7 == 3 {
                    network.set_cut(0, 1, true);
                }
                if round % 7 == 6 {
                    network.set_cut(0, 1, false);
                }
                let bytes: Vec<u8> = (0..entropy.range(1, 4)).map(|i| sent + i as u8).collect();
                sent += bytes.len() as u8;
                network.transmit(line, 0, bytes, now, &mut entropy);
                now += entropy.below(300 * MICROS);
                network.arrive(line, 0, now, &mut entropy);
                found.extend(network.received(line, 1).unwrap().drain(..));
            }
            network.heal();
            assert!(network.finish(line, 0, false, now, &mut entropy).is_some());
            for _ in 0..1000 {
                now += MILLIS;
                network.arrive(line, 0, now, &mut entropy);
                found.extend(network.received(line, 1).unwrap().drain(..));
            }
            assert_eq!(found, (0..sent).collect::<Vec<_>>());
            assert_eq!(network.arrival(line, 1, now), Arrival::End);
        }
    }
}
