//! libiscsi's conformance suite against volumes of three replicas: each test ends as
//! frontend-iscsi/conformance/expected.tsv says.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use trilith_e2e::{Cluster, Options};

fn volume(size: &str, more: &[&str]) -> Result<Cluster> {
    let cluster = Cluster::start(Options {
        size: size.to_owned(),
        more: more.iter().map(|word| (*word).to_owned()).collect(),
        ..Options::default()
    })?;
    cluster.wait_state("healthy")?;
    Ok(cluster)
}

/// Starts the suite; its output is in `out` of the cluster's directory.
fn suite(cluster: &Cluster, environment: &[(&str, &str)]) -> Result<Child> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../frontend-iscsi/conformance");
    let out = std::fs::File::create(cluster.dir().join("out"))?;
    Command::new("sh")
        .arg(folder.join("run.sh"))
        .arg(cluster.iscsi_uri()?)
        .arg(cluster.dir().join("results"))
        // A slow machine is no hanging target.
        .env("ISCSI_TEST_SECONDS", "60")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("start the conformance suite")
}

fn end(cluster: &mut Cluster, mut suite: Child) -> Result<()> {
    let status = suite.wait()?;
    let said = std::fs::read_to_string(cluster.dir().join("out"))?;
    ensure!(status.success(), "{said}");
    cluster.stop()
}

#[test]
fn conformance_results_are_as_expected() -> Result<()> {
    // SANITIZE takes most of the time, at a limited speed: it has a volume of its own meanwhile.
    let mut protected = volume("64MiB", &["--iscsi-read-only"])?;
    let mut sanitized = volume("192MiB", &[])?;
    let mut other = volume("256MiB", &[])?;
    let read_only = protected.iscsi_uri()?;
    let slow = suite(&sanitized, &[("ISCSI_TEST_ONLY", "[.]Sanitize[.]")])?;
    let rest = [
        ("ISCSI_TEST_EXCEPT", "[.]Sanitize[.]"),
        ("ISCSI_READONLY_URL", read_only.as_str()),
    ];
    let rest = suite(&other, &rest)?;
    let results = [end(&mut other, rest), end(&mut sanitized, slow)];
    protected.stop()?;
    results.into_iter().collect()
}

#[test]
fn conformance_with_blocks_of_4096_bytes_is_as_expected() -> Result<()> {
    // What depends on the size of the blocks; expected.tsv is for blocks of 512 bytes.
    let mut cluster = volume("256MiB", &["--iscsi-block", "4096"])?;
    let expected = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../frontend-iscsi/conformance/expected-4096.tsv"
    );
    let only = [
        (
            "ISCSI_TEST_ONLY",
            "[.](GetLBAStatus|ReadCapacity16|Unmap|CompareAndWrite)[.]",
        ),
        ("ISCSI_EXPECTED", expected),
    ];
    let suite = suite(&cluster, &only)?;
    end(&mut cluster, suite)
}
