//! `trilith status --stages` and `--slowest`: where the time of operations goes.

use crate::admin::api::{EngineReport, Latency, SlowReport, StageReport};
use crate::status::new_table;
use crate::text::{bytes_text, micros_text, span_text};
use comfy_table::Table;
use core::time::Duration;

const NO_ENGINE: &str = "no engine answers\n";

fn row(table: &mut Table, operation: &str, stage: &str, replica: &str, latency: &Latency) {
    if latency.count == 0 {
        return;
    }
    let times = [
        latency.p50_us,
        latency.p99_us,
        latency.p999_us,
        latency.max_us,
    ];
    let mut cells = vec![
        operation.to_owned(),
        stage.to_owned(),
        replica.to_owned(),
        latency.count.to_string(),
    ];
    cells.extend(times.map(micros_text));
    table.add_row(cells);
}

/// Stage by stage; `disks`: what each replica says of its disk.
pub(crate) fn table(engine: Option<&EngineReport>, disks: &[(usize, &[StageReport])]) -> String {
    let Some(engine) = engine else {
        return NO_ENGINE.to_owned();
    };
    let mut table = new_table(&[
        "operation",
        "stage",
        "replica",
        "count",
        "p50",
        "p99",
        "p99.9",
        "max",
    ]);
    for operation in ["read", "write", "flush"] {
        let of_engine = |stages: &[&str], table: &mut Table| {
            let rows = engine.latencies.iter();
            let rows = rows.filter(|r| r.operation == operation);
            for found in rows.filter(|r| stages.contains(&r.stage.as_str())) {
                row(table, operation, &found.stage, "", &found.latency);
            }
        };
        of_engine(&["admit", "queue", "replicate"], &mut table);
        for (member, stages) in disks {
            for found in stages.iter().filter(|r| r.operation == operation) {
                let member = member.to_string();
                row(&mut table, operation, "  disk", &member, &found.latency);
            }
        }
        for member in &engine.members {
            let latency = match operation {
                "read" => &member.read_latency,
                "write" => &member.write_latency,
                _ => continue,
            };
            let member = member.member.to_string();
            row(&mut table, operation, "  ack", &member, latency);
        }
        of_engine(&["reply", "total"], &mut table);
    }
    for member in &engine.members {
        let number = member.member.to_string();
        row(
            &mut table,
            "heartbeat",
            "  wire",
            &number,
            &member.wire_latency,
        );
    }
    format!("{table}\n")
}

fn answers(op: &SlowReport) -> String {
    let answers = op.answered_us.iter().enumerate();
    let answers = answers.filter_map(|(member, us)| {
        let us = (*us)?;
        Some(format!("{member}: {}", micros_text(us)))
    });
    answers.collect::<Vec<String>>().join(", ")
}

/// The slowest operations.
pub(crate) fn slowest(engine: Option<&EngineReport>) -> String {
    let Some(engine) = engine else {
        return NO_ENGINE.to_owned();
    };
    let span = span_text(Duration::from_millis(engine.slowest_ms));
    let mut table = new_table(&[
        "operation",
        "offset",
        "length",
        "ago",
        "admit",
        "queue",
        "replicate",
        "reply",
        "total",
        "answered by",
    ]);
    for op in &engine.slowest {
        table.add_row(vec![
            format!(
                "{}{}{}",
                op.operation,
                if op.fua { " fua" } else { "" },
                if op.ok { "" } else { ", failed" }
            ),
            op.offset.to_string(),
            bytes_text(op.length),
            span_text(Duration::from_millis(op.age_ms)),
            micros_text(op.admit_us),
            micros_text(op.queue_us),
            micros_text(op.replicate_us),
            micros_text(op.reply_us),
            micros_text(op.total_us),
            answers(op),
        ]);
    }
    format!("The slowest operations of {span}:\n{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::MemberReport;

    fn latency(us: u64) -> Latency {
        Latency {
            count: 7,
            p50_us: us,
            p99_us: us * 2,
            p999_us: us * 3,
            max_us: us * 4,
        }
    }

    fn stage(operation: &str, stage: &str, us: u64) -> StageReport {
        StageReport {
            operation: operation.into(),
            stage: stage.into(),
            latency: latency(us),
        }
    }

    #[test]
    fn every_stage_has_its_row_and_disk_and_ack_one_for_each_replica() {
        let member = |member, us| MemberReport {
            member,
            write_latency: latency(us),
            wire_latency: latency(9),
            ..MemberReport::default()
        };
        let names = ["admit", "queue", "replicate", "reply", "total"];
        let engine = EngineReport {
            latencies: names.map(|name| stage("write", name, 100)).to_vec(),
            members: vec![member(0, 41), member(1, 42)],
            ..EngineReport::default()
        };
        let disk = [stage("write", "disk", 31), stage("journal", "disk", 1)];
        let text = table(Some(&engine), &[(0, &disk), (1, &disk)]);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        for expected in names {
            assert!(
                rows.iter().any(|row| row.get(1) == Some(&expected)),
                "{text}"
            );
        }
        for (name, member, us) in [
            ("disk", "0", "31"),
            ("disk", "1", "31"),
            ("ack", "0", "41"),
            ("ack", "1", "42"),
            ("wire", "1", "9"),
        ] {
            let has = |row: &&Vec<&str>| row[1..].starts_with(&[name, member, "7", us]);
            assert!(rows.iter().any(|row| has(&row)), "{name} {member}\n{text}");
        }
        assert!(!text.contains("journal") && !text.contains("read"));
        assert_eq!(table(None, &[]), NO_ENGINE);
    }

    #[test]
    fn a_slow_operation_says_who_answered_when_and_whether_it_failed() {
        let op = SlowReport {
            operation: "write".into(),
            fua: true,
            offset: 1 << 20,
            length: 4096,
            replicate_us: 2500,
            total_us: 2600,
            answered_us: vec![Some(90), None, Some(2590)],
            ..SlowReport::default()
        };
        let engine = EngineReport {
            slowest: vec![op],
            slowest_ms: 61_000,
            ..EngineReport::default()
        };
        let text = slowest(Some(&engine));
        for part in [
            "The slowest operations of 1 min 1 s",
            "write fua, failed",
            "1048576",
            "0: 90 us, 2: 2590 us",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
