//! What clients asked of a volume and what they were told, and whether it can be true (protocol.md
//! 8.4). Written bytes carry stamps: every 8-byte word names the write that put it there and its
//! own place, so a word that is torn, misplaced or made up is seen at once. After the run the
//! history of each block is cut at the borders of the operations that touched it; each piece is one
//! register.
//!
//! A loss epoch ends a history. The next one starts from any one value per register that is not
//! older than what a flush (or FUA) covered before: I6, and no lost value comes back after another
//! one was seen.

use super::register::{self, Instant, Kind, Operation, Value, Violation};
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: u64 = 4096;
/// Bytes of a stamp.
pub const STAMP: u64 = 8;
const PLACE_BITS: u32 = 22;
const VALUE_BITS: u32 = 20;
/// Largest number of requests of a run: what a stamp can name.
pub const VALUES_MAX: u64 = (1 << VALUE_BITS) - 1;

/// What a client asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Bytes.
    Read,
    /// Stamped bytes put there.
    Write,
    /// Zeroes put there (discard, write zeroes).
    Zero,
    /// A flush.
    Flush,
    /// Stamped bytes put there if it held what was expected (COMPARE AND WRITE).
    Swap,
    /// A [`Action::Swap`] that found something else: nothing was put there.
    Differs,
}

/// One request of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What.
    pub action: Action,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Durable when answered.
    pub fua: bool,
    /// When it was asked for.
    pub invoked: Instant,
    /// When it was answered with success.
    pub responded: Option<Instant>,
    /// It was aborted by then: later it has no effect.
    aborted: Option<Instant>,
    epoch: usize,
}

#[derive(Clone, Copy, Debug)]
struct Touch {
    entry: usize,
    start: u64,
    end: u64,
    /// What a read found, or a swap expected.
    found: Value,
    /// Something else was found.
    differs: bool,
}

/// Everything that clients did.
#[derive(Debug, Default)]
pub struct History {
    clock: Instant,
    entries: Vec<Entry>,
    blocks: BTreeMap<u64, Vec<Touch>>,
    epoch: usize,
}

/// Why a history cannot be true.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// First byte of the register.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    /// Loss epoch, counted from 0.
    pub epoch: usize,
    /// What is wrong.
    pub what: What,
}

/// What is wrong with a register.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// No order exists.
    Order(Violation),
    /// Two values of earlier epochs were seen in one epoch.
    Reappeared {
        /// One.
        first: Value,
        /// The other.
        second: Value,
    },
    /// A flush-covered write was lost: something older was read.
    FlushLost {
        /// What was read.
        found: Value,
        /// What was covered.
        covered: Value,
    },
    /// No flush covered it, but what was read in an earlier epoch gave way to something older.
    WentBack {
        /// What was read.
        found: Value,
        /// The newest that could have been found.
        newest: Value,
    },
}

/// Fills `bytes`, which go to `offset` of the volume, with the stamps of write `value`.
pub fn stamp(value: Value, offset: u64, bytes: &mut [u8]) {
    for (place, word) in (offset / STAMP..).zip(bytes.chunks_exact_mut(STAMP as usize)) {
        word.copy_from_slice(&word_of(value, place).to_le_bytes());
    }
}

/// 22 bits of checksum, 20 of value, 22 of place.
fn word_of(value: Value, place: u64) -> u64 {
    if value == 0 {
        return 0;
    }
    let body = value << PLACE_BITS | (place & ((1 << PLACE_BITS) - 1));
    let shift = PLACE_BITS + VALUE_BITS;
    (crate::entropy::mix(body) >> shift) << shift | body
}

/// A run of equal stamps: offset, length, value.
pub type StampRun = (u64, u64, Value);

/// Splits read bytes into runs of equal stamps.
///
/// # Errors
/// The offset of a word that is no stamp of its place, and the word.
pub fn read_stamps(offset: u64, bytes: &[u8]) -> Result<Vec<StampRun>, (u64, u64)> {
    let mut runs: Vec<StampRun> = Vec::new();
    for (place, word) in (offset / STAMP..).zip(bytes.chunks_exact(STAMP as usize)) {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let value = word >> PLACE_BITS & VALUES_MAX;
        if word != word_of(value, place) {
            return Err((place * STAMP, word));
        }
        match runs.last_mut() {
            Some(run) if run.2 == value => run.1 += STAMP,
            _ => runs.push((place * STAMP, STAMP, value)),
        }
    }
    Ok(runs)
}

fn blocks_of(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    (offset / BLOCK..(offset + len).div_ceil(BLOCK)).map(move |block| {
        let base = block * BLOCK;
        (
            block,
            offset.max(base) - base,
            (offset + len).min(base + BLOCK) - base,
        )
    })
}

impl History {
    /// Nothing has happened.
    pub fn new() -> History {
        History {
            clock: 1,
            ..History::default()
        }
    }

    /// A client asks for something. Returns its number; for a write it is the value that
    /// [`stamp`] is to put there.
    pub fn invoke(&mut self, action: Action, offset: u64, len: u64, fua: bool) -> u64 {
        if self.entries.is_empty() {
            // Number 0 stands for the zeroes of a new volume.
            self.entries.push(Entry {
                action: Action::Zero,
                offset: 0,
                len: 0,
                fua: true,
                invoked: 0,
                responded: Some(0),
                aborted: None,
                epoch: 0,
            });
        }
        self.clock += 1;
        let number = self.entries.len();
        assert!(
            number as u64 <= VALUES_MAX,
            "run of more than {VALUES_MAX} requests"
        );
        self.entries.push(Entry {
            action,
            offset,
            len,
            fua,
            invoked: self.clock,
            responded: None,
            aborted: None,
            epoch: self.epoch,
        });
        if matches!(action, Action::Write | Action::Zero) {
            self.touch(number, (offset, len, 0), false);
        }
        number as u64
    }

    /// As [`History::invoke`], for a write that is one only where `expected` is found.
    ///
    /// # Panics
    /// When a word of `expected` is no stamp of its place.
    pub fn invoke_swap(&mut self, offset: u64, fua: bool, expected: &[u8]) -> u64 {
        let number = self.invoke(Action::Swap, offset, expected.len() as u64, fua);
        for run in read_stamps(offset, expected).expect("bytes that were read or written") {
            self.touch(number as usize, run, false);
        }
        number
    }

    fn touch(&mut self, entry: usize, (offset, len, found): StampRun, differs: bool) {
        for (block, start, end) in blocks_of(offset, len) {
            let touch = Touch {
                entry,
                start,
                end,
                found,
                differs,
            };
            self.blocks.entry(block).or_default().push(touch);
        }
    }

    /// A swap found something else than it expected, first at byte `at` of its range.
    pub fn respond_differs(&mut self, number: u64, at: u64) {
        self.clock += 1;
        let entry = &mut self.entries[number as usize];
        if entry.epoch != self.epoch {
            return;
        }
        entry.responded = Some(self.clock);
        entry.action = Action::Differs;
        let (offset, len) = (entry.offset, entry.len);
        let word = offset + at / STAMP * STAMP;
        for (block, _, _) in blocks_of(offset, len) {
            let touches = self.blocks.entry(block).or_default();
            let mut own: Vec<Touch> = touches
                .extract_if(.., |t| t.entry as u64 == number)
                .collect();
            // What came before it was found, the word was not; nothing is known of the rest.
            for touch in &mut own {
                let (start, end) = (block * BLOCK + touch.start, block * BLOCK + touch.end);
                let found = start..end.min(word);
                let value = touch.found;
                if !found.is_empty() {
                    self.touch(number as usize, (start, found.end - start, value), false);
                }
                if (start..end).contains(&word) {
                    self.touch(number as usize, (word, STAMP, value), true);
                }
            }
        }
    }

    /// It was aborted: if it has not taken effect by now, it never will.
    pub fn end_effect(&mut self, number: u64) {
        self.clock += 1;
        let entry = &mut self.entries[number as usize];
        entry.aborted.get_or_insert(self.clock);
    }

    /// It succeeded. For a read, `bytes` are what it brought.
    ///
    /// # Errors
    /// Bytes that no write can have put there: offset and word.
    pub fn respond(&mut self, number: u64, bytes: Option<&[u8]>) -> Result<(), (u64, u64)> {
        self.clock += 1;
        let entry = &mut self.entries[number as usize];
        assert!(
            entry.responded.is_none(),
            "request {number} is answered twice"
        );
        if entry.epoch != self.epoch {
            return Ok(()); // The client that asked is gone.
        }
        entry.responded = Some(self.clock);
        let Some(bytes) = bytes else { return Ok(()) };
        for run in read_stamps(entry.offset, bytes)? {
            self.touch(number as usize, run, false);
        }
        Ok(())
    }

    /// The loss epoch was accepted: clients start anew. What was not answered stays open.
    pub fn lose(&mut self) {
        self.epoch += 1;
        self.clock += 1;
    }

    /// True when the client that asked is still there.
    pub fn is_current(&self, number: u64) -> bool {
        self.entries[number as usize].epoch == self.epoch
    }

    /// Number of loss epochs that were begun.
    pub fn epochs(&self) -> usize {
        self.epoch + 1
    }

    /// All requests, by number; the first one is no request.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Blocks that were written.
    pub fn written_blocks(&self) -> BTreeSet<u64> {
        self.entries
            .iter()
            .filter(|e| matches!(e.action, Action::Write | Action::Swap))
            .flat_map(|e| blocks_of(e.offset, e.len).map(|(block, _, _)| block))
            .collect()
    }

    /// Blocks that something was asked of, rising.
    pub fn touched_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.keys().copied()
    }

    /// Values that a block may hold now on a replica that has everything that was answered before
    /// `at`. `None`: cannot be told (it was written in parts, or not in this epoch).
    pub fn acceptable(&self, block: u64, at: Instant) -> Option<Vec<Value>> {
        let floor = self
            .writes(block)
            .filter(|(_, e)| e.epoch == self.epoch && e.responded.is_some_and(|r| r < at))
            .map(|(_, e)| e.invoked)
            .max()?;
        self.acceptable_since(block, floor)
    }

    /// Blocks that a read found to be whole and written by one write of its epoch, and that write.
    pub fn whole_blocks_of(&self, read: u64) -> Vec<(u64, Value)> {
        let entry = self.entries[read as usize];
        let first = entry.offset.div_ceil(BLOCK);
        let end = (entry.offset + entry.len) / BLOCK;
        let found = |block: u64| {
            let touches = self.blocks.get(&block)?;
            let touch = touches.iter().rev().find(|t| t.entry as u64 == read)?;
            let value = touch.found;
            let whole = (touch.start, touch.end) == (0, BLOCK) && value != 0;
            let known = self.entries.get(value as usize)?.epoch == self.epoch;
            (whole && known).then_some((block, value))
        };
        (first..end).filter_map(found).collect()
    }

    /// Writes and zeroes of a block.
    fn writes(&self, block: u64) -> impl Iterator<Item = (&Touch, Entry)> {
        let touches = self.blocks.get(&block).into_iter().flatten();
        touches
            .map(|t| (t, self.entries[t.entry]))
            .filter(|(_, e)| matches!(e.action, Action::Write | Action::Zero | Action::Swap))
    }

    /// Values that a block may hold on a replica that has a write which was asked for at `floor`:
    /// that one, and all that may come after it in the order. `None`: it was written in parts.
    pub fn acceptable_since(&self, block: u64, floor: Instant) -> Option<Vec<Value>> {
        let writes = || self.writes(block);
        if writes().any(|(t, _)| (t.start, t.end) != (0, BLOCK)) {
            return None;
        }
        let fresh = writes().filter(|(_, e)| e.responded.is_none_or(|r| r >= floor));
        Some(
            fresh
                .map(|(t, e)| {
                    if e.action == Action::Zero {
                        0
                    } else {
                        t.entry as u64
                    }
                })
                .collect(),
        )
    }

    /// The value that a word at a byte of the volume names. `None`: nobody wrote it.
    pub fn value_of(offset: u64, word: u64) -> Option<Value> {
        let value = word >> PLACE_BITS & VALUES_MAX;
        (word == word_of(value, offset / STAMP)).then_some(value)
    }

    /// The point of the order that comes next.
    pub fn instant(&self) -> Instant {
        self.clock + 1
    }

    /// Numbers of the requests that touched a byte, in order of invocation.
    pub fn story_of(&self, offset: u64) -> Vec<(u64, Option<Value>)> {
        let (block, at) = (offset / BLOCK, offset % BLOCK);
        let mut found: Vec<_> = self
            .blocks
            .get(&block)
            .into_iter()
            .flatten()
            .filter(|t| t.start <= at && at < t.end)
            .map(|t| {
                let action = self.entries[t.entry].action;
                let read = matches!(action, Action::Read | Action::Swap | Action::Differs);
                (t.entry as u64, read.then_some(t.found))
            })
            .collect();
        found.sort_by_key(|f| self.entries[f.0 as usize].invoked);
        found
    }

    /// Checks everything.
    ///
    /// # Errors
    /// The first register whose history cannot be true.
    pub fn check(&self) -> Result<(), Fault> {
        self.check_except(&BTreeSet::new())
    }

    /// The same, but for the blocks of which nothing is promised.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn check_except(&self, blocks: &BTreeSet<u64>) -> Result<(), Fault> {
        for (block, touches) in self.blocks.iter().filter(|(b, _)| !blocks.contains(b)) {
            let mut borders: BTreeSet<u64> = BTreeSet::new();
            for touch in touches {
                borders.insert(touch.start);
                borders.insert(touch.end);
            }
            let borders: Vec<u64> = borders.into_iter().collect();
            for pair in borders.windows(2) {
                let inside: Vec<Touch> = touches
                    .iter()
                    .filter(|t| t.start <= pair[0] && pair[1] <= t.end)
                    .copied()
                    .collect();
                self.check_register(&inside)
                    .map_err(|(epoch, what)| Fault {
                        offset: block * BLOCK + pair[0],
                        len: pair[1] - pair[0],
                        epoch,
                        what,
                    })?;
            }
        }
        Ok(())
    }

    /// `seen`: values of the register that somebody found.
    fn operation(&self, touch: Touch, seen: &BTreeSet<Value>) -> Option<Operation> {
        let entry = self.entries[touch.entry];
        let number = touch.entry as u64;
        let (kind, value, expects) = match entry.action {
            Action::Read => (Kind::Read, touch.found, None),
            Action::Differs if touch.differs => (Kind::Differs, touch.found, None),
            Action::Differs => (Kind::Read, touch.found, None),
            Action::Write => (Kind::Write, number, None),
            Action::Swap => (Kind::Write, number, Some(touch.found)),
            Action::Zero => (Kind::Write, 0, None),
            Action::Flush => return None,
        };
        if kind != Kind::Write && entry.responded.is_none() {
            return None;
        }
        // What was aborted and seen took effect before its abort was answered.
        let aborted = entry
            .aborted
            .filter(|_| seen.contains(&value) && value != 0);
        Some(Operation {
            kind,
            value,
            expects,
            invoked: entry.invoked,
            responded: entry.responded.or(aborted),
        })
    }

    /// Values that were found.
    fn seen(&self, touches: &[Touch]) -> BTreeSet<Value> {
        let mut seen = BTreeSet::new();
        for touch in touches.iter().filter(|touch| !touch.differs) {
            let entry = self.entries[touch.entry];
            let finds = matches!(entry.action, Action::Read | Action::Differs | Action::Swap);
            if finds && entry.responded.is_some() {
                seen.insert(touch.found);
            }
        }
        seen
    }

    fn check_register(&self, touches: &[Touch]) -> Result<(), (usize, What)> {
        // Values that the epoch may start with.
        let mut bases: BTreeSet<Value> = BTreeSet::from([0]);
        // What may not be found any more is so because a flush covered something newer.
        let mut flushed = false;
        let seen = self.seen(touches);
        for epoch in 0..=self.epoch {
            let here: Vec<Touch> = touches
                .iter()
                .filter(|t| self.entries[t.entry].epoch == epoch)
                .copied()
                .collect();
            let operations: Vec<Operation> = here
                .iter()
                .filter_map(|t| self.operation(*t, &seen))
                .collect();
            let base = self
                .base((epoch, flushed), &bases, &operations, touches)
                .map_err(|w| (epoch, w))?;
            match base {
                Some(value) => {
                    register::check(value, &operations).map_err(|v| (epoch, What::Order(v)))?;
                    bases = BTreeSet::from([value]);
                    flushed = false;
                }
                None => {
                    // No value of an earlier epoch was seen, zeroes perhaps: any base that gives an
                    // order will do.
                    let mut tried = bases.iter().map(|base| register::check(*base, &operations));
                    let first = tried.next().unwrap_or(Ok(()));
                    first
                        .or_else(|v| tried.find(Result::is_ok).unwrap_or(Err(v)))
                        .map_err(|v| (epoch, What::Order(v)))?;
                }
            }
            if epoch < self.epoch {
                let floor;
                (bases, floor) = self.survivors(epoch, &bases, &operations);
                flushed |= floor;
            }
        }
        Ok(())
    }

    /// The value of an earlier epoch that was read in this one, if any.
    fn base(
        &self,
        (epoch, flushed): (usize, bool),
        bases: &BTreeSet<Value>,
        operations: &[Operation],
        touches: &[Touch],
    ) -> Result<Option<Value>, What> {
        let written: BTreeSet<Value> = operations
            .iter()
            .filter(|o| o.kind == Kind::Write)
            .map(|o| o.value)
            .collect();
        let mut base = None;
        for read in operations {
            let Some(found) = read.found().filter(|found| !written.contains(found)) else {
                continue;
            };
            match base {
                Some(first) if first != found => {
                    if epoch == 0 {
                        let read_at = read.responded.unwrap_or(0);
                        let violation = Violation::NeverWritten {
                            value: found,
                            read: read_at,
                        };
                        return Err(What::Order(violation));
                    }
                    let second = found;
                    return Err(What::Reappeared { first, second });
                }
                Some(_) | None => base = Some(found),
            }
        }
        if let Some(found) = base
            && !bases.contains(&found)
        {
            let known = found == 0
                || touches.iter().any(|t| {
                    let action = self.entries[t.entry].action;
                    t.entry as u64 == found && matches!(action, Action::Write | Action::Swap)
                });
            if !known || epoch == 0 {
                let violation = Violation::NeverWritten {
                    value: found,
                    read: 0,
                };
                return Err(What::Order(violation));
            }
            let newest = bases.iter().next_back().copied().unwrap_or(0);
            return Err(if flushed {
                let covered = newest;
                What::FlushLost { found, covered }
            } else {
                What::WentBack { found, newest }
            });
        }
        Ok(base)
    }

    /// Values that may be there after a loss at the end of `epoch`: everything that is not
    /// certainly older than something that a flush covered; and whether there is such a thing.
    fn survivors(
        &self,
        epoch: usize,
        bases: &BTreeSet<Value>,
        operations: &[Operation],
    ) -> (BTreeSet<Value>, bool) {
        // A write that was read counts as done when the read was answered.
        let done_at = |write: &Operation| {
            operations
                .iter()
                .filter(|o| o.found() == Some(write.value) && write.value != 0)
                .map(Operation::end)
                .chain([write.end()])
                .min()
                .unwrap_or(Instant::MAX)
        };
        let last_flush = self
            .entries
            .iter()
            .filter(|e| e.epoch == epoch && e.action == Action::Flush && e.responded.is_some())
            .map(|e| e.invoked)
            .max()
            .unwrap_or(0);
        let writes: Vec<&Operation> = operations
            .iter()
            .filter(|o| o.kind == Kind::Write)
            .collect();
        let fua = |write: &Operation| {
            self.entries
                .iter()
                .any(|e| e.invoked == write.invoked && e.fua)
                && write.responded.is_some()
        };
        // Invocation of the newest write that is certainly durable: what was done before it is gone.
        let floor = writes
            .iter()
            .filter(|w| done_at(w) < last_flush || fua(w))
            .map(|w| w.invoked)
            .max()
            .unwrap_or(0);
        let mut kept: BTreeSet<Value> = writes
            .iter()
            .filter(|w| done_at(w) >= floor)
            .map(|w| w.value)
            .collect();
        if floor == 0 {
            kept.extend(bases);
        }
        (kept, floor > 0)
    }
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
