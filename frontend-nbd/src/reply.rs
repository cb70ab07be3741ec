//! Heads of replies of the transmission phase, in each of the three modes.

use crate::error::NbdError;
use crate::proto::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// Which headers a connection uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum ReplyMode {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// Room for the longest head: an extended chunk header, an error, its text.
const HEAD_BYTES_MAX: usize = 80;

/// The bytes of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl Head {
    fn new() -> Head {
        Head {
            bytes: [0; HEAD_BYTES_MAX],
            len: 0,
        }
    }

    fn put(mut self, field: &[u8]) -> Head {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }

    fn u16(self, value: u16) -> Head {
        self.put(&value.to_be_bytes())
    }

    fn u32(self, value: u32) -> Head {
        self.put(&value.to_be_bytes())
    }

    fn u64(self, value: u64) -> Head {
        self.put(&value.to_be_bytes())
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Whom to answer: the mode of the connection, and the request's fields that replies repeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) mode: ReplyMode,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    /// A read must not be answered by a simple reply once structured replies are negotiated.
    pub(crate) read: bool,
}

impl Answer {
    /// Simple reply message.
    fn simple(self, error: u32) -> Head {
        Head::new()
            .u32(SIMPLE_REPLY_MAGIC)
            .u32(error)
            .u64(self.cookie)
    }

    /// Header of a reply chunk whose payload has `len` bytes. Not in simple mode.
    pub(crate) fn chunk(self, flags: u16, kind: u16, len: u64) -> Head {
        if self.mode == ReplyMode::Extended {
            Head::new()
                .u32(EXTENDED_REPLY_MAGIC)
                .u16(flags)
                .u16(kind)
                .u64(self.cookie)
                .u64(self.offset)
                .u64(len)
        } else {
            // Payloads of structured chunks are bounded far below 4 GiB.
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            Head::new()
                .u32(STRUCTURED_REPLY_MAGIC)
                .u16(flags)
                .u16(kind)
                .u64(self.cookie)
                .u32(len)
        }
    }

    /// The whole reply of a request that succeeded without data. Structured mode uses the shorter
    /// simple reply where it is allowed.
    pub(crate) fn success(self) -> Head {
        match self.mode {
            ReplyMode::Simple => self.simple(0),
            ReplyMode::Structured if !self.read => self.simple(0),
            ReplyMode::Structured | ReplyMode::Extended => self.chunk(chunk::DONE, chunk::NONE, 0),
        }
    }

    /// The whole reply, or the last chunk, of a request that failed.
    pub(crate) fn failure(self, error: NbdError) -> Head {
        if self.mode == ReplyMode::Simple {
            return self.simple(error.code());
        }
        let text = error.text();
        let text_len = u16::try_from(text.len()).unwrap_or(0);
        self.chunk(chunk::DONE, chunk::ERROR, 6 + u64::from(text_len))
            .u32(error.code())
            .u16(text_len)
            .put(text.as_bytes())
    }

    /// What precedes `len` bytes read from `offset`.
    pub(crate) fn content(self, done: bool, offset: u64, len: u64) -> Head {
        match self.mode {
            ReplyMode::Simple => self.simple(0),
            ReplyMode::Structured | ReplyMode::Extended => {
                let flags = if done { chunk::DONE } else { 0 };
                self.chunk(flags, chunk::OFFSET_DATA, 8 + len).u64(offset)
            }
        }
    }
}
