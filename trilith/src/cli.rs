//! The command line, as typed. Each command checks its flags once and turns them into its own
//! configuration; nothing else looks at these structs.

use crate::limits::{SCRUB_DAYS, SCRUB_RATE_MAX, SCRUB_RATE_MIN};
use crate::text::{parse_bytes, parse_name, parse_volume_size};
use clap::{Args, Parser, Subcommand, ValueEnum};
use core::time::Duration;
use std::path::PathBuf;
use trilith_block::Uuid;
use trilith_block::limits::MEMBERS_MAX;
use trilith_frontend_ublk::Number;
use trilith_runtime::limits::SPIN_TIME_MAX;
use trilith_runtime::{Address, Backend};

/// Replicated block storage.
#[derive(Parser, Debug)]
#[command(name = "trilith", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to log: error, warn, info, debug, trace, or a filter such as trilith=debug,warn.
    #[arg(long, global = true, default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Make or find a replicated volume in a directory of this machine and serve it over NBD and
    /// iSCSI.
    Up(UpArgs),
    /// Show the state of a running volume.
    Status(StatusArgs),
    /// Tell something to a running volume.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Look at the ublk devices of this host and mend them.
    #[command(subcommand)]
    Ublk(UblkCommand),
    /// Work on the store of a replica that is not running.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Run one replica.
    Replica(ReplicaArgs),
    /// Run the engine of a volume.
    Engine(Box<EngineArgs>),
}

/// How to talk to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum BackendArg {
    /// io_uring if the kernel allows it.
    Auto,
    /// io_uring or fail.
    Uring,
    /// epoll and threads.
    Plain,
}

impl From<BackendArg> for Backend {
    fn from(arg: BackendArg) -> Backend {
        match arg {
            BackendArg::Auto => Backend::Auto,
            BackendArg::Uring => Backend::Uring,
            BackendArg::Plain => Backend::Plain,
        }
    }
}

impl BackendArg {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            BackendArg::Auto => "auto",
            BackendArg::Uring => "uring",
            BackendArg::Plain => "plain",
        }
    }
}

/// Flags of `up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// Size of the volume, a multiple of 4 KiB, such as 10GiB. Needed the first time only.
    #[arg(long, value_parser = parse_volume_size, value_name = "SIZE")]
    pub(crate) size: Option<u64>,
    /// Number of replicas [default: 3, or what the volume has].
    #[arg(long, value_parser = parse_replicas, value_name = "N")]
    pub(crate) replicas: Option<usize>,
    /// Make the volume, of 2 replicas, with a witness: a third process that votes and holds no data, so
    /// that the volume goes on when any one of the three has failed.
    #[arg(long)]
    pub(crate) witness: bool,
    /// Directory of the volume; made when missing.
    #[arg(long, default_value = crate::up::layout::DIR_DEFAULT, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Name of the volume and of its NBD export [default: vol, or what the volume has].
    #[arg(long, value_parser = parse_name, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Make the volume with checksums of its blocks on the disk, so that what a device changed by itself
    /// is read from another replica. Takes memory and, for places not used lately, more I/O.
    #[arg(long)]
    pub(crate) checksums: bool,
    /// Where to serve NBD: ADDRESS:PORT or unix:PATH; off: nowhere.
    #[arg(long, default_value = "127.0.0.1:10809", value_name = "ADDRESS")]
    pub(crate) nbd: Listen,
    /// Where to serve iSCSI: ADDRESS:PORT or unix:PATH; off: nowhere [default: 127.0.0.1:3260 if
    /// that is free].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) iscsi: Option<Listen>,
    /// Flags of the iSCSI target.
    #[command(flatten)]
    pub(crate) target: IscsiArgs,
    /// Flags of the ublk device.
    #[command(flatten)]
    pub(crate) ublk: UblkArgs,
    /// How the replicas are compared.
    #[command(flatten)]
    pub(crate) scrub: ScrubArgs,
    /// Where else to show status and metrics of the volume (GET /status, /metrics): a loopback
    /// ADDRESS:PORT or unix:PATH, once for each.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Vec<Address>,
    /// Stay in the foreground. `up` always does; the flag is there for scripts that say so.
    #[arg(long)]
    pub(crate) foreground: bool,
    /// How to talk to the kernel.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) backend: BackendArg,
    /// How long engine and replicas look out for the next event before they sleep, such as 1ms, while
    /// events come that fast: shorter latencies for processor time.
    #[arg(long, value_parser = parse_spin, default_value = "0", value_name = "TIME")]
    pub(crate) spin: Duration,
    /// Directory on tmpfs for what must outlive a process but not the kernel [default: /run or
    /// /dev/shm].
    #[arg(long, value_name = "DIR")]
    pub(crate) window_dir: Option<PathBuf>,
    /// Run the first replica in the engine's process: less to wake for each request, but the two end
    /// together [default with one replica].
    #[arg(long, conflicts_with = "apart")]
    pub(crate) carry: bool,
    /// Run every replica in a process of its own [default with more than one].
    #[arg(long)]
    pub(crate) apart: bool,
}

/// Flags of `status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Directory of the volume.
    #[arg(long, default_value = crate::up::layout::DIR_DEFAULT, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again every second until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Show where the time of operations goes, stage by stage and replica by replica.
    #[arg(long, conflicts_with_all = ["json", "slowest"])]
    pub(crate) stages: bool,
    /// Show the slowest operations and where the time of each went.
    #[arg(long, conflicts_with = "json")]
    pub(crate) slowest: bool,
    /// After having shown them, forget the slowest operations and begin to collect them anew.
    #[arg(long, requires = "slowest", conflicts_with = "watch")]
    pub(crate) reset: bool,
}

/// What can be told to a running volume.
#[derive(Subcommand, Debug)]
pub(crate) enum VolumeCommand {
    /// Go on after a recovery that lost acknowledged but unflushed writes: you have restarted the
    /// clients, or accept what they will see.
    AcceptLoss(VolumeArgs),
    /// Replace a replica, such as one whose disk is lost, by a new one that is rebuilt while clients
    /// go on. For a volume run by `trilith up`; `trilith status` shows how far it is.
    ReplaceReplica(ReplaceArgs),
    /// Compare the replicas now, and repair copies that differ from a majority.
    Scrub(ScrubNowArgs),
    /// Let the engine give up the volume, so that another one can take over at once.
    StepDown(VolumeArgs),
}

/// Flags of `volume scrub`.
#[derive(Args, Debug)]
pub(crate) struct ScrubNowArgs {
    /// Which volume.
    #[command(flatten)]
    pub(crate) volume: VolumeArgs,
    /// Wait for its end and tell what it found; fails when differences are left.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Flags of `volume replace-replica`.
#[derive(Args, Debug)]
pub(crate) struct ReplaceArgs {
    /// Directory of the volume.
    #[arg(long, default_value = crate::up::layout::DIR_DEFAULT, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Number of the replica that is to be replaced.
    #[arg(long, value_name = "N", required_unless_present = "give_up")]
    pub(crate) member: Option<usize>,
    /// Directory for the new replica, made when missing, else empty [default: replica-N in the
    /// directory of the volume, N being a number that is free].
    #[arg(long, value_name = "DIR")]
    pub(crate) new_dir: Option<PathBuf>,
    /// Give up the replacement that runs, if the new replica does not vote yet.
    #[arg(long, conflicts_with_all = ["member", "new_dir"])]
    pub(crate) give_up: bool,
}

/// Which volume.
#[derive(Args, Debug)]
pub(crate) struct VolumeArgs {
    /// Directory of the volume.
    #[arg(long, default_value = crate::up::layout::DIR_DEFAULT, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Admin endpoint of the engine, instead of the one in the directory.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<Address>,
}

/// Work on a store.
#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Make a new, empty store in a directory or on a block device.
    Format(FormatArgs),
    /// Verify a store without changing it.
    Check(CheckArgs),
    /// Print the state of a store.
    Show(StoreArgs),
    /// Copy the content of a store to a raw sparse file.
    Export(ExportArgs),
}

/// Flags of `store check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Directory of the replica, or its block device.
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) path: PathBuf,
    /// Read all data as well and compare it with the checksums that the replica keeps.
    #[arg(long)]
    pub(crate) data: bool,
}

/// Which store.
#[derive(Args, Debug)]
pub(crate) struct StoreArgs {
    /// Directory of the replica, or its block device.
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) path: PathBuf,
}

/// Flags of `store format`.
#[derive(Args, Debug)]
pub(crate) struct FormatArgs {
    /// Directory (made when missing) or block device.
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) path: PathBuf,
    /// The volume's identity.
    #[arg(long, value_parser = parse_uuid, value_name = "UUID")]
    pub(crate) volume: Uuid,
    /// Which member of the volume this replica is, from 0.
    #[arg(long, value_name = "N")]
    pub(crate) member: usize,
    /// How many replicas the volume has, a witness not counted.
    #[arg(long, value_parser = parse_replicas, value_name = "N")]
    pub(crate) replicas: usize,
    /// The volume, of 2 replicas, has a witness besides: member 2, which votes and holds no data. To be
    /// said for each of the three.
    #[arg(long)]
    pub(crate) witness: bool,
    /// Size of the volume.
    #[arg(long, value_parser = parse_volume_size, value_name = "SIZE")]
    pub(crate) size: u64,
    /// The volume exists and the replica takes the place of one that was lost: it starts out of
    /// sync and is rebuilt. Without it, all replicas of a new volume must be formatted.
    #[arg(long)]
    pub(crate) replacement: bool,
    /// Keep checksums of the blocks on the disk.
    #[arg(long)]
    pub(crate) checksums: bool,
}

/// Flags of `store export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// Directory of the replica, or its block device.
    #[arg(value_name = "DIR|DEVICE")]
    pub(crate) path: PathBuf,
    /// File to write; it must not exist.
    #[arg(value_name = "FILE")]
    pub(crate) output: PathBuf,
}

/// Flags of `replica`.
#[derive(Args, Debug)]
pub(crate) struct ReplicaArgs {
    /// Directory of the replica.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "device",
        conflicts_with = "device"
    )]
    pub(crate) dir: Option<PathBuf>,
    /// Block device of the replica, instead of a directory.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<PathBuf>,
    /// Where to listen for engines: ADDRESS:PORT or unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Address,
    /// File with the volume's secret, mode 0600.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: PathBuf,
    /// Volume that the replica must be of; refused otherwise.
    #[arg(long, value_parser = parse_uuid, value_name = "UUID")]
    pub(crate) volume: Option<Uuid>,
    /// Member number that the replica must have.
    #[arg(long, value_name = "N")]
    pub(crate) member: Option<usize>,
    /// Identity that the replica must have.
    #[arg(long, value_parser = parse_uuid, value_name = "UUID")]
    pub(crate) id: Option<Uuid>,
    /// Flags of every process.
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Directory on tmpfs for what must outlive a process but not the kernel [default: /run or
    /// /dev/shm].
    #[arg(long, value_name = "DIR")]
    pub(crate) window_dir: Option<PathBuf>,
}

/// Flags of `engine`.
#[derive(Args, Debug)]
pub(crate) struct EngineArgs {
    /// The volume's identity.
    #[arg(long, value_parser = parse_uuid, value_name = "UUID")]
    pub(crate) volume: Uuid,
    /// A replica: member number and address, once for each member.
    #[arg(long = "replica", value_parser = parse_member, value_name = "N=ADDRESS", required = true)]
    pub(crate) replicas: Vec<(usize, Address)>,
    /// Identity that the replica of this number must have, once for each; else any of the volume is
    /// taken for it.
    #[arg(long = "replica-id", value_parser = parse_identity, value_name = "N=UUID")]
    pub(crate) replica_ids: Vec<(usize, Uuid)>,
    /// Take from the replicas who of them votes: a replica was, or is being, replaced.
    #[arg(long)]
    pub(crate) ask_for_voters: bool,
    /// Size of the volume.
    #[arg(long, value_parser = parse_volume_size, value_name = "SIZE")]
    pub(crate) size: u64,
    /// File with the volume's secret, mode 0600.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: PathBuf,
    /// Attach epoch that was issued to this engine.
    #[arg(
        long,
        value_name = "N",
        required_unless_present = "take_over",
        conflicts_with = "take_over"
    )]
    pub(crate) attach_epoch: Option<u64>,
    /// Take over from whoever serves the volume: use the highest attach epoch heard of, plus one.
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Identity of this engine [default: a new one].
    #[arg(long, value_parser = parse_uuid, value_name = "UUID")]
    pub(crate) engine: Option<Uuid>,
    /// Identity of an engine that is known to be dead: its lease is released at once.
    #[arg(long, value_parser = parse_uuid, value_name = "UUID")]
    pub(crate) supersedes: Option<Uuid>,
    /// Loss epoch that clients are bound to; without it they are known to be fresh (and a ublk
    /// device that an engine before has left is not taken over).
    #[arg(long, value_name = "N")]
    pub(crate) loss: Option<u32>,
    /// Carry a replica: run the one of this number and directory (or block device) in this process as
    /// well, so that its share of a request wakes no other process. It listens where --replica says.
    #[arg(
        long,
        value_parser = parse_carried,
        value_name = "N=DIR|DEVICE",
        conflicts_with = "take_over"
    )]
    pub(crate) carry: Option<(usize, PathBuf)>,
    /// Admin endpoint of the replica that is carried, once for each.
    #[arg(long, value_name = "ADDRESS", requires = "carry")]
    pub(crate) carry_admin: Vec<Address>,
    /// Directory on tmpfs for what must outlive the replica that is carried but not the kernel
    /// [default: /run or /dev/shm].
    #[arg(long, value_name = "DIR", requires = "carry")]
    pub(crate) window_dir: Option<PathBuf>,
    /// Name of the volume: the NBD export.
    #[arg(long, value_parser = parse_name, default_value = "vol", value_name = "NAME")]
    pub(crate) name: String,
    /// Where to serve NBD: ADDRESS:PORT or unix:PATH. Sockets passed by systemd are served too.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) nbd: Vec<Address>,
    /// Where to serve iSCSI: ADDRESS:PORT or unix:PATH, once for each [default: nowhere].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) iscsi: Vec<Address>,
    /// Flags of the iSCSI target.
    #[command(flatten)]
    pub(crate) target: IscsiArgs,
    /// File that keeps the persistent reservations of iSCSI initiators that ask for it (APTPL);
    /// without it they are refused. Whoever serves the volume next must have it.
    #[arg(long, value_name = "FILE")]
    pub(crate) iscsi_reservations: Option<PathBuf>,
    /// Flags of the ublk device.
    #[command(flatten)]
    pub(crate) ublk: UblkArgs,
    /// How the replicas are compared.
    #[command(flatten)]
    pub(crate) scrub: ScrubArgs,
    /// File to lock while the engine runs, so that no second one is started on this host.
    #[arg(long, value_name = "FILE")]
    pub(crate) lock: Option<PathBuf>,
    /// Flags of every process.
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// Flags of an iSCSI target.
#[derive(Args, Clone, Debug)]
pub(crate) struct IscsiArgs {
    /// HOST:PORT told to iSCSI initiators that discover, once for each [default: where it listens].
    #[arg(long = "iscsi-portal", value_parser = parse_portal, value_name = "HOST:PORT")]
    pub(crate) portals: Vec<String>,
    /// Name of an iSCSI initiator that may log in, once for each [default: all may].
    #[arg(long = "iscsi-initiator", value_name = "IQN")]
    pub(crate) initiators: Vec<String>,
    /// File (mode 0600) of lines NAME SECRET: an iSCSI initiator must prove by CHAP that it is one
    /// of them. Secrets have 12 to 256 bytes.
    #[arg(long = "iscsi-chap-file", value_name = "FILE")]
    pub(crate) chap_file: Option<PathBuf>,
    /// File (mode 0600) with one line NAME SECRET: what the target proves to initiators that ask.
    #[arg(long = "iscsi-mutual-chap-file", value_name = "FILE")]
    pub(crate) mutual_chap_file: Option<PathBuf>,
    /// Logical block of the iSCSI disk in bytes: 512 or 4096. The physical block is 4096 in both
    /// cases. Changing it changes what partition tables mean.
    #[arg(long = "iscsi-block", value_parser = parse_block, default_value = "512", value_name = "BYTES")]
    pub(crate) block: u32,
    /// Serve iSCSI initiators reads only: the disk is write protected for them.
    #[arg(long = "iscsi-read-only")]
    pub(crate) read_only: bool,
}

/// Flags of a ublk device.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct UblkArgs {
    /// Serve the volume as a block device of this host, /dev/ublkbN. Without a number, the one that
    /// the volume has or the lowest that is free. Needs Linux 6.5, and root or rules of udev
    /// (docs/ublk-users.md).
    #[arg(
        long = "ublk",
        value_parser = parse_ublk,
        num_args = 0..=1,
        default_missing_value = "auto",
        value_name = "auto|N"
    )]
    pub(crate) number: Option<UblkNumber>,
    /// Queues of a new ublk device, 1 to 8. One thread serves them all.
    #[arg(
        long = "ublk-queues",
        value_parser = clap::value_parser!(u16).range(1..=8),
        default_value_t = trilith_frontend_ublk::limits::QUEUES_DEFAULT,
        value_name = "N"
    )]
    pub(crate) queues: u16,
}

/// How the replicas are compared.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ScrubArgs {
    /// Bytes of the volume that are compared per second at most while the replicas are compared (a
    /// scrub); less while clients are slowed down by it. 0: never.
    #[arg(
        long = "scrub-rate",
        value_parser = parse_scrub_rate,
        default_value = "64MiB",
        value_name = "SIZE"
    )]
    pub(crate) rate: u64,
    /// Days from the end of one scrub to the start of the next; the first one after the engine has
    /// started begins at some time within them. 0: only when `trilith volume scrub` says so.
    #[arg(
        long = "scrub-days",
        value_parser = clap::value_parser!(u32).range(0..=3650),
        default_value_t = SCRUB_DAYS,
        value_name = "DAYS"
    )]
    pub(crate) days: u32,
}

/// Which ublk device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UblkNumber(pub(crate) Number);

impl std::fmt::Display for UblkNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Number::Auto => f.write_str("auto"),
            Number::Fixed(number) => write!(f, "{number}"),
        }
    }
}

/// What to do about ublk devices.
#[derive(Subcommand, Debug)]
pub(crate) enum UblkCommand {
    /// Show the devices of this host and what the driver can do.
    List,
    /// Let the running engine of a volume open or take over its device now, after it has failed to.
    Recover(VolumeArgs),
    /// Remove a device whose engine is gone for good: what waits for it fails.
    Delete(UblkDeleteArgs),
    /// Print the numbers of the user and the group that have added a device, for a rule of udev
    /// (docs/ublk-users.md).
    Owner(UblkOwnerArgs),
}

/// Which device to ask about.
#[derive(Args, Debug)]
pub(crate) struct UblkOwnerArgs {
    /// Its number: N of /dev/ublkbN.
    #[arg(value_name = "N")]
    pub(crate) number: u32,
}

/// Which device to remove.
#[derive(Args, Debug)]
pub(crate) struct UblkDeleteArgs {
    /// Its number: N of /dev/ublkbN.
    #[arg(value_name = "N")]
    pub(crate) number: u32,
    /// Even if it is being served.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Where to serve, or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Listen {
    /// There.
    At(Address),
    /// Nowhere.
    Off,
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        match text {
            "off" => Ok(Listen::Off),
            text => text.parse().map(Listen::At),
        }
    }
}

/// Flags that replica and engine share.
#[derive(Args, Debug)]
pub(crate) struct ProcessArgs {
    /// Admin endpoint: unix:PATH or a loopback ADDRESS:PORT, once for each.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Vec<Address>,
    /// How to talk to the kernel.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) backend: BackendArg,
    /// How long to look out for the next event before sleeping, such as 1ms, while events come that
    /// fast.
    #[arg(long, value_parser = parse_spin, default_value = "0", value_name = "TIME")]
    pub(crate) spin: Duration,
    /// Memory for data in flight, such as 64MiB [default: 64MiB, or 8MiB where it cannot be locked].
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    pub(crate) memory: Option<u64>,
    /// Process that supervises this one: end with it, take its commands from standard input and
    /// tell it news on standard output.
    #[arg(long, value_name = "PID")]
    pub(crate) supervisor: Option<u32>,
}

fn parse_uuid(text: &str) -> Result<Uuid, String> {
    Uuid::parse(text)
        .filter(|uuid| !uuid.is_none())
        .ok_or_else(|| format!("expected 32 hexadecimal digits, not all zero, found {text:?}"))
}

fn parse_ublk(text: &str) -> Result<UblkNumber, String> {
    // The kernel's minors have 20 bits.
    match text.parse::<u32>() {
        Ok(number) if number < 1 << 20 => Ok(UblkNumber(Number::Fixed(number))),
        _ if text == "auto" => Ok(UblkNumber(Number::Auto)),
        _ => Err(format!(
            "expected auto or the number of a device, found {text:?}"
        )),
    }
}

fn parse_replicas(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ (1 | 2 | 3 | 5)) => Ok(count),
        _ => Err(format!("expected 1, 2, 3 or 5, found {text:?}")),
    }
}

fn parse_spin(text: &str) -> Result<Duration, String> {
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "us" => 1,
        "ms" => 1000,
        "" if number == "0" => 0,
        _ => u64::MAX,
    };
    let time = number.parse::<u64>().ok();
    let time = time.and_then(|number| number.checked_mul(factor));
    time.map(Duration::from_micros)
        .filter(|time| *time <= SPIN_TIME_MAX)
        .ok_or_else(|| format!("expected 0 or up to 10ms, such as 500us or 1ms, found {text:?}"))
}

fn parse_scrub_rate(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        rate @ (0 | SCRUB_RATE_MIN..=SCRUB_RATE_MAX) => Ok(rate),
        _ => Err(format!("expected 0 or 1MiB to 64GiB, found {text:?}")),
    }
}

fn parse_block(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(bytes @ (512 | 4096)) => Ok(bytes),
        _ => Err(format!("expected 512 or 4096, found {text:?}")),
    }
}

fn parse_portal(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err(format!("expected HOST:PORT, found {text:?}")),
    }
}

fn parse_member(text: &str) -> Result<(usize, Address), String> {
    let (member, address) = numbered(text, "ADDRESS")?;
    Ok((member, address.parse()?))
}

fn parse_identity(text: &str) -> Result<(usize, Uuid), String> {
    let (member, id) = numbered(text, "UUID")?;
    Ok((member, parse_uuid(id)?))
}

fn parse_carried(text: &str) -> Result<(usize, PathBuf), String> {
    let (member, path) = numbered(text, "DIR")?;
    if path.is_empty() {
        return Err(format!("expected MEMBER=DIR, found {text:?}"));
    }
    Ok((member, path.into()))
}

/// A member number and what is said of it.
fn numbered<'a>(text: &'a str, what: &str) -> Result<(usize, &'a str), String> {
    let wrong = || {
        format!(
            "expected MEMBER={what} with a member from 0 to {}, found {text:?}",
            MEMBERS_MAX - 1
        )
    };
    let (member, rest) = text.split_once('=').ok_or_else(wrong)?;
    let member = member
        .parse()
        .ok()
        .filter(|member| *member < MEMBERS_MAX)
        .ok_or_else(wrong)?;
    Ok((member, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_of_the_readme_are_understood() {
        let uuid = "0123456789abcdef0123456789abcdef";
        for line in [
            "trilith up --size 10GiB",
            "trilith up --size=10GiB --replicas=5 --dir d --name v --nbd unix:/tmp/s --foreground",
            "trilith up --iscsi 127.0.0.1:3261 --iscsi-portal storage.example:3260 --nbd off",
            "trilith up --iscsi off",
            "trilith up --spin 500us",
            "trilith up --carry",
            "trilith up --size 1GiB --replicas 2 --witness",
            "trilith up --size 1GiB --replicas 1 --apart",
            "trilith up --ublk",
            "trilith up --ublk --size 1G --ublk-queues 2 --nbd off --iscsi off",
            "trilith up --ublk 3",
            "trilith ublk list",
            "trilith ublk recover --dir d",
            "trilith ublk delete 0 --force",
            "trilith up --iscsi-chap-file c --iscsi-initiator iqn.2026-01.example:a --iscsi-block 4096",
            "trilith status --json",
            "trilith status --watch --dir d",
            "trilith volume accept-loss",
            "trilith volume replace-replica --member 2",
            "trilith volume replace-replica --member 2 --new-dir /disk/r --dir d",
            "trilith volume replace-replica --give-up",
            "trilith up --scrub-rate 16MiB --scrub-days 7",
            "trilith up --scrub-rate 0",
            "trilith volume scrub",
            "trilith volume scrub --wait --dir d",
            "trilith store check d/replica-0",
            "trilith store check --data d/replica-0",
            "trilith store export d/replica-0 out.raw",
            "trilith replica --dir d --listen 127.0.0.1:1 --secret-file s",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
        let engine =
            format!("trilith engine --volume {uuid} --replica 0=unix:a --size 1G --secret-file s");
        assert!(parse(&format!("{engine} --attach-epoch 3 --nbd 127.0.0.1:1")).is_ok());
        assert!(parse(&format!("{engine} --take-over --supersedes {uuid}")).is_ok());
        assert!(parse(&format!("{engine} --attach-epoch 3 --carry 0=/r")).is_ok());
        assert!(
            parse(&format!("{engine} --take-over --carry 0=/r")).is_err(),
            "a replica that does not run yet cannot be asked"
        );
        assert!(
            parse(&engine).is_err(),
            "an attach epoch must come from somewhere"
        );
    }

    #[test]
    fn wrong_values_and_unknown_flags_are_refused() {
        for line in [
            "trilith up --size 4097",
            "trilith up --size 1G --replicas 4",
            "trilith up --size 1G --colour red",
            "trilith up --nbd localhost",
            "trilith volume replace-replica",
            "trilith volume replace-replica --member 1 --give-up",
            "trilith up --iscsi localhost",
            "trilith up --ublk b",
            "trilith up --ublk 1048576",
            "trilith up --ublk-queues 0",
            "trilith up --carry --apart",
            "trilith up --spin 1",
            "trilith up --spin 1s",
            "trilith up --spin 11ms",
            "trilith up --spin 99999999999999999999us",
            "trilith ublk delete",
            "trilith up --scrub-rate 1000",
            "trilith up --scrub-rate 65GiB",
            "trilith up --scrub-days 3651",
            "trilith up --iscsi-block 1024",
            "trilith up --iscsi-portal storage.example",
            "trilith up --iscsi-portal :3260",
            "trilith replica --listen 127.0.0.1:1 --secret-file s",
            "trilith replica --dir a --device b --listen 127.0.0.1:1 --secret-file s",
            "trilith engine --volume 12 --replica 0=unix:a --size 1G --secret-file s --take-over",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(parse_member("2=unix:/a").unwrap().0, 2);
        assert!(parse_member("7=unix:/a").is_err() && parse_member("unix:/a").is_err());
    }
}
