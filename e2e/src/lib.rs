//! Purpose: drives real `trilith` processes the way a user does, and checks what a client sees.
//!
//! Invariants: a test leaves no process behind; nothing asserts how long something takes, only
//! that it happens at all before a generous limit.
//!
//! Limits: every wait has a limit ([`WAIT_MAX`]); reaching it fails the test with what was awaited.
//!
//! Failure: a test fails by panic or error; the logs of its processes are printed.
//!
//! Start reading at: [`Cluster`], then [`nbd`] and [`iscsi`], then [`history`].

pub mod cluster;
pub mod history;
pub mod iscsi;
pub mod nbd;
pub mod qemu;

pub use cluster::{Cluster, Options};

use anyhow::{Result, bail};
use std::time::Duration;

/// How long anything may take before a test fails.
pub const WAIT_MAX: Duration = Duration::from_secs(240);

/// Steps of a wait.
const STEP: Duration = Duration::from_millis(20);

/// Lets some time pass. The only place that sleeps: processes outside give no event to wait for.
pub fn pause(span: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "processes outside give no event to wait for"
    )]
    std::thread::sleep(span);
}

/// Waits until `check` is true.
///
/// # Errors
/// When it is not within [`WAIT_MAX`]; `what` says what was awaited.
pub fn wait_until(what: &str, mut check: impl FnMut() -> bool) -> Result<()> {
    let steps = WAIT_MAX.as_millis() / STEP.as_millis();
    for _ in 0..steps {
        if check() {
            return Ok(());
        }
        pause(STEP);
    }
    bail!("waited {WAIT_MAX:?} for {what}")
}

/// Pseudo-random numbers (splitmix64), so that a run can be repeated from its seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit.max(1)
    }
}
