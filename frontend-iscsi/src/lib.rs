//! Purpose: an iSCSI target (RFC 7143) with one SCSI disk (SPC-4, SBC-3) as a pure machine,
//! [`IscsiTarget`]. It serves one volume to many sessions: login with CHAP, digests, immediate and
//! solicited data, task management, persistent reservations. Bytes of initiators come in as stream
//! events and leave as requests to the engine; completions come in and leave as responses.
//!
//! Invariants: a status never precedes the completion of what it promises, nor the keeping of
//! reservations that were to be kept; a command of an aborted task has no effect after the answer
//! to its abort; every buffer is owned by exactly one place (a receive, the engine, a part of a
//! task); COMPARE AND WRITE and ORWRITE are atomic among all initiators of this target (each part
//! of at most 1 MiB for ORWRITE), and against other frontends of the volume when the wiring obeys
//! [`IscsiTarget::is_exclusive`].
//!
//! Limits: [`limits`]. At them commands lie outside the CmdSN window, connections are not read,
//! tasks wait for memory, or connections are refused. Initiators cannot size an allocation; before
//! their login is done they hold one connection slot and at most 16 KiB of text for 15 seconds.
//!
//! Failure: an error of the engine becomes sense data (`scsi/sense.rs`); what RFC 7143 calls a
//! protocol error is rejected, or ends the connection and with it the session (error recovery
//! level 0), never the process. Tasks of a session that is gone are left to the engine; their
//! completions are swallowed. Secrets are never part of a message or of `Debug`.
//!
//! Start reading at: `target.rs`, then `receive.rs`, `command.rs` and `work.rs`; for SCSI
//! `scsi/plan.rs`. docs/spec/iscsi.md says where each rule is obeyed.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod chap;
mod command;
mod config;
mod conn;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod limits;
mod login;
mod manage;
mod params;
mod pdu;
mod pool;
mod receive;
mod respond;
mod sanitize;
mod scsi;
mod session;
mod tag;
mod target;
mod task;
#[cfg(test)]
mod tests;
mod text;
mod work;

pub use config::{ChapConfig, ChapUser, ConfigProblem, IscsiConfig, IscsiStatus};
pub use target::IscsiTarget;
