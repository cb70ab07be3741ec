//! The iSCSI target of an engine: its name, its configuration from flags and files, its URIs.

use crate::cli::IscsiArgs;
use anyhow::{Context, bail, ensure};
use std::path::Path;
use trilith_block::{Uuid, VolumeInfo};
use trilith_frontend_iscsi::{ChapConfig, ChapUser, IscsiConfig};
use trilith_runtime::Address;

/// Number of the one logical unit.
const UNIT: u8 = 0;
/// Portal group of all portals: one engine serves a volume.
const PORTAL_GROUP: u16 = 1;
/// Digits of the volume's identity in a target's name.
const NAME_DIGITS: usize = 12;

/// The target's name: the volume's name, and enough of its identity to tell it from volumes of the
/// same name elsewhere, since iSCSI names are unique in the world (RFC 7143 4.2.7). What such a
/// name cannot hold becomes lower case or a hyphen.
pub(crate) fn target_name(name: &str, volume: Uuid) -> String {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let digits: String = volume
        .to_string()
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(NAME_DIGITS)
        .collect();
    format!("iqn.2026-01.io.trilith:{name}.{digits}")
}

/// The URI that libiscsi and qemu take.
pub(crate) fn uri(address: &Address, name: &str) -> Option<String> {
    match address {
        Address::Tcp(address) => Some(format!("iscsi://{address}/{name}/{UNIT}")),
        // No initiator dials one, but a proxy may.
        Address::Unix(_) => None,
    }
}

/// The configuration of a target that listens on `addresses`.
///
/// # Errors
/// When a flag or a file of secrets cannot be used.
pub(crate) fn config(
    args: &IscsiArgs,
    name: &str,
    addresses: &[Address],
    volume: VolumeInfo,
) -> anyhow::Result<IscsiConfig> {
    let mut portals = args.portals.clone();
    if portals.is_empty() {
        // One that listens everywhere tells none: then initiators stay with the address by which
        // they have found it (RFC 7143 Appendix C).
        portals = addresses
            .iter()
            .filter_map(|address| match address {
                Address::Tcp(address) if !address.ip().is_unspecified() => {
                    Some(address.to_string())
                }
                _ => None,
            })
            .collect();
    }
    let config = IscsiConfig {
        target_name: target_name(name, volume.volume),
        alias: name.to_owned(),
        portals,
        portal_group: PORTAL_GROUP,
        lun: UNIT,
        logical_block_bytes: args.block,
        read_only: args.read_only,
        initiators: args.initiators.clone(),
        chap: chap(args)?,
        keeps_reservations: false,
        seed: crate::host::process::entropy()?,
        volume,
    };
    config.check()?;
    Ok(config)
}

/// Who must prove what.
fn chap(args: &IscsiArgs) -> anyhow::Result<Option<ChapConfig>> {
    let Some(path) = &args.chap_file else {
        ensure!(
            args.mutual_chap_file.is_none(),
            "expected --iscsi-chap-file with --iscsi-mutual-chap-file: mutual CHAP is a two-way one"
        );
        return Ok(None);
    };
    let initiators = users(path)?;
    let target = args.mutual_chap_file.as_deref().map(|path| {
        let mut users = users(path)?;
        let user = users.pop().filter(|_| users.is_empty());
        user.with_context(|| format!("read {}: expected one line", path.display()))
    });
    Ok(Some(ChapConfig {
        initiators,
        target: target.transpose()?,
    }))
}

/// Names and secrets of a file that only its owner may read: a line each, the name up to the first
/// space, then the secret.
fn users(path: &Path) -> anyhow::Result<Vec<ChapUser>> {
    let bytes = trilith_runtime::read_secret(path)?;
    parse_users(&bytes).with_context(|| format!("read {}", path.display()))
}

fn parse_users(bytes: &[u8]) -> anyhow::Result<Vec<ChapUser>> {
    let mut users: Vec<ChapUser> = Vec::new();
    for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        // Never the line itself: it holds a secret.
        let wrong = || format!("line {}: expected NAME SECRET", number + 1);
        let space = line.iter().position(|b| *b == b' ').with_context(wrong)?;
        let name = std::str::from_utf8(&line[..space]).with_context(wrong)?;
        if users.iter().any(|user| user.name == name) {
            bail!("line {}: expected each name once", number + 1);
        }
        users.push(ChapUser {
            name: name.to_owned(),
            secret: line[space + 1..].to_vec(),
        });
    }
    ensure!(!users.is_empty(), "expected a line NAME SECRET");
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_block::Capabilities;
    use trilith_block::limits::TRANSFER_BYTES_MAX;

    fn volume() -> VolumeInfo {
        VolumeInfo {
            volume: Uuid::parse("6f1d3f5e-8a3b-4c55-9d2e-0123456789ab").unwrap(),
            capabilities: Capabilities {
                capacity_bytes: 1 << 30,
                block_bytes: 4096,
                transfer_bytes_max: TRANSFER_BYTES_MAX,
                optimal_bytes: TRANSFER_BYTES_MAX,
            },
        }
    }

    fn args() -> IscsiArgs {
        IscsiArgs {
            portals: Vec::new(),
            initiators: Vec::new(),
            chap_file: None,
            mutual_chap_file: None,
            block: 512,
            read_only: false,
        }
    }

    #[test]
    fn every_name_of_a_volume_makes_a_legal_target() {
        for (name, expected) in [
            ("vol", "iqn.2026-01.io.trilith:vol.6f1d3f5e8a3b"),
            ("Data_1.x", "iqn.2026-01.io.trilith:data-1.x.6f1d3f5e8a3b"),
            (&"x".repeat(crate::limits::NAME_BYTES_MAX), ""),
        ] {
            let config = config(&args(), name, &[], volume()).unwrap();
            assert!(
                expected.is_empty() || config.target_name == expected,
                "{config:?}"
            );
        }
    }

    #[test]
    fn portals_are_what_it_listens_on_unless_that_is_everywhere_or_others_are_named() {
        let at: Vec<Address> = ["10.0.0.1:3260", "0.0.0.0:3261", "unix:/tmp/s"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let told = config(&args(), "v", &at, volume()).unwrap().portals;
        assert_eq!(told, ["10.0.0.1:3260"]);
        let mut args = args();
        args.portals = vec!["storage.example:3260".into()];
        let told = config(&args, "v", &at, volume()).unwrap().portals;
        assert_eq!(told, ["storage.example:3260"]);
        assert_eq!(
            uri(&at[0], "iqn.x").unwrap(),
            "iscsi://10.0.0.1:3260/iqn.x/0"
        );
        assert_eq!(uri(&at[2], "iqn.x"), None);
    }

    #[test]
    fn secrets_come_from_files_that_others_may_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chap");
        trilith_runtime::write_secret(&path, b"# who\nalice secret of alice\n").unwrap();
        let mut args = args();
        args.chap_file = Some(path.clone());
        let chap = config(&args, "v", &[], volume()).unwrap().chap.unwrap();
        assert_eq!(chap.initiators[0].name, "alice");
        assert_eq!(chap.initiators[0].secret, b"secret of alice");
        trilith_runtime::replace_file(&path, b"alice secret of alice\n", 0o644).unwrap();
        assert!(config(&args, "v", &[], volume()).is_err(), "mode 0644");
        args.chap_file = None;
        args.mutual_chap_file = Some(path);
        assert!(config(&args, "v", &[], volume()).is_err(), "mutual alone");
    }

    #[test]
    fn errors_about_secrets_do_not_tell_them() {
        for text in [
            "hushhushhush",
            "a hushhushhush\na hushhushhush\n",
            "",
            "#hush\n",
        ] {
            let error = format!("{:#}", parse_users(text.as_bytes()).unwrap_err());
            assert!(
                error.contains("expected") && !error.contains("hush"),
                "{error}"
            );
        }
    }

    #[test]
    fn initiators_and_block_sizes_are_checked() {
        let mut wrong = args();
        wrong.initiators = vec!["alice".into()];
        assert!(config(&wrong, "v", &[], volume()).is_err());
        let mut right = args();
        right.initiators = vec!["iqn.2026-01.example:alice".into()];
        assert!(config(&right, "v", &[], volume()).is_ok());
    }
}
