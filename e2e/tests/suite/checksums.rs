//! A device that changes bytes by itself: with checksums nobody is given them.

use anyhow::{Context, Result, ensure};
use trilith_e2e::cluster::{run, trilith};
use trilith_e2e::{Cluster, Options};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
/// The chunk written last is compared at the start, and a copy of it that is bad holds the volume up.
const ROTTEN: u64 = 48;

fn fill(block: u64) -> [u8; 4096] {
    let mut bytes = [0x5a; 4096];
    bytes[..8].copy_from_slice(&(block + 1).to_le_bytes());
    bytes
}

/// What a metric of a replica says.
fn metric(cluster: &Cluster, member: usize, name: &str) -> Result<u64> {
    let text = cluster.ask(&format!("replica-{member}"), "/metrics")?;
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .with_context(|| format!("{name} in {text}"))?;
    let value = line.rsplit(' ').next().unwrap_or_default();
    value.parse().with_context(|| line.to_owned())
}

/// `store check --data` of each replica finds so many rotten blocks.
fn check_data(cluster: &Cluster, rotten: u64) -> Result<()> {
    for member in 0..3 {
        let dir = cluster.replica_dir(member).display().to_string();
        let output = run(trilith(), &["store", "check", "--data", &dir])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let counts =
            format!("{BLOCKS} blocks compared, 0 without a known checksum, {rotten} rotten");
        ensure!(text.contains(&counts), "{text}");
        ensure!(output.status.success() == (rotten == 0), "{text}");
        let named = text.matches("not what was written there").count() as u64;
        ensure!(named == rotten, "{text}");
    }
    Ok(())
}

#[test]
fn rotten_blocks_of_a_replica_are_read_from_another() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        size: "64MiB".to_owned(),
        more: vec!["--checksums".to_owned()],
        ..Options::default()
    })?;
    let mut client = cluster.client()?;
    for block in 0..BLOCKS {
        ensure!(client.write(block * BLOCK, &fill(block))?.is_ok());
    }
    drop(client);
    cluster.wait_state("healthy")?;
    cluster.stop()?;
    check_data(&cluster, 0)?;
    // Each block rots on one replica or another.
    for member in 0..3usize {
        for block in (0..ROTTEN).filter(|b| b % 3 == member as u64) {
            cluster.rot(member, block * BLOCK + 100)?;
        }
    }
    check_data(&cluster, ROTTEN / 3)?;
    cluster.up()?;
    cluster.wait_state("healthy")?;
    let mut client = cluster.client()?;
    for _ in 0..3 {
        for block in 0..BLOCKS {
            let found = client.read(block * BLOCK, 4096)?;
            ensure!(found == Ok(fill(block).to_vec()), "block {block}");
        }
    }
    drop(client);
    let mut found = 0;
    for member in 0..3 {
        found += metric(&cluster, member, "trilith_replica_reads_rotten")?;
    }
    ensure!(found > 0, "nobody has read a rotten block");
    cluster.stop()
}

#[test]
fn a_volume_keeps_being_without_them() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        size: "64MiB".to_owned(),
        ..Options::default()
    })?;
    cluster.stop()?;
    let dir = cluster.data().display().to_string();
    let args = ["up", "--checksums", "--nbd", "off", "--dir", &dir];
    let output = run(trilith(), &args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success());
    ensure!(text.contains("expected no --checksums"), "{text}");
    Ok(())
}
