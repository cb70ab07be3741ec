//! Which crate may depend on which: the table of ARCHITECTURE.md, kept by a machine.

use crate::run;
use anyhow::{Context, Result, bail};

/// A crate, the workspace crates it may import, and whether it is pure (`no_std`, no unsafe, only
/// the third-party crates in [`PURE_DEPENDENCIES`]).
struct Layer {
    name: &'static str,
    folder: &'static str,
    may_import: &'static [&'static str],
    pure_crate: bool,
}

const fn layer(
    name: &'static str,
    folder: &'static str,
    pure_crate: bool,
    may_import: &'static [&'static str],
) -> Layer {
    Layer {
        name,
        folder,
        may_import,
        pure_crate,
    }
}

const LAYERS: &[Layer] = &[
    layer("trilith-block", "block", true, &[]),
    layer("trilith-wire", "wire", true, &["trilith-block"]),
    layer(
        "trilith-engine",
        "engine",
        true,
        &["trilith-block", "trilith-wire"],
    ),
    layer(
        "trilith-replica",
        "replica",
        true,
        &["trilith-block", "trilith-wire"],
    ),
    layer(
        "trilith-frontend-nbd",
        "frontend-nbd",
        true,
        &["trilith-block"],
    ),
    layer(
        "trilith-frontend-iscsi",
        "frontend-iscsi",
        true,
        &["trilith-block"],
    ),
    layer("trilith-runtime", "runtime", false, &["trilith-block"]),
    layer(
        "trilith-frontend-ublk",
        "frontend-ublk",
        false,
        &["trilith-block", "trilith-runtime"],
    ),
    layer(
        "trilith",
        "trilith",
        false,
        &[
            "trilith-block",
            "trilith-wire",
            "trilith-engine",
            "trilith-replica",
            "trilith-frontend-nbd",
            "trilith-frontend-iscsi",
            "trilith-frontend-ublk",
            "trilith-runtime",
        ],
    ),
    layer(
        "sim",
        "sim",
        false,
        &[
            "trilith-block",
            "trilith-wire",
            "trilith-engine",
            "trilith-replica",
            "trilith-frontend-nbd",
            "trilith-frontend-iscsi",
        ],
    ),
    layer(
        "trilith-model",
        "model",
        false,
        &["trilith-block", "trilith-wire", "trilith-engine"],
    ),
    layer(
        "perf",
        "perf",
        false,
        &[
            "trilith-block",
            "trilith-frontend-nbd",
            "trilith-runtime",
            "trilith-e2e",
        ],
    ),
    layer("trilith-ci", "ci", false, &[]),
    layer("trilith-e2e", "e2e", false, &[]),
];

/// Third-party crates of pure crates; each is named in docs/adr/0003.
const PURE_DEPENDENCIES: &[&str] = &[
    "thiserror",
    "hmac",
    "md-5",
    "sha1",
    "sha2",
    "sha3",
    "twox-hash",
];

/// Crates that may contain unsafe code.
const UNSAFE_ALLOWED: &[&str] = &["trilith-runtime", "trilith-frontend-ublk"];

/// Compares the table with `cargo metadata` and with the heads of the crates.
pub(crate) fn check() -> Result<()> {
    let metadata = run::metadata(false)?;
    let packages = metadata["packages"]
        .as_array()
        .context("metadata has no packages")?;
    for package in packages {
        let name = package["name"].as_str().context("package without a name")?;
        let Some(layer) = LAYERS.iter().find(|l| l.name == name) else {
            bail!("crate {name} is not in the table of layers (ci/src/layers.rs)");
        };
        let dependencies = package["dependencies"]
            .as_array()
            .context("no dependencies")?;
        for dependency in dependencies {
            let on = dependency["name"]
                .as_str()
                .context("dependency without a name")?;
            let is_dev = dependency["kind"].as_str() == Some("dev");
            if on.starts_with("trilith") && !layer.may_import.contains(&on) {
                bail!(
                    "{name} imports {on}; it may import only {:?}",
                    layer.may_import
                );
            }
            let known = on.starts_with("trilith") || PURE_DEPENDENCIES.contains(&on);
            if layer.pure_crate && !is_dev && !known {
                bail!("{name} is pure and imports {on}; allowed are {PURE_DEPENDENCIES:?}");
            }
        }
        check_head(layer)?;
    }
    Ok(())
}

fn check_head(layer: &Layer) -> Result<()> {
    let dir = run::root().join(layer.folder).join("src");
    let lib = dir.join("lib.rs");
    let path = if lib.exists() {
        lib
    } else {
        dir.join("main.rs")
    };
    let head = std::fs::read_to_string(&path).with_context(|| format!("read {path:?}"))?;
    if layer.pure_crate {
        for line in ["#![no_std]", "#![forbid(unsafe_code)]"] {
            if !head.contains(line) {
                bail!("{} is pure: {path:?} must say {line}", layer.name);
            }
        }
    }
    if head.contains("allow(unsafe_code") && !UNSAFE_ALLOWED.contains(&layer.name) {
        bail!("{} may not contain unsafe code", layer.name);
    }
    Ok(())
}
