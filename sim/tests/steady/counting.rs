//! Counts allocations of the calling thread while it is told to.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    if ON.get() {
        COUNT.set(COUNT.get() + 1);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came; counting touches only
// thread-locals that need neither an allocation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise; `memory` came from `System`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise; `memory` came from `System`.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Adds the allocations of `act` to `sum`.
pub(crate) fn counted<T>(sum: &mut u64, act: impl FnOnce() -> T) -> T {
    COUNT.set(0);
    ON.set(true);
    let result = act();
    ON.set(false);
    *sum += COUNT.get();
    result
}

#[test]
fn an_allocation_is_counted() {
    let mut sum = 0;
    let made = counted(&mut sum, || Vec::<u8>::with_capacity(10));
    drop(made);
    assert_eq!(sum, 1);
}
