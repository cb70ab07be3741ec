//! Every choice of a run comes from here: from a seed, or from given bytes (a fuzzer's, a shrunk
//! case's). Owned by the world. When given bytes run out every draw is 0, which by convention is
//! the harmless choice (shortest delay, no fault), and [`Entropy::exhausted`] says so: the run then
//! goes to its healing phase and ends cleanly.

/// A source of choices.
#[derive(Clone, Debug)]
pub struct Entropy {
    source: Source,
    draws: u64,
}

#[derive(Clone, Debug)]
enum Source {
    Seed(u64),
    Bytes {
        bytes: Vec<u8>,
        at: usize,
    },
    /// Every draw is 0, and nothing is remembered of it.
    Still,
}

/// One step of splitmix64: advances `state` and returns a mixed value.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*state)
}

/// The finalizer of splitmix64.
pub fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Entropy {
    /// An endless source made from a seed.
    pub fn from_seed(seed: u64) -> Entropy {
        Entropy {
            source: Source::Seed(mix(seed ^ 0x7472_696c_6974_6821)),
            draws: 0,
        }
    }

    /// A source that is used up after `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Entropy {
        Entropy {
            source: Source::Bytes { bytes, at: 0 },
            draws: 0,
        }
    }

    /// A source that always makes the harmless choice and never changes: whoever draws from it goes
    /// by what it knows alone.
    pub fn still() -> Entropy {
        Entropy {
            source: Source::Still,
            draws: 0,
        }
    }

    /// A source of its own that does not share draws with this one (streams of choices that must
    /// not shift when another stream changes).
    pub fn fork(&mut self, label: u64) -> Entropy {
        match &mut self.source {
            Source::Seed(state) => Entropy {
                source: Source::Seed(mix(splitmix(state) ^ label)),
                draws: 0,
            },
            Source::Still => Entropy::still(),
            Source::Bytes { bytes, at } => {
                let rest = bytes.len().saturating_sub(*at);
                let end = bytes.len() - rest / 2;
                let tail = bytes.split_off(end);
                Entropy::from_bytes(tail)
            }
        }
    }

    /// True once given bytes have run out. Never true for a seed.
    pub fn exhausted(&self) -> bool {
        match &self.source {
            Source::Seed(_) | Source::Still => false,
            Source::Bytes { bytes, at } => *at >= bytes.len(),
        }
    }

    /// Number of draws so far.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    fn take(&mut self, width: usize) -> u64 {
        if matches!(self.source, Source::Still) {
            return 0;
        }
        self.draws += 1;
        match &mut self.source {
            Source::Still => 0,
            Source::Seed(state) => splitmix(state),
            Source::Bytes { bytes, at } => {
                let mut value = 0;
                for _ in 0..width {
                    value = value << 8 | u64::from(bytes.get(*at).copied().unwrap_or(0));
                    *at += 1;
                }
                value
            }
        }
    }

    /// Any 64 bits.
    pub fn any(&mut self) -> u64 {
        self.take(8)
    }

    /// A number below `limit`; 0 when `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit <= 1 {
            return 0;
        }
        let width = if limit <= 1 << 8 {
            1
        } else if limit <= 1 << 16 {
            2
        } else if limit <= 1 << 32 {
            4
        } else {
            8
        };
        self.take(width) % limit
    }

    /// A number from `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high, "range from {low} to {high}");
        low + self.below(high - low + 1)
    }

    /// True in `parts` of `whole` cases. The exhausted draw is false unless `parts == whole`.
    pub fn chance(&mut self, parts: u64, whole: u64) -> bool {
        parts > 0 && self.below(whole) + parts >= whole
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(u64::try_from(len).unwrap_or(0))).unwrap_or(0)
    }

    /// One of `items`. Panics when there is none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())]
    }

    /// A length from `low` to `high` whose logarithm is about evenly spread: mostly short, now and
    /// then long.
    pub fn skewed(&mut self, low: u64, high: u64) -> u64 {
        if high <= low {
            return low;
        }
        let bits = u64::from((high - low).ilog2()) + 1;
        let chosen = self.below(bits + 1);
        let top = (1u64 << chosen).saturating_sub(1).min(high - low);
        low + self.below(top + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_up_bytes_give_the_harmless_choice() {
        let mut entropy = Entropy::from_bytes(vec![0xff, 0x01]);
        assert!(entropy.chance(1, 256), "the highest byte is the rare case");
        assert!(!entropy.exhausted());
        assert_eq!(entropy.below(256), 1);
        assert!(entropy.exhausted());
        assert!(!entropy.chance(1, 2));
        assert_eq!(entropy.range(5, 9), 5);
        assert_eq!(entropy.skewed(3, 100), 3);
    }

    #[test]
    fn equal_seeds_give_equal_choices_and_forks_differ() {
        let (mut a, mut b) = (Entropy::from_seed(7), Entropy::from_seed(7));
        let (mut fa, mut fb) = (a.fork(1), b.fork(1));
        for _ in 0..100 {
            assert_eq!(a.any(), b.any());
            assert_eq!(fa.any(), fb.any());
        }
        assert_ne!(a.any(), fa.any());
    }
}
