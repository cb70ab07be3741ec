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
        Some(self.begin(item))
    }

    /// What is passed over ([`World::take`]) happens late.
    fn begin(&mut self, item: Item<E>) -> E {
        self.now = self.now.max(item.at);
        self.events += 1;
        self.note(self.now);
        item.event
    }

    /// All that is scheduled, in no order: time, name for [`World::take`], event.
    pub fn scheduled(&self) -> impl Iterator<Item = (Nanos, u64, &E)> {
        let items = self.queue.iter().map(|item| &item.0);
        items.map(|item| (item.at, item.sequence, &item.event))
    }

    /// This event is the next one, whatever is due before it; time moves to it.
    pub fn take(&mut self, name: u64) -> Option<E> {
        let mut items = std::mem::take(&mut self.queue).into_vec();
        let place = items.iter().position(|item| item.0.sequence == name);
        let found = place.map(|place| items.swap_remove(place).0);
        self.queue = items.into();
        found.map(|item| self.begin(item))
    }

    /// What `chosen` names does not happen before `at`.
    pub fn hold(&mut self, at: Nanos, chosen: impl Fn(u64, &E) -> bool) {
        let mut items = std::mem::take(&mut self.queue).into_vec();
        for Reverse(item) in &mut items {
            if chosen(item.sequence, &item.event) {
                item.at = item.at.max(at);
            }
        }
        self.queue = items.into();
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

    #[test]
    fn what_is_passed_over_or_held_back_happens_late() {
        let mut world = World::new();
        world.after(1, 'a');
        world.after(2, 'b');
        world.after(3, 'c');
        let name = |world: &World<char>, which| {
            let found = world.scheduled().find(|(_, _, event)| **event == which);
            found.map(|(_, name, _)| name).expect("scheduled")
        };
        let b = name(&world, 'b');
        assert_eq!(world.take(b), Some('b'));
        assert_eq!(world.take(b), None);
        world.hold(9, |_, event| *event == 'a');
        assert_eq!((world.pop(), world.now()), (Some('c'), 3));
        assert_eq!((world.pop(), world.now()), (Some('a'), 9));
    }
}
