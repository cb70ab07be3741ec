//! What Debian's own NBD clients see.

use anyhow::{Result, ensure};
use std::fs::{self, File};
use std::io::{Read, Write};
use trilith_e2e::cluster::{run, succeed};
use trilith_e2e::{Cluster, Options, qemu};

const MIB: u64 = 1 << 20;

fn random_file(path: &std::path::Path, bytes: u64) -> Result<()> {
    let mut data = vec![0; usize::try_from(bytes)?];
    File::open("/dev/urandom")?.read_exact(&mut data)?;
    File::create(path)?.write_all(&data)?;
    Ok(())
}

#[test]
fn clients_of_libnbd_and_qemu_agree_on_one_disk() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let uri = cluster.uri();
    let json = succeed("nbdinfo", &["--json", &uri])?;
    ensure!(json.contains("\"export-size\": 268435456"), "{json}");
    succeed("nbdinfo", &["--list", &uri])?;
    for can in [
        "flush",
        "fua",
        "multi-conn",
        "trim",
        "zero",
        "fast-zero",
        "df",
        "cache",
    ] {
        succeed("nbdinfo", &["--can", can, &uri])?;
    }
    succeed("nbdinfo", &["--can", "structured-reply", &uri])?;
    let read_only = run("nbdinfo", &["--is", "read-only", &uri])?;
    ensure!(
        read_only.status.code() == Some(2),
        "the export says it is read-only"
    );

    let (source, back) = (cluster.dir().join("source"), cluster.dir().join("back"));
    let (source, back) = (source.display().to_string(), back.display().to_string());
    random_file(source.as_ref(), 64 * MIB)?;
    File::options()
        .write(true)
        .open(&source)?
        .set_len(256 * MIB)?;
    succeed(
        "nbdcopy",
        &["--flush", "--connections=4", "--requests=64", &source, &uri],
    )?;
    let map = succeed("nbdinfo", &["--map", &uri])?;
    ensure!(
        map.contains("hole"),
        "a volume that is mostly empty has holes: {map}"
    );
    succeed("nbdcopy", &[&uri, &back])?;
    ensure!(
        fs::read(&source)? == fs::read(&back)?,
        "nbdcopy reads back something else"
    );
    succeed(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, &uri],
    )?;
    succeed("nbdcopy", &["--synchronous", &uri, "null:"])?;
    succeed("nbdcopy", &["--destination-is-zero", &source, &uri])?;
    succeed("qemu-img", &["map", "--output=json", "-f", "raw", &uri])?;
    succeed(
        "qemu-img",
        &[
            "bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4k", &uri,
        ],
    )?;
    let bench = [
        "bench",
        "-w",
        "--flush-interval=100",
        "-f",
        "raw",
        "-c",
        "2000",
        "-d",
        "32",
    ];
    succeed(
        "qemu-img",
        &[&bench[..], &["-s", "4k", "-t", "none", &uri]].concat(),
    )?;
    qemu::io(qemu::ALL_REQUESTS, &uri)?;
    cluster.stop()
}

#[test]
fn fio_verifies_its_data_at_every_block_size() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let uri = format!("--uri={}", cluster.uri());
    for sizes in ["--bsrange=4k-64k", "--bs=512", "--bs=1m"] {
        succeed(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randrw",
                sizes,
                "--iodepth=16",
                "--size=64m",
                "--io_size=32m",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--minimal",
            ],
        )?;
    }
    cluster.stop()
}

#[test]
fn illegal_requests_get_the_specified_error_and_the_connection_lives() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/py/illegal.py");
    let said = succeed("/usr/bin/python3", &[script, &cluster.uri()])?;
    ensure!(said.contains("all checks passed"), "{said}");
    cluster.stop()
}

#[test]
fn the_plain_backend_serves_the_same_disk() -> Result<()> {
    let more = vec!["--backend".to_owned(), "plain".to_owned()];
    let mut cluster = Cluster::start(Options {
        more,
        ..Options::default()
    })?;
    let uri = format!("--uri={}", cluster.uri());
    let verify = [
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--minimal",
    ];
    let job = [
        "--name=plain",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bsrange=4k-64k",
    ];
    succeed(
        "fio",
        &[&job[..], &["--iodepth=16", "--size=32m"], &verify].concat(),
    )?;
    cluster.wait_state("healthy")?;
    cluster.stop()
}
