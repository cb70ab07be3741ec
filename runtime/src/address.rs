//! Where to listen and whom to dial.

use core::fmt;
use core::str::FromStr;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A stream socket's address. In text: `unix:/path`, or `host:port` with a numeric host, with or
/// without `tcp:` in front.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// TCP over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A Unix socket of the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "tcp:{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(format!("address {text:?}: expected a path after unix:"));
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let rest = text.strip_prefix("tcp:").unwrap_or(text);
        rest.parse().map(Address::Tcp).map_err(|_| {
            format!("address {text:?}: expected unix:/path or a numeric address with a port")
        })
    }
}

impl Address {
    /// The form the system calls want.
    pub(crate) fn to_socket(&self) -> std::io::Result<socket2::SockAddr> {
        match self {
            Address::Tcp(address) => Ok(socket2::SockAddr::from(*address)),
            Address::Unix(path) => socket2::SockAddr::unix(path),
        }
    }

    /// The address that a system call gave; a Unix peer without a name has an empty path.
    pub(crate) fn from_socket(address: &socket2::SockAddr) -> Address {
        match address.as_socket() {
            Some(address) => Address::Tcp(address),
            None => Address::Unix(
                address
                    .as_pathname()
                    .map_or_else(PathBuf::new, std::path::Path::to_path_buf),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_in_text_come_back_the_same() {
        for text in ["tcp:127.0.0.1:10809", "tcp:[::1]:1", "unix:/run/a b"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        assert_eq!("10.0.0.1:5".parse::<Address>(), "tcp:10.0.0.1:5".parse());
        for text in ["", "unix:", "localhost", "tcp:1.2.3.4", "1.2.3.4:70000"] {
            assert!(text.parse::<Address>().is_err(), "{text:?} is no address");
        }
    }
}
