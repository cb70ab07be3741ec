//! What a command prints for people. A reader that has gone away (a closed pipe) is no error.

use std::io::Write;

/// Prints text as it is to standard output.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        tracing::debug!("nobody reads standard output");
    }
}

/// Prints a line to standard error.
pub(crate) fn error_line(line: &str) {
    let mut out = std::io::stderr().lock();
    if writeln!(out, "{line}").is_err() {
        tracing::debug!("nobody reads standard error");
    }
}
