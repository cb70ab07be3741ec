//! The basic header segment (RFC 7143 11.2) and the numbers in it.

use crate::bytes::{be16, be24, be32, put, put16, put24, put32};

/// Bytes of a basic header segment.
pub(crate) const BHS_BYTES: usize = 48;
/// Bytes of a digest.
pub(crate) const DIGEST_BYTES: usize = 4;
/// The tag that means "none".
pub(crate) const NO_TAG: u32 = u32::MAX;

/// Opcodes.
pub(crate) mod opcode {
    pub(crate) const NOP_OUT: u8 = 0x00;
    pub(crate) const COMMAND: u8 = 0x01;
    pub(crate) const TASK_MANAGEMENT: u8 = 0x02;
    pub(crate) const LOGIN: u8 = 0x03;
    pub(crate) const TEXT: u8 = 0x04;
    pub(crate) const DATA_OUT: u8 = 0x05;
    pub(crate) const LOGOUT: u8 = 0x06;
    pub(crate) const SNACK: u8 = 0x10;
    pub(crate) const NOP_IN: u8 = 0x20;
    pub(crate) const RESPONSE: u8 = 0x21;
    pub(crate) const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub(crate) const LOGIN_RESPONSE: u8 = 0x23;
    pub(crate) const TEXT_RESPONSE: u8 = 0x24;
    pub(crate) const DATA_IN: u8 = 0x25;
    pub(crate) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(crate) const R2T: u8 = 0x31;
    pub(crate) const ASYNC: u8 = 0x32;
    pub(crate) const REJECT: u8 = 0x3f;
}

/// Flags of byte 1.
pub(crate) mod flag {
    /// Last PDU of a sequence.
    pub(crate) const FINAL: u8 = 0x80;
    /// SCSI command: data comes in (to the initiator).
    pub(crate) const READ: u8 = 0x40;
    /// SCSI command: data goes out (to the target).
    pub(crate) const WRITE: u8 = 0x20;
    /// Residual overflow.
    pub(crate) const OVERFLOW: u8 = 0x04;
    /// Residual underflow.
    pub(crate) const UNDERFLOW: u8 = 0x02;
    /// Data-In carries the status.
    pub(crate) const STATUS: u8 = 0x01;
    /// Login and text: more text of this step follows.
    pub(crate) const CONTINUE: u8 = 0x40;
}

/// Reasons of a Reject (RFC 7143 11.17.1).
pub(crate) mod reason {
    pub(crate) const DATA_DIGEST: u8 = 0x02;
    pub(crate) const SNACK: u8 = 0x03;
    pub(crate) const PROTOCOL: u8 = 0x04;
    pub(crate) const NOT_SUPPORTED: u8 = 0x05;
    pub(crate) const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub(crate) const OUT_OF_RESOURCES: u8 = 0x0a;
}

/// A basic header segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bhs(pub(crate) [u8; BHS_BYTES]);

impl Bhs {
    /// A header of a PDU of ours.
    pub(crate) fn new(opcode: u8, flags: u8) -> Bhs {
        let mut bytes = [0; BHS_BYTES];
        bytes[0] = opcode;
        bytes[1] = flags;
        Bhs(bytes)
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    pub(crate) fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    pub(crate) fn flags(&self) -> u8 {
        self.0[1]
    }

    pub(crate) fn is_final(&self) -> bool {
        self.0[1] & flag::FINAL != 0
    }

    /// Length of the additional header segments in bytes.
    pub(crate) fn ahs_bytes(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    pub(crate) fn data_bytes(&self) -> u32 {
        be24(&self.0, 5)
    }

    pub(crate) fn lun(&self) -> [u8; 8] {
        let mut lun = [0; 8];
        lun.copy_from_slice(&self.0[8..16]);
        lun
    }

    pub(crate) fn itt(&self) -> u32 {
        be32(&self.0, 16)
    }

    /// Target transfer tag, referenced task tag or expected data transfer length.
    pub(crate) fn word20(&self) -> u32 {
        be32(&self.0, 20)
    }

    pub(crate) fn cmd_sn(&self) -> u32 {
        be32(&self.0, 24)
    }

    pub(crate) fn word(&self, at: usize) -> u32 {
        be32(&self.0, at)
    }

    pub(crate) fn half(&self, at: usize) -> u16 {
        be16(&self.0, at)
    }

    #[must_use]
    pub(crate) fn with(mut self, at: usize, value: &[u8]) -> Bhs {
        put(&mut self.0, at, value);
        self
    }

    #[must_use]
    pub(crate) fn with_byte(mut self, at: usize, value: u8) -> Bhs {
        self.0[at] = value;
        self
    }

    #[must_use]
    pub(crate) fn with16(mut self, at: usize, value: u16) -> Bhs {
        put16(&mut self.0, at, value);
        self
    }

    #[must_use]
    pub(crate) fn with32(mut self, at: usize, value: u32) -> Bhs {
        put32(&mut self.0, at, value);
        self
    }

    #[must_use]
    pub(crate) fn with_data_bytes(mut self, len: u32) -> Bhs {
        put24(&mut self.0, 5, len);
        self
    }
}

/// True when serial number `a` is before `b` (RFC 1982, as RFC 7143 4.2.2.1 asks).
pub(crate) fn before(a: u32, b: u32) -> bool {
    let ahead = b.wrapping_sub(a);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_compare_over_the_wrap() {
        for (a, b, expected) in [
            (0, 1, true),
            (1, 0, false),
            (5, 5, false),
            (u32::MAX, 0, true),
            (u32::MAX - 3, 10, true),
            (10, u32::MAX - 3, false),
        ] {
            assert_eq!(before(a, b), expected, "{a} before {b}");
        }
    }

    #[test]
    fn fields_are_where_the_rfc_has_them() {
        let bhs = Bhs::new(opcode::R2T, flag::FINAL)
            .with_data_bytes(0x01_0203)
            .with32(16, 7)
            .with32(20, 9);
        assert_eq!((bhs.opcode(), bhs.data_bytes()), (0x31, 0x01_0203));
        assert_eq!((bhs.itt(), bhs.word20(), bhs.is_final()), (7, 9, true));
        assert_eq!(&bhs.0[4..8], &[0, 1, 2, 3]);
    }
}
