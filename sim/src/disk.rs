//! The disk of one replica: two files (metadata, data) of 4096-byte pages, each page a durable
//! value and a list of completed writes that are still volatile. What the model promises is what
//! protocol.md A2 and A3 assume, and no more:
//!
//! - a flush makes durable what completed before the flush was *submitted*;
//! - a write with `dsync` is durable when it completes; nothing else is implied for other writes;
//! - after a power loss each sector (512 or 4096 bytes) of a page that is not durable holds its
//!   durable value, any volatile value, or one of a write in flight, independent of its neighbours;
//! - a write in flight when the process dies lands or not, and a new process waits for it (K1); a
//!   flush in flight then does not fail unheard.
//!
//! A disk may lie about flushes: then what it says is durable is so for everyone who asks it, until a
//! power loss takes some of it back ([`Disk::betrayed`]).
//!
//! Errors are injected by [`Faults`]. After a failed flush an arbitrary part of the volatile data
//! is gone and the next flush succeeds, as on Linux.

mod rot;

use self::rot::Rot;
use crate::entropy::Entropy;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Smallest atomic unit of a device.
const SECTOR: usize = 512;

/// Which file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum File {
    /// `vol.meta`.
    Meta,
    /// `vol.data`.
    Data,
}

/// What a process asks of the disk. Offsets and lengths are in bytes, multiples of 4096.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Read.
    Read {
        /// From.
        file: File,
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Write; the bytes are taken when the write is started.
    Write {
        /// To.
        file: File,
        /// First byte.
        offset: u64,
        /// The bytes.
        bytes: Rc<Vec<u8>>,
        /// Durable at completion.
        dsync: bool,
    },
    /// Make a run of pages read zero. It allocates (`keep`) or gives space back.
    Zero {
        /// In.
        file: File,
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
        /// Keep the space.
        keep: bool,
    },
    /// Reserve space; what was written stays.
    Allocate {
        /// In.
        file: File,
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Make completed writes durable.
    Flush {
        /// Of.
        file: File,
    },
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// Well; a read brings its bytes.
    Ok(Vec<u8>),
    /// EIO.
    Error,
    /// ENOSPC.
    NoSpace,
}

/// Faults to inject. Chances are in 1/65536 per operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// A read fails.
    pub read_error: u64,
    /// A write fails and lands in part.
    pub write_error: u64,
    /// A flush fails and loses volatile data.
    pub flush_error: u64,
    /// Flushes only say that they did something (a lying disk).
    pub lying_flush: bool,
    /// A completed write of the data file is changed silently afterwards.
    pub rot: u64,
    /// Nothing completes.
    pub hung: bool,
    /// Latencies are multiplied by this (0 and 1: not).
    pub slow: u64,
    /// Pages of the data file that may be allocated; `None`: no limit.
    pub room: Option<u64>,
}

/// What power losses have taken back although a flush had said that it is durable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Betrayed {
    /// Pages of the data file.
    pub data: Vec<u32>,
    /// Number of pages of the metadata.
    pub meta: u64,
}

impl Betrayed {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.meta == 0
    }
}

/// What a power cut does to data that is not durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// All of it is gone.
    LoseAll,
    /// All that completed is there.
    KeepAll,
    /// Each page on its own.
    Pages,
    /// Each sector on its own.
    Sectors,
}

type Value = Option<Rc<[u8; PAGE]>>;

#[derive(Clone, Debug)]
struct Volatile {
    /// Number of the completion that brought it.
    completed: u64,
    value: Value,
    label: Label,
}

/// Term and position of the entry that wrote; zeroes: of no entry.
pub type Label = (u64, u64);

#[derive(Clone, Debug, Default)]
struct Page {
    durable: Value,
    volatile: Vec<Volatile>,
    allocated: bool,
    /// Listed in `loose` (a page whose volatile values were superseded stays there for a while).
    loose: bool,
}

impl Page {
    fn current(&self) -> &Value {
        self.volatile.last().map_or(&self.durable, |v| &v.value)
    }
}

#[derive(Debug, Default)]
struct Image {
    pages: Vec<Page>,
    /// Pages with volatile values.
    loose: Vec<u32>,
    /// What is on stable media where the disk says that something newer is.
    lies: BTreeMap<u32, Value>,
    allocated: u64,
}

#[derive(Debug)]
struct Flight {
    operation: Operation,
    /// Completions before this operation was submitted.
    submitted: u64,
    label: Label,
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    images: [Image; 2],
    flights: BTreeMap<u64, Flight>,
    /// Operations of a process that is gone; true: it will land.
    orphans: BTreeMap<u64, bool>,
    completions: u64,
    /// Of the operation that is being applied.
    applied: Label,
    sector: usize,
    /// What goes wrong.
    pub faults: Faults,
    /// Data bytes written, for statistics.
    pub written: u64,
    /// True when the device keeps volatile data at all; without a cache every completed write is
    /// durable.
    pub volatile_cache: bool,
    /// What power losses have taken back although a flush had said that it is durable.
    pub betrayed: Betrayed,
    /// Pages of the data file that have rotted.
    rotten: BTreeMap<u32, Rot>,
    /// Times that something has rotted.
    pub rotted: u64,
}

fn index(file: File) -> usize {
    match file {
        File::Meta => 0,
        File::Data => 1,
    }
}

fn pages_of(offset: u64, len: u64) -> std::ops::Range<usize> {
    assert!(
        offset.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE as u64) && len > 0,
        "disk access of {len} bytes at {offset} is not in whole pages"
    );
    (offset / PAGE as u64) as usize..((offset + len) / PAGE as u64) as usize
}

fn page_value(bytes: &[u8]) -> Value {
    if bytes.iter().all(|b| *b == 0) {
        return None;
    }
    let mut page = [0; PAGE];
    page.copy_from_slice(bytes);
    Some(Rc::new(page))
}

impl Disk {
    /// A disk of zeroes. `sector` is 512 or 4096.
    pub fn new(meta_bytes: u64, data_bytes: u64, sector: usize, volatile_cache: bool) -> Disk {
        assert!(
            sector == SECTOR || sector == PAGE,
            "sector of {sector} bytes"
        );
        let image = |bytes: u64| Image {
            pages: vec![Page::default(); bytes.div_ceil(PAGE as u64) as usize],
            loose: Vec::new(),
            lies: BTreeMap::new(),
            allocated: 0,
        };
        Disk {
            images: [image(meta_bytes), image(data_bytes)],
            flights: BTreeMap::new(),
            orphans: BTreeMap::new(),
            completions: 0,
            applied: Label::default(),
            sector,
            faults: Faults::default(),
            written: 0,
            volatile_cache,
            betrayed: Betrayed::default(),
            rotten: BTreeMap::new(),
            rotted: 0,
        }
    }

    /// Starts an operation.
    pub fn submit(&mut self, id: u64, operation: Operation) {
        let old = self.flights.insert(
            id,
            Flight {
                operation,
                submitted: self.completions,
                label: Label::default(),
            },
        );
        assert!(old.is_none(), "disk operation {id} is in flight twice");
    }

    /// Says which entry an operation in flight is of.
    pub fn label(&mut self, id: u64, label: Label) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.label = label;
        }
    }

    /// True when operation `id` is in flight and changes a file.
    pub fn changes(&self, id: u64, which: File) -> bool {
        self.flights.get(&id).is_some_and(|f| match &f.operation {
            Operation::Write { file, .. } | Operation::Zero { file, .. } => *file == which,
            Operation::Read { .. } | Operation::Allocate { .. } | Operation::Flush { .. } => false,
        })
    }

    /// Pages of the data file that are not on stable media, with what wrote them.
    pub fn volatile_labels(&self) -> impl Iterator<Item = (u32, Label)> + '_ {
        let image = &self.images[index(File::Data)];
        image.loose.iter().flat_map(|page| {
            let values = image.pages[*page as usize].volatile.iter();
            values.map(|v| (*page, v.label))
        })
    }

    /// Operations in flight.
    pub fn busy(&self) -> usize {
        self.flights.len()
    }

    /// True when operation `id` is still in flight.
    pub fn in_flight(&self, id: u64) -> bool {
        self.flights.contains_key(&id)
    }

    /// True when operations of a dead process are in flight (K1: the next one waits).
    pub fn draining(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// The process died: what is in flight lands or not.
    pub fn orphan(&mut self, entropy: &mut Entropy) {
        for id in self.flights.keys() {
            if !self.orphans.contains_key(id) {
                self.orphans.insert(*id, entropy.chance(1, 2));
            }
        }
    }

    /// An operation reaches its end. `None`: its process is gone, or the power was lost. `deaf`: the
    /// process dies before it can note anything.
    pub fn complete(&mut self, id: u64, deaf: bool, entropy: &mut Entropy) -> Option<Done> {
        let flight = self.flights.remove(&id)?;
        if let Some(lands) = self.orphans.remove(&id) {
            if lands {
                self.apply(flight, false, entropy);
            }
            return None;
        }
        Some(self.apply(flight, !deaf, entropy))
    }

    /// `heard`: someone learns how it ended. A flush that fails unheard would take data away that
    /// nobody knows of; that is outside the model.
    fn apply(&mut self, flight: Flight, heard: bool, entropy: &mut Entropy) -> Done {
        let faults = self.faults;
        self.applied = flight.label;
        match flight.operation {
            Operation::Read { file, offset, len } => {
                if entropy.chance(faults.read_error, 65536) {
                    return Done::Error;
                }
                let mut out = vec![0; len as usize];
                self.peek(file, offset, &mut out);
                Done::Ok(out)
            }
            Operation::Write {
                file,
                offset,
                bytes,
                dsync,
            } => {
                if file == File::Data && !self.room_for(offset, bytes.len() as u64) {
                    return Done::NoSpace;
                }
                let fails = entropy.chance(faults.write_error, 65536);
                let first = pages_of(offset, bytes.len() as u64).start;
                self.completions += 1;
                for (i, part) in bytes.chunks_exact(PAGE).enumerate() {
                    if !fails || entropy.chance(1, 2) {
                        self.put(file, first + i, page_value(part), dsync && !fails);
                    }
                }
                self.written += bytes.len() as u64;
                if fails {
                    return Done::Error;
                }
                if file == File::Data && entropy.chance(faults.rot, 65536) {
                    self.rot(file, first, entropy);
                }
                Done::Ok(Vec::new())
            }
            Operation::Zero {
                file,
                offset,
                len,
                keep,
            } => {
                if keep && !self.room_for(offset, len) {
                    return Done::NoSpace;
                }
                self.completions += 1;
                let fails = entropy.chance(faults.write_error, 65536);
                for page in pages_of(offset, len) {
                    let known = self.images[index(file)].pages.get(page);
                    let live = known.is_some_and(|p| p.durable.is_some() || !p.volatile.is_empty());
                    if live && (!fails || entropy.chance(1, 2)) {
                        self.put(file, page, None, false);
                    }
                    if !keep {
                        self.set_allocated(file, page, false);
                    }
                }
                if fails {
                    Done::Error
                } else {
                    Done::Ok(Vec::new())
                }
            }
            Operation::Allocate { file, offset, len } => {
                if !self.room_for(offset, len) {
                    return Done::NoSpace;
                }
                for page in pages_of(offset, len) {
                    self.set_allocated(file, page, true);
                }
                Done::Ok(Vec::new())
            }
            Operation::Flush { file } => {
                if entropy.chance(faults.flush_error, 65536) && heard {
                    self.lose_some(file, entropy);
                    return Done::Error;
                }
                self.harden(file, flight.submitted, faults.lying_flush);
                Done::Ok(Vec::new())
            }
        }
    }

    /// True when the pages are allocated or may be (they are counted then).
    fn room_for(&mut self, offset: u64, len: u64) -> bool {
        let image = &mut self.images[index(File::Data)];
        let range = pages_of(offset, len);
        let end = range.end.min(image.pages.len());
        let missing = image.pages[range.start.min(end)..end]
            .iter()
            .filter(|p| !p.allocated)
            .count();
        missing == 0
            || self
                .faults
                .room
                .is_none_or(|room| image.allocated + missing as u64 <= room)
    }

    fn set_allocated(&mut self, file: File, page: usize, allocated: bool) {
        let image = &mut self.images[index(file)];
        if page >= image.pages.len() {
            image.pages.resize(page + 1, Page::default());
        }
        let page = &mut image.pages[page];
        match (page.allocated, allocated) {
            (false, true) => image.allocated += 1,
            (true, false) => image.allocated -= 1,
            (true, true) | (false, false) => {}
        }
        page.allocated = allocated;
    }

    fn put(&mut self, file: File, page: usize, value: Value, durable: bool) {
        self.set_allocated(file, page, true);
        if durable || !self.volatile_cache {
            let image = &mut self.images[index(file)];
            image.lies.remove(&(page as u32));
            let slot = &mut image.pages[page];
            slot.volatile.clear();
            slot.durable = value;
        } else {
            self.put_volatile(file, page, value);
        }
    }

    fn put_volatile(&mut self, file: File, page: usize, value: Value) {
        let (completed, label) = (self.completions, self.applied);
        let image = &mut self.images[index(file)];
        let slot = &mut image.pages[page];
        if !slot.loose {
            slot.loose = true;
            image.loose.push(page as u32);
        }
        slot.volatile.push(Volatile {
            completed,
            value,
            label,
        });
    }

    /// What completed before completion number `before` becomes durable, or is said to.
    fn harden(&mut self, file: File, before: u64, lying: bool) {
        let image = &mut self.images[index(file)];
        let (pages, lies) = (&mut image.pages, &mut image.lies);
        if !lying {
            lies.clear();
        }
        image.loose.retain(|page| {
            let slot = &mut pages[*page as usize];
            let count = slot
                .volatile
                .iter()
                .take_while(|v| v.completed <= before)
                .count();
            if count > 0 {
                if lying {
                    lies.entry(*page).or_insert(slot.durable.clone());
                }
                slot.durable = slot
                    .volatile
                    .drain(..count)
                    .next_back()
                    .and_then(|v| v.value);
            }
            slot.loose = !slot.volatile.is_empty();
            slot.loose
        });
    }

    fn lose_some(&mut self, file: File, entropy: &mut Entropy) {
        let image = &mut self.images[index(file)];
        let pages = &mut image.pages;
        image.loose.retain(|page| {
            let slot = &mut pages[*page as usize];
            if entropy.chance(1, 2) {
                slot.volatile.clear();
            }
            slot.loose = !slot.volatile.is_empty();
            slot.loose
        });
    }

    /// A power loss shows what a flush was worth.
    fn end_lies(&mut self, cut: Cut, entropy: &mut Entropy) {
        let sector = self.sector;
        for (place, image) in self.images.iter_mut().enumerate() {
            for (page, truth) in std::mem::take(&mut image.lies) {
                let said = &mut image.pages[page as usize].durable;
                let cached = [Volatile {
                    completed: 0,
                    value: said.clone(),
                    label: Label::default(),
                }];
                let kept = match cut {
                    Cut::LoseAll => truth,
                    Cut::KeepAll => continue,
                    Cut::Pages if entropy.chance(1, 2) => continue,
                    Cut::Pages => truth,
                    Cut::Sectors => torn(&truth, &cached, sector, entropy),
                };
                if kept != *said {
                    if place == index(File::Data) {
                        self.betrayed.data.push(page);
                    } else {
                        self.betrayed.meta += 1;
                    }
                }
                *said = kept;
            }
        }
    }

    /// The power is lost: everything in flight ends, volatile data survives in part. Returns the
    /// pages of the data file that had such data.
    pub fn power_loss(&mut self, cut: Cut, entropy: &mut Entropy) -> Vec<u32> {
        for flight in std::mem::take(&mut self.flights).into_values() {
            self.completions += 1;
            match flight.operation {
                Operation::Write {
                    file,
                    offset,
                    bytes,
                    ..
                } if cut != Cut::LoseAll => {
                    let first = pages_of(offset, bytes.len() as u64).start;
                    for (i, part) in bytes.chunks_exact(PAGE).enumerate() {
                        // Inside the volatile list it is one more value that may be there or not.
                        self.set_allocated(file, first + i, true);
                        self.put_volatile(file, first + i, page_value(part));
                    }
                }
                Operation::Zero {
                    file, offset, len, ..
                } if cut != Cut::LoseAll => {
                    for page in pages_of(offset, len) {
                        if entropy.chance(1, 2) && page < self.page_count(file) {
                            self.put_volatile(file, page, None);
                        }
                    }
                }
                Operation::Write { .. }
                | Operation::Zero { .. }
                | Operation::Read { .. }
                | Operation::Allocate { .. }
                | Operation::Flush { .. } => {}
            }
        }
        self.orphans.clear();
        self.end_lies(cut, entropy);
        let data = &self.images[index(File::Data)];
        let volatile = |page: &&u32| !data.pages[**page as usize].volatile.is_empty();
        let lost = data.loose.iter().filter(volatile).copied().collect();
        let sector = self.sector;
        for image in &mut self.images {
            for page in std::mem::take(&mut image.loose) {
                let slot = &mut image.pages[page as usize];
                let values = std::mem::take(&mut slot.volatile);
                slot.loose = false;
                if values.is_empty() {
                    continue;
                }
                match cut {
                    Cut::LoseAll => {}
                    Cut::KeepAll => slot.durable = values.last().and_then(|v| v.value.clone()),
                    Cut::Pages => {
                        let choice = entropy.index(values.len() + 1);
                        if choice > 0 {
                            slot.durable = values[choice - 1].value.clone();
                        }
                    }
                    Cut::Sectors => slot.durable = torn(&slot.durable, &values, sector, entropy),
                }
            }
        }
        lost
    }

    /// What it holds and what is in flight, for the name of a state.
    pub fn digest(&self, sum: &mut crate::digest::Sum) {
        let value = |sum: &mut crate::digest::Sum, value: &Value| match value {
            Some(bytes) => sum.bytes(&bytes[..]),
            None => sum.word(0),
        };
        for image in &self.images {
            for (place, page) in image.pages.iter().enumerate() {
                if page.durable.is_none() && page.volatile.is_empty() && !page.allocated {
                    continue;
                }
                sum.word(place as u64 * 2 + u64::from(page.allocated));
                value(sum, &page.durable);
                for volatile in &page.volatile {
                    sum.text(&(volatile.completed, volatile.label));
                    value(sum, &volatile.value);
                }
            }
            sum.text(&image.loose);
        }
        sum.text(&(
            &self.orphans,
            self.completions,
            &self.faults,
            &self.betrayed,
        ));
        for (number, flight) in &self.flights {
            sum.text(&(number, flight.submitted, flight.label));
            match &flight.operation {
                Operation::Write {
                    file,
                    offset,
                    bytes,
                    dsync,
                } => {
                    sum.text(&(file, offset, dsync));
                    sum.bytes(bytes);
                }
                operation @ (Operation::Read { .. }
                | Operation::Zero { .. }
                | Operation::Allocate { .. }
                | Operation::Flush { .. }) => sum.text(operation),
            }
        }
    }

    /// The current bytes, as a read would find them now.
    pub fn peek(&self, file: File, offset: u64, out: &mut [u8]) {
        let image = &self.images[index(file)];
        for (page, part) in pages_of(offset, out.len() as u64).zip(out.chunks_exact_mut(PAGE)) {
            match image.pages.get(page).and_then(|p| p.current().as_ref()) {
                Some(bytes) => part.copy_from_slice(&bytes[..]),
                None => part.fill(0),
            }
        }
    }

    /// The first word of a page of the data file: as read now, or as it is on stable media. What rot
    /// has made of it is no matter.
    pub fn first_word(&self, page: usize, stable: bool) -> u64 {
        let Some(slot) = self.images[1].pages.get(page) else {
            return 0;
        };
        let value = if stable {
            &slot.durable
        } else {
            slot.current()
        };
        self.unrotten(page, value).map_or(0, |bytes| {
            bytes[..8].try_into().map_or(0, u64::from_le_bytes)
        })
    }

    /// True when both disks read the same in one page of the data file, rot aside.
    pub fn same_page(&self, other: &Disk, page: usize) -> bool {
        match (self.sound(page), other.sound(page)) {
            (None, None) => true,
            (Some(a), Some(b)) => Rc::ptr_eq(a, b) || a == b,
            (Some(a), None) | (None, Some(a)) => a.iter().all(|byte| *byte == 0),
        }
    }

    /// Writes at once and durably, outside any process (formatting).
    pub fn poke(&mut self, file: File, offset: u64, bytes: &[u8]) {
        let first = pages_of(offset, bytes.len() as u64).start;
        for (i, part) in bytes.chunks_exact(PAGE).enumerate() {
            self.put(file, first + i, page_value(part), true);
        }
    }

    /// Pages of a file.
    pub fn page_count(&self, file: File) -> usize {
        self.images[index(file)].pages.len()
    }

    /// Pages of a file with data that a power loss may take.
    pub fn volatile_pages(&self, file: File) -> impl Iterator<Item = usize> + '_ {
        let image = &self.images[index(file)];
        let loose = image.loose.iter().map(|page| *page as usize);
        loose.filter(|page| !image.pages[*page].volatile.is_empty())
    }

    /// True when something is being written to the data file.
    pub fn is_writing(&self) -> bool {
        self.flights.values().any(|flight| match flight.operation {
            Operation::Write { file, .. } | Operation::Zero { file, .. } => file == File::Data,
            Operation::Read { .. } | Operation::Allocate { .. } | Operation::Flush { .. } => false,
        })
    }

    /// Pages allocated in the data file.
    pub fn allocated(&self) -> u64 {
        self.images[1].allocated
    }
}

fn torn(durable: &Value, values: &[Volatile], sector: usize, entropy: &mut Entropy) -> Value {
    let mut bytes = durable.as_ref().map_or([0; PAGE], |v| **v);
    for part in 0..PAGE / sector {
        let choice = entropy.index(values.len() + 1);
        if choice == 0 {
            continue;
        }
        let range = part * sector..(part + 1) * sector;
        match &values[choice - 1].value {
            Some(value) => bytes[range.clone()].copy_from_slice(&value[range]),
            None => bytes[range].fill(0),
        }
    }
    page_value(&bytes)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
