//! Values by key. A key is never used twice, so an answer that names a gone value finds nothing.

use alloc::vec::Vec;

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by key; memory is reused.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    count: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
        }
    }
}

fn index(key: u64) -> usize {
    usize::try_from(key & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

impl<T> Slab<T> {
    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Stores a value; the key is never 0 and below 2^63.
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[at as usize];
        slot.generation = (slot.generation + 1) & (u32::MAX >> 1);
        slot.generation = slot.generation.max(1);
        slot.value = Some(value);
        self.count += 1;
        u64::from(slot.generation) << 32 | u64::from(at)
    }

    fn slot(&self, key: u64) -> Option<&Slot<T>> {
        self.slots
            .get(index(key))
            .filter(|s| u64::from(s.generation) == key >> 32)
    }

    pub(crate) fn get(&self, key: u64) -> Option<&T> {
        self.slot(key)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(index(key))?;
        if u64::from(slot.generation) == key >> 32 {
            slot.value.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        self.slot(key)?;
        let value = self.slots[index(key)].value.take()?;
        self.free
            .push(u32::try_from(index(key)).unwrap_or(u32::MAX));
        self.count -= 1;
        Some(value)
    }

    /// Takes a value out for a while: its key stays used until `put_back` or `forget`.
    pub(crate) fn remove_for_change(&mut self, key: u64) -> Option<T> {
        self.slot(key)?;
        self.slots[index(key)].value.take()
    }

    /// Ends [`Slab::remove_for_change`].
    pub(crate) fn put_back(&mut self, key: u64, value: T) {
        debug_assert!(
            self.slot(key).is_some_and(|s| s.value.is_none()),
            "key {key:#x} in use"
        );
        self.slots[index(key)].value = Some(value);
    }

    /// Ends [`Slab::remove_for_change`]: the value does not come back.
    pub(crate) fn forget(&mut self, key: u64) {
        debug_assert!(
            self.slot(key).is_some_and(|s| s.value.is_none()),
            "key {key:#x} in use"
        );
        self.free
            .push(u32::try_from(index(key)).unwrap_or(u32::MAX));
        self.count -= 1;
    }

    /// Keys and values, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> + '_ {
        self.slots.iter().zip(0u64..).filter_map(|(slot, at)| {
            slot.value
                .as_ref()
                .map(|v| (u64::from(slot.generation) << 32 | at, v))
        })
    }

    /// The keys of the values that `wanted` names.
    pub(crate) fn keys(&self, wanted: impl Fn(&T) -> bool) -> Vec<u64> {
        self.iter()
            .filter(|(_, v)| wanted(v))
            .map(|(k, _)| k)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_key_finds_nothing_although_its_place_is_used_again() {
        let mut slab = Slab::default();
        let first = slab.insert(1);
        assert_eq!(slab.remove(first), Some(1));
        let second = slab.insert(2);
        assert_eq!(index(first), index(second));
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&2));
        assert_eq!(slab.len(), 1);
    }
}
