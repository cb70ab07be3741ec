//! One static page of the figures that `compare --json` kept: no script, readable on a phone.

use crate::chart::{Chart, Line, svg};
use crate::record::{Record, read_all};
use crate::{ReportArgs, say};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

/// Jobs that differ only in depth: (start of the job's name, title).
const SWEEPS: [(&str, &str); 3] = [
    ("randwrite-4k-d", "4 KiB random write"),
    ("randread-4k-d", "4 KiB random read"),
    ("randrw-4k-d", "4 KiB random, 70 % read"),
];

/// Jobs whose ratio to raw is followed over commits.
const FOLLOWED: [&str; 4] = [
    "randwrite-4k-d1",
    "randwrite-4k-d16",
    "randwrite-4k-d64",
    "randread-4k-d1",
];

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1rem;color:#1c2430;\
background:#fff}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}.grid{display:grid;gap:1rem;\
grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr))}svg{width:100%;height:auto;border:1px solid #dde3ea;\
border-radius:6px}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;\
font-variant-numeric:tabular-nums}td,th{padding:.25rem .6rem;border-bottom:1px solid #dde3ea;text-align:right;\
white-space:nowrap}td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}.note{color:#566}";

/// Writes the page.
///
/// # Errors
/// No result can be read, or the page cannot be written.
pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let records = read_all(&args.results)?;
    ensure!(
        !records.is_empty(),
        "{} has no result: run compare --json {}/NAME.json first",
        args.results.display(),
        args.results.display()
    );
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>\
         <title>Trilith measured</title><style>{STYLE}</style><h1>Trilith measured</h1>\
         <p class=note>Every figure is a median over the rounds of one run in which all servers took turns with raw fio. \
         Machines are noisy and differ: compare within a run, by ratio.</p>"
    );
    for media in ["disk", "ram"] {
        if let Some(latest) = records.iter().rfind(|r| r.media == media) {
            section(&mut page, latest)?;
        }
    }
    history(&mut page, &records)?;
    page.push_str("</html>\n");
    fs::write(&args.out, page).with_context(|| format!("write {}", args.out.display()))?;
    say(&format!("wrote {}", args.out.display()));
    Ok(())
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn section(page: &mut String, record: &Record) -> Result<()> {
    let what = match record.media.as_str() {
        "ram" => "Data in memory (/dev/shm)",
        _ => "Data on a disk",
    };
    write!(
        page,
        "<h2>{what}</h2><p class=note>Commit {}, Linux {}, {} CPUs, {}, volume of {} MiB, {} rounds.</p><div class=grid>",
        escape(record.commit.get(..12).unwrap_or(&record.commit)),
        escape(&record.kernel),
        record.cpus,
        escape(&record.fio),
        record.size_mib,
        record.rounds(),
    )?;
    for (prefix, title) in SWEEPS {
        for chart in sweep(record, prefix, title) {
            page.push_str(&svg(&chart)?);
        }
    }
    page.push_str("</div>");
    table(page, record)
}

/// The charts of one sweep over the depth; none if fewer than two depths were run.
fn sweep(record: &Record, prefix: &str, title: &str) -> Vec<Chart> {
    let depths: BTreeSet<u32> = record
        .jobs()
        .iter()
        .filter_map(|job| job.strip_prefix(prefix)?.parse().ok())
        .collect();
    if depths.len() < 2 {
        return Vec::new();
    }
    let lines = |figure: &dyn Fn(&str, &str) -> Option<f64>| -> Vec<Line> {
        record
            .targets()
            .into_iter()
            .map(|target| Line {
                points: depths
                    .iter()
                    .filter_map(|d| {
                        Some((f64::from(*d), figure(&target, &format!("{prefix}{d}"))?))
                    })
                    .collect(),
                name: target,
            })
            .filter(|line| !line.points.is_empty())
            .collect()
    };
    let chart = |what: &str, unit: &str, lines: Vec<Line>| Chart {
        title: format!("{title}: {what}"),
        x: "requests in flight".to_owned(),
        y: unit.to_owned(),
        lines,
    };
    let median = |name: &'static str| {
        move |target: &str, job: &str| record.median(target, job, name).filter(|v| *v > 0.0)
    };
    vec![
        chart("throughput", "IOPS", lines(&median("iops"))),
        chart("99th percentile", "microseconds", lines(&median("p99_us"))),
        chart(
            "CPU of all servers",
            "microseconds an operation",
            lines(&median("server_cpu_us_per_operation")),
        ),
    ]
}

fn table(page: &mut String, record: &Record) -> Result<()> {
    page.push_str(
        "<div class=wide><table><tr><th>job<th>server<th>IOPS<th>of raw<th>spread<th>MB/s<th>p50 us<th>p99 us<th>max us\
         <th>CPU us/op<th>written/byte",
    );
    for job in record.jobs() {
        for target in record.targets() {
            let Some(iops) = record.median(&target, &job, "iops") else {
                continue;
            };
            let (ratio, low, high) = record.ratio(&target, &job).unwrap_or_default();
            let cell = |name: &str, digits: usize| {
                record
                    .median(&target, &job, name)
                    .map_or_else(String::new, |v| format!("{v:.digits$}"))
            };
            write!(
                page,
                "<tr><td>{}<td>{}<td>{iops:.0}<td>{ratio:.2}<td>{low:.2}-{high:.2}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
                escape(&job),
                escape(&target),
                cell("megabytes_per_second", 0),
                cell("p50_us", 0),
                cell("p99_us", 0),
                cell("max_us", 0),
                cell("server_cpu_us_per_operation", 1),
                cell("server_bytes_written_per_byte", 2),
            )?;
        }
    }
    page.push_str("</table></div>");
    Ok(())
}

/// The ratio of three replicas to raw, over the kept runs on a disk.
fn history(page: &mut String, records: &[Record]) -> Result<()> {
    let runs: Vec<&Record> = records.iter().filter(|r| r.media == "disk").collect();
    if runs.len() < 2 {
        return Ok(());
    }
    let lines = FOLLOWED
        .iter()
        .map(|job| Line {
            name: (*job).to_owned(),
            points: (1u32..)
                .zip(&runs)
                .filter_map(|(n, run)| Some((f64::from(n), run.ratio("trilith3", job)?.0)))
                .collect(),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    page.push_str("<h2>Over commits</h2><div class=grid>");
    page.push_str(&svg(&Chart {
        title: "Three replicas on one disk, share of raw fio's IOPS".to_owned(),
        x: "kept run".to_owned(),
        y: "of raw".to_owned(),
        lines,
    })?);
    page.push_str("</div><ol>");
    for run in runs {
        write!(
            page,
            "<li>{} ({})",
            escape(&run.name),
            escape(run.commit.get(..12).unwrap_or(&run.commit))
        )?;
    }
    page.push_str("</ol>");
    Ok(())
}
