//! Ceph RBD as a peer: a monitor and three OSDs on this host, each OSD on a file of its own, and one
//! image in a pool of three copies. Its client is librbd, in fio.
//!
//! Packages: ceph-mon, ceph-osd, ceph-common. There is no manager: it only gathers statistics.

use super::{Target, free_port, pause, spawn};
use crate::fio::{Place, RBD_IMAGE, RBD_POOL};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// OSDs, which is the number of copies as well.
const OSDS: usize = 3;
/// What an OSD's file has beyond the image, for its own bookkeeping, in MiB. It is sparse.
const OSD_SPARE_MIB: u64 = 2048;
/// How often it is asked whether all OSDs are up, each time after a pause.
const ASKS_MAX: usize = 300;

fn uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a uuid")?;
    Ok(text.trim().to_owned())
}

/// The cluster's configuration. The monitor's address comes from its map, which is made from the same
/// `monitor`: from `mon_host` alone it would take the default ports.
fn configuration(dir: &Path, cluster: &str, monitor: &str, size_mib: u64) -> String {
    let block_bytes = (size_mib + size_mib / 2 + OSD_SPARE_MIB) << 20;
    let dir = dir.display();
    format!(
        "[global]\nfsid = {cluster}\nmon_host = {monitor}\n\
         auth_cluster_required = none\nauth_service_required = none\nauth_client_required = none\n\
         osd_pool_default_size = {OSDS}\nosd_pool_default_min_size = 2\n\
         osd_pool_default_pg_autoscale_mode = off\nosd_crush_chooseleaf_type = 0\n\
         ms_bind_ipv6 = false\npublic_addr = 127.0.0.1\ncluster_addr = 127.0.0.1\n\
         run_dir = {dir}\nlog_file = {dir}/$name.log\nadmin_socket = {dir}/$name.asok\n\
         pid_file = {dir}/$name.pid\nmon_data = {dir}/mon\nosd_data = {dir}/osd$id\n\
         osd_objectstore = bluestore\nbluestore_block_create = true\n\
         bluestore_block_size = {block_bytes}\n\
         [client]\nrbd_cache = false\n"
    )
}

/// Runs a command of Ceph to its end and returns what it printed.
fn tell(conf: &Path, program: &str, args: &[&str]) -> Result<String> {
    // A command that finds no monitor would wait for ever.
    let output = Command::new("timeout")
        .args(["60", program])
        .args(args)
        .env("CEPH_CONF", conf)
        .output()
        .with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Target {
    /// Starts monitor and OSDs, and makes the image.
    pub(super) fn start_ceph(&mut self, dir: &Path, size_mib: u64) -> Result<()> {
        let dir = fs::canonicalize(dir)?;
        let conf = dir.join("ceph.conf");
        let (cluster, port, other) = (uuid()?, free_port()?, free_port()?);
        let monitor = format!("[v2:127.0.0.1:{port},v1:127.0.0.1:{other}]");
        fs::write(&conf, configuration(&dir, &cluster, &monitor, size_mib))?;
        fs::create_dir(dir.join("mon"))?;
        let map = dir.join("monmap").display().to_string();
        let addresses = ["--addv", "a", &monitor];
        let make = [&["--create", "--fsid", &cluster][..], &addresses, &[&map]].concat();
        tell(&conf, "monmaptool", &make)?;
        let first = ["-i", "a", "--mkfs", "--monmap", &map];
        tell(&conf, "ceph-mon", &first)?;
        self.start_daemon(&dir, &conf, "ceph-mon", "a")?;
        for osd in 0..OSDS {
            let (name, id) = (osd.to_string(), uuid()?);
            fs::create_dir(dir.join(format!("osd{osd}")))?;
            tell(&conf, "ceph", &["osd", "new", &id, &name])?;
            tell(
                &conf,
                "ceph-osd",
                &["-i", &name, "--mkfs", "--osd-uuid", &id],
            )?;
            self.start_daemon(&dir, &conf, "ceph-osd", &name)?;
        }
        wait_osds(&conf)?;
        tell(
            &conf,
            "ceph",
            &["osd", "pool", "create", RBD_POOL, "32", "32"],
        )?;
        let size = format!("{size_mib}M");
        let features = ["--image-feature", "layering", RBD_IMAGE];
        tell(
            &conf,
            "rbd",
            &[&["create", "--size", &size][..], &features].concat(),
        )?;
        self.place = Place::Rbd(conf);
        Ok(())
    }

    fn start_daemon(&mut self, dir: &Path, conf: &Path, program: &str, id: &str) -> Result<()> {
        let log: PathBuf = dir.join(format!("{program}.{id}"));
        let mut command = Command::new(program);
        command.args(["-f", "-i", id]).env("CEPH_CONF", conf);
        self.children.push(spawn(&mut command, &log)?);
        Ok(())
    }
}

fn wait_osds(conf: &Path) -> Result<()> {
    let all = format!("{OSDS} up");
    for _ in 0..ASKS_MAX {
        if tell(conf, "ceph", &["osd", "stat"])?.contains(&all) {
            return Ok(());
        }
        pause();
    }
    bail!("not all OSDs have come up")
}
