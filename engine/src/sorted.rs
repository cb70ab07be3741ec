//! A sorted set in one run of memory, which it keeps: for sets that fill and empty all the time and
//! whose new values belong near the end. Cost of a change: the values between it and the nearer end.

use alloc::collections::VecDeque;

/// Values by rising order, each once.
#[derive(Debug)]
pub(crate) struct Sorted<T> {
    values: VecDeque<T>,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted {
            values: VecDeque::new(),
        }
    }
}

impl<T: Ord> Sorted<T> {
    pub(crate) fn insert(&mut self, value: T) {
        if let Err(at) = self.values.binary_search(&value) {
            self.values.insert(at, value);
        }
    }

    /// A value that is not there is ignored.
    pub(crate) fn remove(&mut self, value: &T) {
        if let Ok(at) = self.values.binary_search(value) {
            self.values.remove(at);
        }
    }

    /// The lowest value.
    pub(crate) fn first(&self) -> Option<&T> {
        self.values.front()
    }

    pub(crate) fn pop_first(&mut self) -> Option<T> {
        self.values.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_holds_what_a_tree_would_hold() {
        let mut rng = crate::rng::Rng::new(&[5; 32]);
        let mut sorted = Sorted::default();
        let mut tree = BTreeSet::new();
        for _ in 0..5000 {
            let value = rng.next() % 40;
            match rng.next() % 5 {
                0..=2 => {
                    sorted.insert(value);
                    tree.insert(value);
                }
                3 => {
                    sorted.remove(&value);
                    tree.remove(&value);
                }
                _ => assert_eq!(sorted.pop_first(), tree.pop_first()),
            }
            assert_eq!(sorted.first(), tree.first());
            assert!(sorted.values.iter().eq(tree.iter()));
        }
    }
}
