//! What the admin endpoint shows over TCP, and that the dashboard asks for what exists.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use trilith_e2e::cluster::{Cluster, Options, free_port, succeed, trilith};
use trilith_e2e::{qemu, wait_until};

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
    qemu::io(&["write 0 4k", "flush", "read 0 4k"], &cluster.uri())?;
    wait_until("a heartbeat", || {
        get(&address, "/metrics")
            .is_ok_and(|text| text.contains("trilith_engine_member_wire_seconds"))
    })?;
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

#[test]
fn stages_and_the_slowest_operations_say_where_the_time_went() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let mut client = cluster.client()?;
    for n in 0..64 {
        ensure!(client.write(n * 4096, &[7; 4096])?.is_ok());
    }
    ensure!(client.read(0, 4096)?.is_ok());
    drop(client);
    qemu::io(&["write 1M 64k", "flush"], &cluster.uri())?;
    let data = cluster.data().display().to_string();
    let say = |words: &[&str]| {
        let mut all = vec!["status", "--dir", &data];
        all.extend_from_slice(words);
        succeed(trilith(), &all)
    };
    wait_until("a heartbeat of every replica", || {
        say(&["--stages"]).is_ok_and(|text| text.matches(" wire ").count() == 3)
    })?;
    let stages = say(&["--stages"])?;
    let rows: Vec<Vec<&str>> = stages
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for operation in ["read", "write", "flush"] {
        for stage in ["admit", "queue", "replicate", "reply", "total"] {
            let found = rows.iter().any(|row| row.starts_with(&[operation, stage]));
            ensure!(found, "{operation} {stage} in\n{stages}");
        }
    }
    for member in ["0", "1", "2"] {
        for stage in ["disk", "ack"] {
            let found = rows
                .iter()
                .any(|row| row.starts_with(&["write", stage, member]));
            ensure!(found, "write {stage} {member} in\n{stages}");
        }
    }
    let status = cluster.status()?;
    let slowest = status["engine"]["slowest"]
        .as_array()
        .context("find them")?;
    ensure!(slowest.len() == 32, "{} are kept", slowest.len());
    for slow in slowest {
        let us = |stage: &str| slow[stage].as_u64().unwrap_or(0);
        let sum = us("admit_us") + us("queue_us") + us("replicate_us") + us("reply_us");
        ensure!(us("total_us").abs_diff(sum) < 5, "{slow}");
        let answered = slow["answered_us"].as_array().context("find answers")?;
        let before = |a: &&Value| a.as_u64().is_some_and(|a| a <= us("total_us") + 5);
        let least = if slow["operation"] == "read" { 1 } else { 2 };
        ensure!(answered.iter().filter(before).count() >= least, "{slow}");
    }
    let text = say(&["--slowest", "--reset"])?;
    ensure!(
        text.lines().count() > 32 && text.contains("write"),
        "{text}"
    );
    let status = cluster.status()?;
    ensure!(
        status["engine"]["slowest"]
            .as_array()
            .is_some_and(Vec::is_empty),
        "{status}"
    );
    cluster.stop()
}
