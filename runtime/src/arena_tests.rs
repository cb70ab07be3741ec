use super::*;

fn arena(mebibytes: u64) -> Arena {
    Arena::new(ArenaConfig {
        budget_bytes: mebibytes << 20,
        huge_pages: false,
    })
    .unwrap()
}

/// A small generator of our own: tests must repeat.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn buffers_are_aligned_disjoint_and_keep_their_bytes() {
    let mut arena = arena(8);
    let mut state = 0x1234_5678_9abc_def1;
    let mut live: Vec<(BufSlice, u8)> = Vec::new();
    let mut expected_used = 0u64;
    for step in 0..20_000u32 {
        if !next(&mut state).is_multiple_of(3) {
            let len = 1 + u32::try_from(next(&mut state) % 70_000).unwrap();
            if let Some(slice) = arena.alloc(len) {
                let stamp = u8::try_from(step % 251).unwrap();
                assert_eq!(arena.bytes(slice).as_ptr() as usize % 4096, 0);
                arena.bytes_mut(slice).fill(stamp);
                expected_used += u64::from(len.div_ceil(4096).next_power_of_two()) * 4096;
                live.push((slice, stamp));
            }
        } else if !live.is_empty() {
            let at = usize::try_from(next(&mut state)).unwrap() % live.len();
            let (slice, stamp) = live.swap_remove(at);
            assert!(arena.bytes(slice).iter().all(|byte| *byte == stamp));
            expected_used -= u64::from(slice.len.div_ceil(4096).next_power_of_two()) * 4096;
            arena.release(slice.buf);
            arena.reclaim();
        }
        assert_eq!(arena.used(), expected_used);
        assert_eq!(arena.available(), arena.budget() - expected_used);
    }
    for (slice, stamp) in live {
        assert!(arena.bytes(slice).iter().all(|byte| *byte == stamp));
        arena.release(slice.buf);
        arena.reclaim();
    }
    let whole = (0..8).map(|_| arena.alloc(1 << 20)).collect::<Vec<_>>();
    assert!(
        whole.iter().all(Option::is_some),
        "free runs join again to whole super-blocks"
    );
    assert_eq!(arena.alloc(1), None);
}

#[test]
fn impossible_lengths_and_an_empty_budget_give_none() {
    let mut arena = arena(1);
    assert_eq!(arena.alloc(0), None);
    assert_eq!(arena.alloc((1 << 20) + 1), None);
    let all = arena.alloc(1 << 20).unwrap();
    assert_eq!(arena.alloc(1), None);
    arena.release(all.buf);
    arena.reclaim();
    assert!(arena.alloc(4096).is_some());
}

#[test]
fn memory_is_taken_lazily() {
    let mut arena = arena(64);
    assert_eq!(arena.grown(), 0);
    let one = arena.alloc(1).unwrap();
    assert_eq!(arena.grown(), 1 << 20);
    arena.release(one.buf);
    arena.reclaim();
    let _again = arena.alloc(1 << 20).unwrap();
    assert_eq!(arena.grown(), 1 << 20);
}

#[test]
fn buffer_lives_until_its_last_owner_is_gone() {
    let mut arena = arena(1);
    let slice = arena.alloc(100).unwrap();
    arena.retain(slice.buf);
    arena.release(slice.buf);
    arena.reclaim();
    arena.bytes_mut(slice).fill(7);
    let loan = arena.lend(slice, false);
    arena.release(slice.buf);
    arena.reclaim();
    assert_eq!((arena.used(), arena.lent()), (4096, 1));
    assert_eq!(
        arena.bytes(slice),
        [7; 100],
        "what the kernel reads may be read"
    );
    arena.give_back(loan);
    arena.reclaim();
    assert_eq!((arena.used(), arena.lent()), (0, 0));
    let reused = arena.alloc(100).unwrap();
    assert_ne!(
        reused.buf, slice.buf,
        "a stale id does not name the new buffer"
    );
}

#[test]
fn neighbours_of_a_lent_run_may_be_touched() {
    let mut arena = arena(1);
    let slice = arena.alloc(8192).unwrap();
    let first = arena.lend(slice.slice(0, 4096), true);
    let second = arena.lend(slice.slice(6000, 100), true);
    arena.bytes_mut(slice.slice(4096, 1904)).fill(1);
    arena.give_back(first);
    arena.bytes_mut(slice.slice(0, 6000)).fill(2);
    arena.give_back(second);
    arena.bytes_mut(slice).fill(3);
    assert_eq!(arena.bytes(slice)[8191], 3);
}

#[test]
fn checksum_is_castagnoli_and_continues() {
    let mut arena = arena(1);
    assert_eq!(arena.crc32c(0, b"123456789"), 0xe306_9283);
    let half = arena.crc32c(0, b"12345");
    assert_eq!(arena.crc32c(half, b"6789"), 0xe306_9283);
    let (source, target) = (arena.alloc(10_001).unwrap(), arena.alloc(10_001).unwrap());
    for (index, byte) in arena.bytes_mut(source).iter_mut().enumerate() {
        *byte = u8::try_from(index % 253).unwrap();
    }
    let expected = arena.crc32c(5, arena.bytes(source));
    assert_eq!(arena.copy_crc32c(source, target, 5), expected);
    let copied = arena.bytes(target).to_vec();
    assert_eq!(copied, arena.bytes(source));
    let filled = arena.alloc(10_001).unwrap();
    assert_eq!(arena.fill_crc32c(filled, &copied, 5), expected);
    assert_eq!(arena.bytes(filled), copied);
}

/// True when `act` panics, as it must on a bug of the caller.
fn panics(act: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).is_err()
}

#[test]
fn bugs_of_the_caller_are_caught() {
    let mut arena = arena(1);
    let slice = arena.alloc(8192).unwrap();
    assert!(
        panics(|| drop(arena.bytes(BufSlice { len: 8193, ..slice }).to_vec())),
        "too long"
    );
    let reading = arena.lend(slice.slice(0, 4096), false);
    assert!(
        panics(|| arena.bytes_mut(slice).fill(1)),
        "written while the kernel reads"
    );
    arena.give_back(reading);
    let filling = arena.lend(slice.slice(0, 4096), true);
    assert!(
        panics(|| drop(arena.bytes(slice.slice(4095, 2)).to_vec())),
        "read while filled"
    );
    assert!(
        panics(|| arena.copy(slice.slice(0, 10), slice.slice(5000, 10))),
        "copied from"
    );
    arena.give_back(filling);
    assert!(
        panics(|| arena.copy(slice.slice(0, 10), slice.slice(5, 10))),
        "overlap"
    );
    arena.release(slice.buf);
    arena.reclaim();
    assert!(panics(|| arena.release(slice.buf)), "released twice");
    assert!(
        panics(|| drop(arena.bytes(slice).to_vec())),
        "used after its release"
    );
}

#[test]
fn a_buffer_released_beside_its_action_lives_until_the_action_is_taken() {
    let mut arena = arena(1);
    let slice = arena.alloc(4096).unwrap();
    arena.bytes_mut(slice).fill(9);
    // The machine: names the buffer in an action, then lets go.
    arena.release(slice.buf);
    let other = arena.alloc(4096).unwrap();
    assert_ne!(
        other.buf, slice.buf,
        "not reused before the action is taken"
    );
    // The driver: takes the action, then reclaims.
    let loan = arena.lend(slice, false);
    arena.reclaim();
    assert_eq!(arena.bytes(slice), [9; 4096]);
    arena.give_back(loan);
    arena.reclaim();
    arena.release(other.buf);
    arena.reclaim();
    assert_eq!(arena.used(), 0);
}

#[test]
fn what_is_set_apart_is_there_however_much_the_other_share_takes() {
    let mut arena = arena(4);
    arena.set_apart(1 << 20);
    let mut first = Vec::new();
    // Every super-block that it may have is in use, and none of them whole.
    while let Some(slice) = arena.alloc(4096) {
        first.push(slice);
    }
    assert_eq!((first.len(), arena.available()), (3 * 256, 0));
    arena.act_for(Share::Second);
    assert_eq!(arena.available(), 1 << 20);
    let second = arena.alloc(1 << 20).unwrap();
    assert_eq!((arena.alloc(1), arena.used()), (None, 4 << 20));
    // Whoever releases, memory goes back to whom it was given.
    for slice in first {
        arena.release(slice.buf);
    }
    arena.reclaim();
    assert_eq!((arena.alloc(1), arena.available()), (None, 0));
    arena.act_for(Share::First);
    arena.release(second.buf);
    arena.reclaim();
    let whole = (0..4).map_while(|_| arena.alloc(1 << 20)).count();
    assert_eq!(whole, 3, "free runs join again within a share");
}
