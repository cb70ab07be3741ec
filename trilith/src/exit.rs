//! How a process ends: its exit status, which its supervisor decides by.

use std::process::ExitCode;

/// Why a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// It did what it was asked for.
    Done,
    /// It failed while it ran: starting it again may help.
    Failed,
    /// Its arguments, directory or address cannot be used: starting it again will not help. Also
    /// clap's status for a wrong command line.
    Setup,
    /// Another engine has taken over for good (M12): it must not be started again.
    Fenced,
}

impl Exit {
    #[cfg(test)]
    const ALL: [Exit; 4] = [Exit::Done, Exit::Failed, Exit::Setup, Exit::Fenced];

    /// Its number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Setup => 2,
            Exit::Fenced => 3,
        }
    }

    /// What a child's status means. A death by signal is a failure.
    pub(crate) fn of(code: Option<i32>) -> Exit {
        match code {
            Some(0) => Exit::Done,
            Some(2) => Exit::Setup,
            Some(3) => Exit::Fenced,
            _ => Exit::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error that a restart does not mend; put around a cause by [`setup`].
#[derive(Debug)]
pub(crate) struct SetupProblem(anyhow::Error);

impl std::fmt::Display for SetupProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&sentence(&self.0))
    }
}

impl std::error::Error for SetupProblem {}

/// Marks an error as one of arguments, directories or addresses.
pub(crate) fn setup(error: impl Into<anyhow::Error>) -> anyhow::Error {
    let error = error.into();
    if error.is::<SetupProblem>() {
        error
    } else {
        anyhow::Error::new(SetupProblem(error))
    }
}

/// An error with its causes, in one line. Some errors tell their cause themselves; it is not told
/// twice.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if text.ends_with(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    text
}

/// The status for an error.
pub(crate) fn of_error(error: &anyhow::Error) -> Exit {
    if error.chain().any(|cause| cause.is::<SetupProblem>()) {
        Exit::Setup
    } else {
        Exit::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn every_status_comes_back_from_its_code() {
        for exit in Exit::ALL {
            assert_eq!(Exit::of(Some(i32::from(exit.code()))), exit);
        }
        assert_eq!(Exit::of(None), Exit::Failed, "killed by a signal");
        assert_eq!(Exit::of(Some(101)), Exit::Failed);
    }

    #[test]
    fn cause_that_an_error_tells_itself_is_not_told_twice() {
        let cause = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let text = format!("listen on x: {cause}");
        let error = anyhow::Error::new(cause)
            .context(text.clone())
            .context("start engine");
        assert_eq!(sentence(&error), format!("start engine: {text}"));
    }

    #[test]
    fn setup_problems_are_found_below_context() {
        let error = setup(anyhow::anyhow!("address in use"));
        let error = Err::<(), _>(error).context("start engine").unwrap_err();
        assert_eq!(of_error(&error), Exit::Setup);
        assert_eq!(format!("{error:#}"), "start engine: address in use");
        assert_eq!(of_error(&anyhow::anyhow!("disk gone")), Exit::Failed);
    }
}
