//! `trilith ublk ...`: the ublk devices of this host, and what to do about one whose engine is gone.

use crate::admin::client;
use crate::cli::{UblkCommand, UblkDeleteArgs};
use crate::exit::{Exit, setup};
use crate::output;
use crate::text::bytes_text;
use crate::volume;
use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use trilith_frontend_ublk::{Control, DeviceInfo, Features, Mark, State};

/// Runs the command.
///
/// # Errors
/// When the driver is missing, or what was asked for cannot be done.
pub(crate) fn run(command: &UblkCommand) -> anyhow::Result<Exit> {
    match command {
        UblkCommand::List => list(),
        UblkCommand::Recover(args) => {
            let address = volume::engine_address(args)?;
            output::print(&client::ask(&address, "POST", "/ublk/recover")?);
            Ok(Exit::Done)
        }
        UblkCommand::Delete(args) => delete(args),
        UblkCommand::Owner(args) => {
            let mut control = Control::open().map_err(setup)?;
            let (user, group) = control.info(args.number)?.owner;
            output::print(&format!("{user} {group}\n"));
            Ok(Exit::Done)
        }
    }
}

/// A device, with its size in bytes.
type Row = (DeviceInfo, u64);

fn list() -> anyhow::Result<Exit> {
    let mut control = Control::open().map_err(setup)?;
    let features = control.features()?;
    let mut rows = Vec::new();
    for info in control.list()? {
        let capacity = control.capacity_bytes(info.number).unwrap_or(0);
        rows.push((info, capacity));
    }
    output::print(&format!("driver: {features}\n{}\n", table(&rows)));
    Ok(Exit::Done)
}

/// How payload and commands go, in words.
fn way(features: Features) -> &'static str {
    let batch = features.contains(Features::BATCH_IO);
    match (features.contains(Features::USER_COPY), batch) {
        (true, true) => "user copy, batches",
        (true, false) => "user copy",
        (false, true) => "kernel copy, batches",
        (false, false) => "kernel copy",
    }
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no devices".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "device", "state", "server", "queues", "payload", "size", "volume",
    ]);
    for (info, capacity) in rows {
        let server = match info.server {
            pid if pid > 0 => pid.to_string(),
            _ => "-".to_owned(),
        };
        let mark = Mark::read(info.own).map(|mark| format!("{mark}-..."));
        table.add_row([
            format!("/dev/ublkb{}", info.number),
            info.state.name().to_owned(),
            server,
            format!("{} of {}", info.queues, info.depth),
            way(Features(info.features)).to_owned(),
            bytes_text(*capacity),
            mark.unwrap_or_else(|| "not Trilith's".to_owned()),
        ]);
    }
    table.trim_fmt()
}

fn delete(args: &UblkDeleteArgs) -> anyhow::Result<Exit> {
    let number = args.number;
    let mut control = Control::open().map_err(setup)?;
    let info = control.info(number)?;
    may_delete(&info, args.force).with_context(|| format!("delete ublk device {number}"))?;
    control.stop(number)?;
    control.delete(number)?;
    output::print(&format!("/dev/ublkb{number} is removed\n"));
    Ok(Exit::Done)
}

/// Devices of others are left alone, and those that work.
fn may_delete(info: &DeviceInfo, force: bool) -> anyhow::Result<()> {
    if Mark::read(info.own).is_none() {
        bail!("it is not Trilith's");
    }
    if info.state == State::Live && !force {
        bail!(
            "it is served by process {}: stop that, or use --force and its users get errors",
            info.server
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_block::Uuid;

    fn device(state: State, own: u64) -> DeviceInfo {
        DeviceInfo {
            number: 3,
            queues: 1,
            depth: 128,
            state,
            request_bytes_max: 1 << 20,
            server: 77,
            features: 0,
            own,
            owner: (0, 0),
        }
    }

    /// Number in which the driver keeps the mark of a volume: "TR" and six bytes of its identity.
    const OWN: u64 = 0x5452_0707_0707_0707;

    #[test]
    fn devices_of_others_are_never_deleted_and_live_ones_only_by_force() {
        assert_eq!(Mark::read(OWN), Some(Mark::of(Uuid([7; 16]))));
        assert!(may_delete(&device(State::Quiesced, OWN), false).is_ok());
        assert!(may_delete(&device(State::Dead, OWN), false).is_ok());
        let live = may_delete(&device(State::Live, OWN), false).unwrap_err();
        assert!(live.to_string().contains("process 77"), "{live}");
        assert!(may_delete(&device(State::Live, OWN), true).is_ok());
        assert!(may_delete(&device(State::Quiesced, 0), true).is_err());
    }

    #[test]
    fn table_tells_whose_a_device_is() {
        let rows = [
            (device(State::Quiesced, OWN), 1 << 30),
            (device(State::Live, 0), 1 << 20),
        ];
        let text = table(&rows);
        for part in [
            "kernel copy",
            "quiesced",
            "1 GiB",
            "07070707-0707-...",
            "not Trilith's",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(table(&[]), "no devices");
    }
}
