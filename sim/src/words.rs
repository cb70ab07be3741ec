//! Memory that outlives a process but not a power loss. A process can be killed between any two of
//! its stores: [`SimWords::kill_after`] makes all later stores of the dying process vanish.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use trilith_block::Words;

/// A host's tmpfs file. Clones are the same memory.
#[derive(Clone, Debug)]
pub struct SimWords {
    words: Rc<RefCell<Vec<u64>>>,
    stores_left: Rc<Cell<Option<u64>>>,
    dead: Rc<Cell<bool>>,
    /// What a process stored when it was dead already: it alone sees that, until its turn ends.
    ghosts: BTreeMap<usize, u64>,
}

impl SimWords {
    /// `len` words of zeroes.
    pub fn new(len: usize) -> SimWords {
        SimWords {
            words: Rc::new(RefCell::new(vec![0; len])),
            stores_left: Rc::new(Cell::new(None)),
            dead: Rc::new(Cell::new(false)),
            ghosts: BTreeMap::new(),
        }
    }

    /// Lets `stores` more stores happen; later ones vanish until [`SimWords::revive`].
    pub fn kill_after(&self, stores: u64) {
        self.stores_left.set(Some(stores));
    }

    /// The process is about to die between two stores.
    pub fn is_dying(&self) -> bool {
        self.stores_left.get().is_some()
    }

    /// A new process has the memory.
    pub fn revive(&self) {
        self.stores_left.set(None);
        self.dead.set(false);
    }

    /// True when a store has vanished: the process that made it is dead by now.
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Makes it at least `len` words long.
    pub fn grow(&self, len: usize) {
        let mut words = self.words.borrow_mut();
        if words.len() < len {
            words.resize(len, 0);
        }
    }

    /// All of it, for the name of a state.
    pub fn digest(&self, sum: &mut crate::digest::Sum) {
        for word in self.words.borrow().iter() {
            sum.word(*word);
        }
        sum.text(&(&self.stores_left, &self.dead, &self.ghosts));
    }

    /// The power was lost.
    pub fn lose(&self) {
        self.words.borrow_mut().fill(0);
    }
}

impl Words for SimWords {
    fn len(&self) -> usize {
        self.words.borrow().len()
    }

    fn load(&self, index: usize) -> u64 {
        match self.ghosts.get(&index) {
            Some(value) => *value,
            None => self.words.borrow()[index],
        }
    }

    fn store(&mut self, index: usize, value: u64) {
        if let Some(left) = self.stores_left.get() {
            if left == 0 {
                self.dead.set(true);
                self.ghosts.insert(index, value);
                return;
            }
            self.stores_left.set(Some(left - 1));
        }
        if !self.ghosts.is_empty() {
            self.ghosts.clear();
        }
        self.words.borrow_mut()[index] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_after_the_kill_vanish_and_power_loss_clears() {
        let host = SimWords::new(2);
        let mut process = host.clone();
        process.store(0, 5);
        host.kill_after(1);
        process.store(0, 6);
        process.store(1, 7);
        assert_eq!((host.load(0), host.load(1)), (6, 0));
        assert_eq!(process.load(1), 7, "the dying process sees what it did");
        host.revive();
        process.store(1, 8);
        assert_eq!(host.load(1), 8);
        host.lose();
        assert_eq!(host.load(0), 0);
    }
}
