//! A blocking client of admin endpoints, for the commands of people.

use crate::limits::{HTTP_ANSWER_BYTES_MAX, HTTP_ANSWER_TIME_MAX};
use anyhow::{Context, bail};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use trilith_runtime::Address;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn dial(address: &Address) -> std::io::Result<Box<dyn Stream>> {
    let limit = Some(HTTP_ANSWER_TIME_MAX);
    Ok(match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(limit)?;
            stream.set_write_timeout(limit)?;
            Box::new(stream)
        }
        Address::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, HTTP_ANSWER_TIME_MAX)?;
            stream.set_read_timeout(limit)?;
            stream.set_write_timeout(limit)?;
            Box::new(stream)
        }
    })
}

/// The one that was asked understood and said no: it has done nothing.
#[derive(Debug)]
pub(crate) struct Refused(String);

impl core::fmt::Display for Refused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Refused {}

/// Asks `address` and gives the body of a 200 answer.
///
/// # Errors
/// When nobody answers in time, or the answer is another one: then [`Refused`] with the text of its
/// body.
pub(crate) fn ask(address: &Address, method: &str, target: &str) -> anyhow::Result<String> {
    let what = || format!("{method} {target} at {address}");
    let mut stream = dial(address).with_context(what)?;
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: trilith\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(what)?;
    let mut bytes = Vec::new();
    stream
        .take(HTTP_ANSWER_BYTES_MAX)
        .read_to_end(&mut bytes)
        .with_context(what)?;
    let text = String::from_utf8(bytes).with_context(what)?;
    parse(&text).with_context(what)
}

fn parse(text: &str) -> anyhow::Result<String> {
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("expected an HTTP answer")?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or("");
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .context("expected a Content-Length")?;
    if body.len() != length {
        bail!("expected {length} bytes, found {}", body.len());
    }
    if status != "200" {
        return Err(Refused(body.trim_end().to_owned()).into());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::http::{Answer, Status};

    fn parsed(answer: &Answer) -> anyhow::Result<String> {
        parse(&String::from_utf8(answer.to_bytes()).unwrap())
    }

    #[test]
    fn answers_of_the_server_are_understood() {
        assert_eq!(parsed(&Answer::json("[1]".into())).unwrap(), "[1]");
        let refused = parsed(&Answer::text(Status::Conflict, "nothing to accept")).unwrap_err();
        assert_eq!(refused.to_string(), "nothing to accept");
        let in_context = refused.context("POST /x");
        assert!(in_context.downcast_ref::<Refused>().is_some());
        assert!(
            parse("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc").is_err(),
            "cut short"
        );
        assert!(parse("SSH-2.0\r\n").is_err());
    }
}
