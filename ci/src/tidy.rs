//! Style that neither the compiler nor clippy checks. Each finding names its file and line.

use crate::run;
use anyhow::{Context, Result, bail};

/// Lines of a source file above which it must say why at its head ("Long because ...").
const FILE_LINES_MAX: usize = 1000;

/// Words that mean "not done".
const LEFT_OVERS: &[&str] = &["FIXME", "XXX", concat!("#[", "ignore"), "should_panic"];

fn source_findings(path: &str, text: &str, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX && !text.contains("Long because") {
        findings.push(format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"));
    }
    if !text.starts_with("//!") && !is_test_file(path) {
        findings.push(format!("{path}:1: starts without a module doc (//!)"));
    }
    for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if !line.is_ascii() {
            findings.push(format!("{path}:{number}: not ASCII"));
        }
        if path != "ci/src/tidy.rs" {
            for word in LEFT_OVERS.iter().filter(|w| line.contains(**w)) {
                findings.push(format!("{path}:{number}: {word}"));
            }
        }
        let todo = concat!("TO", "DO");
        if line.contains(todo) && !line.contains(concat!("TO", "DO(#")) {
            findings.push(format!(
                "{path}:{number}: {todo} without an issue, TODO(#n)"
            ));
        }
    }
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

fn common_findings(path: &str, text: &str, findings: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if line.ends_with([' ', '\t']) {
            findings.push(format!("{path}:{number}: white space at the end"));
        }
        for place in [concat!("/wo", "rk/"), concat!("/ro", "ot/")] {
            if line.contains(place) {
                findings.push(format!("{path}:{number}: a path of one machine ({place})"));
            }
        }
    }
}

/// Rows of a requirement table (`docs/spec/*.md`) name files in backticks; each must exist.
fn spec_findings(path: &str, text: &str, findings: &mut Vec<String>) {
    let root = run::root();
    for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        for name in line.split('`').skip(1).step_by(2) {
            let is_file = name.ends_with(".rs") && name.contains('/');
            if is_file && !root.join(name).exists() {
                findings.push(format!("{path}:{number}: {name} does not exist"));
            }
        }
    }
}

/// Looks at every tracked text file.
pub(crate) fn check() -> Result<()> {
    let mut findings = Vec::new();
    let endings = [".rs", ".md", ".toml", ".sh", ".py", ".fio", ".json", "run"];
    for path in run::tracked()?
        .iter()
        .filter(|p| endings.iter().any(|e| p.ends_with(e)))
    {
        let full = run::root().join(path);
        if !full.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&full).with_context(|| format!("read {path}"))?;
        common_findings(path, &text, &mut findings);
        if path.ends_with(".rs") {
            source_findings(path, &text, &mut findings);
        }
        if path.starts_with("docs/spec/") || path == "ARCHITECTURE.md" {
            spec_findings(path, &text, &mut findings);
        }
    }
    for finding in &findings {
        run::say(finding);
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_file_and_line() {
        let mut findings = Vec::new();
        source_findings(
            "a/src/b.rs",
            "//! Doc.\nlet x = 1; // FIXME\n",
            &mut findings,
        );
        common_findings("a/src/b.rs", "//! Doc. \n", &mut findings);
        assert_eq!(
            findings,
            [
                "a/src/b.rs:2: FIXME",
                "a/src/b.rs:1: white space at the end"
            ]
        );
    }

    #[test]
    fn a_file_without_a_module_doc_is_found() {
        let mut findings = Vec::new();
        source_findings("a/src/b.rs", "fn main() {}\n", &mut findings);
        assert_eq!(findings.len(), 1);
    }
}
