//! Errors: a number for machines to decide by, a sentence for people.

use std::io;

/// An `errno` value of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("{}", io::Error::from_raw_os_error(*.0))]
pub struct Errno(pub i32);

impl Errno {
    /// Input or output error.
    pub const IO: Errno = Errno(libc::EIO);
    /// No space left.
    pub const NO_SPACE: Errno = Errno(libc::ENOSPC);
    /// Quota used up: no space for this user.
    pub const QUOTA: Errno = Errno(libc::EDQUOT);
    /// The file system or device cannot do this.
    pub const NOT_SUPPORTED: Errno = Errno(libc::EOPNOTSUPP);

    /// True when there is no room on the device, whatever the reason.
    pub fn is_no_space(self) -> bool {
        self == Errno::NO_SPACE || self == Errno::QUOTA || self.0 == libc::EFBIG
    }
}

/// Something could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RuntimeError {
    /// What was tried, with its object.
    pub what: String,
    /// Why it failed.
    pub source: io::Error,
}

impl RuntimeError {
    /// Puts what was tried in front of why it failed.
    pub(crate) fn new(what: impl Into<String>, source: impl Into<io::Error>) -> RuntimeError {
        RuntimeError {
            what: what.into(),
            source: source.into(),
        }
    }

    /// An error of our own, with a kind for the caller to decide by.
    pub(crate) fn own(
        what: impl Into<String>,
        kind: io::ErrorKind,
        why: impl Into<String>,
    ) -> RuntimeError {
        RuntimeError {
            what: what.into(),
            source: io::Error::new(kind, why.into()),
        }
    }

    /// The kind of the cause.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}
