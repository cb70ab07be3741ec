//! What a request's tag says: bits 0-3 the part, 4-23 the task slot, 24-55 the generation of the
//! task slot. The top 8 bits are left to the wiring and ignored.

use trilith_block::Tag;

/// A tag taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TagParts {
    pub(crate) part: usize,
    pub(crate) task: usize,
    pub(crate) generation: u32,
}

impl TagParts {
    /// The tag.
    pub(crate) fn tag(self) -> Tag {
        Tag(self.part as u64 & 0xf
            | (self.task as u64 & 0xf_ffff) << 4
            | u64::from(self.generation) << 24)
    }

    /// Takes a tag apart.
    pub(crate) fn of(tag: Tag) -> TagParts {
        let field = |shift: u32, mask: u64| u32::try_from(tag.0 >> shift & mask).unwrap_or(0);
        TagParts {
            part: field(0, 0xf) as usize,
            task: field(4, 0xf_ffff) as usize,
            generation: field(24, 0xffff_ffff),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_keeps_its_parts_in_the_low_56_bits() {
        let parts = TagParts {
            part: 0x3,
            task: 0xa_bcde,
            generation: 0x1234_5678,
        };
        assert_eq!(parts.tag(), Tag(0x0012_3456_78ab_cde3));
        assert_eq!(TagParts::of(Tag(0xff12_3456_78ab_cde3)), parts);
    }
}
