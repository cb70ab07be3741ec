//! Keeps persistent reservations (APTPL) over a restart: in a file, written by a thread of its own
//! so that the loop never waits for a disk. The initiator is answered after the file is durable.

use crate::limits::{KEEPER_RETRY, STATE_BYTES_MAX};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use trilith_block::Uuid;
use trilith_runtime::{WakeError, Waker};

/// Version of the file's format.
const VERSION: u32 = 1;

/// The file as it is written. Unknown keys are errors: a newer version may mean something by them.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    volume: String,
    /// The state in hexadecimal, as the target gives it.
    state: String,
}

/// State `number` is kept, or could not be: a message to the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    /// Which state.
    pub(crate) number: u64,
    /// It is durable.
    pub(crate) ok: bool,
}

/// Hands states to the thread, one at a time.
#[derive(Debug)]
pub(crate) struct Keeper {
    jobs: SyncSender<(u64, Vec<u8>)>,
    busy: bool,
}

/// The state kept for `volume`, empty when there is none.
///
/// # Errors
/// When the file cannot be read or is not that of this volume: reservations that fence others must
/// not be forgotten in silence.
pub(crate) fn read(path: &Path, volume: Uuid) -> anyhow::Result<Vec<u8>> {
    let what = || format!("read reservations {}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(what),
    };
    let mut text = String::new();
    let read = file.take(STATE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(anyhow::Error::from)
        .and_then(|_| parse(&text, volume))
        .with_context(what)
}

fn parse(text: &str, volume: Uuid) -> anyhow::Result<Vec<u8>> {
    let file: File = serde_json::from_str(text)?;
    ensure!(
        file.version == VERSION,
        "expected version {VERSION}, found {}",
        file.version
    );
    ensure!(
        file.volume == volume.to_string(),
        "expected volume {volume}, found {}",
        file.volume
    );
    let digits = file.state.as_bytes();
    ensure!(
        digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit),
        "expected hexadecimal digits in pairs"
    );
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}

fn to_text(state: &[u8], volume: Uuid) -> anyhow::Result<String> {
    use std::fmt::Write;
    let mut digits = String::with_capacity(state.len() * 2);
    for byte in state {
        write!(digits, "{byte:02x}")?;
    }
    let file = File {
        version: VERSION,
        volume: volume.to_string(),
        state: digits,
    };
    Ok(serde_json::to_string_pretty(&file)? + "\n")
}

fn write(path: &Path, state: &[u8], volume: Uuid) -> anyhow::Result<()> {
    let text = to_text(state, volume)?;
    // What is written must be readable again.
    ensure!(
        text.len() as u64 <= STATE_BYTES_MAX,
        "expected at most {STATE_BYTES_MAX} bytes of reservations"
    );
    trilith_runtime::replace_file(path, text.as_bytes(), 0o600)?;
    Ok(())
}

impl Keeper {
    /// Starts the thread, which tells the loop by `waker`.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub(crate) fn start(path: PathBuf, volume: Uuid, waker: Waker) -> anyhow::Result<Keeper> {
        let (jobs, next) = sync_channel(1);
        std::thread::Builder::new()
            .name("trilith-keeper".to_owned())
            .spawn(move || run(&path, volume, &next, &waker))
            .context("start the keeper's thread")?;
        Ok(Keeper { jobs, busy: false })
    }

    /// True when a state may be handed over.
    pub(crate) fn is_free(&self) -> bool {
        !self.busy
    }

    /// Hands over a state; a [`Kept`] follows. False when the thread is gone.
    pub(crate) fn keep(&mut self, number: u64, state: &[u8]) -> bool {
        debug_assert!(self.is_free(), "one at a time");
        self.busy = self.jobs.try_send((number, state.to_vec())).is_ok();
        self.busy
    }

    /// The loop has heard [`Kept`].
    pub(crate) fn done(&mut self) {
        self.busy = false;
    }
}

fn run(path: &Path, volume: Uuid, next: &Receiver<(u64, Vec<u8>)>, waker: &Waker) {
    while let Ok((number, state)) = next.recv() {
        let result = write(path, &state, volume);
        if let Err(error) = &result {
            tracing::error!("cannot keep reservations: {error:#}");
        }
        let mut message: trilith_runtime::Message = Box::new(Kept {
            number,
            ok: result.is_ok(),
        });
        while let Err(error) = waker.send(message) {
            let WakeError::Full(back) = error else {
                return;
            };
            message = back;
            std::thread::park_timeout(KEEPER_RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: Uuid = Uuid([7; 16]);

    #[test]
    fn state_comes_back_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reservations");
        assert_eq!(read(&path, VOLUME).unwrap(), Vec::<u8>::new());
        for state in [&[][..], &[0, 1, 0xfe, 0xff]] {
            write(&path, state, VOLUME).unwrap();
            assert_eq!(read(&path, VOLUME).unwrap(), state);
        }
    }

    #[test]
    fn largest_state_of_a_target_fits_the_file() {
        let state = vec![0xff; 128 * (15 + 223) + 64];
        assert!(to_text(&state, VOLUME).unwrap().len() as u64 <= STATE_BYTES_MAX);
    }

    #[test]
    fn a_file_of_another_volume_or_another_format_is_refused() {
        let text = to_text(&[1, 2, 3], VOLUME).unwrap();
        assert!(parse(&text, VOLUME).is_ok());
        assert!(parse(&text, Uuid([8; 16])).is_err());
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("010203", "01020"),
            ("010203", "0102zz"),
            ("\"state\"", "\"stat\""),
            ("{", ""),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text, "{from} is in the file");
            assert!(parse(&bad, VOLUME).is_err(), "{to}");
        }
    }
}
