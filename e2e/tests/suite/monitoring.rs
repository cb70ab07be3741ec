//! What the admin endpoint shows over TCP, and that the dashboard asks for what exists.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use trilith_e2e::cluster::{Cluster, Options, free_port, succeed};

/// Names of metrics in a text: words that start with `trilith_`.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("trilith_"))
        .map(str::to_owned)
        .collect()
}

/// Body of what the endpoint answers.
fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{path}: {text}");
    let (_, body) = text.split_once("\r\n\r\n").context("a head")?;
    Ok(body.to_owned())
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() -> Result<()> {
    let port = free_port()?;
    let address = format!("127.0.0.1:{port}");
    let mut cluster = Cluster::start(Options {
        more: vec!["--admin".to_owned(), address.clone()],
        ..Options::default()
    })?;
    cluster.wait_state("healthy")?;
    // A write and a read, so that every histogram has a bucket.
    succeed(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write 0 4k",
            "-c",
            "flush",
            "-c",
            "read 0 4k",
            &cluster.uri(),
        ],
    )?;
    let text = get(&address, "/metrics")?;
    let there = names(&text);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/monitoring");
    let dashboard = std::fs::read_to_string(format!("{root}/grafana.json"))?;
    let rules = std::fs::read_to_string(format!("{root}/prometheus.yml"))?;
    let asked = names(&(dashboard + &rules));
    ensure!(asked.len() > 20, "the dashboard asks for {}", asked.len());
    let missing: Vec<&String> = asked.difference(&there).collect();
    ensure!(missing.is_empty(), "not shown: {missing:?}");
    let status: Value =
        serde_json::from_str(&get(&address, "/status")?).context("the status is JSON")?;
    ensure!(status["state"] == "healthy", "{status}");
    cluster.stop()
}
