//! Error values of the transmission phase, and how the engine's errors become them.

use trilith_block::ErrorKind;

/// An error value of the NBD protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NbdError {
    /// `NBD_EPERM`: a write-like command on a read-only export or volume.
    Perm,
    /// `NBD_EIO`.
    Io,
    /// `NBD_EINVAL`.
    Inval,
    /// `NBD_ENOSPC`: no room, or a write past the end.
    NoSpace,
    /// `NBD_EOVERFLOW`: an unfragmented read that is too long.
    Overflow,
    /// `NBD_ENOTSUP`: a fast zero that would be slow.
    NotSup,
    /// `NBD_ESHUTDOWN`: this server will not serve again.
    Shutdown,
}

impl NbdError {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            NbdError::Perm => 1,
            NbdError::Io => 5,
            NbdError::Inval => 22,
            NbdError::NoSpace => 28,
            NbdError::Overflow => 75,
            NbdError::NotSup => 95,
            NbdError::Shutdown => 108,
        }
    }

    /// What a structured error chunk tells a human.
    pub(crate) fn text(self) -> &'static str {
        match self {
            NbdError::Perm => "volume is read-only",
            NbdError::Io => "no majority of replicas can do it",
            NbdError::Inval => "invalid request",
            NbdError::NoSpace => "no space, or past the end",
            NbdError::Overflow => "too long",
            NbdError::NotSup => "cannot be zeroed fast",
            NbdError::Shutdown => "server is shutting down",
        }
    }

    /// What the client is told when the engine fails a request. `fast_zero`: it asked for
    /// `NBD_CMD_FLAG_FAST_ZERO`; only then `NBD_ENOTSUP` is allowed.
    pub fn from_kind(kind: ErrorKind, fast_zero: bool) -> NbdError {
        match kind {
            ErrorKind::InvalidRange => NbdError::Inval,
            ErrorKind::NoSpace => NbdError::NoSpace,
            // The specification asks for EPERM on a read-only export. A volume that became
            // read-only behind a writable export is the same case, found later.
            ErrorKind::ReadOnly => NbdError::Perm,
            ErrorKind::Io => NbdError::Io,
            ErrorKind::Fenced => NbdError::Shutdown,
            ErrorKind::NotSupported if fast_zero => NbdError::NotSup,
            ErrorKind::NotSupported => NbdError::Inval,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_error_value() {
        let codes = ErrorKind::ALL.map(|kind| NbdError::from_kind(kind, true).code());
        assert_eq!(codes, [22, 28, 1, 5, 108, 95]);
        let codes = ErrorKind::ALL.map(|kind| NbdError::from_kind(kind, false).code());
        assert_eq!(
            codes,
            [22, 28, 1, 5, 108, 22],
            "ENOTSUP answers fast zeroes only"
        );
    }
}
