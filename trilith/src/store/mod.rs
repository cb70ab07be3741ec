//! `trilith store ...`: work on a store that no replica runs on.

mod export;
mod inspect;
mod rot;
pub(crate) mod words;

use crate::cli::{FormatArgs, StoreCommand};
use crate::exit::{Exit, setup};
use crate::host::process;
use crate::host::replica::format;
use crate::output;

/// Runs the command.
///
/// # Errors
/// When the store cannot be used, or is damaged.
pub(crate) fn run(command: &StoreCommand) -> anyhow::Result<Exit> {
    match command {
        StoreCommand::Format(args) => format_store(args).map_err(setup),
        StoreCommand::Check(args) => inspect::check(args),
        StoreCommand::Show(args) => inspect::show(&args.path),
        StoreCommand::Export(args) => export::run(args),
    }
}

fn format_store(args: &FormatArgs) -> anyhow::Result<Exit> {
    let mut turns = format::turns()?;
    let new = format::New {
        volume: args.volume,
        replica: process::new_uuid()?,
        member: args.member,
        replicas: args.replicas,
        witness: args.witness,
        capacity: args.size,
        replacement: args.replacement,
        newcomer: None,
        checksums: args.checksums,
    };
    if args.path.exists() && !args.path.is_dir() {
        format::device(&mut turns, &args.path, &new)?;
    } else {
        format::directory(&mut turns, &args.path, &new)?;
    }
    output::print(&format!(
        "formatted {} {} as member {}\n",
        if new.is_witness() {
            "witness"
        } else {
            "replica"
        },
        new.replica,
        new.member
    ));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{CheckArgs, ExportArgs, StoreArgs};
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use trilith_block::Uuid;
    use trilith_runtime::{Backend, Loop, LoopConfig};

    fn turns() -> Loop {
        let arena = trilith_runtime::ArenaConfig {
            budget_bytes: 4 << 20,
            huge_pages: false,
        };
        Loop::new(LoopConfig {
            backend: Backend::Plain,
            arena,
            ..LoopConfig::default()
        })
        .unwrap()
    }

    fn new() -> format::New {
        format::New {
            volume: Uuid([1; 16]),
            replica: Uuid([2; 16]),
            member: 1,
            replicas: 3,
            witness: false,
            capacity: 64 << 20,
            replacement: false,
            newcomer: None,
            checksums: false,
        }
    }

    fn formatted(dir: &Path) {
        let mut turns = turns();
        format::directory(&mut turns, dir, &new()).unwrap();
        let again = format::directory(&mut turns, dir, &new()).unwrap_err();
        assert!(again.to_string().contains("expected no store"), "{again}");
    }

    fn witness() -> format::New {
        format::New {
            member: 2,
            replicas: 2,
            witness: true,
            checksums: true,
            ..new()
        }
    }

    #[test]
    fn a_witness_is_one_small_file_and_has_nothing_to_export() {
        let dir = tempfile::tempdir().unwrap();
        let huge = format::New {
            capacity: 1 << 40,
            ..witness()
        };
        format::directory(&mut turns(), dir.path(), &huge).unwrap();
        let files: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].file_name(), format::WITNESS);
        assert!(files[0].metadata().unwrap().len() < 3 << 20);
        assert!(format::is_formatted(dir.path()));
        let path = dir.path().to_owned();
        let check = |data| CheckArgs {
            path: path.clone(),
            data,
        };
        assert_eq!(run(&StoreCommand::Check(check(false))).unwrap(), Exit::Done);
        let shown = StoreArgs { path: path.clone() };
        assert_eq!(run(&StoreCommand::Show(shown)).unwrap(), Exit::Done);
        let out = dir.path().join("out");
        let export = StoreCommand::Export(ExportArgs {
            path: path.clone(),
            output: out.clone(),
        });
        for command in [StoreCommand::Check(check(true)), export] {
            let error = format!("{:#}", run(&command).unwrap_err());
            assert!(error.contains("it holds no data"), "{error}");
        }
        assert!(!out.exists());
        let held = crate::host::process::lock_file(&path.join(format::WITNESS), "").unwrap();
        let error = run(&StoreCommand::Check(check(false))).unwrap_err();
        assert!(
            format!("{error:#}").contains("a replica runs on it"),
            "{error:#}"
        );
        drop(held);
    }

    #[test]
    fn a_witness_that_cannot_be_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        for (new, text) in [
            (
                format::New {
                    replicas: 3,
                    ..witness()
                },
                "expected 2 replicas beside a witness",
            ),
            (
                format::New {
                    replacement: true,
                    ..witness()
                },
                "can be replaced yet",
            ),
            (
                format::New {
                    member: 1,
                    replacement: true,
                    ..witness()
                },
                "can be replaced yet",
            ),
            (
                format::New {
                    member: 3,
                    ..witness()
                },
                "expected a member below 3",
            ),
        ] {
            let error = format::directory(&mut turns(), dir.path(), &new).unwrap_err();
            assert!(format!("{error:#}").contains(text), "{error:#}");
            assert!(!format::is_formatted(dir.path()));
        }
    }

    /// The member beside it, which has data.
    #[test]
    fn a_replica_beside_a_witness_has_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let new = format::New {
            member: 1,
            ..witness()
        };
        format::directory(&mut turns(), dir.path(), &new).unwrap();
        let out = dir.path().join("out");
        let export = StoreCommand::Export(ExportArgs {
            path: dir.path().to_owned(),
            output: out.clone(),
        });
        assert_eq!(run(&export).unwrap(), Exit::Done);
        assert_eq!(fs::metadata(&out).unwrap().len(), 64 << 20);
    }

    #[test]
    fn new_store_is_sound_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        formatted(dir.path());
        let args = || CheckArgs {
            path: dir.path().to_owned(),
            data: false,
        };
        assert_eq!(run(&StoreCommand::Check(args())).unwrap(), Exit::Done);
        let shown = StoreArgs {
            path: dir.path().to_owned(),
        };
        assert_eq!(run(&StoreCommand::Show(shown)).unwrap(), Exit::Done);
        let data = CheckArgs {
            data: true,
            ..args()
        };
        let error = run(&StoreCommand::Check(data)).unwrap_err();
        assert!(format!("{error:#}").contains("no checksums"), "{error:#}");
        let out = dir.path().join("out");
        let export = ExportArgs {
            path: dir.path().to_owned(),
            output: out.clone(),
        };
        assert_eq!(run(&StoreCommand::Export(export)).unwrap(), Exit::Done);
        assert_eq!(fs::metadata(&out).unwrap().len(), 64 << 20);

        let meta = fs::File::options()
            .write(true)
            .open(dir.path().join(format::META))
            .unwrap();
        meta.write_all_at(&[0xff], 100).unwrap();
        assert_eq!(
            run(&StoreCommand::Check(args())).unwrap(),
            Exit::Failed,
            "one copy is broken"
        );
        meta.write_all_at(&[0xff], (1 << 20) + 100).unwrap();
        let error = run(&StoreCommand::Check(args())).unwrap_err();
        assert!(format!("{error:#}").contains("superblock"), "{error:#}");
        meta.set_len(10_000).unwrap();
        assert!(run(&StoreCommand::Check(args())).is_err(), "truncated");
    }

    #[test]
    fn store_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        formatted(dir.path());
        let path = dir.path().join(format::DATA);
        let held = crate::host::process::lock_file(&path, "").unwrap();
        let command = StoreCommand::Check(CheckArgs {
            path: dir.path().to_owned(),
            data: false,
        });
        let error = run(&command).unwrap_err();
        assert!(
            format!("{error:#}").contains("a replica runs on it"),
            "{error:#}"
        );
        drop(held);
        assert!(run(&command).is_ok());
    }
}
