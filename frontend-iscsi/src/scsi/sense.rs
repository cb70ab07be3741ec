//! Sense data (SPC-4 4.5): what went wrong, in fixed or descriptor format.

use crate::bytes::{put16, put32, put64};
use trilith_block::ErrorKind;

/// SCSI statuses (SAM-5 5.3).
pub(crate) mod status {
    pub(crate) const GOOD: u8 = 0x00;
    pub(crate) const CHECK_CONDITION: u8 = 0x02;
    pub(crate) const BUSY: u8 = 0x08;
    pub(crate) const RESERVATION_CONFLICT: u8 = 0x18;
    pub(crate) const TASK_SET_FULL: u8 = 0x28;
}

/// Sense keys.
pub(crate) mod key {
    pub(crate) const NO_SENSE: u8 = 0x0;
    pub(crate) const NOT_READY: u8 = 0x2;
    pub(crate) const MEDIUM_ERROR: u8 = 0x3;
    pub(crate) const ILLEGAL_REQUEST: u8 = 0x5;
    pub(crate) const UNIT_ATTENTION: u8 = 0x6;
    pub(crate) const DATA_PROTECT: u8 = 0x7;
    pub(crate) const COPY_ABORTED: u8 = 0xa;
    pub(crate) const ABORTED_COMMAND: u8 = 0xb;
    pub(crate) const MISCOMPARE: u8 = 0xe;
}

/// Longest sense data that we make, in bytes.
pub(crate) const SENSE_BYTES_MAX: usize = 28;

/// Additional sense code and qualifier of a unit attention.
pub(crate) type Attention = u16;

/// Unit attentions.
pub(crate) mod attention {
    use super::Attention;

    pub(crate) const POWER_ON: Attention = 0x2900;
    pub(crate) const TARGET_RESET: Attention = 0x2903;
    pub(crate) const MODE_CHANGED: Attention = 0x2a01;
    pub(crate) const RESERVATIONS_PREEMPTED: Attention = 0x2a03;
    pub(crate) const RESERVATIONS_RELEASED: Attention = 0x2a04;
    pub(crate) const REGISTRATIONS_PREEMPTED: Attention = 0x2a05;
}

/// Where an illegal field is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FieldPointer {
    /// In the CDB, not in the parameter list.
    pub(crate) in_cdb: bool,
    pub(crate) byte: u16,
}

/// Why a command ends with CHECK CONDITION.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sense {
    pub(crate) key: u8,
    /// Additional sense code and its qualifier.
    pub(crate) code: u16,
    /// The INFORMATION field.
    pub(crate) information: Option<u64>,
    pub(crate) field: Option<FieldPointer>,
    /// Progress of SANITIZE in 65536ths.
    pub(crate) progress: Option<u16>,
}

impl Sense {
    pub(crate) const fn new(key: u8, code: u16) -> Sense {
        Sense {
            key,
            code,
            information: None,
            field: None,
            progress: None,
        }
    }

    pub(crate) const NONE: Sense = Sense::new(key::NO_SENSE, 0);
    pub(crate) const INVALID_OPCODE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2000);
    pub(crate) const LBA_RANGE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2100);
    pub(crate) const INVALID_FIELD: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2400);
    pub(crate) const NO_UNIT: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2500);
    pub(crate) const INVALID_PARAMETER: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2600);
    pub(crate) const INVALID_RELEASE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2604);
    pub(crate) const TOO_MANY_TARGETS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2606);
    pub(crate) const TARGET_TYPE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2607);
    pub(crate) const TOO_MANY_SEGMENTS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2608);
    pub(crate) const SEGMENT_TYPE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2609);
    pub(crate) const INLINE_DATA: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x260b);
    pub(crate) const PARAMETER_LENGTH: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x1a00);
    pub(crate) const REGISTRATION_RESOURCES: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x5504);
    pub(crate) const WRITE_PROTECTED: Sense = Sense::new(key::DATA_PROTECT, 0x2700);
    pub(crate) const SPACE_EXHAUSTED: Sense = Sense::new(key::DATA_PROTECT, 0x2707);
    pub(crate) const READ_ERROR: Sense = Sense::new(key::MEDIUM_ERROR, 0x1100);
    pub(crate) const WRITE_ERROR: Sense = Sense::new(key::MEDIUM_ERROR, 0x0c00);
    pub(crate) const NOT_ACCESSIBLE: Sense = Sense::new(key::NOT_READY, 0x040c);
    pub(crate) const MISCOMPARE: Sense = Sense::new(key::MISCOMPARE, 0x1d00);
    pub(crate) const COPY_ABORTED: Sense = Sense::new(key::COPY_ABORTED, 0x0000);
    pub(crate) const COPY_UNREACHABLE: Sense = Sense::new(key::COPY_ABORTED, 0x0d02);
    pub(crate) const COPY_FAILED: Sense = Sense::new(key::COPY_ABORTED, 0x0d01);
    pub(crate) const DATA_PHASE: Sense = Sense::new(key::ABORTED_COMMAND, 0x4b00);
    pub(crate) const DATA_DIGEST: Sense = Sense::new(key::ABORTED_COMMAND, 0x4705);
    pub(crate) const UNEXPECTED_DATA: Sense = Sense::new(key::ABORTED_COMMAND, 0x0c0c);
    pub(crate) const SANITIZING: Sense = Sense::new(key::NOT_READY, 0x041b);
    pub(crate) const SANITIZE_FAILED: Sense = Sense::new(key::MEDIUM_ERROR, 0x3103);
    pub(crate) const STATE_NOT_KEPT: Sense = Sense::new(key::ABORTED_COMMAND, 0x4400);

    /// INVALID FIELD IN CDB at a byte.
    pub(crate) const fn cdb(byte: u16) -> Sense {
        let mut sense = Sense::INVALID_FIELD;
        sense.field = Some(FieldPointer { in_cdb: true, byte });
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST at a byte.
    pub(crate) const fn parameter(byte: u16) -> Sense {
        let mut sense = Sense::INVALID_PARAMETER;
        sense.field = Some(FieldPointer {
            in_cdb: false,
            byte,
        });
        sense
    }

    /// A miscompare at byte `at` of the data.
    pub(crate) fn miscompare(at: u64) -> Sense {
        Sense {
            information: Some(at),
            ..Sense::MISCOMPARE
        }
    }

    pub(crate) fn attention(code: Attention) -> Sense {
        Sense::new(key::UNIT_ATTENTION, code)
    }

    /// What an error of the engine becomes.
    pub(crate) fn of_engine(kind: ErrorKind, writes: bool) -> Sense {
        match kind {
            ErrorKind::InvalidRange => Sense::LBA_RANGE,
            ErrorKind::NoSpace => Sense::SPACE_EXHAUSTED,
            ErrorKind::ReadOnly => Sense::WRITE_PROTECTED,
            ErrorKind::Io if writes => Sense::WRITE_ERROR,
            ErrorKind::Io => Sense::READ_ERROR,
            ErrorKind::Fenced => Sense::NOT_ACCESSIBLE,
            ErrorKind::NotSupported => Sense::INVALID_FIELD,
        }
    }

    fn specific(&self) -> Option<[u8; 3]> {
        if let Some(progress) = self.progress {
            let [a, b] = progress.to_be_bytes();
            return Some([0x80, a, b]);
        }
        self.field.map(|field| {
            let [a, b] = field.byte.to_be_bytes();
            [if field.in_cdb { 0xc0 } else { 0x80 }, a, b]
        })
    }

    /// Encodes; returns the bytes and how many of them are used.
    pub(crate) fn encode(&self, descriptor_format: bool) -> ([u8; SENSE_BYTES_MAX], usize) {
        let mut bytes = [0; SENSE_BYTES_MAX];
        if descriptor_format {
            let len = self.encode_descriptors(&mut bytes);
            return (bytes, len);
        }
        bytes[0] = 0x70;
        bytes[2] = self.key;
        if let Some(Ok(information)) = self.information.map(u32::try_from) {
            bytes[0] |= 0x80;
            put32(&mut bytes, 3, information);
        }
        bytes[7] = 10;
        put16(&mut bytes, 12, self.code);
        if let Some(specific) = self.specific() {
            bytes[15..18].copy_from_slice(&specific);
        }
        (bytes, 18)
    }

    fn encode_descriptors(&self, bytes: &mut [u8; SENSE_BYTES_MAX]) -> usize {
        bytes[0] = 0x72;
        bytes[1] = self.key;
        put16(bytes, 2, self.code);
        let mut len = 8;
        if let Some(information) = self.information {
            bytes[len + 1] = 0x0a;
            bytes[len + 2] = 0x80;
            put64(bytes, len + 4, information);
            len += 12;
        }
        if let Some(specific) = self.specific() {
            bytes[len] = 2;
            bytes[len + 1] = 6;
            bytes[len + 4..len + 7].copy_from_slice(&specific);
            len += 8;
        }
        bytes[7] = u8::try_from(len - 8).unwrap_or(0);
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let sense = Sense::miscompare(0x1234);
        let (fixed, len) = sense.encode(false);
        assert_eq!(len, 18);
        assert_eq!(
            (fixed[0], fixed[2], fixed[6], fixed[12]),
            (0xf0, 0xe, 0x34, 0x1d)
        );
        let (descriptors, len) = sense.encode(true);
        assert_eq!(len, 20);
        assert_eq!(&descriptors[..4], &[0x72, 0xe, 0x1d, 0]);
        assert_eq!(&descriptors[18..20], &[0x12, 0x34]);
        let (fixed, _) = Sense::cdb(7).encode(false);
        assert_eq!(&fixed[15..18], &[0xc0, 0, 7]);
        let mut both = Sense::parameter(3);
        both.information = Some(1);
        assert_eq!(both.encode(true).1, SENSE_BYTES_MAX);
    }

    #[test]
    fn every_error_of_the_engine_has_its_sense() {
        for kind in ErrorKind::ALL {
            for writes in [false, true] {
                assert_ne!(
                    Sense::of_engine(kind, writes).key,
                    key::NO_SENSE,
                    "{kind:?}"
                );
            }
        }
        assert_eq!(Sense::of_engine(ErrorKind::NoSpace, true).code, 0x2707);
    }
}
