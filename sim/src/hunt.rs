//! `--mutants`: breaks one rule after the other and counts the seeds until a checker notices. What
//! is not noticed is a weakness of the simulator: docs/verification.md has the table.

use crate::run::{Report, run_seed};
use crate::story::Detail;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use trilith_block::mutant::{self, Mutant};

/// Seeds that showed a mutant within few events, tried before others. One that shows it no longer
/// costs little: then the hunt goes on with all seeds.
const CHEAP: &[(Mutant, u64)] = &[
    (Mutant::AckBeforeMajority, 1_000_033),
    (Mutant::UncountedAck, 1_000_093),
    (Mutant::FlushByFewer, 1_000_002),
    (Mutant::FuaWithoutFlush, 1_000_043),
    (Mutant::LimboReadable, 1_000_033),
    (Mutant::StaleLeaseRead, 1_000_074),
    (Mutant::LeaseNotWaitedFor, 1_000_074),
    (Mutant::ReadUnverified, 1_000_197),
    (Mutant::ReadFromLaggard, 1_000_008),
    (Mutant::ToldBeforeD1, 1_000_007),
    (Mutant::D1ByOlderEpoch, 1_000_007),
    (Mutant::TaintIgnored, 1_000_001),
    (Mutant::NeedNotPersisted, 1_000_030),
    (Mutant::LossyWithoutEpoch, 1_000_001),
    (Mutant::LossForgotten, 1_000_002),
    (Mutant::JoinBeforeC0, 1_000_007),
    (Mutant::MapsNotHandedOver, 1_000_059),
    (Mutant::WindowCutAtCommit, 1_000_017),
    (Mutant::CopyNotVoided, 1_000_041),
    (Mutant::ScrubWithoutLock, 1_000_600),
    (Mutant::ScrubFromMinority, 1_000_600),
    (Mutant::RebuildWithoutLock, 1_000_041),
    (Mutant::ClearedBeforeCopy, 1_000_072),
    (Mutant::MergeWithoutGate, 1_000_046),
    (Mutant::VoteNotPersisted, 1_000_001),
    (Mutant::NoDrain, 1_000_088),
    (Mutant::LowerTermAccepted, 1_000_127),
    (Mutant::AttachEpochIgnored, 1_000_038),
    (Mutant::SkipNotMarked, 1_000_013),
    (Mutant::OverlapIgnored, 1_000_016),
    (Mutant::DiscardWithoutWaiting, 1_000_042),
    (Mutant::WatermarkBeforeFlush, 1_000_035),
    (Mutant::FlushFailureIgnored, 1_000_170),
    (Mutant::LogAfterData, 1_000_043),
    (Mutant::EvictedBeforeFlush, 1_000_327),
    (Mutant::MapsNotEvicted, 1_000_560),
    (Mutant::JournalRewritten, 1_000_043),
    (Mutant::RingReusedEarly, 1_000_170),
    (Mutant::WindowNotConverted, 1_000_020),
    (Mutant::TermStartUnflushed, 1_000_013),
    (Mutant::UntaintedRestart, 1_000_007),
    (Mutant::TaintForgetsLog, 1_000_051),
    (Mutant::JointIgnored, 1_000_122),
    (Mutant::LossNotHandedOn, 5_519_027_745_959),
    (Mutant::OwedWhateverCame, 80_000_000_428_917),
    (Mutant::BlankHeard, 10_000_000_004_000),
    (Mutant::WitnessIgnoredInBase, 5_000_029),
    (Mutant::BaseLeftBehind, 5_000_029),
    (Mutant::LoneEpochClean, 5_000_501),
    (Mutant::LoneEpochApart, 5_012_748),
    (Mutant::InForceByFewer, 5_000_043),
    (Mutant::CommitsBeforeInForce, 5_000_015),
    (Mutant::WitnessToldFirst, 5_000_053),
    (Mutant::TidxUncommitted, 5_000_028),
    (Mutant::WitnessRecordVolatile, 5_000_043),
    (Mutant::NbdFuaDropped, 1_000_043),
    (Mutant::NbdFlushDropped, 1_000_002),
];

/// Rules of volumes with a witness: only seeds from here on have one.
const OF_WITNESS: &[Mutant] = &[
    Mutant::WitnessIgnoredInBase,
    Mutant::BaseLeftBehind,
    Mutant::LoneEpochClean,
    Mutant::LoneEpochApart,
    Mutant::InForceByFewer,
    Mutant::CommitsBeforeInForce,
    Mutant::WitnessToldFirst,
    Mutant::TidxUncommitted,
    Mutant::DemotedWithoutWitness,
    Mutant::FlushNotWaitedFor,
    Mutant::WitnessRecordVolatile,
];
const WITNESS_SEEDS_FROM: u64 = 5_000_000;

/// Seeds to try, and how.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// First seed.
    pub from: u64,
    /// Seeds per mutant.
    pub seeds: u64,
    /// Threads.
    pub jobs: u64,
}

/// How a mutant was noticed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catch {
    /// Seeds that were tried, this one included.
    pub seeds: u64,
    /// The first seed that fails with the mutant and passes without it.
    pub seed: u64,
    /// The first line of the failure.
    pub what: String,
}

/// The mutants of a quarter (0 to 3); of all of them without one. Neighbours in the list, which
/// break the same part, are in different quarters.
pub fn quarter(number: Option<u64>) -> Vec<Mutant> {
    let chosen = |at: &usize| number.is_none_or(|q| *at as u64 % 4 == q % 4);
    (0..Mutant::ALL.len())
        .filter(chosen)
        .map(|at| Mutant::ALL[at])
        .collect()
}

/// Runs seeds with a broken rule until one fails that passes with the rule. `None`: it survived.
pub fn hunt(broken: Mutant, bounds: Bounds) -> Option<Catch> {
    let from = if OF_WITNESS.contains(&broken) {
        WITNESS_SEEDS_FROM
    } else {
        bounds.from
    };
    let bounds = Bounds { from, ..bounds };
    let cheap = CHEAP.iter().filter(|(mutant, _)| *mutant == broken);
    for (_, seed) in cheap {
        let one = Bounds {
            from: *seed,
            seeds: 1,
            jobs: 1,
        };
        if let Some(catch) = hunt_from(broken, one) {
            return Some(catch);
        }
    }
    hunt_from(broken, bounds)
}

fn hunt_from(broken: Mutant, bounds: Bounds) -> Option<Catch> {
    let mut from = bounds.from;
    let end = bounds.from + bounds.seeds;
    while from < end {
        mutant::choose(Some(broken));
        let found = first_failure(from, end, bounds.jobs);
        mutant::choose(None);
        let (seed, report) = found?;
        let innocent = run_seed(seed, Detail::Off);
        if innocent.failure.is_none() {
            let what = report.failure.unwrap_or_default();
            return Some(Catch {
                seeds: seed - bounds.from + 1,
                seed,
                what: what.lines().next().unwrap_or_default().to_string(),
            });
        }
        // The seed fails anyway: it proves nothing.
        from = seed + 1;
    }
    None
}

/// How often a mutant is noticed.
#[derive(Clone, Default, Debug)]
pub struct Rate {
    /// Seeds that fail with it.
    pub failures: u64,
    /// The one of those with the fewest events: its events, its number, the first line of its failure.
    pub cheapest: Option<(u64, u64, String)>,
}

/// Runs all the seeds with a broken rule.
pub fn rate(broken: Mutant, bounds: Bounds) -> Rate {
    mutant::choose(Some(broken));
    let next = AtomicU64::new(bounds.from);
    let rate = Mutex::new(Rate::default());
    std::thread::scope(|scope| {
        for _ in 0..bounds.jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= bounds.from + bounds.seeds {
                        return;
                    }
                    let report = run_seed(seed, Detail::Off);
                    let Some(what) = report.failure else { continue };
                    let Ok(mut rate) = rate.lock() else { continue };
                    rate.failures += 1;
                    let cheaper = |c: &(u64, u64, String)| report.events < c.0;
                    if rate.cheapest.as_ref().is_none_or(cheaper) {
                        let first = what.lines().next().unwrap_or_default().to_string();
                        rate.cheapest = Some((report.events, seed, first));
                    }
                }
            });
        }
    });
    mutant::choose(None);
    rate.into_inner().unwrap_or_default()
}

/// The lowest seed from `from` on that fails.
fn first_failure(from: u64, end: u64, jobs: u64) -> Option<(u64, Report)> {
    let next = AtomicU64::new(from);
    let first: Mutex<Option<(u64, Report)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = first.lock().is_ok_and(|f| f.is_some());
                    if seed >= end || over {
                        return;
                    }
                    let report = run_seed(seed, Detail::Off);
                    if report.failure.is_some()
                        && let Ok(mut first) = first.lock()
                        && first.as_ref().is_none_or(|(lowest, _)| seed < *lowest)
                    {
                        *first = Some((seed, report));
                    }
                }
            });
        }
    });
    first.into_inner().ok().flatten()
}
