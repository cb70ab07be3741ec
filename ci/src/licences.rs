//! Third-party crates: licences on the list, from the registry only, no two major versions of one
//! crate. The lists are in `deny.toml`, which cargo-deny reads as well.

use crate::run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// Entries of the string array `key` in deny.toml. Enough of TOML for our own file.
fn list(text: &str, key: &str) -> Result<Vec<String>> {
    let start = text
        .find(&format!("\n{key} = ["))
        .with_context(|| format!("no {key}"))?;
    let body = &text[start..];
    let end = body
        .find(']')
        .with_context(|| format!("{key} has no end"))?;
    Ok(body[..end]
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect())
}

/// True when one alternative of the SPDX expression has only allowed licences.
fn allowed(expression: &str, list: &[String]) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    plain.split(" OR ").any(|alternative| {
        alternative
            .split(" AND ")
            .all(|licence| list.iter().any(|l| l == licence.trim()))
    })
}

/// Checks every package of the resolved graph.
pub(crate) fn check() -> Result<()> {
    let text = std::fs::read_to_string(run::root().join("deny.toml")).context("read deny.toml")?;
    let licences = list(&text, "allow")?;
    let doubles = list(&text, "skip")?;
    let metadata = run::metadata(true)?;
    let mut majors: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in metadata["packages"]
        .as_array()
        .context("metadata has no packages")?
    {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let version = package["version"].as_str().unwrap_or_default().to_owned();
        let licence = package["license"].as_str().unwrap_or("none");
        if !allowed(licence, &licences) {
            bail!("{name} {version}: licence {licence} is not on the list in deny.toml");
        }
        match package["source"].as_str() {
            None => {}
            Some(source) if source.starts_with("registry+") => {
                majors.entry(name).or_default().push(version);
            }
            Some(source) => bail!("{name} {version} comes from {source}, not from the registry"),
        }
    }
    for (name, versions) in majors {
        if versions.len() > 1 && !doubles.contains(&name) {
            bail!("{name} is there in versions {versions:?}; deny.toml lists what may be doubled");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_alternative_is_enough() {
        let list = ["MIT".to_owned(), "Apache-2.0".to_owned()];
        assert!(allowed("MIT OR GPL-3.0", &list));
        assert!(allowed("(MIT OR Apache-2.0) AND MIT", &list));
        assert!(allowed("Unlicense/MIT", &list));
        assert!(!allowed("GPL-3.0", &list));
        assert!(!allowed("MIT AND GPL-3.0", &list));
    }
}
