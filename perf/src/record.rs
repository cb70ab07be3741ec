//! The kept figures of a run, as `compare --json` writes them.

use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// One run.
#[derive(Debug)]
pub(crate) struct Record {
    /// Name of its file without ending.
    pub(crate) name: String,
    /// Commit that was measured.
    pub(crate) commit: String,
    /// Kernel.
    pub(crate) kernel: String,
    /// fio's version.
    pub(crate) fio: String,
    /// `disk` or `ram`.
    pub(crate) media: String,
    /// Number of CPUs.
    pub(crate) cpus: u64,
    /// Size of the volume in MiB.
    pub(crate) size_mib: u64,
    /// When, seconds since 1970; 0 if it was not kept.
    time: u64,
    results: Vec<Value>,
}

/// All runs in a folder, oldest first.
///
/// # Errors
/// The folder or a file in it cannot be read, or is not what `compare` writes.
pub(crate) fn read_all(dir: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            records.push(
                read(&path)
                    .with_context(|| format!("{} is no result of compare", path.display()))?,
            );
        }
    }
    records.sort_by(|a, b| (a.time, &a.name).cmp(&(b.time, &b.name)));
    Ok(records)
}

fn read(path: &Path) -> Result<Record> {
    let value: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    Ok(Record {
        name: path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        commit: text("commit"),
        kernel: text("kernel"),
        fio: text("fio"),
        media: text("media"),
        cpus: value["cpus"].as_u64().unwrap_or(0),
        size_mib: value["size_mib"].as_u64().unwrap_or(0),
        time: value["unix_time"].as_u64().unwrap_or(0),
        results: value["results"]
            .as_array()
            .context("expected the field results")?
            .clone(),
    })
}

/// The middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Record {
    fn names(&self, key: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .results
            .iter()
            .filter_map(|r| Some(r[key].as_str()?.to_owned()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The servers measured; `raw` first.
    pub(crate) fn targets(&self) -> Vec<String> {
        let mut names = self.names("target");
        names.sort_by_key(|name| (name != "raw", name.clone()));
        names
    }

    /// The jobs run, those of one kind by depth.
    pub(crate) fn jobs(&self) -> Vec<String> {
        let mut jobs = self.names("job");
        jobs.sort_by_key(|job| {
            let start = job.trim_end_matches(|c: char| c.is_ascii_digit());
            let depth: u32 = job[start.len()..].parse().unwrap_or(0);
            (start.to_owned(), depth)
        });
        jobs
    }

    fn values(&self, target: &str, job: &str, figure: &str) -> Vec<f64> {
        self.results
            .iter()
            .filter(|r| r["target"] == target && r["job"] == job)
            .flat_map(|r| r["rounds"].as_array().into_iter().flatten())
            .filter_map(|round| round[figure].as_f64())
            .collect()
    }

    /// Number of rounds.
    pub(crate) fn rounds(&self) -> usize {
        self.results
            .iter()
            .filter_map(|r| Some(r["rounds"].as_array()?.len()))
            .max()
            .unwrap_or(0)
    }

    /// Median of a figure over the rounds.
    pub(crate) fn median(&self, target: &str, job: &str, figure: &str) -> Option<f64> {
        let mut values = self.values(target, job, figure);
        (!values.is_empty()).then(|| median(&mut values))
    }

    /// IOPS over raw of the same round: median, least, most.
    pub(crate) fn ratio(&self, target: &str, job: &str) -> Option<(f64, f64, f64)> {
        let raw = self.values("raw", job, "iops");
        let mut ratios: Vec<f64> = self
            .values(target, job, "iops")
            .iter()
            .zip(raw)
            .map(|(ours, raw)| ours / raw.max(1.0))
            .collect();
        let middle = (!ratios.is_empty()).then(|| median(&mut ratios))?;
        Some((middle, *ratios.first()?, *ratios.last()?))
    }
}

#[cfg(test)]
mod tests {
    use super::Record;
    use serde_json::json;

    fn record() -> Record {
        let run = |target: &str, job: &str, iops: &[f64]| {
            json!({"target": target, "job": job,
                "rounds": iops.iter().map(|i| json!({"iops": i})).collect::<Vec<_>>()})
        };
        Record {
            name: String::new(),
            commit: String::new(),
            kernel: String::new(),
            fio: String::new(),
            media: "disk".to_owned(),
            cpus: 2,
            size_mib: 1,
            time: 0,
            results: vec![
                run("ours", "w-d16", &[50.0, 20.0, 90.0]),
                run("raw", "w-d16", &[100.0, 100.0, 100.0]),
                run("raw", "w-d2", &[1.0]),
            ],
        }
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        assert_eq!(record().ratio("ours", "w-d16"), Some((0.5, 0.2, 0.9)));
        assert_eq!(record().ratio("ours", "w-d2"), None);
    }

    #[test]
    fn raw_comes_first_and_depths_rise() {
        assert_eq!(record().targets(), ["raw", "ours"]);
        assert_eq!(record().jobs(), ["w-d2", "w-d16"]);
    }
}
