//! Stores without an engine: verify, show, copy out.

use anyhow::{Result, ensure};
use std::fs;
use trilith_e2e::cluster::{succeed, trilith};
use trilith_e2e::{Cluster, Options};

#[test]
fn a_stopped_volume_can_be_checked_shown_and_exported() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        size: "64MiB".to_owned(),
        ..Options::default()
    })?;
    let mut client = cluster.client()?;
    for block in [0u64, 100, 5000, 16383] {
        let stamp = u8::try_from(block % 251)? + 1;
        ensure!(client.write(block * 4096, &[stamp; 4096])?.is_ok());
    }
    drop(client);
    cluster.wait_state("healthy")?;
    cluster.stop()?;
    let mut exports = Vec::new();
    for member in 0..3 {
        let dir = cluster.replica_dir(member).display().to_string();
        succeed(trilith(), &["store", "check", &dir])?;
        let shown = succeed(trilith(), &["store", "show", &dir])?;
        ensure!(
            shown.contains("sealed") || shown.contains("clean"),
            "{shown}"
        );
        let out = cluster.dir().join(format!("export-{member}"));
        succeed(
            trilith(),
            &["store", "export", &dir, &out.display().to_string()],
        )?;
        exports.push(fs::read(&out)?);
    }
    ensure!(
        exports[0].len() == 64 << 20,
        "an export has the size of the volume"
    );
    ensure!(
        exports[0] == exports[1] && exports[1] == exports[2],
        "the exports differ"
    );
    for block in [0usize, 100, 5000, 16383] {
        let stamp = u8::try_from(block % 251)? + 1;
        ensure!(
            exports[0][block * 4096..][..4096] == [stamp; 4096],
            "block {block}"
        );
    }
    ensure!(exports[0][4096..8192].iter().all(|b| *b == 0));
    Ok(())
}
