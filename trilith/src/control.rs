//! Lines between `up` and its children: commands on a child's standard input, news on its standard
//! output. One line each, words separated by a space. Whoever reads skips what it does not know.

use core::time::Duration;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use trilith_block::Uuid;

/// What `up` tells a child.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    /// No other engine of this volume starts within the span: the engine may serve reads without
    /// a majority (M13).
    Grant(Duration),
    /// Stop cleanly. The end of the input means the same.
    Stop,
    /// Replace a replica by the one that listens at this address (engine only).
    Replace {
        /// The one that leaves.
        old: usize,
        /// The one that takes its place.
        new: usize,
        /// Its identity.
        id: Uuid,
        /// Its address.
        address: String,
    },
    /// Let go of the replica that is carried: it has no place any more (engine only).
    LetGo,
}

impl Command {
    /// The line, with its end.
    pub(crate) fn to_line(&self) -> String {
        match self {
            Command::Grant(span) => format!("grant {}\n", span.as_millis()),
            Command::Stop => "stop\n".to_owned(),
            Command::LetGo => "let-go\n".to_owned(),
            Command::Replace {
                old,
                new,
                id,
                address,
            } => format!("replace {old} {new} {id} {address}\n"),
        }
    }

    /// The command of a line, if it is one.
    pub(crate) fn parse(line: &str) -> Option<Command> {
        if let Some(rest) = line.trim_end().strip_prefix("replace ") {
            let (old, rest) = rest.split_once(' ')?;
            let (new, rest) = rest.split_once(' ')?;
            let (id, address) = rest.split_once(' ')?;
            return Some(Command::Replace {
                old: old.parse().ok()?,
                new: new.parse().ok()?,
                id: Uuid::parse(id)?,
                address: (!address.is_empty()).then(|| address.to_owned())?,
            });
        }
        let mut words = line.split_ascii_whitespace();
        let command = match (words.next()?, words.next()) {
            ("grant", Some(millis)) => Command::Grant(Duration::from_millis(millis.parse().ok()?)),
            ("stop", None) => Command::Stop,
            ("let-go", None) => Command::LetGo,
            _ => return None,
        };
        words.next().is_none().then_some(command)
    }
}

/// A path in letters that every line and every request can carry.
pub(crate) fn hex(path: &Path) -> String {
    let digits = |b: &u8| format!("{b:02x}");
    path.as_os_str().as_bytes().iter().map(digits).collect()
}

/// The path of such letters.
pub(crate) fn unhex(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    for pair in text.as_bytes().chunks(2) {
        let pair = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?;
        bytes.push(u8::from_str_radix(pair, 16).ok()?);
    }
    (!bytes.is_empty()).then(|| PathBuf::from(OsString::from_vec(bytes)))
}

/// What a child tells `up`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum News {
    /// It listens.
    Ready,
    /// State of the volume in a word (engine only).
    State(String),
    /// Loss epoch that clients are bound to from now on (engine only).
    Loss(u32),
    /// Somebody wants a replica to be replaced by an empty one that was made in `dir` (engine only).
    Replace {
        /// The one that leaves.
        old: usize,
        /// The one that takes its place.
        new: usize,
        /// Its identity.
        id: Uuid,
        /// Its directory.
        dir: PathBuf,
    },
    /// Members that the engine deals with, and that no replacement runs (engine only).
    Members {
        /// Their numbers, as bits.
        bits: u32,
        /// No replacement runs.
        settled: bool,
    },
    /// The replacement was given up (engine only).
    KeepOld,
    /// The volume is a block device of this host, of this number (engine only).
    Device(u32),
    /// The replica that was carried has failed, and its files and addresses are free (engine only).
    Dropped,
}

impl News {
    /// The line, with its end.
    pub(crate) fn to_line(&self) -> String {
        match self {
            News::Ready => "ready\n".to_owned(),
            News::State(state) => format!("state {state}\n"),
            News::Loss(loss) => format!("loss {loss}\n"),
            News::Replace { old, new, id, dir } => {
                format!("replace {old} {new} {id} {}\n", hex(dir))
            }
            News::Members { bits, settled } => format!("members {bits} {settled}\n"),
            News::KeepOld => "keep-old\n".to_owned(),
            News::Device(number) => format!("device {number}\n"),
            News::Dropped => "dropped\n".to_owned(),
        }
    }

    /// The news of a line, if it is some.
    pub(crate) fn parse(line: &str) -> Option<News> {
        let line = line.trim_end();
        match line.split_once(' ') {
            None if line == "ready" => Some(News::Ready),
            None if line == "keep-old" => Some(News::KeepOld),
            None if line == "dropped" => Some(News::Dropped),
            Some(("replace", rest)) => {
                let mut words = rest.split(' ');
                Some(News::Replace {
                    old: words.next()?.parse().ok()?,
                    new: words.next()?.parse().ok()?,
                    id: Uuid::parse(words.next()?)?,
                    dir: unhex(words.next()?)?,
                })
            }
            Some(("members", rest)) => {
                let (bits, settled) = rest.split_once(' ')?;
                Some(News::Members {
                    bits: bits.parse().ok()?,
                    settled: settled.parse().ok()?,
                })
            }
            Some(("state", state)) if !state.is_empty() => Some(News::State(state.to_owned())),
            Some(("loss", loss)) => loss.parse().ok().map(News::Loss),
            Some(("device", number)) => number.parse().ok().map(News::Device),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_way_through_a_line() {
        let replace = Command::Replace {
            old: 2,
            new: 3,
            id: Uuid([7; 16]),
            address: "unix:run/replica-3.sock".into(),
        };
        let grant = Command::Grant(Duration::from_millis(1500));
        for command in [grant, Command::Stop, Command::LetGo, replace] {
            assert_eq!(Command::parse(&command.to_line()).as_ref(), Some(&command));
        }
        for line in [
            "",
            "grant",
            "grant x",
            "grant 1 2",
            "stop now",
            "halt",
            "replace 1 2",
            "replace 1 2 3 unix:x",
        ] {
            assert_eq!(Command::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn news_survive_the_way_through_a_line() {
        for news in [
            News::Ready,
            News::State("read-only".into()),
            News::Loss(7),
            News::Device(3),
            News::Dropped,
        ] {
            assert_eq!(News::parse(&news.to_line()), Some(news));
        }
        for line in [
            "",
            "ready now",
            "state ",
            "loss -1",
            "device x",
            "hello world",
        ] {
            assert_eq!(News::parse(line), None, "{line:?}");
        }
    }
}
