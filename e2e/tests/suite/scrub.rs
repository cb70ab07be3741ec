//! Silent rot of one replica: found, told and repaired by `trilith volume scrub`.

use anyhow::{Result, ensure};
use std::fs;
use trilith_e2e::cluster::{run, succeed, trilith};
use trilith_e2e::{Cluster, Options};

fn volume(replicas: usize) -> Result<Cluster> {
    let cluster = Cluster::start(Options {
        size: "64MiB".to_owned(),
        replicas,
        ..Options::default()
    })?;
    let mut client = cluster.client()?;
    for block in [0u64, 100, 101, 5000, 16383] {
        let stamp = u8::try_from(block % 251)? + 1;
        ensure!(client.write(block * 4096, &[stamp; 4096])?.is_ok());
    }
    Ok(cluster)
}

fn export(cluster: &Cluster, member: usize) -> Result<Vec<u8>> {
    let dir = cluster.replica_dir(member).display().to_string();
    let out = cluster.dir().join(format!("export-{member}"));
    let name = out.display().to_string();
    succeed(trilith(), &["store", "export", &dir, &name])?;
    Ok(fs::read(&out)?)
}

#[test]
fn a_rotten_copy_is_found_and_repaired_and_a_sound_volume_is_left_alone() -> Result<()> {
    let mut cluster = volume(3)?;
    cluster.wait_state("healthy")?;
    let data = cluster.data().display().to_string();
    let scrub = ["volume", "scrub", "--wait", "--dir", &data];
    let told = succeed(trilith(), &scrub)?;
    ensure!(told.contains("all replicas are equal"), "{told}");
    cluster.stop()?;
    let sound = export(&cluster, 0)?;
    fs::remove_file(cluster.dir().join("export-0"))?;
    cluster.rot(1, 100 * 4096 + 17)?;
    cluster.rot(2, 5000 * 4096 + 4095)?;
    ensure!(export(&cluster, 1)? != sound, "the flip is there");
    fs::remove_file(cluster.dir().join("export-1"))?;
    cluster.up()?;
    cluster.wait_state("healthy")?;
    let told = succeed(trilith(), &scrub)?;
    ensure!(
        told.contains("2 blocks differed: 2 repaired, 0 unresolved"),
        "{told}"
    );
    let status = cluster.status()?;
    let found = &status["engine"]["scrub"];
    ensure!(found["last"]["differences"] == 2, "{found}");
    ensure!(found["last"]["repaired"] == 2, "{found}");
    ensure!(found["last"]["bytes"] == 64 << 20, "{found}");
    ensure!(found["finished"] == 1, "{found}");
    let shown = succeed(trilith(), &["status", "--dir", &data])?;
    ensure!(shown.contains("2 repaired"), "{shown}");
    let log = cluster.log();
    ensure!(log.contains("differ from a majority"), "{log}");
    cluster.stop()?;
    for member in 0..3 {
        ensure!(export(&cluster, member)? == sound, "replica {member}");
    }
    Ok(())
}

#[test]
fn two_copies_that_differ_are_told_of_and_never_changed() -> Result<()> {
    let mut cluster = volume(2)?;
    cluster.wait_state("healthy")?;
    cluster.stop()?;
    cluster.rot(1, 101 * 4096)?;
    let before = export(&cluster, 1)?;
    fs::remove_file(cluster.dir().join("export-1"))?;
    cluster.up()?;
    cluster.wait_state("healthy")?;
    let data = cluster.data().display().to_string();
    let output = run(trilith(), &["volume", "scrub", "--wait", "--dir", &data])?;
    ensure!(!output.status.success(), "differences are left");
    let shown = succeed(trilith(), &["status", "--dir", &data])?;
    ensure!(
        shown.contains("replicas differ at byte 413696 for 4096 bytes"),
        "{shown}"
    );
    cluster.stop()?;
    ensure!(
        export(&cluster, 1)? == before,
        "nobody knows which is right"
    );
    Ok(())
}

#[test]
fn scrubs_that_are_switched_off_are_refused() -> Result<()> {
    let cluster = Cluster::start(Options {
        size: "64MiB".to_owned(),
        more: vec!["--scrub-rate".to_owned(), "0".to_owned()],
        ..Options::default()
    })?;
    let data = cluster.data().display().to_string();
    let output = run(trilith(), &["volume", "scrub", "--dir", &data])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && error.contains("switched off"),
        "{error}"
    );
    Ok(())
}
