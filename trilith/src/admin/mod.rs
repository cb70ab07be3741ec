//! The admin endpoint of every process: state as JSON, metrics for Prometheus, a few commands.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod http;
pub(crate) mod metrics;
pub(crate) mod server;
