//! Makes the store of a new replica, in a directory or on a block device.

use crate::host::replica::disk::StoreDisk;
use anyhow::{Context, bail, ensure};
use core::time::Duration;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use trilith_block::{ConnId, MemberId, MemberSet, Monotonic, StreamEvent, Uuid, Want};
use trilith_replica::store::{DiskError, Format, FormatParams, Geometry, StoreOut};
use trilith_runtime::{
    Backend, DataFile, DiskDone, FileKind, Handler, Io, ListenerId, Loop, LoopConfig, OpenFile,
    Signal,
};

/// Name of the metadata file. It gets this name when the store is complete.
pub(crate) const META: &str = "vol.meta";
/// Name of the data file.
pub(crate) const DATA: &str = "vol.data";
/// Name of the only file of a witness, which holds no data (7.1). Another name, so that the file of a
/// replica whose data is gone is not taken for it.
pub(crate) const WITNESS: &str = "witness.meta";
/// Name of the metadata file while the store is being made.
const META_NEW: &str = "vol.meta.new";

/// Replicas with data of a volume that has a witness.
pub(crate) const WITNESS_REPLICAS: usize = 2;
/// Why nobody takes the place of another one in such a volume.
pub(crate) const NO_REPLACEMENT: &str = "in a volume with a witness neither a replica nor the \
     witness can be replaced yet: make a new volume and copy what is left";

/// What a new replica is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New {
    pub(crate) volume: Uuid,
    pub(crate) replica: Uuid,
    pub(crate) member: usize,
    /// Replicas that hold data, of a volume without a replacement under way.
    pub(crate) replicas: usize,
    /// The volume has a witness besides, whose number is the one above theirs.
    pub(crate) witness: bool,
    pub(crate) capacity: u64,
    /// It takes the place of a lost replica of a volume that exists.
    pub(crate) replacement: bool,
    /// It replaces another one in a volume that is served: who votes when it has its place.
    pub(crate) newcomer: Option<MemberSet>,
    /// Its blocks have checksums on the disk.
    pub(crate) checksums: bool,
}

impl New {
    /// It is the witness itself.
    pub(crate) fn is_witness(&self) -> bool {
        self.witness && self.member == self.replicas
    }
}

/// A loop to make a store with, which ends at a signal.
///
/// # Errors
/// When the kernel refuses it.
pub(crate) fn turns() -> anyhow::Result<Loop> {
    let mut turns = Loop::new(LoopConfig {
        backend: Backend::Plain,
        ..LoopConfig::default()
    })?;
    let signals = [Signal::Terminate, Signal::Interrupt, Signal::Hangup];
    turns.io().catch_signals(&signals)?;
    Ok(turns)
}

/// True when a complete store was made in the directory once.
pub(crate) fn is_formatted(dir: &Path) -> bool {
    dir.join(META).exists() || dir.join(WITNESS).exists()
}

/// Makes a store in a directory. Crash argument: until the last step there is no `vol.meta`, so
/// what an interrupted format leaves is made anew by the next one.
///
/// # Errors
/// When the directory holds a store already, or something cannot be written.
pub(crate) fn directory(turns: &mut Loop, dir: &Path, new: &New) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make directory {}", dir.display()))?;
    ensure!(
        !is_formatted(dir),
        "expected no store in {}, found one",
        dir.display()
    );
    let open = |name: &str| {
        DataFile::open(&OpenFile {
            create: true,
            ..OpenFile::existing(dir.join(name))
        })
    };
    let params = params(new, false)?;
    let data = if new.is_witness() {
        None
    } else {
        let data = open(DATA)?;
        data.set_len(0)?;
        data.set_len(new.capacity)?;
        data.sync()?;
        Some(turns.io().adopt(data)?)
    };
    let meta = open(META_NEW)?;
    meta.set_len(0)?;
    meta.set_len(params.layout().end(new.capacity))?;
    meta.allocate(0, params.layout().meta_bytes)?;
    let meta = turns.io().adopt(meta)?;
    let result = format(turns, &params, StoreDisk::new(meta, data));
    for file in [Some(meta), data].into_iter().flatten() {
        turns.io().close_file(file);
    }
    result?;
    let name = if new.is_witness() { WITNESS } else { META };
    std::fs::rename(dir.join(META_NEW), dir.join(name)).context("name the new store")?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .context("make the new store durable")
}

/// Makes a store on a block device. All that is on it is lost.
///
/// # Errors
/// When it is no device, too small, or cannot be written.
pub(crate) fn device(turns: &mut Loop, path: &Path, new: &New) -> anyhow::Result<()> {
    let file = DataFile::open(&OpenFile::existing(path))?;
    if file.kind() != FileKind::Device {
        bail!("expected a directory or a block device, found a file");
    }
    ensure!(
        !new.is_witness(),
        "expected a directory for a witness, found a block device: it holds no data"
    );
    let params = params(new, true)?;
    let layout = params.layout();
    let wanted = layout.data_offset + new.capacity;
    let found = file.len()?;
    ensure!(
        wanted <= found,
        "expected a device of at least {wanted} bytes, found {found}"
    );
    let file = turns.io().adopt(file)?;
    let result = format(turns, &params, StoreDisk::new(file, Some(file)));
    turns.io().close_file(file);
    result
}

/// Parameters with the layout that follows from them.
struct Params(FormatParams);

impl Params {
    fn layout(&self) -> trilith_replica::store::Layout {
        self.0.layout()
    }
}

fn params(new: &New, device: bool) -> anyhow::Result<Params> {
    let voters = new.replicas + usize::from(new.witness);
    let member = MemberId::new(new.member)
        .filter(|member| new.newcomer.is_some() || member.index() < voters)
        .with_context(|| format!("expected a member below {voters}, found {}", new.member))?;
    check_witness(new)?;
    let data = MemberSet::first(new.replicas);
    Ok(Params(FormatParams {
        volume: new.volume,
        replica: new.replica,
        member,
        voters: new.newcomer.unwrap_or_else(|| MemberSet::first(voters)),
        newcomer: new.newcomer.is_some(),
        witness: MemberSet::first(voters).minus(data),
        iss: if new.replacement || new.newcomer.is_some() {
            MemberSet::EMPTY
        } else {
            data
        },
        capacity: new.capacity,
        geometry: if new.is_witness() {
            Geometry::WITNESS
        } else {
            Geometry::DEFAULT
        },
        same_device: device,
        // What a device holds is not known; a new file reads zero.
        zero_data: device,
        volatile_cache: true,
        checksums: new.checksums,
    }))
}

/// W16: a witness belongs to two replicas, and none of the three is ever replaced: an empty one would
/// not know who went on alone.
fn check_witness(new: &New) -> anyhow::Result<()> {
    if !new.witness {
        return Ok(());
    }
    ensure!(
        new.replicas == WITNESS_REPLICAS,
        "expected {WITNESS_REPLICAS} replicas beside a witness, found {}",
        new.replicas
    );
    ensure!(
        !new.replacement && new.newcomer.is_none(),
        "{NO_REPLACEMENT}"
    );
    Ok(())
}

/// Runs the machine that formats.
#[derive(Debug)]
struct Formatter {
    machine: Format,
    out: StoreOut,
    disk: StoreDisk,
    result: Option<Result<(), DiskError>>,
    interrupted: bool,
}

fn format(turns: &mut Loop, params: &Params, disk: StoreDisk) -> anyhow::Result<()> {
    let mut out = StoreOut::new();
    let machine = Format::new(&params.0, turns.io().arena(), &mut out)
        .context("expected a size that a store can have")?;
    let mut formatter = Formatter {
        machine,
        out,
        disk,
        result: None,
        interrupted: false,
    };
    formatter.start(turns.io());
    loop {
        match formatter.result {
            None if formatter.interrupted => bail!("interrupted"),
            None => turns.turn(&mut formatter, Duration::MAX)?,
            Some(Ok(())) => return Ok(()),
            Some(Err(DiskError::NoSpace)) => bail!("no space left"),
            Some(Err(DiskError::Io | DiskError::Checksum)) => bail!("the device cannot be written"),
        }
    }
}

impl Formatter {
    fn start(&mut self, io: &mut Io) {
        for (tag, op) in self.out.ops.drain(..) {
            self.disk.start(io, tag, op);
        }
        self.out.events.clear();
    }
}

impl Handler for Formatter {
    fn accepted(&mut self, io: &mut Io, _listener: ListenerId, conn: ConnId) {
        io.close(conn, false);
    }

    fn stream(&mut self, _io: &mut Io, _conn: ConnId, _event: StreamEvent<'_>) {}

    fn want(&mut self, _io: &mut Io, _conn: ConnId) -> Want {
        Want::Pause
    }

    fn disk(&mut self, io: &mut Io, done: DiskDone) {
        if let Some((tag, result)) = self.disk.done(io, done) {
            let ended = self
                .machine
                .disk_done(tag, result, io.arena(), &mut self.out);
            self.result = self.result.or(ended);
        }
        self.disk.retry(io);
        self.start(io);
    }

    fn settle(&mut self, _io: &mut Io, _now: Monotonic) {}

    fn deadline(&self) -> Option<Monotonic> {
        None
    }

    fn signal(&mut self, _io: &mut Io, _signal: Signal) {
        self.interrupted = true;
    }
}
