//! What `up` remembers of its volume: `volume.json`. Written as a whole (old or new content after a
//! crash), durable before what it says is used.

use crate::host::replica::format::{NO_REPLACEMENT, WITNESS_REPLICAS};
use crate::limits::STATE_BYTES_MAX;
use crate::up::layout;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use trilith_block::Uuid;
use trilith_block::limits::MEMBERS_MAX;

/// Version of the file's format while the replicas are those that the volume was made with.
const VERSION: u32 = 1;
/// Version once a replica was, or is being, replaced.
const VERSION_CHANGED: u32 = 2;
/// Version of a volume with a witness, none of which is ever replaced.
const VERSION_WITNESS: u32 = 3;

/// The file as it is written. Unknown keys are errors: a newer `up` may mean something by them.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    name: String,
    volume: String,
    size_bytes: u64,
    /// Versions 1 and 3: identities by member number; in version 3 the last is the witness.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    replicas: Vec<String>,
    /// Version 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<FileMember>,
    /// Version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
    /// Version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_number: Option<usize>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    checksums: bool,
    formatted: bool,
    attach_epoch: u64,
    engine: Option<String>,
    boot: String,
    loss: Option<u32>,
}

/// A replica as version 2 writes it.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct FileMember {
    member: usize,
    id: String,
    dir: Option<PathBuf>,
}

/// A replica that is being replaced, and by which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    /// Number of the one that leaves.
    pub(crate) old: usize,
    /// Number of the one that takes its place.
    pub(crate) new: usize,
}

/// One replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Replica {
    /// Its number.
    pub(crate) member: usize,
    /// Its identity.
    pub(crate) id: Uuid,
    /// Its directory, when it is not the usual one.
    pub(crate) dir: Option<PathBuf>,
}

impl Replica {
    /// Its directory, seen from that of `up`.
    pub(crate) fn directory(&self) -> PathBuf {
        let usual = || layout::replica_dir(self.member);
        self.dir.clone().unwrap_or_else(usual)
    }
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
    /// Its replicas, by rising number; while one is replaced, its successor too. A witness is the last.
    pub(crate) replicas: Vec<Replica>,
    /// The last one is a witness: it votes and holds no data.
    pub(crate) witness: bool,
    /// The replacement that runs.
    pub(crate) change: Option<Change>,
    /// Number given to a new replica last; absent while the replicas are those that the volume was
    /// made with.
    pub(crate) last_number: Option<usize>,
    /// Replicas are made with checksums of their blocks.
    pub(crate) checksums: bool,
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

fn first_replicas(ids: &[String]) -> anyhow::Result<Vec<Replica>> {
    let replica = |(member, id): (usize, &String)| {
        let id = uuid(id)?;
        Ok(Replica {
            member,
            id,
            dir: None,
        })
    };
    ids.iter().enumerate().map(replica).collect()
}

fn changed_replicas(members: &[FileMember]) -> anyhow::Result<Vec<Replica>> {
    let rising = members.windows(2).all(|p| p[0].member < p[1].member);
    let last = members.last().is_none_or(|m| m.member < MEMBERS_MAX);
    ensure!(
        rising && last,
        "expected rising numbers below {MEMBERS_MAX}"
    );
    let replica = |m: &FileMember| {
        let id = uuid(&m.id)?;
        Ok(Replica {
            member: m.member,
            id,
            dir: m.dir.clone(),
        })
    };
    members.iter().map(replica).collect()
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
        let changed = file.change.is_some() || file.last_number.is_some();
        let replicas = match file.version {
            VERSION | VERSION_WITNESS if !changed => first_replicas(&file.replicas)?,
            VERSION_CHANGED if file.last_number.is_some() => changed_replicas(&file.members)?,
            VERSION | VERSION_CHANGED | VERSION_WITNESS => {
                bail!("expected the last number given in version 2 only")
            }
            found => bail!("expected version {VERSION} to {VERSION_WITNESS}, found {found}"),
        };
        let witness = file.version == VERSION_WITNESS;
        ensure!(
            !witness || replicas.len() == WITNESS_REPLICAS + 1,
            "expected {WITNESS_REPLICAS} replicas and a witness, found {} in all",
            replicas.len()
        );
        ensure!(
            (1..=MEMBERS_MAX).contains(&replicas.len()),
            "expected 1 to {MEMBERS_MAX} replicas, found {}",
            replicas.len()
        );
        let has = |member| replicas.iter().any(|r| r.member == member);
        if let Some(change) = file.change {
            ensure!(
                has(change.old) && has(change.new) && change.old != change.new,
                "expected two of the replicas in the change, found {change:?}"
            );
        }
        Ok(State {
            name: file.name,
            volume: uuid(&file.volume)?,
            size_bytes: file.size_bytes,
            replicas,
            witness,
            change: file.change,
            last_number: file.last_number,
            checksums: file.checksums,
            formatted: file.formatted,
            attach_epoch: file.attach_epoch,
            engine: file.engine.as_deref().map(uuid).transpose()?,
            boot: uuid(&file.boot)?,
            loss: file.loss,
        })
    }

    fn to_text(&self) -> anyhow::Result<String> {
        let first = !self.was_changed();
        let members = self.replicas.iter().map(|r| FileMember {
            member: r.member,
            id: r.id.to_string(),
            dir: r.dir.clone(),
        });
        let ids = self.replicas.iter().map(|r| r.id.to_string());
        let file = File {
            version: match (self.witness, first) {
                (true, _) => VERSION_WITNESS,
                (false, true) => VERSION,
                (false, false) => VERSION_CHANGED,
            },
            name: self.name.clone(),
            volume: self.volume.to_string(),
            size_bytes: self.size_bytes,
            replicas: ids.filter(|_| first).collect(),
            members: members.filter(|_| !first).collect(),
            change: self.change,
            last_number: self.last_number,
            checksums: self.checksums,
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

    /// A replica was, or is being, replaced: only the replicas know the configuration.
    pub(crate) fn was_changed(&self) -> bool {
        self.last_number.is_some()
    }

    /// Replicas that hold data, or are to.
    pub(crate) fn data_count(&self) -> usize {
        self.count() - usize::from(self.witness)
    }

    /// True for the witness.
    pub(crate) fn is_witness(&self, member: usize) -> bool {
        let last = self.replicas.last();
        self.witness && last.is_some_and(|replica| replica.member == member)
    }

    /// Replicas that the volume is to have, a witness counted.
    pub(crate) fn count(&self) -> usize {
        self.replicas.len() - usize::from(self.change.is_some())
    }

    /// A replica.
    pub(crate) fn replica(&self, member: usize) -> Option<&Replica> {
        self.replicas.iter().find(|r| r.member == member)
    }

    /// Numbers that no replica has, those first that had none for longest: who had one may come
    /// back, and is better not taken for its successor.
    pub(crate) fn free_numbers(&self) -> impl Iterator<Item = usize> + '_ {
        let first = self.last_number.map_or(self.replicas.len(), |n| n + 1);
        (first..first + MEMBERS_MAX)
            .map(|number| number % MEMBERS_MAX)
            .filter(|member| self.replica(*member).is_none())
    }

    /// The state in which `new` is on its way to replace replica `old`.
    ///
    /// # Errors
    /// When that cannot be.
    pub(crate) fn replacing(&self, old: usize, new: Replica) -> anyhow::Result<State> {
        ensure!(!self.witness, "{NO_REPLACEMENT}");
        if let Some(change) = self.change {
            bail!(
                "replica {} is being replaced by replica {}: expected that to end first, or --give-up",
                change.old,
                change.new
            );
        }
        if self.replica(old).is_none() {
            let numbers: Vec<usize> = self.replicas.iter().map(|r| r.member).collect();
            bail!("expected one of the replicas {numbers:?}, found {old}");
        }
        ensure!(
            self.replica(new.member).is_none() && new.member < MEMBERS_MAX,
            "the number {} is taken",
            new.member
        );
        let mut next = self.clone();
        let change = Change {
            old,
            new: new.member,
        };
        next.change = Some(change);
        next.last_number = Some(new.member);
        next.replicas.push(new);
        next.replicas.sort_by_key(|r| r.member);
        Ok(next)
    }

    /// The state after the replacement: without the old replica, or, given up, without the new one.
    pub(crate) fn settled(&self, given_up: bool) -> State {
        let mut next = self.clone();
        if let Some(change) = next.change.take() {
            let gone = if given_up { change.new } else { change.old };
            next.replicas.retain(|r| r.member != gone);
        }
        next
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

    fn replica(member: usize, id: u8) -> Replica {
        Replica {
            member,
            id: Uuid([id; 16]),
            dir: None,
        }
    }

    fn state() -> State {
        State {
            name: "vol".into(),
            volume: Uuid([1; 16]),
            size_bytes: 1 << 30,
            replicas: (0..3).map(|m| replica(m, 2)).collect(),
            witness: false,
            change: None,
            last_number: None,
            checksums: false,
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
                checksums: true,
                ..state()
            },
            State {
                witness: true,
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
            ("\"version\": 1", "\"version\": 4"),
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
    fn a_witness_is_the_last_of_three_and_nobody_is_replaced() {
        let with = State {
            witness: true,
            ..state()
        };
        let text = with.to_text().unwrap();
        assert!(text.contains("\"version\": 3"), "{text}");
        assert_eq!((with.count(), with.data_count()), (3, 2));
        let witnesses: Vec<usize> = (0..4).filter(|m| with.is_witness(*m)).collect();
        assert_eq!(witnesses, [2]);
        let error = with.replacing(0, replica(3, 9)).unwrap_err().to_string();
        assert!(error.contains("can be replaced yet"), "{error}");
        let two = State {
            replicas: with.replicas[..2].to_vec(),
            ..with
        };
        assert!(State::parse(&two.to_text().unwrap()).is_err());
        assert!((0..4).all(|m| !state().is_witness(m)));
    }

    #[test]
    fn a_replacement_comes_back_from_its_file_and_ends_either_way() {
        let dir = tempfile::tempdir().unwrap();
        let new = Replica {
            dir: Some("/other/place".into()),
            ..replica(3, 9)
        };
        let changing = state().replacing(1, new).unwrap();
        let ended = changing.settled(false);
        let given_up = changing.settled(true);
        assert_eq!(given_up.replicas, state().replicas);
        for state in [&changing, &ended, &given_up] {
            state.write(dir.path()).unwrap();
            assert_eq!(State::read(dir.path()).unwrap().as_ref(), Some(state));
            assert_eq!(state.count(), 3);
        }
        let numbers = |s: &State| s.replicas.iter().map(|r| r.member).collect::<Vec<_>>();
        assert_eq!(numbers(&changing), [0, 1, 2, 3]);
        assert_eq!(numbers(&ended), [0, 2, 3]);
        for state in [&changing, &ended, &given_up] {
            assert!(state.was_changed(), "the replicas know more");
            assert_eq!(state.free_numbers().next(), Some(4), "not one used before");
        }
        assert_eq!(state().free_numbers().collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert_eq!(ended.free_numbers().collect::<Vec<_>>(), [4, 5, 6, 1]);
        assert!(!state().was_changed());
        assert_eq!(
            ended.replica(3).unwrap().directory(),
            Path::new("/other/place")
        );
    }

    #[test]
    fn only_one_known_replica_is_replaced_at_a_time() {
        let wrong =
            |s: &State, old, new| s.replacing(old, replica(new, 9)).unwrap_err().to_string();
        let changing = state().replacing(1, replica(3, 9)).unwrap();
        assert!(wrong(&changing, 0, 4).contains("replica 1 is being replaced by replica 3"));
        assert!(wrong(&state(), 5, 3).contains("expected one of the replicas [0, 1, 2], found 5"));
        assert!(wrong(&state(), 1, 2).contains("the number 2 is taken"));
        let text = changing
            .to_text()
            .unwrap()
            .replacen("\"old\": 1", "\"old\": 6", 1);
        assert!(State::parse(&text).is_err());
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
