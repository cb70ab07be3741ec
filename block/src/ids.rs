//! Identities: who, in which term, at which place of the stream.

use crate::limits::MEMBERS_MAX;
use core::fmt;

/// A 128-bit identity (volume, replica, engine, boot). All zeroes means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The absent identity.
    pub const NONE: Uuid = Uuid([0; 16]);

    /// True for [`Uuid::NONE`].
    pub fn is_none(self) -> bool {
        self == Uuid::NONE
    }

    /// Parses 32 hexadecimal digits, hyphens ignored. `None` when the text is anything else.
    pub fn parse(text: &str) -> Option<Uuid> {
        let mut bytes = [0u8; 16];
        let mut digits = 0usize;
        for c in text.chars().filter(|c| *c != '-') {
            let digit = u8::try_from(c.to_digit(16)?).ok()?;
            let byte = bytes.get_mut(digits / 2)?;
            *byte = (*byte << 4) | digit;
            digits += 1;
        }
        (digits == 32).then_some(Uuid(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Leadership number. At most one engine holds a term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Term(pub u64);

/// Position of an entry in the volume's stream. Never reused; 0 is before the first entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Idx(pub u64);

impl Idx {
    /// The place after this one.
    pub fn next(self) -> Idx {
        Idx(self.0 + 1)
    }
}

/// Sync epoch: names one in-sync set within a term. Ordered by term, then by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct SyncEpoch {
    /// Term whose TERMSTART opened it.
    pub term: Term,
    /// Number of the SYNCSET within the term; 0 is the TERMSTART itself.
    pub n: u32,
}

/// Index of a member in the volume's configuration, below [`MEMBERS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(u8);

impl MemberId {
    /// A member id, or `None` when `index` is not below [`MEMBERS_MAX`].
    pub fn new(index: usize) -> Option<MemberId> {
        (index < MEMBERS_MAX).then(|| MemberId(u8::try_from(index).unwrap_or(0)))
    }

    /// The id as an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of members as a bit mask, bit i = member i.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct MemberSet(pub u32);

impl MemberSet {
    /// The empty set.
    pub const EMPTY: MemberSet = MemberSet(0);

    /// Members 0 to `count` - 1.
    pub fn first(count: usize) -> MemberSet {
        debug_assert!(count <= MEMBERS_MAX);
        MemberSet((1u32 << count) - 1)
    }

    /// The set of one member.
    pub fn of(member: MemberId) -> MemberSet {
        MemberSet(1 << member.0)
    }

    /// True when `member` is in the set.
    pub fn contains(self, member: MemberId) -> bool {
        self.0 & (1 << member.0) != 0
    }

    /// The set with `member`.
    #[must_use]
    pub fn with(self, member: MemberId) -> MemberSet {
        MemberSet(self.0 | 1 << member.0)
    }

    /// The set without `member`.
    #[must_use]
    pub fn without(self, member: MemberId) -> MemberSet {
        MemberSet(self.0 & !(1 << member.0))
    }

    /// Members in both sets.
    #[must_use]
    pub fn and(self, other: MemberSet) -> MemberSet {
        MemberSet(self.0 & other.0)
    }

    /// Members in either set.
    #[must_use]
    pub fn or(self, other: MemberSet) -> MemberSet {
        MemberSet(self.0 | other.0)
    }

    /// Members of this set that are not in `other`.
    #[must_use]
    pub fn minus(self, other: MemberSet) -> MemberSet {
        MemberSet(self.0 & !other.0)
    }

    /// Number of members.
    pub fn count(self) -> usize {
        usize::try_from(self.0.count_ones()).unwrap_or(0)
    }

    /// How many of them are a majority.
    pub fn majority(self) -> usize {
        self.count() / 2 + 1
    }

    /// True when no member is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members in rising order.
    pub fn iter(self) -> impl Iterator<Item = MemberId> {
        (0..MEMBERS_MAX)
            .filter_map(MemberId::new)
            .filter(move |m| self.contains(*m))
    }
}

impl fmt::Debug for MemberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(MemberId::index))
            .finish()
    }
}
