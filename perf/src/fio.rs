//! Runs one fio job against one target.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where fio's requests go.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A file, through io_uring with O_DIRECT.
    File(String),
    /// An NBD export.
    Nbd(String),
    /// An iSCSI unit: fio has no engine for it, see iscsi.rs.
    Iscsi(String),
    /// The image of the Ceph cluster with this configuration.
    Rbd(PathBuf),
}

/// The pool of Ceph's image.
pub(crate) const RBD_POOL: &str = "rbd";
/// The image.
pub(crate) const RBD_IMAGE: &str = "vol";

/// Points fio at a target.
///
/// # Errors
/// fio has no engine for it.
pub(crate) fn aim(command: &mut Command, place: &Place) -> Result<()> {
    match place {
        Place::File(name) => {
            command.args([
                "--ioengine=io_uring",
                "--direct=1",
                &format!("--filename={name}"),
            ]);
        }
        Place::Nbd(uri) => {
            command.args(["--ioengine=nbd", &format!("--uri={uri}")]);
        }
        Place::Rbd(conf) => {
            command
                .env("CEPH_CONF", conf)
                .args(["--ioengine=rbd", "--clientname=admin"])
                .arg(format!("--pool={RBD_POOL}"))
                .arg(format!("--rbdname={RBD_IMAGE}"));
        }
        Place::Iscsi(uri) => bail!("run fio on {uri}: it has no engine for iSCSI"),
    }
    Ok(())
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Operations per second, reads and writes together.
    pub(crate) iops: f64,
    /// Megabytes per second.
    pub(crate) megabytes: f64,
    /// Median latency, microseconds.
    pub(crate) p50_us: f64,
    /// 99th percentile, microseconds.
    pub(crate) p99_us: f64,
    /// Longest, microseconds.
    pub(crate) max_us: f64,
    /// Operations in all.
    pub(crate) operations: f64,
    /// Bytes written in all.
    pub(crate) bytes_written: f64,
}

/// Runs the job file for `seconds` over the first `size_mib` of the target.
pub(crate) fn run(job: &Path, place: &Place, seconds: u32, size_mib: u64) -> Result<Figures> {
    let mut command = Command::new("fio");
    // fsync would make a file's times durable as well, which no server is asked for.
    let (fsync, fdatasync) = match place {
        Place::File(_) => ("0", "1"),
        Place::Nbd(_) | Place::Iscsi(_) | Place::Rbd(_) => ("1", "0"),
    };
    command.envs([("FSYNC", fsync), ("FDATASYNC", fdatasync)]);
    aim(&mut command, place)?;
    common(&mut command, seconds, size_mib).arg(job);
    finish(&mut command, &job.display().to_string())
}

/// A client of `run_many`.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// NBD export.
    pub(crate) uri: String,
    /// Connections.
    pub(crate) jobs: u32,
    /// Requests in flight on each.
    pub(crate) depth: u32,
}

/// 4 KiB random writes by all the clients at once, their figures together.
pub(crate) fn run_many(clients: &[Client], seconds: u32, size_mib: u64) -> Result<Figures> {
    let mut command = Command::new("fio");
    command.arg("--name=global");
    common(&mut command, seconds, size_mib).args(["--ioengine=nbd", "--rw=randwrite", "--bs=4k"]);
    for (at, client) in clients.iter().enumerate() {
        command.args([
            format!("--name=client{at}"),
            format!("--uri={}", client.uri),
            format!("--numjobs={}", client.jobs),
            format!("--iodepth={}", client.depth),
        ]);
    }
    finish(&mut command, "random writes")
}

fn common(command: &mut Command, seconds: u32, size_mib: u64) -> &mut Command {
    command
        .arg("--output-format=json")
        .args([format!("--runtime={seconds}"), "--time_based=1".to_owned()])
        .args([format!("--size={size_mib}m"), "--randrepeat=0".to_owned()])
        // From the call to its end: a disk may have done its work before the call returns.
        .args(["--lat_percentiles=1", "--clat_percentiles=0"])
        // No ramp time: fio leaves it out of its counts, and the servers' CPU would not.
        .args(["--norandommap=1", "--group_reporting=1"])
}

fn finish(command: &mut Command, what: &str) -> Result<Figures> {
    let output = command.stdin(Stdio::null()).output().context("run fio")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "fio {what}: {}: {errors}",
        output.status
    );
    let start = text.find('{').context("fio printed no JSON")?;
    let value: Value = serde_json::from_str(&text[start..]).context("parse what fio printed")?;
    Ok(figures(&value["jobs"][0]))
}

fn figures(job: &Value) -> Figures {
    let number = |v: &Value| v.as_f64().unwrap_or(0.0);
    let (read, write) = (&job["read"], &job["write"]);
    let main = if number(&read["iops"]) > number(&write["iops"]) {
        read
    } else {
        write
    };
    let at = |p: &str| number(&main["lat_ns"]["percentile"][p]) / 1000.0;
    Figures {
        iops: number(&read["iops"]) + number(&write["iops"]),
        megabytes: (number(&read["bw_bytes"]) + number(&write["bw_bytes"])) / 1e6,
        p50_us: at("50.000000"),
        p99_us: at("99.000000"),
        max_us: number(&main["lat_ns"]["max"]) / 1000.0,
        bytes_written: number(&write["io_bytes"]),
        operations: number(&read["total_ios"]) + number(&write["total_ios"]),
    }
}
