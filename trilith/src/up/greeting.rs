//! What `up` prints once the volume can be used: ready to paste.

use crate::host::engine::{iscsi, uri};
use crate::text::bytes_text;
use std::fmt::Write;
use std::path::Path;
use trilith_runtime::Address;

/// What there is to say.
#[derive(Clone, Debug)]
pub(crate) struct Greeting<'a> {
    /// Name of the volume.
    pub(crate) name: &'a str,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Number of its replicas.
    pub(crate) replicas: usize,
    /// It has a witness besides.
    pub(crate) witness: bool,
    /// Where NBD is served.
    pub(crate) nbd: Option<&'a Address>,
    /// Where iSCSI is served.
    pub(crate) iscsi: Option<&'a Address>,
    /// It becomes a block device of this host as well.
    pub(crate) ublk: bool,
    /// iSCSI is off because its default address was taken.
    pub(crate) gave_way: bool,
    /// Name of the iSCSI target.
    pub(crate) target: String,
    /// Its directory, as the user typed it.
    pub(crate) dir: &'a Path,
}

/// A command and what it is for.
fn line(text: &mut String, what: &str, command: &str) {
    // Writing to a string cannot fail.
    writeln!(text, "  {what:<10} {command}").unwrap_or_default();
}

impl Greeting<'_> {
    /// The text.
    pub(crate) fn text(&self) -> String {
        let size = bytes_text(self.size_bytes);
        let replicas = match self.replicas {
            1 => "1 replica".to_owned(),
            n if self.witness => format!("{n} replicas and a witness"),
            n => format!("{n} replicas"),
        };
        let mut text = format!("\nVolume {} ({size}, {replicas}) is served at\n", self.name);
        if let Some(nbd) = self.nbd {
            self.nbd_text(nbd, &mut text);
        }
        if let Some(at) = self.iscsi {
            self.iscsi_text(at, &mut text);
        }
        if self.ublk {
            text.push_str("\n    a block device of this host: its name follows once it is there\n");
        }
        text.push('\n');
        if self.gave_way {
            text.push_str(
                "  iSCSI is off: 127.0.0.1:3260 is in use, by another volume or another target.\n  \
                 To serve it too: --iscsi 127.0.0.1:3261; to be rid of this: --iscsi off\n\n",
            );
        }
        let state = format!("trilith status --dir {}", self.dir.display());
        line(&mut text, "state", &state);
        line(&mut text, "stop", "Ctrl-C");
        text.push('\n');
        text
    }

    fn nbd_text(&self, nbd: &Address, text: &mut String) {
        let uri = uri(nbd, self.name);
        let quoted = format!("'{uri}'");
        // Writing to a string cannot fail.
        write!(text, "\n    {uri}\n\n").unwrap_or_default();
        line(text, "look", &format!("nbdinfo {quoted}"));
        line(text, "copy in", &format!("nbdcopy disk.img {quoted}"));
        line(
            text,
            "copy out",
            &format!("qemu-img convert -O raw {quoted} disk.img"),
        );
        line(
            text,
            "measure",
            &format!(
                "fio --name=t --ioengine=nbd --uri={quoted} --rw=randwrite --bs=4k --iodepth=16 \
                 --size={} --time_based --runtime=10",
                self.size_bytes.min(1 << 30)
            ),
        );
        line(text, "attach", &self.attach(nbd));
    }

    fn attach(&self, nbd: &Address) -> String {
        match nbd {
            Address::Tcp(address) => format!(
                "sudo nbd-client {} {} /dev/nbd0 -N {}",
                address.ip(),
                address.port(),
                self.name
            ),
            Address::Unix(path) => {
                format!(
                    "sudo nbd-client -unix {} /dev/nbd0 -N {}",
                    path.display(),
                    self.name
                )
            }
        }
    }

    fn iscsi_text(&self, at: &Address, text: &mut String) {
        let (Some(uri), Address::Tcp(portal)) = (iscsi::uri(at, &self.target), at) else {
            // Writing to a string cannot fail.
            write!(text, "\n    {} on {at}\n", self.target).unwrap_or_default();
            return;
        };
        // Writing to a string cannot fail.
        write!(text, "\n    {uri}\n\n").unwrap_or_default();
        line(text, "look", &format!("qemu-img info '{uri}'"));
        line(
            text,
            "copy in",
            &format!("qemu-img convert -n -O raw disk.img '{uri}'"),
        );
        line(
            text,
            "attach",
            &format!(
                "sudo iscsiadm -m discovery -t st -p {portal} && sudo iscsiadm -m node -T {} -p \
                 {portal} --login",
                self.target
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_volume_as_it_is_served() {
        let nbd = "127.0.0.1:10809".parse().unwrap();
        let iscsi = "127.0.0.1:3260".parse().unwrap();
        let greeting = Greeting {
            name: "vol",
            size_bytes: 10 << 30,
            replicas: 3,
            witness: false,
            nbd: Some(&nbd),
            iscsi: Some(&iscsi),
            ublk: false,
            gave_way: false,
            target: "iqn.2026-01.io.trilith:vol.6f1d3f5e8a3b".to_owned(),
            dir: Path::new("./trilith-data"),
        };
        let text = greeting.text();
        for part in [
            "Volume vol (10 GiB, 3 replicas)",
            "    nbd://127.0.0.1:10809/vol\n",
            "nbdinfo 'nbd://127.0.0.1:10809/vol'",
            "nbd-client 127.0.0.1 10809 /dev/nbd0 -N vol",
            "    iscsi://127.0.0.1:3260/iqn.2026-01.io.trilith:vol.6f1d3f5e8a3b/0\n",
            "iscsiadm -m node -T iqn.2026-01.io.trilith:vol.6f1d3f5e8a3b -p 127.0.0.1:3260 --login",
            "trilith status --dir ./trilith-data",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let unix = "unix:/tmp/a".parse().unwrap();
        let text = Greeting {
            nbd: Some(&unix),
            ublk: true,
            iscsi: None,
            gave_way: true,
            replicas: 1,
            ..greeting.clone()
        }
        .text();
        let two = Greeting {
            replicas: 2,
            witness: true,
            ..greeting.clone()
        };
        assert!(two.text().contains("(10 GiB, 2 replicas and a witness)"));
        assert!(text.contains("a block device of this host"));
        assert!(text.contains("iSCSI is off: 127.0.0.1:3260 is in use"));
        assert!(text.contains("'nbd+unix:///vol?socket=/tmp/a'") && text.contains("1 replica)"));
        assert!(text.contains("nbd-client -unix /tmp/a"));
    }
}
