//! `trilith status`: asks the admin endpoints of a volume's processes and shows what they say.

use crate::admin::api::{
    ChangeReport, EngineReport, Latency, MemberReport, ReplicaReport, StageReport, WITNESS,
};
use crate::admin::client;
use crate::cli::StatusArgs;
use crate::exit::{Exit, setup};
use crate::limits::WATCH_PERIOD;
use crate::output;
use crate::stages;
use crate::text::{bytes_text, micros_text, span_text};
use crate::up::supervisor::ChildId;
use crate::up::{VolumeState, layout};
use anyhow::Context;
use comfy_table::{Table, presets};
use core::time::Duration;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;
use std::sync::mpsc::sync_channel;

/// A replica, asked directly.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct ReplicaAnswer {
    member: usize,
    report: Option<ReplicaReport>,
    /// Why there is no report.
    error: Option<String>,
}

/// The volume as a whole.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct VolumeReport {
    name: String,
    uuid: String,
    size_bytes: u64,
    /// What the engine says, or stopped.
    state: String,
    detail: String,
    /// Term, 0 without an engine.
    term: u64,
    /// Bytes that replicas lack.
    dirty_bytes: u64,
    /// Bytes copied by rebuilds since the engine started.
    rebuild_bytes: u64,
}

/// `trilith status --json`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct Report {
    volume: VolumeReport,
    engine: Option<EngineReport>,
    replicas: Vec<ReplicaAnswer>,
}

/// Runs the command.
///
/// # Errors
/// When there is no volume in the directory.
pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<Exit> {
    // Paths of sockets are relative to the directory, whatever its length.
    std::env::set_current_dir(&args.dir)
        .with_context(|| format!("enter {}", args.dir.display()))
        .map_err(setup)?;
    let (_keep, never) = sync_channel::<()>(0);
    loop {
        let report = gather().map_err(setup)?;
        let text = if args.json {
            serde_json::to_string_pretty(&report)? + "\n"
        } else if args.stages {
            stages::table(report.engine.as_ref(), &disks(&report))
        } else if args.slowest {
            stages::slowest(report.engine.as_ref())
        } else {
            table(&report)
        };
        // Home and erase below: the terminal shows the new text where the old one was.
        let home = if args.watch && !args.json {
            "\x1b[H\x1b[J"
        } else {
            ""
        };
        output::print(&format!("{home}{text}"));
        if args.reset {
            let engine = layout::admin_address(ChildId::Engine);
            client::ask(&engine, "POST", "/slowest/reset").map_err(setup)?;
        }
        if !args.watch {
            return Ok(Exit::Done);
        }
        // Nobody ever sends: this is the pause.
        if never.recv_timeout(WATCH_PERIOD).is_ok() {
            return Ok(Exit::Done);
        }
    }
}

fn ask<T: for<'a> Deserialize<'a>>(child: ChildId) -> anyhow::Result<T> {
    let text = client::ask(&layout::admin_address(child), "GET", "/status")?;
    serde_json::from_str(&text).context("read the answer")
}

fn gather() -> anyhow::Result<Report> {
    let state = VolumeState::read(Path::new("."))?
        .context("find a volume: expected volume.json in the directory")?;
    let engine: anyhow::Result<EngineReport> = ask(ChildId::Engine);
    let (word, detail) = match &engine {
        Ok(engine) => (engine.state.clone(), engine.detail.clone()),
        Err(error) => (
            "stopped".to_owned(),
            format!("no engine answers: {error:#}"),
        ),
    };
    let replicas = state
        .replicas
        .iter()
        .map(|replica| replica.member)
        .map(|member| match ask(ChildId::Replica(member)) {
            Ok(report) => ReplicaAnswer {
                member,
                report: Some(report),
                error: None,
            },
            Err(error) => ReplicaAnswer {
                member,
                report: None,
                error: Some(format!("{error:#}")),
            },
        })
        .collect();
    let engine = engine.ok();
    let of_engine = |value: fn(&EngineReport) -> u64| engine.as_ref().map_or(0, value);
    let volume = VolumeReport {
        name: state.name,
        uuid: state.volume.to_string(),
        size_bytes: state.size_bytes,
        state: word,
        detail,
        term: of_engine(|engine| engine.term),
        dirty_bytes: of_engine(|engine| {
            let members = engine.members.iter().filter(|m| m.role != WITNESS);
            members.map(|m| m.dirty_bytes).sum()
        }),
        rebuild_bytes: of_engine(|engine| engine.rebuild_bytes),
    };
    Ok(Report {
        volume,
        engine,
        replicas,
    })
}

/// What the replicas that answer say of their disks.
fn disks(report: &Report) -> Vec<(usize, &[StageReport])> {
    let replicas = report.replicas.iter();
    replicas
        .filter_map(|r| Some((r.member, r.report.as_ref()?.latencies.as_slice())))
        .collect()
}

pub(crate) fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    table
}

fn table(report: &Report) -> String {
    let volume = &report.volume;
    let mut text = format!(
        "Volume {} ({}) is {}: {}\n",
        volume.name,
        bytes_text(volume.size_bytes),
        volume.state,
        volume.detail
    );
    // Writing to a string cannot fail.
    let mut line = |text_of: String| writeln!(text, "{text_of}").unwrap_or_default();
    if let Some(engine) = &report.engine {
        line(format!(
            "term {}, attach epoch {}, loss epoch {}, position {} (committed {}), up {}",
            engine.term,
            engine.attach_epoch,
            engine.loss,
            engine.last,
            engine.commit,
            span_text(Duration::from_millis(engine.process.uptime_ms))
        ));
        line(format!(
            "{} with {} connections; requests: {} of {} in flight, {} waiting, {} before the engine",
            if engine.nbd.uris.is_empty() {
                "NBD is off".to_owned()
            } else {
                engine.nbd.uris.join(" ")
            },
            engine.nbd.connections,
            engine.requests,
            engine.requests_max,
            engine.requests_waiting,
            engine.requests_pending
        ));
        if let Some(iscsi) = &engine.iscsi {
            line(format!(
                "{} with {} sessions; tasks: {} in flight, {} of {} failed",
                iscsi.uris.join(" "),
                iscsi.sessions,
                iscsi.tasks_in_flight,
                iscsi.commands_failed,
                iscsi.commands
            ));
        }
        if let Some(ublk) = &engine.ublk {
            line(format!(
                "{} is {}; requests: {} in flight, {} of {} failed",
                ublk.device.as_deref().unwrap_or("the ublk device"),
                ublk.state,
                ublk.requests_in_flight,
                ublk.requests_failed,
                ublk.requests
            ));
        }
    }
    if let Some(change) = report.engine.as_ref().and_then(|e| e.change.as_ref()) {
        line(change_text(change));
    }
    if let Some(engine) = &report.engine {
        line(crate::scrub::text(&engine.scrub, engine.size_bytes));
    }
    line(format!("\n{}", replica_table(report)));
    if let Some(engine) = &report.engine {
        line(format!("\n{}", latency_table(engine)));
    }
    for range in report.engine.iter().flat_map(|e| &e.scrub.unresolved) {
        line(format!(
            "warning: replicas differ at byte {} for {} bytes, and no majority agrees",
            range.offset, range.length
        ));
    }
    let members = report.engine.iter().flat_map(|engine| &engine.members);
    for member in members {
        if let Some(why) = &member.refused {
            line(format!(
                "warning: replica {} is not used: {why}",
                member.member
            ));
        }
    }
    for replica in &report.replicas {
        match (&replica.report, &replica.error) {
            (Some(found), _) if found.window_dir.is_none() => line(format!(
                "warning: replica {} has no tmpfs for its window: each restart of it counts as a \
                 power failure",
                replica.member
            )),
            (None, Some(error)) => line(format!("replica {}: {error}", replica.member)),
            _ => {}
        }
    }
    text
}

fn change_text(change: &ChangeReport) -> String {
    let number = |member: Option<usize>| member.map_or_else(dash, |m| m.to_string());
    let (old, new) = (number(change.old), number(change.new));
    match change.step.as_str() {
        "learning" => {
            format!("replica {old} is being replaced by replica {new}, which is being rebuilt")
        }
        "joint" => format!("replica {old} is being replaced by replica {new}, which is rebuilt"),
        _ => format!("replica {old} is being let go"),
    }
}

fn replica_table(report: &Report) -> Table {
    let mut table = new_table(&[
        "replica",
        "role",
        "link",
        "lag",
        "dirty",
        "rebuild",
        "write p50/p99/p99.9",
        "read p50/p99/p99.9",
        "free",
        "memory",
    ]);
    for replica in &report.replicas {
        let member = report
            .engine
            .as_ref()
            .and_then(|engine| engine.members.iter().find(|m| m.member == replica.member));
        let of = |text: fn(&MemberReport) -> String| member.map_or_else(dash, text);
        let own =
            |text: fn(&ReplicaReport) -> String| replica.report.as_ref().map_or_else(dash, text);
        // A witness has no data, so nothing of it is behind, copied or written.
        let is_witness = member.is_some_and(|m| m.role == WITNESS);
        let of_data =
            |text: fn(&MemberReport) -> String| if is_witness { dash() } else { of(text) };
        let carried = replica.report.as_ref().is_some_and(|found| found.carried);
        table.add_row(vec![
            format!(
                "{}{}",
                replica.member,
                if carried { " carried" } else { "" }
            ),
            of(|m| {
                if m.tainted {
                    format!("{}, tainted", m.role)
                } else {
                    m.role.clone()
                }
            }),
            of(|m| m.link.clone()),
            of_data(|m| format!("{} ({})", bytes_text(m.lag_bytes), m.lag_entries)),
            of_data(|m| bytes_text(m.dirty_bytes)),
            of_data(rebuild_text),
            of_data(|m| latency_text(&m.write_latency)),
            of_data(|m| latency_text(&m.read_latency)),
            own(|r| {
                if r.role == WITNESS {
                    dash()
                } else {
                    bytes_text(r.free_bytes)
                }
            }),
            own(|r| bytes_text(r.process.resident_bytes)),
        ]);
    }
    table
}

fn dash() -> String {
    "-".to_owned()
}

fn rebuild_text(member: &MemberReport) -> String {
    if member.role != "rebuilding" {
        return dash();
    }
    let left = member.rebuild_seconds_left.map_or_else(String::new, |s| {
        format!(", {} left", span_text(Duration::from_secs(s)))
    });
    let all = member.rebuilt_bytes + member.dirty_bytes;
    let percent = (member.rebuilt_bytes * 100).checked_div(all).unwrap_or(100);
    format!(
        "{percent} % at {}/s{left}",
        bytes_text(member.rebuild_bytes_per_second)
    )
}

fn latency_text(latency: &Latency) -> String {
    if latency.count == 0 {
        return dash();
    }
    format!(
        "{} / {} / {}",
        micros_text(latency.p50_us),
        micros_text(latency.p99_us),
        micros_text(latency.p999_us)
    )
}

fn latency_table(engine: &EngineReport) -> Table {
    let mut table = new_table(&["operation", "stage", "count", "p50", "p99", "p99.9"]);
    for row in engine.latencies.iter().filter(|row| row.latency.count > 0) {
        table.add_row(vec![
            row.operation.clone(),
            row.stage.clone(),
            row.latency.count.to_string(),
            micros_text(row.latency.p50_us),
            micros_text(row.latency.p99_us),
            micros_text(row.latency.p999_us),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{IscsiReport, UblkReport};

    fn report() -> Report {
        let rebuilding = MemberReport {
            member: 1,
            role: "rebuilding".into(),
            link: "up".into(),
            dirty_bytes: 3 << 20,
            rebuilt_bytes: 1 << 20,
            rebuild_bytes_per_second: 2 << 20,
            rebuild_seconds_left: Some(61),
            ..MemberReport::default()
        };
        let stranger = MemberReport {
            member: 2,
            refused: Some("it holds another volume".into()),
            ..MemberReport::default()
        };
        let volume = VolumeReport {
            name: "vol".into(),
            size_bytes: 1 << 30,
            state: "degraded".into(),
            detail: "a majority".into(),
            ..VolumeReport::default()
        };
        Report {
            volume,
            engine: Some(EngineReport {
                term: 9,
                change: Some(ChangeReport {
                    step: "learning".into(),
                    old: Some(2),
                    new: Some(3),
                }),
                members: vec![rebuilding, stranger],
                iscsi: Some(IscsiReport {
                    uris: vec!["iscsi://127.0.0.1:3260/iqn.x/0".into()],
                    sessions: 2,
                    ..IscsiReport::default()
                }),
                ublk: Some(UblkReport {
                    device: Some("/dev/ublkb3".into()),
                    state: "live".into(),
                    requests: 7,
                    ..UblkReport::default()
                }),
                ..EngineReport::default()
            }),
            replicas: vec![
                ReplicaAnswer {
                    member: 0,
                    report: None,
                    error: Some("gone".into()),
                },
                ReplicaAnswer {
                    member: 1,
                    report: Some(ReplicaReport::default()),
                    error: None,
                },
            ],
        }
    }

    #[test]
    fn table_shows_state_rebuild_and_what_does_not_answer() {
        let text = table(&report());
        for part in [
            "Volume vol (1 GiB) is degraded: a majority",
            "term 9",
            "iscsi://127.0.0.1:3260/iqn.x/0 with 2 sessions",
            "/dev/ublkb3 is live; requests: 0 in flight, 0 of 7 failed",
            "25 % at 2 MiB/s, 1 min 1 s left",
            "replica 2 is being replaced by replica 3",
            "replica 0: gone",
            "warning: replica 1 has no tmpfs",
            "warning: replica 2 is not used: it holds another volume",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_witness_is_shown_as_one_with_nothing_to_lack() {
        let mut report = report();
        let engine = report.engine.as_mut().unwrap();
        engine.members = vec![MemberReport {
            member: 2,
            role: WITNESS.into(),
            link: "up".into(),
            dirty_bytes: 77,
            ..MemberReport::default()
        }];
        report.replicas = vec![ReplicaAnswer {
            member: 2,
            report: Some(ReplicaReport {
                role: WITNESS.into(),
                free_bytes: 1 << 40,
                ..ReplicaReport::default()
            }),
            error: None,
        }];
        let table = replica_table(&report).to_string();
        let row = table.lines().nth(1).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            words[..9],
            ["2", "witness", "up", "-", "-", "-", "-", "-", "-"],
            "{row}"
        );
    }

    #[test]
    fn json_comes_back_and_unknown_fields_are_skipped() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report());
        let newer = text.replacen('{', "{\"colour\":\"red\",", 1);
        assert_eq!(serde_json::from_str::<Report>(&newer).unwrap(), report());
    }
}
