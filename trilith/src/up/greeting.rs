//! What `up` prints once the volume can be used: ready to paste.

use crate::host::engine::uri;
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
    /// Where it is served.
    pub(crate) nbd: &'a Address,
    /// Its directory, as the user typed it.
    pub(crate) dir: &'a Path,
}

impl Greeting<'_> {
    /// The text.
    pub(crate) fn text(&self) -> String {
        let uri = uri(self.nbd, self.name);
        let quoted = format!("'{uri}'");
        let size = bytes_text(self.size_bytes);
        let replicas = match self.replicas {
            1 => "1 replica".to_owned(),
            n => format!("{n} replicas"),
        };
        let mut text = format!(
            "\nVolume {} ({size}, {replicas}) is served at\n\n    {uri}\n\n",
            self.name
        );
        let mut line = |what: &str, command: &str| {
            // Writing to a string cannot fail.
            writeln!(text, "  {what:<10} {command}").unwrap_or_default();
        };
        line("look", &format!("nbdinfo {quoted}"));
        line("copy in", &format!("nbdcopy disk.img {quoted}"));
        line(
            "copy out",
            &format!("qemu-img convert -O raw {quoted} disk.img"),
        );
        line(
            "measure",
            &format!(
                "fio --name=t --ioengine=nbd --uri={quoted} --rw=randwrite --bs=4k --iodepth=16 \
                 --size={} --time_based --runtime=10",
                self.size_bytes.min(1 << 30)
            ),
        );
        line("attach", &self.attach());
        line(
            "state",
            &format!("trilith status --dir {}", self.dir.display()),
        );
        line("stop", "Ctrl-C");
        text.push('\n');
        text
    }

    fn attach(&self) -> String {
        match self.nbd {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_the_volume_as_it_is_served() {
        let nbd = "127.0.0.1:10809".parse().unwrap();
        let greeting = Greeting {
            name: "vol",
            size_bytes: 10 << 30,
            replicas: 3,
            nbd: &nbd,
            dir: Path::new("./trilith-data"),
        };
        let text = greeting.text();
        for part in [
            "Volume vol (10 GiB, 3 replicas)",
            "    nbd://127.0.0.1:10809/vol\n",
            "nbdinfo 'nbd://127.0.0.1:10809/vol'",
            "nbd-client 127.0.0.1 10809 /dev/nbd0 -N vol",
            "trilith status --dir ./trilith-data",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let unix = "unix:/tmp/a".parse().unwrap();
        let text = Greeting {
            nbd: &unix,
            replicas: 1,
            ..greeting
        }
        .text();
        assert!(text.contains("'nbd+unix:///vol?socket=/tmp/a'") && text.contains("1 replica)"));
        assert!(text.contains("nbd-client -unix /tmp/a"));
    }
}
