//! Virtual time and the queue of what will happen, ordered by time and then by the order in which
//! it was scheduled. One thread; time jumps from event to event. The hash over all events tells
//! whether two runs were the same.

use crate::entropy::mix;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Virtual nanoseconds since the start of the run (the simulator's own clock; hosts have theirs).
pub type Nanos = u64;

/// One microsecond.
pub const MICROS: Nanos = 1_000;
/// One millisecond.
pub const MILLIS: Nanos = 1_000_000;
/// One second.
pub const SECONDS: Nanos = 1_000_000_000;

#[derive(Debug)]
struct Item<E> {
    at: Nanos,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl<E> Eq for Item<E> {}
impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Item<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// The queue and the clock.
#[derive(Debug)]
pub struct World<E> {
    now: Nanos,
    sequence: u64,
    queue: BinaryHeap<Reverse<Item<E>>>,
    hash: u64,
    events: u64,
}

impl<E> Default for World<E> {
    fn default() -> Self {
        World {
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            hash: 0,
            events: 0,
        }
    }
}

impl<E> World<E> {
    /// An empty world at time 0.
    pub fn new() -> World<E> {
        World::default()
    }

    /// The time.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Schedules `event` in `delay` from now.
    pub fn after(&mut self, delay: Nanos, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// Schedules `event` at a time; at once when it has passed.
    pub fn at(&mut self, at: Nanos, event: E) {
        let item = Item {
            at: at.max(self.now),
            sequence: self.sequence,
            event,
        };
        self.sequence += 1;
        self.queue.push(Reverse(item));
    }

    /// The next event; time moves to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(item) = self.queue.pop()?;
        self.now = item.at;
        self.events += 1;
        self.note(item.at);
        Some(item.event)
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Nanos> {
        self.queue.peek().map(|item| item.0.at)
    }

    /// Mixes a fact into the hash of the run.
    pub fn note(&mut self, fact: u64) {
        self.hash = mix(self.hash ^ fact).rotate_left(17);
    }

    /// Hash over the times of all events and all noted facts.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_they_were_scheduled() {
        let mut world = World::new();
        world.after(5, 'c');
        world.after(1, 'a');
        world.after(5, 'd');
        world.after(2, 'b');
        let mut order = String::new();
        while let Some(event) = world.pop() {
            order.push(event);
            if event == 'b' {
                world.at(0, 'x');
            }
        }
        assert_eq!(order, "abxcd");
        assert_eq!(world.now(), 5);
        assert_eq!(world.events(), 5);
    }
}
