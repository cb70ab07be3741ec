//! Two replicas and a witness (7.1): what is made, and what is refused.

use anyhow::{Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use trilith_e2e::cluster::{run, succeed, trilith};

const UUID: &str = "0123456789abcdef0123456789abcdef";

/// Runs `trilith` with arguments that must be refused with these words.
fn refused(args: &[&str], words: &str) -> Result<()> {
    let output = run(trilith(), args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let right = !output.status.success() && text.contains(words) && !text.contains("panicked");
    ensure!(right, "{args:?}: {text}");
    Ok(())
}

fn format(dir: &Path, member: &str, more: &[&str]) -> Vec<String> {
    let dir = dir.display().to_string();
    let args = [
        "store", "format", &dir, "--volume", UUID, "--member", member,
    ];
    let all = args.iter().chain(&["--size", "64MiB"]).chain(more);
    all.map(|arg| (*arg).to_owned()).collect()
}

#[test]
fn a_witness_is_made_beside_two_replicas_only_and_replaces_nobody() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let data = temp.path().join("data");
    let up = [
        "up",
        "--size",
        "64MiB",
        "--dir",
        &data.display().to_string(),
    ]
    .map(str::to_owned);
    let up: Vec<&str> = up.iter().map(String::as_str).collect();
    let words = "expected --replicas 2 --witness";
    refused(&[&up[..], &["--witness"]].concat(), words)?;
    for replicas in ["1", "3", "5"] {
        let more = ["--witness", "--replicas", replicas];
        refused(&[&up[..], &more].concat(), words)?;
    }
    ensure!(!data.exists(), "a refused command left a directory behind");
    let witness = ["--witness"];
    for (member, more, words) in [
        (
            "0",
            &["--replicas", "3"][..],
            "expected 2 replicas beside a witness",
        ),
        ("3", &["--replicas", "2"], "expected a member below 3"),
        (
            "1",
            &["--replicas", "2", "--replacement"],
            "can be replaced yet",
        ),
        (
            "2",
            &["--replicas", "2", "--replacement"],
            "can be replaced yet",
        ),
    ] {
        let args = format(&data, member, &[more, &witness].concat());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&args, words)?;
        ensure!(!data.join("vol.meta").exists() && !data.join("witness.meta").exists());
    }
    Ok(())
}

/// The three stores of a volume.
fn stores(dir: &Path) -> Result<[PathBuf; 3]> {
    let dirs = ["0", "1", "2"].map(|member| dir.join(member));
    for (member, dir) in ["0", "1", "2"].iter().zip(&dirs) {
        let args = format(dir, member, &["--replicas", "2", "--witness"]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = succeed(trilith(), &args)?;
        let what = if *member == "2" {
            "formatted witness"
        } else {
            "formatted replica"
        };
        ensure!(said.contains(what), "{said}");
    }
    Ok(dirs)
}

#[test]
fn a_witness_is_one_small_file_without_data() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let [first, _, witness] = stores(temp.path())?;
    let files: Vec<_> = fs::read_dir(&witness)?.flatten().collect();
    ensure!(files.len() == 1 && files[0].file_name() == "witness.meta");
    ensure!(files[0].metadata()?.len() < 3 << 20);
    let dir = witness.display().to_string();
    let said = succeed(trilith(), &["store", "show", &dir])?;
    ensure!(said.contains("this one: it holds no data"), "{said}");
    let said = succeed(trilith(), &["store", "check", &dir])?;
    ensure!(
        said.starts_with("witness ") && said.contains("sound"),
        "{said}"
    );
    let out = temp.path().join("out").display().to_string();
    refused(&["store", "export", &dir, &out], "it holds no data")?;
    let first = first.display().to_string();
    let said = succeed(trilith(), &["store", "show", &first])?;
    let line = said.lines().find(|line| line.starts_with("witness"));
    ensure!(
        line.is_some_and(|line| line.trim_end().ends_with(" 2")),
        "{said}"
    );
    ensure!(!said.contains("for member 2"), "{said}");
    succeed(trilith(), &["store", "export", &first, &out])?;
    Ok(())
}

/// A replica whose data is gone is not taken for a witness, nor one for the other by a wrong name.
#[test]
fn a_store_that_is_not_what_its_files_are_named_is_refused() -> Result<()> {
    let temp = tempfile::tempdir()?;
    let [lost, named, witness] = stores(temp.path())?;
    let secret = temp.path().join("secret").display().to_string();
    fs::write(&secret, "0123456789abcdef0123456789abcdef")?;
    succeed("chmod", &["0600", &secret])?;
    let listen = format!("unix:{}", temp.path().join("sock").display());
    let start = |dir: &Path, words: &str| {
        let dir = dir.display().to_string();
        let args = [
            "replica",
            "--dir",
            &dir,
            "--listen",
            &listen,
            "--secret-file",
            &secret,
        ];
        refused(&args, words)
    };
    fs::remove_file(lost.join("vol.data"))?;
    start(&lost, "vol.data")?;
    fs::rename(lost.join("vol.meta"), lost.join("witness.meta"))?;
    start(
        &lost,
        "expected a witness as its files are named, found a replica with data",
    )?;
    fs::rename(witness.join("witness.meta"), named.join("vol.meta"))?;
    start(
        &named,
        "expected a replica with data as its files are named, found a witness",
    )
}
