//! The controller case by case, and the bucket over time.

use super::rate::{Bucket, Load, RateConfig, RateController};
use core::time::Duration;
use trilith_block::Monotonic;

const MIB: u64 = 1 << 20;

fn controller(baseline_us: u64) -> RateController {
    let config = RateConfig {
        bytes_per_second_min: 10 * MIB,
        bytes_per_second_max: 320 * MIB,
    };
    RateController::new(config, Duration::from_micros(baseline_us))
}

fn load(completed: u64, p99_us: u64, queue_depth: u32) -> Load {
    Load {
        completed,
        p99: Duration::from_micros(p99_us),
        queue_depth,
    }
}

#[test]
fn each_kind_of_interval_moves_the_rate_as_documented() {
    let start = controller(1000).bytes_per_second();
    assert_eq!(start, 165 * MIB);
    let slower = start - start / 10 * 3;
    let faster = start + 10 * MIB;
    let cases = [
        ("calm", load(1000, 1000, 8), faster),
        ("within the slack", load(1000, 2500, 8), faster),
        ("slow", load(1000, 2501, 8), slower),
        ("slow, but too few to tell", load(19, 90_000, 8), faster),
        ("queue", load(1000, 1000, 257), slower),
        ("queue without an answer", load(0, 0, 257), slower),
        ("stuck, not idle", load(0, 0, 3), faster),
        ("idle", load(0, 0, 0), 320 * MIB),
    ];
    for (name, load, expect) in cases {
        let mut c = controller(1000);
        c.update(load);
        assert_eq!(c.bytes_per_second(), expect, "{name}");
    }
}

#[test]
fn the_rate_stays_within_its_bounds() {
    let mut c = controller(1000);
    for _ in 0..100 {
        c.update(load(1000, 50_000, 8));
        assert!(10 * MIB <= c.bytes_per_second());
        if c.baseline() > Duration::from_millis(20) {
            break;
        }
    }
    for _ in 0..100 {
        c.update(load(1000, 900, 8));
    }
    assert_eq!(c.bytes_per_second(), 320 * MIB);
    let silly = RateConfig {
        bytes_per_second_min: 0,
        bytes_per_second_max: 0,
    };
    let mut c = RateController::new(silly, Duration::ZERO);
    c.update(load(1000, 900, 999));
    assert_eq!(c.bytes_per_second(), 65536, "a rebuild always ends");
}

#[test]
fn a_load_that_is_slow_without_the_rebuild_raises_the_baseline() {
    let mut c = controller(1000);
    let mut intervals = 0;
    while c.bytes_per_second() < 100 * MIB || intervals < 10 {
        c.update(load(1000, 8000, 8));
        intervals += 1;
        assert!(intervals < 100, "stuck at {} bytes/s", c.bytes_per_second());
    }
    assert!(c.baseline() <= Duration::from_micros(8000));
}

#[test]
fn the_baseline_follows_a_lower_latency_and_an_unknown_one_is_learnt() {
    let mut c = controller(8000);
    for _ in 0..60 {
        c.update(load(1000, 1000, 8));
    }
    assert!(
        c.baseline() < Duration::from_micros(1100),
        "{:?}",
        c.baseline()
    );
    let mut c = controller(0);
    c.update(load(5, 9999, 1));
    assert_eq!(c.baseline(), Duration::ZERO);
    c.update(load(50, 700, 1));
    assert_eq!(c.baseline(), Duration::from_micros(700));
}

#[test]
fn the_bucket_passes_the_rate_and_no_more() {
    for rate in [65_536, 10 * MIB, 1000 * MIB + 7] {
        let mut bucket = Bucket::new(Monotonic(0), rate);
        let mut passed = 0u64;
        let mut now = Monotonic(0);
        let copy = MIB;
        while passed < 400 * copy {
            now = now.max(bucket.opens_at(rate));
            bucket.refill(now, rate);
            assert!(bucket.is_open(), "open when it said so");
            bucket.take(copy);
            passed += copy;
        }
        let flown = u128::from(rate) * (u128::from(now.0) + 50_000_000) / 1_000_000_000;
        let allowed = flown + u128::from(copy) + 1;
        assert!(
            u128::from(passed) <= allowed,
            "{passed} bytes, at most {allowed}"
        );
        assert!(
            u128::from(passed) + u128::from(copy) >= allowed - 1,
            "{passed} of {allowed}"
        );
    }
}

#[test]
fn a_long_pause_fills_the_bucket_only_so_far() {
    let rate = 100 * MIB;
    let mut bucket = Bucket::new(Monotonic(0), rate);
    bucket.refill(Monotonic(3_600_000_000_000), rate);
    let mut passed = 0;
    while bucket.is_open() {
        bucket.take(MIB);
        passed += MIB;
    }
    assert_eq!(passed, 6 * MIB, "50 ms of the rate and one copy");
    bucket.refund(MIB, rate);
    assert!(bucket.is_open());
}
