//! Scrubs (C24): the operator asks for them while faults strike, and whatever one finds must be there.
//! Once all replicas are equal and nobody reads or writes, some copies rot, another scrub runs, and
//! all must be equal and what it was. Without checksums on disk rot strikes only then: nobody could
//! tell a client that what it reads is rotten, so a read before the scrub would prove nothing. What
//! has rotted before, in runs with checksums ([`crate::decay`]), the last scrub must find as well.

use crate::cluster::Cluster;
use crate::config::Fault;
use crate::disk::{Disk, File};
use crate::entropy::Entropy;
use crate::network::Host;
use std::collections::BTreeSet;
use std::ops::Range;
use trilith_block::{BlockRange, Blocks, Lba};
use trilith_engine::scrub::Difference;
use trilith_engine::{Operator, ScrubNews, ScrubResult};

/// Of these seeds every other one has scrubs, and of those from [`SEEDS_FROM`] on one in five. Those
/// below, and those in which mutants were looked for, stay what they were.
const SEEDS: Range<u64> = 1_000_600..SEEDS_FROM;
const SEEDS_FROM: u64 = 2_000_000;
/// Blocks that rot in a run at most.
const ROT_MAX: u64 = 12;

/// The scrubs of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubMix {
    /// Chance in 1/16 that the operator asks for one at a second of the run.
    pub asks: u64,
    /// Rate of the engines.
    pub bytes_per_second: u64,
    /// Blocks that rot in the end.
    pub rot: u64,
}

/// How far the scrubs of a run are.
#[derive(Debug)]
pub struct Scrubs {
    entropy: Entropy,
    /// Blocks of which a copy has rotted and may not be repaired yet.
    pub rotten: BTreeSet<u64>,
    /// Copies that have rotted.
    copies: u64,
    /// The last scrub was asked for, when this many members had joined after a rebuild.
    asked: Option<u64>,
    result: Option<ScrubResult>,
    /// Scrubs that ended.
    pub finished: u64,
}

impl Scrubs {
    /// None yet.
    pub fn new(entropy: Entropy) -> Scrubs {
        Scrubs {
            entropy,
            rotten: BTreeSet::new(),
            copies: 0,
            asked: None,
            result: None,
            finished: 0,
        }
    }
}

/// Drawn from a stream of its own, so that all else of a seed stays what it was.
pub fn draw(seed: u64) -> Option<ScrubMix> {
    let chosen = (SEEDS.contains(&seed) && seed.is_multiple_of(2))
        || (seed >= SEEDS_FROM && seed.is_multiple_of(5));
    let mut entropy = Entropy::from_seed(seed).fork(9);
    chosen.then(|| draw_mix(&mut entropy))
}

/// How the scrubs of a run are.
pub fn draw_mix(entropy: &mut Entropy) -> ScrubMix {
    ScrubMix {
        asks: entropy.range(1, 16),
        bytes_per_second: entropy.pick(&[8 << 20, 64 << 20, 1 << 30]),
        rot: if entropy.chance(2, 3) {
            entropy.range(1, ROT_MAX)
        } else {
            0
        },
    }
}

impl Cluster {
    /// The operator asks for a scrub now and then.
    pub fn tend_scrubs(&mut self) {
        let Some(mix) = self.config.scrub else { return };
        if !self.healing.begun() && self.scrubs.entropy.chance(mix.asks, 16) {
            self.ask(Operator::Scrub);
        }
    }

    /// What an engine finds must be there: a rotten copy, or one that cannot be read.
    pub fn scrub_told(&mut self, host: Host, news: ScrubNews) {
        let now = self.world.now();
        self.story
            .tell(now, || format!("engine on {host}: scrub {news:?}"));
        match news {
            ScrubNews::Started => {}
            ScrubNews::Differs(difference) => {
                if let Some(why) = self.unfounded(&difference) {
                    self.fail(format!("C24: the scrub finds {difference:?}, but {why}"));
                }
            }
            ScrubNews::Finished(result) => {
                self.scrubs.finished += 1;
                if self.scrubs.asked.is_some() {
                    self.scrubs.result = Some(result);
                }
            }
        }
    }

    fn unfounded(&self, difference: &Difference) -> Option<&'static str> {
        let range = difference.range;
        let mut blocks = range.start.0..range.end().0;
        let struck = |b: u64| self.scrubs.rotten.contains(&b) || self.decay.has_struck(b);
        if blocks.all(|b| struck(b) || self.betrayals.contains(b)) {
            return None;
        }
        let unread = |(_, fault): &(u64, Fault)| matches!(fault, Fault::ReadErrors { .. });
        if !self.config.plan.iter().any(unread) {
            return Some("no copy is rotten and every one can be read");
        }
        (!self.copies_are_equal(range)).then_some("no copy is rotten and yet they differ")
    }

    fn voter_disks(&self) -> Vec<&Disk> {
        self.data_hosts_after()
            .into_iter()
            .filter_map(|h| self.hosts[h].disk.as_ref())
            .collect()
    }

    fn copies_are_equal(&self, range: BlockRange) -> bool {
        let disks = self.voter_disks();
        let mut blocks = range.start.0..range.end().0;
        blocks.all(|block| {
            let block = usize::try_from(block).expect("a small volume");
            disks.iter().all(|d| d.same_page(disks[0], block))
        })
    }

    /// Some copies rot, fewer of a block than make a majority.
    fn rot(&mut self, count: u64) {
        let hosts = self.data_hosts_after();
        let blocks: Vec<u64> = self.history.written_blocks().into_iter().collect();
        if blocks.is_empty() {
            return;
        }
        for _ in 0..count {
            let block = blocks[self.scrubs.entropy.index(blocks.len())];
            let page = usize::try_from(block).expect("a small volume");
            let at = self.scrubs.entropy.index(hosts.len());
            let copies = 1 + self.scrubs.entropy.index(((hosts.len() - 1) / 2).max(1));
            if hosts.len() < 3 || !self.scrubs.rotten.insert(block) {
                continue;
            }
            let mut struck = false;
            for host in hosts.iter().cycle().skip(at).take(copies) {
                let Some(disk) = self.hosts[*host].disk.as_mut() else {
                    continue;
                };
                // What is not there cannot rot.
                if disk.first_word(page, false) != 0 {
                    disk.rot(File::Data, page, &mut self.scrubs.entropy);
                    self.scrubs.copies += 1;
                    struck = true;
                }
            }
            if !struck {
                self.scrubs.rotten.remove(&block);
            }
        }
        let (now, rotten) = (self.world.now(), self.scrubs.rotten.clone());
        self.story.tell(now, || format!("copies rot: {rotten:?}"));
    }

    fn scrub_runs(&mut self) -> bool {
        let host = self.supervisor.active;
        let clock = self.clock(host);
        let node = self.hosts[host].node.as_mut();
        node.and_then(|n| n.engine())
            .is_some_and(|e| e.machine.status(clock).scrub.position_bytes.is_some())
    }

    /// Members that joined after a rebuild since the engine started.
    fn joins(&mut self) -> u64 {
        let host = self.supervisor.active;
        let clock = self.clock(host);
        let node = self.hosts[host].node.as_mut();
        node.and_then(|n| n.engine())
            .map_or(0, |e| e.machine.status(clock).counters.joins)
    }

    /// What the last scrub did with what rotted. A rebuild beside it may repair blocks as well, before
    /// or after the scrub comes to them: then all there is to say is that each is good in the end.
    fn last_scrub_is_right(&mut self, joins: u64, result: &ScrubResult) -> bool {
        let blocks = self.scrubs.rotten.len() as u64;
        if result.unresolved != 0 || result.skipped != 0 {
            return false;
        }
        if joins == self.joins() {
            return (result.differences, result.repaired) == (blocks, blocks);
        }
        let mut rotten = self.scrubs.rotten.iter();
        result.repaired <= result.differences
            && result.differences <= blocks
            && rotten.all(|b| self.copies_are_equal(BlockRange::new(Lba(*b), Blocks(1))))
    }

    /// The last scrub: after one that still runs, and with rot. True when it is over.
    pub fn last_scrub_is_over(&mut self, mix: &ScrubMix) -> bool {
        let Some(joins) = self.scrubs.asked else {
            if !self.scrub_runs() {
                self.scrubs.rotten = self.end_decay();
                self.scrubs.copies = self.scrubs.rotten.len() as u64;
                self.rot(mix.rot);
                self.scrubs.asked = Some(self.joins());
                self.ask(Operator::Scrub);
            }
            return false;
        };
        let Some(result) = self.scrubs.result else {
            return false;
        };
        if !self.last_scrub_is_right(joins, &result) {
            let (blocks, copies) = (self.scrubs.rotten.len(), self.scrubs.copies);
            self.fail(format!(
                "C24: {blocks} blocks rotted ({copies} copies), the scrub says {result:?}"
            ));
        }
        self.scrubs.rotten.clear();
        true
    }
}
