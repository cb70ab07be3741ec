//! Whole clusters: equal runs of equal seeds, seeds that once failed, and fresh ones.

use sim::config::EXTRAS_FROM;
use sim::run::run_seed;
use sim::story::Detail;

/// Seeds that failed once, with what they showed at the time. Later changes of a machine move the
/// events of a run, so a seed may not meet its fault any more; it costs little to keep.
const REGRESSIONS: &[u64] = &[
    1,                   // a run of spans removed beyond its end
    56,                  // healing in place over a gap of the stream never ended
    442,                 //
    232,                 //
    355,                 // requests of dead clients were executed after the loss was accepted
    568,                 //
    78,                  // a split vote shut a replica out for ever
    775,                 //
    1203,                //
    2212,                // a blocked chunk lock: the engine turned without rest
    2209,                // a flush accepted before a crash of the replica was never answered
    102_248,             // the engine turned without rest while it waited for maps of a late voter
    103_348,             // the same
    104_094,             // a failed slot of the base was never healed
    4298,                // the checker asked more of a FUA write than it promises
    626,                 // endless events or no healing; gone with the fixes above
    741,                 //
    788,                 //
    1304,                //
    1456,                //
    1582,                //
    238_212_921_182_838, // a replica that had voted for another engine was not rebuilt
    810_445,             // a tidx that followed a SYNCSET cut the window before that was durable
    815_127,             // the same
    815_076,             // a member that returned was counted and sent entries without payload
    731_905_822_814,     // the checker blamed a member being rebuilt for hearing late of an epoch
    84_590_278_147,      // a flush accepted before an earlier entry was never asked for again
    7_700_000_000_836, // a failed entry that was sent again waited behind a SYNCSET that waited for it
    5_519_027_745_959, // a newcomer voted without knowing the loss epoch
    5_519_027_745_156, // the search for an order gave up
    5_519_027_745_328, //
    5_519_027_745_812, //
    5_519_027_746_091, //
    7_700_000_000_064, //
    4_000_050,         // a rebuild asked the same source for ever, which could not read a block
    4_000_130,         // a bad block beside one that was being written held a recovery up
    4_000_225, // a bad block in what an earlier attempt had put into need held every recovery up
    30_000_000_100_187, // the same
    30_000_000_101_972, //
    30_000_000_102_445, //
    30_000_000_102_285, // a read failed while the sound copies were a moment behind
    10_000_000_100_931, // (the simulated initiator) a session that had lost nothing sent no more
    205_500,   // a request given back by submit was executed after the loss was accepted
    // A base whose device had refused a write was written to without a word in its need (R5, I3).
    40_000_000_002_104,
    40_000_000_005_410,
    40_000_000_031_449,
    40_000_000_036_176,
    40_000_000_032_571, // an engine never asked a connected voter for the newer configuration (C27)
    40_000_000_021_801, // members that lost their power just before the term opened counted (C28)
    30_000_000_101_279, // no base for a block but a tainted member that has it durably (C30)
    // A disk that had lied was gone in the end; only what it took back may be lost.
    40_000_000_005_843,
    10_000_000_100_063,
    30_000_000_100_259,
    40_000_000_051_676,
    40_000_000_052_928,
    40_000_000_064_848,
    40_000_000_043_365, // the room of a file was measured once only
    40_000_000_079_767, // a read that a write overtook was not held against its checksum
    40_000_000_028_199, // healing in place waited for a part that waited for a majority (C29)
    60_000_000_002_022, // an in-sync replica kept `need` that its join had dropped (C33)
    60_000_000_008_235, // the base's copy had rotted under a write that was on its way to all (C32)
    60_000_000_013_284, // the checker wanted a discard of a hole in the activity log
    60_000_000_027_195, // clients were sent to an engine that another one was to take over from
    60_000_000_103_667, // the same
    60_000_000_109_905, // bytes of a hedge came into the answer of the first
    80_000_000_428_917, // a missed DIRTYCLEAR was made up for after the blocks were lacked again (C45)
    80_000_000_386_210, // the checker of the last scrub: a rebuild beside it repairs blocks as well
    80_000_000_340_700, // the same
    80_000_000_103_164, // the same
    80_000_000_014_994, // a newcomer was given up for what its WELCOME said before it was told
    80_000_000_008_259, // the checker knew only of windows what others lack, not of dirty maps (C9)
    70_000_000_064_158, // rot of an entry that only one had, where another happened to hold the same bytes
    70_000_000_059_551, // a checkpoint that was lost, and the checksums of what was in its log (B2)
    70_000_000_041_721, // the checker wanted the joining SYNCSET itself at all members (C9)
    5_012_748, // with a witness: an epoch of one that was in force under another number (W10)
    5_023_508, // the one that was waited for had voted for a dead engine (C44)
    5_850_202, // with the witness away, one that was not told after all was never told again (W8)
    5_022_345, // the checker asked for a flush of one that was about to join
    80_000_000_001_171, // with a witness: a block rotted at the only replica in sync
    5_513_915, // the checker of W10 forgot what one had said that followed another engine by then
    5_513_918, // the supervisor did not know that a new volume has loss epoch 0
    5_012_600, // the checker of W10 counted a promise that the engine did not go by
    5_012_951, // the same
    60_000_000_049_698, // a committed write was held against the next configuration
];

fn passes(seed: u64) {
    let report = run_seed(seed, Detail::Off);
    assert_eq!(
        report.failure, None,
        "replay: cargo run --profile sim -p sim -- --seed {seed} --trace"
    );
}

#[test]
fn two_runs_of_a_seed_are_equal_event_by_event() {
    for seed in (0..4).chain(EXTRAS_FROM..EXTRAS_FROM + 6) {
        let (first, second) = (run_seed(seed, Detail::Off), run_seed(seed, Detail::Frames));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.events, second.events, "seed {seed}");
    }
}

#[test]
fn seeds_that_failed_once_pass() {
    for seed in REGRESSIONS {
        passes(*seed);
    }
}

/// A few, as this runs unoptimised; `cargo ci sim` runs thousands.
#[test]
fn fresh_seeds_pass() {
    for seed in (0..20).chain(EXTRAS_FROM..EXTRAS_FROM + 20) {
        passes(seed);
    }
}

/// Every place of one crash and one cut, thinned out; `sim --small N` tries as many as one likes.
#[test]
fn a_small_world_survives_a_crash_and_a_cut_wherever_they_strike() {
    let search = sim::small::Search::new(0);
    assert!(search.places() > 100, "{} places", search.places());
    let mut world = 0;
    while world < search.worlds() {
        let report = search.run(world, Detail::Off);
        assert_eq!(report.failure, None, "world {world}");
        // A prime, so that all kinds and places take their turn.
        world += (search.worlds() / 150) | 1;
    }
}
