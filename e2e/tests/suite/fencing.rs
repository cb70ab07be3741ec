//! Two engines, one volume: only one may ever serve.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::process::{Command, Stdio};
use trilith_e2e::cluster::{free_port, signal, trilith};
use trilith_e2e::nbd::Client;
use trilith_e2e::{Cluster, Options, wait_until};

/// Arguments of the running engine that another engine of the volume needs as well.
fn engine_arguments(pid: i32) -> Result<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    let words: Vec<String> = line
        .split(|b| *b == 0)
        .map(|w| String::from_utf8_lossy(w).into_owned())
        .collect();
    let mut kept = Vec::new();
    let mut rest = words.into_iter().skip(2).peekable();
    while let Some(word) = rest.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (
                word,
                rest.next_if(|w| !w.starts_with("--")).unwrap_or_default(),
            ),
        };
        if ["--volume", "--replica", "--size", "--secret-file", "--name"].contains(&name.as_str()) {
            kept.push(format!("{name}={value}"));
        }
    }
    Ok(kept)
}

#[test]
fn a_take_over_fences_the_old_engine_for_ever() -> Result<()> {
    let cluster = Cluster::start(Options::default())?;
    take_over(&cluster, || Ok(()))
}

/// Lets an engine that was started by hand take the volume over, and looks that the old one is gone
/// for ever. `check` is called while the new one serves alone.
pub(crate) fn take_over(cluster: &Cluster, check: impl FnOnce() -> Result<()>) -> Result<()> {
    cluster.wait_state("healthy")?;
    let mut old = cluster.client()?;
    ensure!(old.write(0, &[1; 4096])?.is_ok());
    ensure!(old.flush()?.is_ok());

    let port = free_port()?;
    let address = format!("127.0.0.1:{port}");
    let mut engine = Command::new(trilith())
        .arg("engine")
        .args(engine_arguments(cluster.engine()?)?)
        .args(["--take-over", "--nbd", &address])
        .current_dir(cluster.data())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let taken = wait_until("the new engine to serve what the old one wrote", || {
        Client::connect(&address)
            .and_then(|mut client| client.read(0, 4096))
            .is_ok_and(|read| read == Ok(vec![1; 4096]))
    });
    // The old one may never acknowledge again: it refuses or is gone.
    let refused = old
        .write(0, &[2; 4096])
        .map_or(true, |answer| answer.is_err());
    let new = i32::try_from(engine.id())?;
    let gone = wait_until("the old engine to be gone", || {
        cluster.pids("engine", "").iter().all(|pid| *pid == new)
    });
    let checked = check();
    let kept = Client::connect(&address).and_then(|mut client| client.read(0, 4096));
    signal(i32::try_from(engine.id())?, Signal::TERM)?;
    let ended = engine.wait()?;
    taken?;
    ensure!(refused, "the fenced engine acknowledged a write");
    gone?;
    checked?;
    ensure!(
        kept? == Ok(vec![1; 4096]),
        "the fenced engine's write took effect"
    );
    ensure!(ended.success(), "the new engine ended with {ended}");
    Ok(())
}

#[test]
fn a_second_engine_of_the_same_epoch_is_refused_while_the_first_lives() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let first = cluster.engine()?;
    let line = fs::read(format!("/proc/{first}/cmdline"))?;
    let words: Vec<_> = line
        .split(|b| *b == 0)
        .map(String::from_utf8_lossy)
        .collect();
    let at = words
        .iter()
        .position(|w| w == "--attach-epoch")
        .context("an attach epoch")?;
    let epoch = words.get(at + 1).context("its value")?.clone().into_owned();
    let address = format!("127.0.0.1:{}", free_port()?);
    let mut second = Command::new(trilith())
        .arg("engine")
        .args(engine_arguments(first)?)
        .args(["--attach-epoch", &epoch, "--nbd", &address])
        .current_dir(cluster.data())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut client = cluster.client()?;
    let mut served = false;
    for n in 0..200u8 {
        ensure!(
            client.write(u64::from(n) * 4096, &[n; 4096])?.is_ok(),
            "the first engine failed"
        );
        trilith_e2e::pause(std::time::Duration::from_millis(20));
        served |= Client::connect(&address)
            .and_then(|mut c| c.write(0, &[9; 4096]))
            .is_ok_and(|w| w.is_ok());
    }
    second.kill()?;
    second.wait()?;
    ensure!(!served, "both engines served");
    ensure!(cluster.engine()? == first, "the first engine was replaced");
    cluster.stop()
}
