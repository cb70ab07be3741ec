//! A store on the simulated disk, driven step by step.

use super::disk::{Submitted, TestDisk};
use super::*;

pub(super) struct World {
    pub(super) disk: TestDisk,
    pub(super) buffers: TestBuffers,
    pub(super) words: TestWords,
    pub(super) store: Box<Store>,
    pub(super) inflight: Vec<Submitted>,
    pub(super) out: StoreOut,
    pub(super) events: Vec<StoreEvent>,
    pub(super) opened: Opened,
    /// Operations fail when this says so.
    pub(super) fault: fn(&DiskOp) -> Option<DiskError>,
}

/// Runs a format.
pub(super) fn formatted(params: &FormatParams) -> TestDisk {
    let mut disk = TestDisk::default();
    let mut buffers = TestBuffers::default();
    let mut out = StoreOut::new();
    let mut format = Format::new(params, &mut buffers, &mut out).unwrap();
    loop {
        let (tag, op) = out.ops.remove(0);
        let submitted = disk.submit(tag, op, &buffers);
        disk.complete(&submitted, &mut buffers);
        if let Some(result) = format.disk_done(tag, Ok(()), &mut buffers, &mut out) {
            assert_eq!(result, Ok(()));
            assert_eq!(buffers.owned(), 0, "the format gives its buffer back");
            return disk;
        }
    }
}

/// Opens; `watch` sees the disk and what is in flight before each completion.
pub(super) fn open_watched(
    mut disk: TestDisk,
    words: &TestWords,
    boot: Uuid,
    mut watch: impl FnMut(&TestDisk, &[Submitted]),
) -> Result<World, OpenError> {
    let mut buffers = TestBuffers::default();
    let mut out = StoreOut::new();
    let mut opening = Opening::new(open_params(boot), &mut buffers, &mut out)?;
    loop {
        let (tag, op) = out.ops.remove(0);
        let submitted = [disk.submit(tag, op, &buffers)];
        watch(&disk, &submitted);
        disk.complete(&submitted[0], &mut buffers);
        let mut step = opening.disk_done(tag, Ok(()), &mut buffers, &mut out);
        if let OpenStep::NeedWords { len, .. } = step {
            words.grow(len);
            step = opening.words(Box::new(words.clone()), &mut buffers, &mut out);
        }
        match step {
            OpenStep::Working | OpenStep::NeedWords { .. } => (),
            OpenStep::Done(store, opened) => {
                let words = words.clone();
                let (inflight, events) = (Vec::new(), Vec::new());
                let fault = |_: &DiskOp| None;
                return Ok(World {
                    disk,
                    buffers,
                    words,
                    store,
                    inflight,
                    out,
                    events,
                    opened,
                    fault,
                });
            }
            OpenStep::Failed(error) => {
                assert_eq!(
                    buffers.owned(),
                    0,
                    "a failed opening gives its buffers back"
                );
                return Err(error);
            }
        }
    }
}

pub(super) fn open(disk: TestDisk, words: &TestWords, boot: Uuid) -> Result<World, OpenError> {
    open_watched(disk, words, boot, |_, _| ())
}

pub(super) fn image(mut disk: TestDisk) -> Result<Box<Image>, OpenError> {
    let mut buffers = TestBuffers::default();
    let mut out = StoreOut::new();
    let mut inspect = Inspect::new(&mut buffers, &mut out).unwrap();
    loop {
        let (tag, op) = out.ops.remove(0);
        assert!(
            matches!(op, DiskOp::Read { .. }),
            "an inspection only reads"
        );
        let submitted = disk.submit(tag, op, &buffers);
        disk.complete(&submitted, &mut buffers);
        if let Some(result) = inspect.disk_done(tag, Ok(()), &mut buffers, &mut out) {
            return result;
        }
    }
}

pub(super) fn ops(world: &World) -> Vec<DiskOp> {
    world.inflight.iter().map(|s| s.op).collect()
}

impl World {
    pub(super) fn new() -> World {
        open(formatted(&params()), &TestWords::new(), BOOT).unwrap()
    }

    /// A volume of another shape.
    pub(super) fn with(geometry: Geometry) -> World {
        let params = FormatParams {
            geometry,
            ..params()
        };
        open(formatted(&params), &TestWords::new(), BOOT).unwrap()
    }

    /// A volume with checksums.
    pub(super) fn with_checksums() -> World {
        let params = FormatParams {
            checksums: true,
            ..params()
        };
        open(formatted(&params), &TestWords::new(), BOOT).unwrap()
    }

    /// Takes operations and events out.
    pub(super) fn drain(&mut self) {
        for (tag, op) in self.out.ops.drain(..) {
            self.inflight.push(self.disk.submit(tag, op, &self.buffers));
        }
        self.events.append(&mut self.out.events);
    }

    pub(super) fn settle(&mut self) {
        self.store.settle(&mut self.buffers, &mut self.out);
        self.drain();
    }

    /// Completes the operation in flight at `place`.
    pub(super) fn complete(&mut self, place: usize) {
        let submitted = self.inflight.remove(place);
        let result = (self.fault)(&submitted.op).map_or(Ok(()), Err);
        if result.is_ok() {
            self.disk.complete(&submitted, &mut self.buffers);
        }
        self.store
            .disk_done(submitted.tag, result, &mut self.buffers, &mut self.out);
        self.drain();
    }

    /// Completes everything until nothing is in flight.
    pub(super) fn run(&mut self) {
        self.drain();
        self.settle();
        while !self.inflight.is_empty() {
            self.complete(0);
            self.settle();
        }
    }

    pub(super) fn take_events(&mut self) -> Vec<StoreEvent> {
        self.drain();
        std::mem::take(&mut self.events)
    }

    /// A buffer of blocks that carry `stamp`.
    pub(super) fn payload(&mut self, blocks: u32, stamp: u64) -> BufSlice {
        let buf = self.buffers.alloc(blocks * 4096).unwrap();
        let bytes = self.buffers.bytes_mut(buf);
        bytes.fill(0);
        for block in bytes.chunks_mut(4096) {
            block[..8].copy_from_slice(&stamp.to_le_bytes());
        }
        buf
    }

    pub(super) fn write_skip(&mut self, idx: u64, at: BlockRange, stamp: u64, skip: MemberSet) {
        let buf = self.payload(at.count.0, stamp);
        let entry = Entry {
            idx: trilith_block::Idx(idx),
            range: at,
            change: Change::Write(buf),
            skip,
        };
        let taken = self.store.entry(entry, &mut self.buffers, &mut self.out);
        assert_eq!(taken, Ok(Admission::Taken), "entry {idx}");
        self.buffers.release(buf.buf);
        self.drain();
    }

    pub(super) fn write(&mut self, idx: u64, at: BlockRange, stamp: u64) {
        self.write_skip(idx, at, stamp, MemberSet::EMPTY);
    }

    pub(super) fn change(&mut self, idx: u64, at: BlockRange, change: Change) {
        let entry = Entry {
            idx: trilith_block::Idx(idx),
            range: at,
            change,
            skip: MemberSet::EMPTY,
        };
        let taken = self.store.entry(entry, &mut self.buffers, &mut self.out);
        assert_eq!(taken, Ok(Admission::Taken), "entry {idx}");
        self.drain();
    }

    pub(super) fn flush(&mut self, idx: u64) {
        let idx = trilith_block::Idx(idx);
        assert!(
            self.store
                .flush(idx, &mut self.buffers, &mut self.out)
                .is_ok()
        );
        self.drain();
    }

    /// What the store reads from a block.
    pub(super) fn read(&mut self, block: u64) -> u64 {
        self.try_read(block).unwrap()
    }

    /// The same, or why not.
    pub(super) fn try_read(&mut self, block: u64) -> Result<u64, DiskError> {
        let buf = self.buffers.alloc(4096).unwrap();
        let at = range(block, 1);
        let token = Token(u64::MAX);
        self.store
            .read(token, at, buf, &mut self.buffers, &mut self.out)
            .unwrap();
        self.drain();
        let result = loop {
            let done = self
                .events
                .iter()
                .position(|e| matches!(e, StoreEvent::ReadDone { token: t, .. } if *t == token));
            if let Some(at) = done
                && let StoreEvent::ReadDone { result, .. } = self.events.remove(at)
            {
                break result;
            }
            let is_read = |s: &Submitted| matches!(s.op, DiskOp::Read { .. });
            let at = self.inflight.iter().rposition(is_read);
            self.complete(at.unwrap());
        };
        let mut raw = [0u8; 8];
        raw.copy_from_slice(&self.buffers.bytes(buf)[..8]);
        self.buffers.release(buf.buf);
        let value = |zero| if zero { 0 } else { u64::from_le_bytes(raw) };
        result.map(value)
    }

    /// The process dies; writes in flight land (K1); the next process opens.
    pub(super) fn restart(mut self) -> World {
        for submitted in std::mem::take(&mut self.inflight) {
            self.disk.complete(&submitted, &mut self.buffers);
        }
        open(self.disk, &self.words, BOOT).unwrap()
    }
}
