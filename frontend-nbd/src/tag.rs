//! What a request's tag says: bits 0-7 the part, 8-23 the request slot, 24-39 the connection slot,
//! 40-55 the generation of the connection slot. The top 8 bits are left to the wiring and ignored.

use trilith_block::Tag;

/// A tag taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TagParts {
    pub(crate) part: u8,
    pub(crate) request: u16,
    pub(crate) slot: u16,
    pub(crate) generation: u16,
}

impl TagParts {
    /// The tag.
    pub(crate) fn tag(self) -> Tag {
        Tag(u64::from(self.part)
            | u64::from(self.request) << 8
            | u64::from(self.slot) << 24
            | u64::from(self.generation) << 40)
    }

    /// Takes a tag apart.
    pub(crate) fn of(tag: Tag) -> TagParts {
        let [_, g1, g0, s1, s0, r1, r0, part] = tag.0.to_be_bytes();
        TagParts {
            part,
            request: u16::from_be_bytes([r1, r0]),
            slot: u16::from_be_bytes([s1, s0]),
            generation: u16::from_be_bytes([g1, g0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_keeps_its_parts_in_the_low_56_bits() {
        let parts = TagParts {
            part: 0x12,
            request: 0x3456,
            slot: 0x789a,
            generation: 0xbcde,
        };
        assert_eq!(parts.tag(), Tag(0x00bc_de78_9a34_5612));
        assert_eq!(TagParts::of(Tag(0xffbc_de78_9a34_5612)), parts);
    }
}
