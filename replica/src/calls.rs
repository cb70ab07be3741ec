//! Calls to the store that it will answer by token, and what is to be answered then. A slab: no
//! allocation once it has grown to what is in use at a time.

use crate::session::Wanted;
use crate::store::Token;
use alloc::vec::Vec;
use trilith_block::{BlockRange, BufSlice, ConnId, Idx, Term};

/// What a call was made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// V1 of a vote.
    Vote,
    /// V3 of a vote.
    Drain,
    /// The last drain before the process stops.
    Stop,
    Reconcile,
    NeedSet,
    TermStart {
        start: Idx,
    },
    SyncSet {
        idx: Idx,
        n: u32,
    },
    Told {
        start: Idx,
    },
    Seal,
    Reconfigure,
    /// An epoch at a witness: a term's start when `n` is 0, else a SYNCSET.
    Witness {
        idx: Idx,
        n: u32,
    },
    Repair {
        tag: u64,
    },
    /// The buffer is this call's.
    Read {
        rid: u64,
        range: BlockRange,
        buf: BufSlice,
        wanted: Wanted,
    },
}

impl What {
    /// True for what the stream of the same engine waits behind: nothing more is read from its
    /// session until it is durable.
    pub(crate) fn is_control(self) -> bool {
        match self {
            What::Reconcile
            | What::NeedSet
            | What::TermStart { .. }
            | What::Told { .. }
            | What::Reconfigure
            | What::Witness { .. }
            | What::Seal => true,
            What::Vote
            | What::Drain
            | What::Stop
            | What::SyncSet { .. }
            | What::Repair { .. }
            | What::Read { .. } => false,
        }
    }
}

/// One call under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    /// Session to be answered.
    pub(crate) conn: ConnId,
    /// Term of the frame that asked.
    pub(crate) term: Term,
    pub(crate) what: What,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    call: Option<Call>,
}

/// All calls under way.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    places: Vec<Place>,
    free: Vec<u32>,
    controls: usize,
    reads: usize,
}

impl Calls {
    /// Notes a call; its token goes to the store.
    pub(crate) fn add(&mut self, call: Call) -> Token {
        self.controls += usize::from(call.what.is_control());
        self.reads += usize::from(matches!(call.what, What::Read { .. }));
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                call: None,
            });
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        place.call = Some(call);
        Token(u64::from(place.generation) << 32 | u64::from(index))
    }

    /// Takes a call out: it was answered, or the store refused it. `None` when it was forgotten.
    pub(crate) fn take(&mut self, token: Token) -> Option<Call> {
        let index = u32::try_from(token.0 & u64::from(u32::MAX)).ok()?;
        let place = self.places.get_mut(index as usize)?;
        if u64::from(place.generation) != token.0 >> 32 {
            return None;
        }
        let call = place.call.take()?;
        self.free.push(index);
        self.controls -= usize::from(call.what.is_control());
        self.reads -= usize::from(matches!(call.what, What::Read { .. }));
        Some(call)
    }

    /// Calls under way that the engine's session waits behind.
    pub(crate) fn controls(&self) -> usize {
        self.controls
    }

    /// READs under way.
    pub(crate) fn reads(&self) -> usize {
        self.reads
    }

    /// Every call under way, to be changed in place (not in kind).
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Call> + '_ {
        self.places.iter_mut().filter_map(|p| p.call.as_mut())
    }

    /// Takes out the calls that `gone` names.
    pub(crate) fn remove_if(&mut self, mut gone: impl FnMut(&Call) -> bool) {
        for index in 0..self.places.len() {
            let place = &self.places[index];
            if place.call.as_ref().is_some_and(&mut gone) {
                let index = u64::try_from(index).unwrap_or(0);
                let token = Token(u64::from(place.generation) << 32 | index);
                self.take(token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_answers_its_own_call_only_once() {
        let call = |what| Call {
            conn: ConnId(1),
            term: Term(1),
            what,
        };
        let mut calls = Calls::default();
        let a = calls.add(call(What::NeedSet));
        assert_eq!(calls.controls(), 1);
        assert_eq!(calls.take(a), Some(call(What::NeedSet)));
        assert_eq!(calls.take(a), None);
        let b = calls.add(call(What::Drain));
        assert_eq!(calls.take(a), None, "the place was used again");
        calls.remove_if(|c| c.what == What::Drain);
        assert_eq!(calls.take(b), None);
        assert_eq!(calls.controls(), 0);
    }
}
