//! Fewer states for the same histories: engines that can do nothing more are forgotten, and
//! replicas are put in an order that does not depend on their names.
//!
//! Any order is sound, for no rule of the model depends on a name (ties of the plan are explored
//! under each name). The better the order, the fewer states; equal keys may leave a few doubles.

use crate::limits::REPLICAS;
use crate::state::{Engine, Kind, Mask, Phase, Replica, Standing, State, at, bit, has};
use std::hash::{Hash, Hasher};

/// Forgets engines that every replica has left behind.
pub(crate) fn bury(state: &mut State) {
    for number in 0..state.engines.len() {
        let id = u8::try_from(number).unwrap_or(u8::MAX);
        let e = &state.engines[number];
        let may_follow = |r: &Replica| r.term < e.term || (r.term == e.term && r.vote == id);
        let followers = state.replicas.iter().filter(|r| may_follow(r)).count();
        let needed = match e.phase {
            Phase::Voting | Phase::Reconciling | Phase::Repairing => 2,
            Phase::Starting | Phase::Live | Phase::Dead => 1,
        };
        if followers < needed || e.phase == Phase::Dead {
            let (term, promised, opened) = (e.term, e.promised, e.opened);
            let mut dead = State::new_engine(term);
            dead.phase = Phase::Dead;
            // Still asked: who led this term, and was it open.
            dead.promised = promised;
            dead.opened = opened;
            state.engines[number] = dead;
        }
    }
    for replica in &mut state.replicas {
        let session = replica.session;
        if session.is_some_and(|e| state.engines[at(e)].phase == Phase::Dead) {
            replica.session = None;
            replica.position = 0;
        }
    }
}

/// The same state under the names of [`order`].
pub(crate) fn representative(state: State) -> State {
    let order = order(&state);
    if order == [0, 1, 2] {
        return state;
    }
    rename(&state, order)
}

/// `order[i]`: the member that becomes member i.
fn order(state: &State) -> [usize; REPLICAS] {
    let mut keys = [0; REPLICAS];
    for (member, key) in keys.iter_mut().enumerate() {
        *key = key_of(state, member);
    }
    let mut order = [0, 1, 2];
    order.sort_by_key(|member| keys[*member]);
    order
}

fn set_key(set: Mask, own: usize) -> (bool, u32) {
    (has(set, own), set.count_ones())
}

/// What can be said of a member without a name.
fn key_of(state: &State, own: usize) -> u64 {
    let mut hasher = Mix(0);
    let r = &state.replicas[own];
    (r.term, r.vote, r.se, r.w, r.loss, r.tainted).hash(&mut hasher);
    (r.need, r.al, r.now, r.maybe, r.upto, r.tidx).hash(&mut hasher);
    (&r.window, r.session, r.position, &r.stray).hash(&mut hasher);
    (set_key(r.iss, own), set_key(r.trk, own)).hash(&mut hasher);
    for peer in &state.replicas {
        (peer.dirty[own], peer.dirty_durable[own]).hash(&mut hasher);
    }
    for e in &state.engines {
        let sets = [e.promised, e.unreconciled, e.iss, e.trk, e.counted];
        sets.map(|set| has(set, own)).hash(&mut hasher);
        (e.source.map(|s| at(s) == own), e.intent[own]).hash(&mut hasher);
        (e.unrepaired[own], e.epoch_done[own], e.dirty[own]).hash(&mut hasher);
        e.standing[own].hash(&mut hasher);
        for entry in &e.log {
            (has(entry.sent, own), has(entry.acks, own)).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn rename(state: &State, order: [usize; REPLICAS]) -> State {
    let mut new_name = [0; REPLICAS];
    for (new, old) in order.into_iter().enumerate() {
        new_name[old] = new;
    }
    let set = |old: Mask| {
        (0..REPLICAS)
            .filter(|m| has(old, *m))
            .fold(0, |all, m| all | bit(new_name[m]))
    };
    let one = |old: u8| u8::try_from(new_name[at(old)]).unwrap_or(u8::MAX);
    let mut next = state.clone();
    for (new, old) in order.into_iter().enumerate() {
        let mut replica = state.replicas[old].clone();
        replica.iss = set(replica.iss);
        replica.trk = set(replica.trk);
        replica.dirty = order.map(|m| state.replicas[old].dirty[m]);
        replica.dirty_durable = order.map(|m| state.replicas[old].dirty_durable[m]);
        next.replicas[new] = replica;
    }
    for (engine, old) in next.engines.iter_mut().zip(&state.engines) {
        rename_engine(engine, old, order, &set, &one);
    }
    next
}

fn rename_engine(
    engine: &mut Engine,
    old: &Engine,
    order: [usize; REPLICAS],
    set: &dyn Fn(Mask) -> Mask,
    one: &dyn Fn(u8) -> u8,
) {
    engine.promised = set(old.promised);
    engine.unreconciled = set(old.unreconciled);
    engine.first_iss = set(old.first_iss);
    engine.iss = set(old.iss);
    engine.trk = set(old.trk);
    engine.counted = set(old.counted);
    if !matches!(old.phase, Phase::Voting | Phase::Dead) {
        engine.source = old.source.map(one);
    }
    engine.intent = order.map(|m| old.intent[m]);
    engine.unrepaired = order.map(|m| old.unrepaired[m]);
    engine.epoch_done = order.map(|m| old.epoch_done[m]);
    engine.standing = order.map(|m| -> Standing { old.standing[m] });
    engine.dirty = order.map(|m| old.dirty[m]);
    for entry in &mut engine.log {
        entry.sent = set(entry.sent);
        entry.acks = set(entry.acks);
        if let Kind::Write { skip, .. } = &mut entry.kind {
            *skip = set(*skip);
        }
        if let Kind::Sync {
            iss,
            trk,
            join,
            dirty,
            ..
        } = &mut entry.kind
        {
            *iss = set(*iss);
            *trk = set(*trk);
            *join = join.map(one);
            let before = *dirty;
            *dirty = order.map(|m| before[m]);
        }
    }
}

/// A quick hash: only the order of the keys matters, and only for the number of states.
struct Mix(u64);

impl Mix {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.add(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.add(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.add(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }
}
