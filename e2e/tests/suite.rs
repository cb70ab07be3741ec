//! All end-to-end tests in one binary, so that `cargo ci e2e` runs them one after the other.

#[path = "suite/bad_input.rs"]
mod bad_input;
#[path = "suite/carried.rs"]
mod carried;
#[path = "suite/checksums.rs"]
mod checksums;
#[path = "suite/clients.rs"]
mod clients;
#[path = "suite/faults.rs"]
mod faults;
#[path = "suite/fencing.rs"]
mod fencing;
#[path = "suite/image.rs"]
mod image;
#[path = "suite/iscsi.rs"]
mod iscsi;
#[path = "suite/iscsi_conformance.rs"]
mod iscsi_conformance;
#[path = "suite/monitoring.rs"]
mod monitoring;
#[path = "suite/offline.rs"]
mod offline;
#[path = "suite/replace.rs"]
mod replace;
#[path = "suite/scrub.rs"]
mod scrub;
#[path = "suite/witness.rs"]
mod witness;
#[path = "suite/witness_faults.rs"]
mod witness_faults;
