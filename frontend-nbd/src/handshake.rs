//! Option haggling of one connection: what an option's data must look like, and its replies.
//! Nothing here sends; replies are appended to a byte vector.

use crate::config::NbdConfig;
use crate::extents::{CONTEXTS, Context};
use crate::limits::{META_QUERIES_MAX, OPTION_BYTES_MAX, REQUEST_BYTES_MAX, STRING_BYTES_MAX};
use crate::proto::{
    EXPORT_NAME_ZEROES, IHAVEOPT, INIT_PASSWD, OPTION_REPLY_MAGIC, be16, be32, handshake, info,
    option, reply, transmission,
};
use crate::reply::ReplyMode;
use alloc::vec::Vec;

/// What one connection has negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Session {
    pub(crate) mode: ReplyMode,
    /// The client asked not to get the zeroes after the answer to `NBD_OPT_EXPORT_NAME`.
    pub(crate) no_zeroes: bool,
    /// Selected metadata contexts, as bits of [`Context::bit`].
    pub(crate) contexts: u32,
}

/// What to do with the data of an option that was announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Intake {
    /// Keep it (it may be empty), then look at the option.
    Keep,
    /// Throw it away, then give this reply.
    Skip(u32),
    /// The option cannot be refused: close.
    Close,
}

/// What follows an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// The next option.
    Option,
    /// The transmission phase.
    Transmission,
    /// The end of the connection, after the replies.
    Close,
}

/// The server's greeting: fixed newstyle, no zeroes.
pub(crate) fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&INIT_PASSWD.to_be_bytes());
    bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
    bytes[16..].copy_from_slice(&(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
    bytes
}

/// What to do with `len` bytes of data of option `kind`.
pub(crate) fn intake(kind: u32, len: u32) -> Intake {
    match kind {
        option::EXPORT_NAME if len > STRING_BYTES_MAX => Intake::Close,
        option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT
            if len > OPTION_BYTES_MAX =>
        {
            Intake::Skip(reply::ERR_TOO_BIG)
        }
        option::LIST | option::STARTTLS | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS
            if len > 0 =>
        {
            Intake::Skip(reply::ERR_INVALID)
        }
        // Data with an abort is to be ignored.
        option::ABORT if len > 0 => Intake::Skip(reply::ACK),
        option::EXPORT_NAME
        | option::ABORT
        | option::LIST
        | option::STARTTLS
        | option::INFO
        | option::GO
        | option::STRUCTURED_REPLY
        | option::LIST_META_CONTEXT
        | option::SET_META_CONTEXT
        | option::EXTENDED_HEADERS => Intake::Keep,
        _ if len > 0 => Intake::Skip(reply::ERR_UNSUP),
        _ => Intake::Keep,
    }
}

impl Session {
    /// Takes the client flags. False when the connection must be dropped: an unknown flag.
    pub(crate) fn client_flags(&mut self, flags: u32) -> bool {
        let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        flags & !known == 0
    }

    /// Transmission flags as they are now.
    pub(crate) fn transmission_flags(&self, export: &NbdConfig) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::CAN_MULTI_CONN
            | transmission::SEND_CACHE;
        if export.read_only {
            flags |= transmission::READ_ONLY;
        } else {
            flags |= transmission::SEND_TRIM
                | transmission::SEND_WRITE_ZEROES
                | transmission::SEND_FAST_ZERO;
        }
        if self.mode != ReplyMode::Simple {
            flags |= transmission::SEND_DF;
        }
        flags
    }

    /// Answers an option whose data was thrown away.
    pub(crate) fn skipped(&mut self, kind: u32, error: u32, out: &mut Vec<u8>) -> Next {
        if kind == option::SET_META_CONTEXT {
            // A SET_META_CONTEXT that fails clears the selection too.
            self.contexts = 0;
        }
        respond(out, kind, error, &[]);
        if kind == option::ABORT {
            Next::Close
        } else {
            Next::Option
        }
    }

    /// Answers an option with its data. `serving`: the volume is not going away.
    pub(crate) fn option(
        &mut self,
        export: &NbdConfig,
        serving: bool,
        kind: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Next {
        if kind == option::ABORT {
            respond(out, kind, reply::ACK, &[]);
            return Next::Close;
        }
        if kind == option::EXPORT_NAME {
            return self.export_name(export, serving, data, out);
        }
        if !serving {
            return self.skipped(kind, reply::ERR_SHUTDOWN, out);
        }
        let result = match kind {
            option::LIST => {
                list(export, out);
                Ok(())
            }
            option::INFO => self.info(export, kind, data, out),
            option::GO => match self.info(export, kind, data, out) {
                Ok(()) => {
                    respond(out, kind, reply::ACK, &[]);
                    return Next::Transmission;
                }
                Err(error) => Err(error),
            },
            option::STRUCTURED_REPLY => self.structured_reply(),
            option::EXTENDED_HEADERS => {
                self.mode = ReplyMode::Extended;
                Ok(())
            }
            option::LIST_META_CONTEXT => self.list_contexts(export, data, out),
            option::SET_META_CONTEXT => self.set_contexts(export, data, out),
            // STARTTLS among them: no TLS in this server.
            _ => Err(reply::ERR_UNSUP),
        };
        respond(out, kind, result.err().unwrap_or(reply::ACK), &[]);
        Next::Option
    }

    /// `NBD_OPT_EXPORT_NAME` has no error reply: whatever is wrong ends the connection.
    fn export_name(
        &self,
        export: &NbdConfig,
        serving: bool,
        name: &[u8],
        out: &mut Vec<u8>,
    ) -> Next {
        // Extended headers: a client MUST NOT use this option after them.
        if !serving || !export.is_named(name) || self.mode == ReplyMode::Extended {
            return Next::Close;
        }
        out.extend_from_slice(&export.size().to_be_bytes());
        out.extend_from_slice(&self.transmission_flags(export).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        Next::Transmission
    }

    fn structured_reply(&mut self) -> Result<(), u32> {
        match self.mode {
            // Extended headers take precedence; there is no way back.
            ReplyMode::Extended => Err(reply::ERR_EXT_HEADER_REQD),
            ReplyMode::Simple | ReplyMode::Structured => {
                self.mode = ReplyMode::Structured;
                Ok(())
            }
        }
    }

    /// The `NBD_REP_INFO` replies of INFO and GO.
    fn info(
        &self,
        export: &NbdConfig,
        kind: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), u32> {
        let (name, rest) = string(data).ok_or(reply::ERR_INVALID)?;
        let count = usize::from(be16(rest, 0).ok_or(reply::ERR_INVALID)?);
        let wanted = &rest[2..];
        if wanted.len() != 2 * count {
            return Err(reply::ERR_INVALID);
        }
        if !export.is_named(name) {
            return Err(reply::ERR_UNKNOWN);
        }
        let asked = |what: u16| {
            wanted
                .chunks_exact(2)
                .any(|item| item == what.to_be_bytes())
        };
        let flags = self.transmission_flags(export);
        let size = export.size().to_be_bytes();
        respond(
            out,
            kind,
            reply::INFO,
            &[&info::EXPORT.to_be_bytes(), &size, &flags.to_be_bytes()],
        );
        if asked(info::NAME) {
            let name = export.export_name.as_bytes();
            respond(out, kind, reply::INFO, &[&info::NAME.to_be_bytes(), name]);
        }
        if asked(info::DESCRIPTION) && !export.description.is_empty() {
            let text = export.description.as_bytes();
            respond(
                out,
                kind,
                reply::INFO,
                &[&info::DESCRIPTION.to_be_bytes(), text],
            );
        }
        if asked(info::BLOCK_SIZE) {
            let preferred = export.volume.capabilities.block_bytes;
            let payload_max = u32::try_from(REQUEST_BYTES_MAX).unwrap_or(u32::MAX);
            respond(
                out,
                kind,
                reply::INFO,
                &[
                    &info::BLOCK_SIZE.to_be_bytes(),
                    &1u32.to_be_bytes(),
                    &preferred.to_be_bytes(),
                    &payload_max.to_be_bytes(),
                ],
            );
        }
        Ok(())
    }

    fn list_contexts(&self, export: &NbdConfig, data: &[u8], out: &mut Vec<u8>) -> Result<(), u32> {
        let queries = self.context_option(export, data)?;
        let listed =
            |context: &&Context| queries.is_empty() || queries.any(|q| is_listed(q, context));
        for context in CONTEXTS.iter().filter(listed) {
            // The id is reserved in this reply.
            context_reply(out, option::LIST_META_CONTEXT, 0, context);
        }
        Ok(())
    }

    fn set_contexts(
        &mut self,
        export: &NbdConfig,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), u32> {
        // The old selection goes even when this fails.
        self.contexts = 0;
        let queries = self.context_option(export, data)?;
        let selected = |context: &&Context| queries.any(|q| q == context.name.as_bytes());
        for context in CONTEXTS.iter().filter(selected) {
            self.contexts |= context.bit();
            context_reply(out, option::SET_META_CONTEXT, context.id, context);
        }
        Ok(())
    }

    /// What LIST and SET have in common: checks the data, returns the queries.
    fn context_option<'a>(&self, export: &NbdConfig, data: &'a [u8]) -> Result<Queries<'a>, u32> {
        if self.mode == ReplyMode::Simple {
            return Err(reply::ERR_INVALID);
        }
        let (name, rest) = string(data).ok_or(reply::ERR_INVALID)?;
        let count = be32(rest, 0).ok_or(reply::ERR_INVALID)?;
        let queries = Queries(&rest[4..]);
        queries.check(count)?;
        if !export.is_named(name) {
            return Err(reply::ERR_UNKNOWN);
        }
        Ok(queries)
    }
}

/// The queries of a metadata context option: each a 32-bit length and a string.
#[derive(Clone, Copy, Debug)]
struct Queries<'a>(&'a [u8]);

impl<'a> Queries<'a> {
    /// Checks that there are `count` of them, each with a namespace, and nothing after them.
    fn check(self, count: u32) -> Result<(), u32> {
        let mut rest = self.0;
        for index in 0..count {
            if index == META_QUERIES_MAX {
                return Err(reply::ERR_TOO_BIG);
            }
            let (query, after) = string(rest).ok_or(reply::ERR_INVALID)?;
            if !query.contains(&b':') {
                return Err(reply::ERR_INVALID);
            }
            rest = after;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(reply::ERR_INVALID)
        }
    }

    fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// True when some query fits.
    fn any(self, fits: impl Fn(&'a [u8]) -> bool) -> bool {
        let mut rest = self.0;
        while let Some((query, after)) = string(rest) {
            if fits(query) {
                return true;
            }
            rest = after;
        }
        false
    }
}

/// True when a LIST query names the context, or its whole namespace by an empty leaf.
fn is_listed(query: &[u8], context: &Context) -> bool {
    let name = context.name.as_bytes();
    let namespace_len = name
        .iter()
        .position(|byte| *byte == b':')
        .map_or(0, |at| at + 1);
    query == name || query == &name[..namespace_len]
}

/// A 32-bit length, a string of it, and what follows. `None` when it does not fit, or the string
/// is longer than the protocol allows.
fn string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = be32(data, 0)?;
    if len > STRING_BYTES_MAX {
        return None;
    }
    data[4..].split_at_checked(usize::try_from(len).ok()?)
}

/// Appends an option reply.
fn respond(out: &mut Vec<u8>, kind: u32, reply_type: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|piece| piece.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&reply_type.to_be_bytes());
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    for piece in data {
        out.extend_from_slice(piece);
    }
}

/// The one export, by name and description.
fn list(export: &NbdConfig, out: &mut Vec<u8>) {
    let name = export.export_name.as_bytes();
    let name_len = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
    let text = export.description.as_bytes();
    respond(out, option::LIST, reply::SERVER, &[&name_len, name, text]);
}

fn context_reply(out: &mut Vec<u8>, kind: u32, id: u32, context: &Context) {
    respond(
        out,
        kind,
        reply::META_CONTEXT,
        &[&id.to_be_bytes(), context.name.as_bytes()],
    );
}
