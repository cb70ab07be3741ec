//! iSCSI: other people's initiators, faults under load, reservations, bad logins.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use trilith_e2e::cluster::{run, signal, succeed};
use trilith_e2e::history::{BLOCK, History, fill};
use trilith_e2e::iscsi::{Initiator, compare_and_write, status};
use trilith_e2e::{Cluster, Options, Random, pause, qemu, wait_until};

const MIB: usize = 1 << 20;
const BLOCK_BYTES: u64 = BLOCK as u64;

/// qemu's iSCSI driver is in a package that not every mirror has in the version of its other tools.
fn qemu_knows_iscsi() -> Result<bool> {
    let said = run("qemu-img", &["info", "iscsi://127.0.0.1:1/iqn.none/0"])?;
    Ok(!String::from_utf8_lossy(&said.stderr).contains("Unknown protocol"))
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<String> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(path.display().to_string())
}

fn more(words: &[&str]) -> Options {
    Options {
        more: words.iter().map(|word| (*word).to_owned()).collect(),
        ..Options::default()
    }
}

#[test]
fn tools_of_libiscsi_and_qemu_see_the_disk_that_nbd_clients_see() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let uri = cluster.iscsi_uri()?;
    let portal = format!("iscsi://{}", cluster.portal());
    let list = succeed("iscsi-ls", &["--show-luns", &portal])?;
    let target = cluster.login(1)?.target;
    ensure!(list.contains(&target) && list.contains("Lun:0"), "{list}");
    let inquiry = succeed("iscsi-inq", &[&uri])?;
    ensure!(inquiry.to_lowercase().contains("trilith"), "{inquiry}");
    for page in ["0", "0x80", "0x83", "0xb0", "0xb1", "0xb2"] {
        succeed("iscsi-inq", &["-e", "1", "-c", page, &uri])?;
    }
    let size = succeed("iscsi-readcapacity16", &[&uri])?;
    ensure!(size.contains("268435456"), "{size}");
    succeed(
        "iscsi-perf",
        &["-t", "1", "-m", "16", "-b", "8", "-r", &uri],
    )?;

    // One disk: what one protocol writes the other one reads, both ways.
    let (mut nbd, mut iscsi) = (cluster.client()?, cluster.initiator(1)?);
    ensure!(nbd.write(8192, &[0x5a; 4096])?.is_ok());
    ensure!(iscsi.read(8192, 4096)? == vec![0x5a; 4096]);
    iscsi.send_write(16384, &[0xa5; 8192], true)?;
    ensure!(iscsi.answer()?.is_good());
    ensure!(nbd.read(16384, 8192)? == Ok(vec![0xa5; 8192]));
    drop((nbd, iscsi));
    if qemu_knows_iscsi()? {
        qemu_and_nbd_agree(&cluster, &uri)?;
    }
    cluster.stop()
}

fn qemu_and_nbd_agree(cluster: &Cluster, uri: &str) -> Result<()> {
    let (source, back) = (cluster.dir().join("source"), cluster.dir().join("back"));
    let mut data = vec![0; 64 * MIB];
    File::open("/dev/urandom")?.read_exact(&mut data)?;
    fs::write(&source, &data)?;
    File::options()
        .write(true)
        .open(&source)?
        .set_len(256 << 20)?;
    let (source, back) = (source.display().to_string(), back.display().to_string());
    succeed(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &source, uri],
    )?;
    succeed("nbdcopy", &[&cluster.uri(), &back])?;
    ensure!(
        fs::read(&source)? == fs::read(&back)?,
        "NBD sees other bytes"
    );
    succeed(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &source, uri],
    )?;
    qemu::io(qemu::ALL_REQUESTS, uri)?;
    // Header digests, as qemu names them; data digests are proved with our own initiator below.
    let target = cluster.login(1)?.target;
    let options = format!(
        "driver=iscsi,transport=tcp,portal={},target={target},lun=0,header-digest=crc32c",
        cluster.portal()
    );
    qemu::io_by_options(&["write -P 3 5M 2M", "read -P 3 5M 2M"], &options)?;
    let bench = [
        "bench", "-w", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4k",
    ];
    succeed("qemu-img", &[&bench[..], &["-t", "none", uri]].concat())?;
    Ok(())
}

#[test]
fn digests_of_headers_and_data_are_made_and_checked() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let mut login = cluster.login(1)?;
    login.digests = true;
    let mut iscsi = Initiator::ready(&cluster.portal(), &login)?;
    let mut random = Random(21);
    for n in 0..64 {
        let offset = random.below(1 << 15) * 512;
        let data = fill(n, n + 1);
        iscsi.send_write(offset, &data, false)?;
        ensure!(iscsi.answer()?.is_good());
        ensure!(iscsi.read(offset, 4096)? == data, "at {offset}");
    }
    cluster.stop()
}

#[test]
fn only_initiators_that_prove_who_they_are_get_in() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let chap = write_file(&dir.path().join("chap"), b"alice alicesecret12\n", 0o600)?;
    let mutual = write_file(&dir.path().join("mutual"), b"trilith targetsecret\n", 0o600)?;
    let flags = [
        "--iscsi-chap-file",
        &chap,
        "--iscsi-mutual-chap-file",
        &mutual,
    ];
    let mut cluster = Cluster::start(more(&flags))?;
    let plain = cluster.iscsi_uri()?;
    let with = |user: &str| plain.replacen("iscsi://", &format!("iscsi://{user}@"), 1);
    let right = with("alice%alicesecret12");
    succeed("iscsi-inq", &[&right])?;
    for wrong in [
        plain.clone(),
        with("alice%alicesecret13"),
        with("bob%alicesecret12"),
    ] {
        ensure!(!run("iscsi-inq", &[&wrong])?.status.success(), "{wrong}");
    }
    // The initiator checks the target, and a target that proves the wrong secret is left.
    let mutual = |secret: &str| format!("{right}?target_user=trilith&target_password={secret}");
    succeed("iscsi-inq", &[&mutual("targetsecret")])?;
    let said = run("iscsi-inq", &[&mutual("othersecret1")])?;
    ensure!(!said.status.success(), "the target was not checked");
    // Discovery is no way round it.
    let portal = format!("iscsi://{}", cluster.portal());
    ensure!(!run("iscsi-ls", &[&portal])?.status.success(), "discovery");
    if qemu_knows_iscsi()? {
        qemu::io(&["write -P 1 0 64k", "read -P 1 0 64k"], &right)?;
    }
    let log = cluster.log();
    for secret in ["alicesecret", "targetsecret"] {
        ensure!(!log.contains(secret), "a secret is in the log");
        ensure!(
            cluster.pids("engine", secret).is_empty(),
            "a secret is on a command line"
        );
    }
    ensure!(cluster.status()?["engine"]["iscsi"]["logins_failed"].as_u64() >= Some(3));
    cluster.stop()
}

#[test]
fn initiators_that_are_not_listed_are_refused() -> Result<()> {
    let flags = ["--iscsi-initiator", "iqn.2026-01.io.trilith.e2e:1"];
    let mut cluster = Cluster::start(more(&flags))?;
    cluster.initiator(1)?;
    let refused = cluster.initiator(2).err().context("a stranger got in")?;
    ensure!(
        format!("{refused:#}").contains("login status 0202"),
        "{refused:#}"
    );
    let mut wrong = cluster.login(1)?;
    wrong.target.push('x');
    let refused = Initiator::login(&cluster.portal(), &wrong).err();
    let refused = refused.context("a target that is not there")?;
    ensure!(
        format!("{refused:#}").contains("login status 0203"),
        "{refused:#}"
    );
    cluster.stop()
}

#[test]
fn files_of_secrets_that_others_can_read_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let chap = write_file(&dir.path().join("chap"), b"alice alicesecret12\n", 0o644)?;
    let short = write_file(&dir.path().join("short"), b"alice short\n", 0o600)?;
    for (file, why) in [(&chap, "0600"), (&short, "12 to 256 bytes")] {
        let data = dir.path().join("data").display().to_string();
        let flags = [
            "up",
            "--size",
            "64MiB",
            "--dir",
            &data,
            "--nbd",
            "127.0.0.1:0",
        ];
        let more = ["--iscsi", "127.0.0.1:0", "--iscsi-chap-file", file];
        let said = run(
            trilith_e2e::cluster::trilith(),
            &[&flags[..], &more].concat(),
        )?;
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(!said.status.success() && text.contains(why), "{text}");
        ensure!(!text.contains("alicesecret"), "{text}");
    }
    Ok(())
}

/// Writes until the session dies or `count` writes are done; all answers are recorded.
fn write_some(
    iscsi: &mut Initiator,
    history: &mut History,
    random: &mut Random,
    count: u64,
) -> Result<()> {
    const DEPTH: usize = 16;
    let mut open: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let mut flush: Option<(u32, Vec<(u64, u64)>)> = None;
    for n in 0..count {
        let block = random.below(512) * 31;
        if open.values().all(|(other, _)| *other != block) {
            let stamp = history.begin(block);
            let tag = iscsi.send_write(block * BLOCK_BYTES, &fill(block, stamp), n % 37 == 0)?;
            open.insert(tag, (block, stamp));
        }
        if flush.is_none() && n % 50 == 0 {
            let covered = history.snapshot();
            flush = Some((iscsi.send_flush()?, covered));
        }
        while open.len() >= DEPTH {
            receive(iscsi, history, &mut open, &mut flush)?;
        }
    }
    while !open.is_empty() || flush.is_some() {
        receive(iscsi, history, &mut open, &mut flush)?;
    }
    Ok(())
}

fn receive(
    iscsi: &mut Initiator,
    history: &mut History,
    open: &mut BTreeMap<u32, (u64, u64)>,
    flush: &mut Option<(u32, Vec<(u64, u64)>)>,
) -> Result<()> {
    let done = iscsi.answer()?;
    ensure!(done.is_good(), "{done:?} while a majority is there");
    if let Some((block, stamp)) = open.remove(&done.tag) {
        history.acked(block, stamp);
    } else {
        let (tag, covered) = flush.take().context("a flush")?;
        ensure!(tag == done.tag, "tag {} for {tag}", done.tag);
        history.flushed(&covered);
    }
    Ok(())
}

/// Reads every block that was written to, over iSCSI and over NBD.
fn check_all(cluster: &Cluster, history: &mut History) -> Result<()> {
    let (mut iscsi, mut nbd) = (cluster.initiator(9)?, cluster.client()?);
    for block in history.blocks() {
        let bytes = iscsi.read(block * BLOCK_BYTES, u32::try_from(BLOCK)?)?;
        history.check(block, &bytes, false)?;
        let same = nbd.read(block * BLOCK_BYTES, u32::try_from(BLOCK)?)?;
        ensure!(same == Ok(bytes), "block {block}: NBD reads other bytes");
    }
    Ok(())
}

#[test]
fn no_acknowledged_write_is_lost_when_the_engine_dies_under_initiators() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let (mut history, mut random) = (History::new(), Random(17));
    for round in 0..4 {
        let mut iscsi = cluster.initiator(1)?;
        let pid = cluster.engine()?;
        let killer = std::thread::spawn(move || {
            pause(Duration::from_millis(150 + 100 * round));
            signal(pid, Signal::KILL)
        });
        // It ends when the engine dies under it.
        drop(write_some(&mut iscsi, &mut history, &mut random, 1_000_000));
        killer
            .join()
            .map_err(|_| anyhow::anyhow!("the killer panicked"))??;
        cluster.wait_serving()?;
        check_all(&cluster, &mut history)?;
    }
    cluster.stop()
}

#[test]
fn a_clean_stop_under_load_ends_connections_and_fails_no_command() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let (mut history, mut random) = (History::new(), Random(23));
    for _ in 0..3 {
        let mut iscsi = cluster.initiator(1)?;
        let history = &mut history;
        let random = &mut random;
        let end = std::thread::scope(|scope| {
            let load = scope.spawn(|| write_some(&mut iscsi, history, random, 1_000_000));
            pause(Duration::from_millis(200));
            cluster.stop()?;
            load.join()
                .map_err(|_| anyhow::anyhow!("the load panicked"))
        })?;
        let error = end.err().context("the load was over before the stop")?;
        let gone = error.downcast_ref::<std::io::Error>().is_some();
        ensure!(gone, "expected the end of the connection, found {error:#}");
        cluster.up()?;
        check_all(&cluster, history)?;
    }
    cluster.stop()
}

#[test]
fn libiscsi_connects_again_and_goes_on_when_the_engine_dies() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let uri = cluster.iscsi_uri()?;
    if !qemu_knows_iscsi()? {
        return cluster.stop();
    }
    let (source, back) = (cluster.dir().join("source"), cluster.dir().join("back"));
    let mut data = vec![0; 256 * MIB];
    File::open("/dev/urandom")?.read_exact(&mut data)?;
    fs::write(&source, &data)?;
    let (source, back) = (source.display().to_string(), back.display().to_string());
    let mut copy = Command::new("qemu-img")
        .args(["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri])
        .spawn()?;
    pause(Duration::from_millis(300));
    ensure!(
        copy.try_wait()?.is_none(),
        "the copy was faster than its fault"
    );
    signal(cluster.engine()?, Signal::KILL)?;
    ensure!(copy.wait()?.success(), "qemu-img saw an error");
    succeed("nbdcopy", &[&cluster.uri(), &back])?;
    ensure!(fs::read(&source)? == fs::read(&back)?, "bytes are missing");
    cluster.stop()
}

#[test]
fn initiators_see_no_error_while_replicas_die_in_turn() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let (mut history, mut random) = (History::new(), Random(19));
    let mut iscsi = cluster.initiator(1)?;
    for member in 0..3 {
        signal(cluster.replica(member)?, Signal::KILL)?;
        write_some(&mut iscsi, &mut history, &mut random, 3000)?;
        cluster.wait_state("healthy")?;
    }
    check_all(&cluster, &mut history)?;
    cluster.stop()
}

#[test]
fn compare_and_write_never_covers_a_write_of_an_nbd_client() -> Result<()> {
    const ROUNDS: u64 = 400;
    let mut cluster = Cluster::start(Options::default())?;
    let (mut nbd, mut iscsi) = (cluster.client()?, cluster.initiator(1)?);
    let mut won = 0;
    let mut old = vec![0; 512];
    for round in 0..ROUNDS {
        let (from_nbd, from_iscsi) = (fill(1, round + 1), fill(2, round + 1));
        let both = [&old[..], &from_iscsi[..512]].concat();
        // Both at once: whichever comes first, the block holds what NBD has written in the end, for
        // after it nothing compares equal.
        let (first, second) = if round % 2 == 0 {
            let tag = iscsi.send_command(&compare_and_write(0, 1), &both, 0)?;
            (tag, nbd.send_write(0, &from_nbd[..512], false)?)
        } else {
            let cookie = nbd.send_write(0, &from_nbd[..512], false)?;
            (
                iscsi.send_command(&compare_and_write(0, 1), &both, 0)?,
                cookie,
            )
        };
        let reply = nbd.reply()?;
        ensure!(reply.cookie == second && reply.error == 0, "{reply:?}");
        let done = iscsi.answer()?;
        ensure!(done.tag == first, "{done:?}");
        won += u64::from(done.is_good());
        ensure!(
            done.is_good() || done.sense == Some((0xe, 0x1d, 0)),
            "{done:?}"
        );
        let now = nbd.read(0, 512)?;
        ensure!(
            now == Ok(from_nbd[..512].to_vec()),
            "round {round}: an acknowledged write is gone ({done:?})"
        );
        old = from_nbd[..512].to_vec();
    }
    ensure!(won > 0, "no comparison came first: nothing was tried");
    cluster.stop()
}

/// PERSISTENT RESERVE OUT; its status.
fn reserve(
    iscsi: &mut Initiator,
    action: u8,
    kind: u8,
    keys: (u64, u64),
    keep: bool,
) -> Result<u8> {
    let mut list = [keys.0.to_be_bytes(), keys.1.to_be_bytes()].concat();
    list.extend_from_slice(&[0, 0, 0, 0, u8::from(keep), 0, 0, 0]);
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    Ok(iscsi.command(&cdb, &list, 0)?.status)
}

fn write_status(iscsi: &mut Initiator) -> Result<u8> {
    iscsi.send_write(0, &[1; 512], false)?;
    Ok(iscsi.answer()?.status)
}

#[test]
fn reservations_that_are_to_be_kept_outlive_the_engine_and_the_volume() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let mut one = cluster.initiator(1)?;
    let mut two = cluster.initiator(2)?;
    // Register with APTPL, then reserve: write exclusive, registrants only.
    ensure!(reserve(&mut one, 0, 0, (0, 0x11), true)? == status::GOOD);
    ensure!(reserve(&mut one, 1, 5, (0x11, 0), true)? == status::GOOD);
    ensure!(write_status(&mut two)? == status::RESERVATION_CONFLICT);
    for round in 0..2 {
        if round == 0 {
            signal(cluster.engine()?, Signal::KILL)?;
            cluster.wait_serving()?;
        } else {
            cluster.stop()?;
            cluster.up()?;
        }
        one = cluster.initiator(1)?;
        two = cluster.initiator(2)?;
        ensure!(write_status(&mut two)? == status::RESERVATION_CONFLICT);
        ensure!(write_status(&mut one)? == status::GOOD);
        // As documented: it holds among initiators.
        ensure!(cluster.client()?.write(0, &[2; 512])?.is_ok());
    }
    // Cleared, and that is kept as well.
    ensure!(reserve(&mut one, 3, 0, (0x11, 0), true)? == status::GOOD);
    signal(cluster.engine()?, Signal::KILL)?;
    cluster.wait_serving()?;
    two = cluster.initiator(2)?;
    ensure!(write_status(&mut two)? == status::GOOD);
    cluster.stop()?;
    // What is not understood is not taken for "nobody has reserved anything".
    let file = cluster.data().join("reservations.json");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replacen("\"version\": 1", "\"version\": 9", 1))?;
    cluster.spawn()?;
    wait_until("up to give up", || {
        cluster.log().contains("expected version 1")
    })?;
    cluster.kill_all()
}

#[test]
fn noise_disturbs_nobody() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let pid = cluster.engine()?;
    let mut iscsi = cluster.initiator(1)?;
    let mut noise = vec![0; 64 << 10];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    for len in [1, 47, 48, 4096, noise.len()] {
        let mut stream = TcpStream::connect(cluster.portal())?;
        // The other end may close while we are still sending.
        drop(stream.write_all(&noise[..len]));
    }
    // A login with a text that never ends, and one that claims 16 MiB of it.
    for (flags, len) in [(0x47u8, 64u8), (0x87, 0xff)] {
        let mut login = vec![0x43, flags, 0, 0, 0, len, len, len];
        login.resize(48, 0);
        let mut stream = TcpStream::connect(cluster.portal())?;
        drop(stream.write_all(&login));
        drop(stream.write_all(&noise));
    }
    let data = fill(3, 3);
    for n in 0..100 {
        iscsi.send_write(n * 4096, &data, false)?;
        ensure!(iscsi.answer()?.is_good());
        ensure!(iscsi.read(n * 4096, 4096)? == data);
    }
    cluster.initiator(2)?;
    ensure!(cluster.engine()? == pid, "the engine died of noise");
    cluster.stop()
}

/// Logins that never end, some of which say nothing and some a byte at a time, as many as the target
/// has places for but for a few.
#[test]
fn a_thousand_half_open_logins_disturb_nobody_and_cost_little() -> Result<()> {
    raise_file_limit(4096)?;
    let mut cluster = Cluster::start(Options::default())?;
    let pid = cluster.engine()?;
    let mut iscsi = cluster.initiator(1)?;
    let mut nbd = cluster.client()?;
    let data = fill(3, 3);
    ensure!(nbd.write(0, &data)?.is_ok());
    let before = engine_memory(&cluster)?;
    // A login request with as much text as there may be in one.
    let mut login = vec![0x43, 0x87, 0, 0, 0, 0, 0x1f, 0xf0];
    login.resize(48, 0);
    let mut half_open = Vec::new();
    for number in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(cluster.portal())?;
        if number % 2 == 0 {
            stream.write_all(&login[..2])?;
        } else {
            stream.write_all(&login)?;
        }
        half_open.push(stream);
    }
    let open = || -> Result<u64> {
        let connections = &cluster.status()?["engine"]["iscsi"]["connections"];
        connections.as_u64().context("find the connections")
    };
    // The last of them may still be in the listener's queue.
    wait_until("all of them to be accepted", || {
        open().is_ok_and(|open| open > HALF_OPEN as u64)
    })?;
    for n in 0..200usize {
        let place = n as u64 * 4096;
        // The loris moves.
        for stream in half_open.iter_mut().skip(1).step_by(2).skip(n % 5 * 100) {
            drop(stream.write_all(b"x"));
        }
        iscsi.send_write(place, &data, false)?;
        ensure!(iscsi.answer()?.is_good());
        ensure!(iscsi.read(place, 4096)? == data);
        ensure!(nbd.read(place, 4096)? == Ok(data.clone()));
    }
    // 64 KiB for each would be an invitation; text of a login may be 16 KiB, and more is not kept.
    let grown = engine_memory(&cluster)?.saturating_sub(before);
    ensure!(grown < HALF_OPEN as u64 * (64 << 10), "{grown} bytes more");
    // Another initiator still comes in, and in time all of them are thrown out.
    cluster.initiator(2)?;
    wait_until("the logins to be given up", || {
        open().is_ok_and(|open| open < 10)
    })?;
    drop(half_open);
    ensure!(cluster.engine()? == pid, "the engine died of noise");
    cluster.stop()
}

const HALF_OPEN: usize = 1000;

fn engine_memory(cluster: &Cluster) -> Result<u64> {
    let bytes = &cluster.status()?["engine"]["process"]["resident_bytes"];
    bytes.as_u64().context("find the memory")
}

/// Lets this process, and those that it starts, have that many files open.
fn raise_file_limit(files: u64) -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let least = |most: u64| most >= files;
    ensure!(limit.maximum.is_none_or(least), "{limit:?}");
    if !limit.current.is_none_or(least) {
        limit.current = Some(files);
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(())
}

#[test]
fn iscsi_gives_way_at_its_default_address_only() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").display().to_string();
    let portal = cluster.portal();
    let said = run(
        trilith_e2e::cluster::trilith(),
        &[
            "up",
            "--size",
            "64MiB",
            "--dir",
            &data,
            "--nbd",
            "127.0.0.1:0",
            "--iscsi",
            &portal,
        ],
    )?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(!said.status.success() && text.contains("in use"), "{text}");
    cluster.stop()?;
    // Somebody has the default address: we, or whoever had it before.
    let _taken = TcpListener::bind("127.0.0.1:3260");
    let mut child = Command::new(trilith_e2e::cluster::trilith())
        .args(["up", "--size", "64MiB", "--dir", &data])
        .args(["--nbd", "127.0.0.1:0"])
        .stdout(File::create(dir.path().join("out"))?)
        .stderr(File::create(dir.path().join("err"))?)
        .spawn()?;
    let greeted = wait_until("the greeting", || {
        fs::read_to_string(dir.path().join("out")).is_ok_and(|text| text.contains("Ctrl-C"))
    });
    signal(i32::try_from(child.id())?, Signal::TERM)?;
    ensure!(child.wait()?.success());
    greeted?;
    let text = fs::read_to_string(dir.path().join("out"))?;
    ensure!(
        text.contains("iSCSI is off: 127.0.0.1:3260 is in use"),
        "{text}"
    );
    Ok(())
}
