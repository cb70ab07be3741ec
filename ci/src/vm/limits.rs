//! Maxima of guests, with what happens when they are reached.

use std::time::Duration;

/// Boots of a guest that died or hung before its first sign; then the run fails. QEMU's threads race
/// now and then at that time, which says nothing about what is tested.
pub(crate) const BOOTS_MAX: u32 = 3;

/// From the start of QEMU to the first sign of the guest; then the boot has failed. About 10 s on an
/// idle machine.
pub(crate) const BOOT_MAX: Duration = Duration::from_secs(120);

/// Default of a scenario's whole run; then it fails.
pub(crate) const RUN_MAX: Duration = Duration::from_secs(180);

/// Largest limit that a scenario may ask for.
pub(crate) const RUN_LIMIT_MAX: Duration = Duration::from_secs(900);

/// Nodes of a scenario: a guest takes 350 MB and more of memory.
pub(crate) const NODES_MAX: usize = 3;

/// Disks of a node.
pub(crate) const DISKS_MAX: usize = 4;

/// Lines of guests that wait for us; then the guest's console waits.
pub(crate) const LINES_MAX: usize = 1024;

/// Bytes of a console line that are kept; the rest is dropped.
pub(crate) const LINE_BYTES_MAX: usize = 4096;

/// Bytes that a guest can ship.
pub(crate) const OUTPUT_BYTES: u64 = 64 << 20;

/// Oldest QEMU that boots a 6.12 kernel under emulation: 7.2 corrupts its memory.
pub(crate) const QEMU_MAJOR_MIN: u32 = 10;
