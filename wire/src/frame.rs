//! Frames: a 64-byte header, an extension of up to 2048 bytes, and a payload. Little-endian.

use crate::limits::{
    EXT_BYTES_MAX, HEAD_BYTES_MAX, HEADER_BYTES, MAP_BYTES_MAX, PAYLOAD_BYTES_MAX,
};
use crate::message::{Kind, Message};
use alloc::vec::Vec;
use trilith_block::Buffers;

/// First two bytes of every frame: "TL".
pub const MAGIC: u16 = 0x4c54;
/// Version of the frame layout.
pub const VERSION: u8 = 1;

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Wrong first bytes.
    #[error("frame magic: expected 0x4c54, found {0:#06x}")]
    Magic(u16),
    /// A layout that this build does not know.
    #[error("frame version: expected 1, found {0}")]
    Version(u8),
    /// A type that this build does not know.
    #[error("frame type: {0} is unknown")]
    Type(u8),
    /// The extension is longer than allowed or not what the type needs.
    #[error("frame type {kind}: extension of {len} bytes")]
    ExtLength {
        /// The frame's type.
        kind: u8,
        /// The extension's length in bytes.
        len: u32,
    },
    /// The payload is longer than allowed or not what the type needs.
    #[error("frame type {kind}: payload of {len} bytes")]
    PayloadLength {
        /// The frame's type.
        kind: u8,
        /// The payload's length in bytes.
        len: u32,
    },
    /// The checksum over header and extension is wrong.
    #[error("frame checksum: expected {expected:#010x}, found {found:#010x}")]
    Checksum {
        /// Computed over what arrived.
        expected: u32,
        /// Carried by the frame.
        found: u32,
    },
    /// A field has a value that its type does not allow.
    #[error("frame type {kind}: field {field} is out of range")]
    Field {
        /// The frame's type.
        kind: u8,
        /// The field's name.
        field: &'static str,
    },
}

/// The fields of a header as they are on the wire. What `a0` to `a4` mean depends on the type: see
/// [`Message`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Frame type, see [`Kind`].
    pub kind: u8,
    /// Type-specific bits.
    pub flags: u16,
    /// Length of the extension in units of 8 bytes.
    pub ext_len8: u16,
    /// Length of the payload in bytes.
    pub payload_len: u32,
    /// Term of the sender.
    pub term: u64,
    /// Position in the stream, where the type has one.
    pub idx: u64,
    /// First argument.
    pub a0: u64,
    /// Second argument.
    pub a1: u32,
    /// Third argument.
    pub a2: u32,
    /// Fourth argument.
    pub a3: u64,
    /// Fifth argument.
    pub a4: u64,
}

/// Reads a little-endian number at a fixed place; zero beyond the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}
/// See [`u16_at`].
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}
/// See [`u16_at`].
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// The type of the frame that starts with these bytes, which need not be checked. `None`: unknown, or
/// too few bytes.
pub fn kind_of(head: &[u8]) -> Option<Kind> {
    head.get(3).and_then(|byte| Kind::from_byte(*byte))
}

impl Header {
    fn encode(&self, out: &mut [u8]) {
        out[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        out[2] = VERSION;
        out[3] = self.kind;
        out[4..6].copy_from_slice(&self.flags.to_le_bytes());
        out[6..8].copy_from_slice(&self.ext_len8.to_le_bytes());
        out[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        out[12..16].copy_from_slice(&[0; 4]);
        out[16..24].copy_from_slice(&self.term.to_le_bytes());
        out[24..32].copy_from_slice(&self.idx.to_le_bytes());
        out[32..40].copy_from_slice(&self.a0.to_le_bytes());
        out[40..44].copy_from_slice(&self.a1.to_le_bytes());
        out[44..48].copy_from_slice(&self.a2.to_le_bytes());
        out[48..56].copy_from_slice(&self.a3.to_le_bytes());
        out[56..64].copy_from_slice(&self.a4.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Header, WireError> {
        let magic = u16_at(bytes, 0);
        if magic != MAGIC {
            return Err(WireError::Magic(magic));
        }
        if bytes[2] != VERSION {
            return Err(WireError::Version(bytes[2]));
        }
        let header = Header {
            kind: bytes[3],
            flags: u16_at(bytes, 4),
            ext_len8: u16_at(bytes, 6),
            payload_len: u32_at(bytes, 8),
            term: u64_at(bytes, 16),
            idx: u64_at(bytes, 24),
            a0: u64_at(bytes, 32),
            a1: u32_at(bytes, 40),
            a2: u32_at(bytes, 44),
            a3: u64_at(bytes, 48),
            a4: u64_at(bytes, 56),
        };
        let kind = Kind::from_byte(header.kind).ok_or(WireError::Type(header.kind))?;
        if usize::from(header.ext_len8) * 8 > EXT_BYTES_MAX {
            let len = u32::from(header.ext_len8) * 8;
            return Err(WireError::ExtLength {
                kind: header.kind,
                len,
            });
        }
        let payload_max = match kind {
            Kind::Append | Kind::Repair | Kind::Data => PAYLOAD_BYTES_MAX,
            Kind::Map | Kind::DirtyClear => MAP_BYTES_MAX,
            _ => 0,
        };
        if header.payload_len > payload_max {
            return Err(WireError::PayloadLength {
                kind: header.kind,
                len: header.payload_len,
            });
        }
        Ok(header)
    }
}

/// Turns messages into frame heads. Keeps its memory between calls.
#[derive(Debug, Default)]
pub struct Encoder {
    head: Vec<u8>,
}

impl Encoder {
    /// A new encoder.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// The head (header and extension, checksummed) of the frame for `message`, which is followed
    /// by `payload_len` bytes of payload.
    ///
    /// # Panics
    /// When a list in the message is longer than its limit (a bug of the caller).
    pub fn head(&mut self, message: &Message<'_>, payload_len: u32, data: &dyn Buffers) -> &[u8] {
        self.head.clear();
        self.head.resize(HEADER_BYTES, 0);
        let mut header = message.to_header(&mut self.head);
        let ext = self.head.len() - HEADER_BYTES;
        assert!(
            ext <= EXT_BYTES_MAX,
            "extension of {ext} bytes, at most {EXT_BYTES_MAX}"
        );
        self.head.resize(HEADER_BYTES + ext.next_multiple_of(8), 0);
        header.ext_len8 = u16::try_from(ext.div_ceil(8)).unwrap_or(u16::MAX);
        header.payload_len = payload_len;
        header.encode(&mut self.head[..HEADER_BYTES]);
        let crc = data.crc32c(0, &self.head);
        self.head[12..16].copy_from_slice(&crc.to_le_bytes());
        &self.head
    }
}

/// Turns bytes into frame heads. The owner asks [`Decoder::want`] how many bytes come next, gives
/// them to [`Decoder::feed`], and once that answers `true` looks at [`Decoder::message`] and
/// [`Decoder::payload_len`], receives the payload where it likes, and calls [`Decoder::reset`].
#[derive(Debug)]
pub struct Decoder {
    head: Vec<u8>,
    header: Header,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            head: Vec::with_capacity(HEAD_BYTES_MAX),
            header: Header::default(),
        }
    }
}

impl Decoder {
    /// A decoder at the start of a frame.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// How many bytes of head come next: the header first, then its extension. Zero: complete.
    pub fn want(&self) -> usize {
        if self.head.is_empty() {
            HEADER_BYTES
        } else {
            HEADER_BYTES + usize::from(self.header.ext_len8) * 8 - self.head.len()
        }
    }

    /// Takes the bytes that [`Decoder::want`] asked for. `Ok(true)`: the head is complete and its
    /// checksum is right.
    ///
    /// # Errors
    /// Any [`WireError`]; the stream is of no further use.
    ///
    /// # Panics
    /// When `bytes` is not as long as `want` said (a bug of the driver).
    pub fn feed(&mut self, bytes: &[u8], data: &dyn Buffers) -> Result<bool, WireError> {
        assert!(
            bytes.len() == self.want(),
            "{} bytes, wanted {}",
            bytes.len(),
            self.want()
        );
        if self.head.is_empty() {
            self.header = Header::decode(bytes)?;
        }
        self.head.extend_from_slice(bytes);
        if self.want() > 0 {
            return Ok(false);
        }
        let found = u32_at(&self.head, 12);
        self.head[12..16].fill(0);
        let expected = data.crc32c(0, &self.head);
        if found != expected {
            return Err(WireError::Checksum { expected, found });
        }
        Ok(true)
    }

    /// The complete head as a message.
    ///
    /// # Errors
    /// A field or a length that the type does not allow.
    pub fn message(&self) -> Result<Message<'_>, WireError> {
        Message::from_header(&self.header, self.head.get(HEADER_BYTES..).unwrap_or(&[]))
    }

    /// Bytes of payload that follow the complete head.
    pub fn payload_len(&self) -> u32 {
        self.header.payload_len
    }

    /// Ready for the next frame.
    pub fn reset(&mut self) {
        self.head.clear();
    }
}
