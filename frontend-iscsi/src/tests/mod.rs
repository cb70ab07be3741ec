//! Tests of the whole machine, from bytes to bytes.

mod client;
mod commands;
mod fuzzing;
mod limits;
mod logins;
mod model;
mod reservations;
mod sanitizing;
