//! What `up` remembers of its volume: `volume.json`. Written as a whole (old or new content after a
//! crash), durable before what it says is used.

use crate::limits::STATE_BYTES_MAX;
use crate::up::layout;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read};
use std::path::Path;
use trilith_block::Uuid;
use trilith_block::limits::MEMBERS_MAX;

/// Version of the file's format.
const VERSION: u32 = 1;

/// The file as it is written. Unknown keys are errors: a newer `up` may mean something by them.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    name: String,
    volume: String,
    size_bytes: u64,
    replicas: Vec<String>,
    formatted: bool,
    attach_epoch: u64,
    engine: Option<String>,
    boot: String,
    loss: Option<u32>,
}

/// What `up` knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct State {
    /// Name of the volume, for people and as NBD export.
    pub(crate) name: String,
    /// Its identity.
    pub(crate) volume: Uuid,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Identities of its replicas, by member number.
    pub(crate) replicas: Vec<Uuid>,
    /// All replicas have been formatted once. A directory that is missing after that is a replica
    /// that was lost, not one to be made quietly.
    pub(crate) formatted: bool,
    /// Highest attach epoch issued.
    pub(crate) attach_epoch: u64,
    /// Engine that it was issued to.
    pub(crate) engine: Option<Uuid>,
    /// Boot of the host in which clients were served last (M8).
    pub(crate) boot: Uuid,
    /// Loss epoch those clients are bound to; unknown until the engine has told it in this boot.
    pub(crate) loss: Option<u32>,
}

fn uuid(text: &str) -> anyhow::Result<Uuid> {
    Uuid::parse(text).with_context(|| format!("expected a uuid, found {text:?}"))
}

impl State {
    /// Reads the file of the directory `dir`. `None` when there is none yet.
    ///
    /// # Errors
    /// When it cannot be read, or is not what this version writes.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<State>> {
        let path = dir.join(layout::STATE);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(format!("open {}", path.display())),
        };
        let mut text = String::new();
        let read = file.take(STATE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(anyhow::Error::from)
            .and_then(|_| State::parse(&text))
            .map(Some)
            .with_context(|| format!("read {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<State> {
        let file: File = serde_json::from_str(text)?;
        if file.version != VERSION {
            bail!("expected version {VERSION}, found {}", file.version);
        }
        ensure!(
            (1..=MEMBERS_MAX).contains(&file.replicas.len()),
            "expected 1 to {MEMBERS_MAX} replicas, found {}",
            file.replicas.len()
        );
        Ok(State {
            name: file.name,
            volume: uuid(&file.volume)?,
            size_bytes: file.size_bytes,
            replicas: file
                .replicas
                .iter()
                .map(|text| uuid(text))
                .collect::<Result<_, _>>()?,
            formatted: file.formatted,
            attach_epoch: file.attach_epoch,
            engine: file.engine.as_deref().map(uuid).transpose()?,
            boot: uuid(&file.boot)?,
            loss: file.loss,
        })
    }

    fn to_text(&self) -> anyhow::Result<String> {
        let file = File {
            version: VERSION,
            name: self.name.clone(),
            volume: self.volume.to_string(),
            size_bytes: self.size_bytes,
            replicas: self.replicas.iter().map(Uuid::to_string).collect(),
            formatted: self.formatted,
            attach_epoch: self.attach_epoch,
            engine: self.engine.map(|engine| engine.to_string()),
            boot: self.boot.to_string(),
            loss: self.loss,
        };
        Ok(serde_json::to_string_pretty(&file)? + "\n")
    }

    /// Makes the state durable in `dir`.
    ///
    /// # Errors
    /// When it cannot be written; then the old one is still there.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let text = self.to_text()?;
        trilith_runtime::replace_file(&dir.join(layout::STATE), text.as_bytes(), 0o600)?;
        Ok(())
    }

    /// Prepares the next engine in boot `boot`: a fresh attach epoch for `engine`, and the engine
    /// that it supersedes. The caller makes the state durable before it uses either.
    pub(crate) fn next_engine(&mut self, engine: Uuid, boot: Uuid) -> Option<Uuid> {
        self.attach_epoch += 1;
        if self.boot != boot {
            // The host has started anew, and so have all clients on it: they know of no loss.
            (self.boot, self.loss) = (boot, None);
        }
        self.engine.replace(engine)
    }

    /// Loss epoch that clients may be bound to when an engine starts in boot `boot`: `None` when
    /// none of them can have seen the volume. Served in this boot by an engine that never told its
    /// loss epoch: 0, so that any loss waits for the operator.
    pub(crate) fn loss_bound(&self, boot: Uuid) -> Option<u32> {
        (self.boot == boot).then(|| self.loss.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            name: "vol".into(),
            volume: Uuid([1; 16]),
            size_bytes: 1 << 30,
            replicas: vec![Uuid([2; 16]), Uuid([3; 16]), Uuid([4; 16])],
            formatted: true,
            attach_epoch: 7,
            engine: Some(Uuid([5; 16])),
            boot: Uuid([6; 16]),
            loss: Some(2),
        }
    }

    #[test]
    fn state_comes_back_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::read(dir.path()).unwrap(), None);
        for state in [
            state(),
            State {
                engine: None,
                loss: None,
                formatted: false,
                ..state()
            },
        ] {
            state.write(dir.path()).unwrap();
            assert_eq!(State::read(dir.path()).unwrap(), Some(state));
        }
    }

    #[test]
    fn files_that_this_version_did_not_write_are_refused() {
        let text = state().to_text().unwrap();
        assert!(State::parse(&text).is_ok());
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("\"name\"", "\"nom\": 1, \"name\""),
            ("01010101", "xx010101"),
            ("\"attach_epoch\": 7", "\"attach_epoch\": -7"),
            ("{", "["),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text, "{from} is in the file");
            assert!(State::parse(&bad).is_err(), "{to}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(layout::STATE), b"\xff\xfe").unwrap();
        assert!(State::read(dir.path()).is_err());
    }

    #[test]
    fn each_engine_gets_a_higher_attach_epoch_and_the_name_of_the_one_before() {
        let mut state = state();
        let before = state.next_engine(Uuid([9; 16]), state.boot);
        assert_eq!((before, state.attach_epoch), (Some(Uuid([5; 16])), 8));
        assert_eq!(state.engine, Some(Uuid([9; 16])));
        assert_eq!(state.loss, Some(2), "same boot: the clients are the same");
    }

    #[test]
    fn clients_are_bound_to_a_loss_epoch_only_within_one_boot() {
        let mut state = state();
        let new_boot = Uuid([8; 16]);
        assert_eq!(state.loss_bound(state.boot), Some(2));
        assert_eq!(
            state.loss_bound(new_boot),
            None,
            "all clients have started anew"
        );
        state.next_engine(Uuid([9; 16]), new_boot);
        assert_eq!(
            state.loss_bound(new_boot),
            Some(0),
            "never told: any loss is one too many"
        );
    }
}
