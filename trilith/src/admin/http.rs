//! The bounded subset of HTTP/1.1 that admin endpoints speak: one request a connection, a head of
//! at most [`HTTP_HEAD_BYTES_MAX`], a body of at most [`HTTP_BODY_BYTES_MAX`] with a
//! Content-Length, an answer, close. RFC 9112.

use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEAD_BYTES_MAX};

/// What a client may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    /// Read something.
    Get,
    /// Have something done.
    Post,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// What for.
    pub(crate) method: Method,
    /// Path with its query.
    pub(crate) target: String,
    /// Bytes of its body.
    pub(crate) body_bytes: usize,
}

/// Status of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// 200
    Ok,
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 405
    BadMethod,
    /// 409
    Conflict,
    /// 413
    BodyTooLong,
    /// 431
    HeadTooLong,
    /// 501
    NotImplemented,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::BadMethod => "405 Method Not Allowed",
            Status::Conflict => "409 Conflict",
            Status::BodyTooLong => "413 Content Too Large",
            Status::HeadTooLong => "431 Request Header Fields Too Large",
            Status::NotImplemented => "501 Not Implemented",
        }
    }
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    /// How it went.
    pub(crate) status: Status,
    /// Media type of the body.
    pub(crate) content_type: &'static str,
    /// What it says.
    pub(crate) body: String,
}

impl Answer {
    /// A JSON answer.
    pub(crate) fn json(body: String) -> Answer {
        Answer {
            status: Status::Ok,
            content_type: "application/json",
            body,
        }
    }

    /// Metrics.
    pub(crate) fn metrics(body: String) -> Answer {
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Answer {
            status: Status::Ok,
            content_type,
            body,
        }
    }

    /// A sentence.
    pub(crate) fn text(status: Status, text: &str) -> Answer {
        let content_type = "text/plain; charset=utf-8";
        Answer {
            status,
            content_type,
            body: format!("{text}\n"),
        }
    }

    /// Its bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
            self.status.line(),
            self.content_type,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

/// Collects the head of a request byte by byte.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    bytes: Vec<u8>,
}

impl Head {
    /// Takes the next bytes of the connection. `None`: more are needed. They must not reach beyond
    /// the head; feed single bytes when the end is not known.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Option<Result<Request, Status>> {
        if self.bytes.len() + bytes.len() > HTTP_HEAD_BYTES_MAX {
            return Some(Err(Status::HeadTooLong));
        }
        self.bytes.extend_from_slice(bytes);
        let ends = self.bytes.ends_with(b"\r\n\r\n") || self.bytes.ends_with(b"\n\n");
        ends.then(|| parse(&self.bytes))
    }
}

fn parse(head: &[u8]) -> Result<Request, Status> {
    let head = std::str::from_utf8(head).map_err(|_| Status::BadRequest)?;
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or("").split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Status::BadRequest);
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(Status::BadRequest);
    }
    let method = match method {
        "GET" => Method::Get,
        "POST" => Method::Post,
        _ => return Err(Status::NotImplemented),
    };
    let body_bytes = body_bytes(lines)?;
    Ok(Request {
        method,
        target: target.to_owned(),
        body_bytes,
    })
}

/// RFC 9112 6.3: chunked bodies are not taken; two different lengths are an attack.
fn body_bytes<'a>(lines: impl Iterator<Item = &'a str>) -> Result<usize, Status> {
    let mut found: Option<usize> = None;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(Status::BadRequest)?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Status::NotImplemented);
        }
        if !name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        let value = value.trim();
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Status::BadRequest);
        }
        let length = value.parse().map_err(|_| Status::BodyTooLong)?;
        if found.is_some_and(|other| other != length) {
            return Err(Status::BadRequest);
        }
        found = Some(length);
    }
    match found.unwrap_or(0) {
        length if length > HTTP_BODY_BYTES_MAX => Err(Status::BodyTooLong),
        length => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(text: &str) -> Option<Result<Request, Status>> {
        let mut head = Head::default();
        text.bytes().find_map(|byte| head.feed(&[byte]))
    }

    #[test]
    fn requests_are_read_byte_by_byte() {
        let get = Request {
            method: Method::Get,
            target: "/status".into(),
            body_bytes: 0,
        };
        assert_eq!(
            feed("GET /status HTTP/1.1\r\nHost: x\r\n\r\n"),
            Some(Ok(get.clone()))
        );
        assert_eq!(feed("GET /status HTTP/1.0\n\n"), Some(Ok(get)));
        let post = Request {
            method: Method::Post,
            target: "/a?b=1".into(),
            body_bytes: 12,
        };
        assert_eq!(
            feed("POST /a?b=1 HTTP/1.1\r\ncontent-LENGTH:  12 \r\n\r\n"),
            Some(Ok(post))
        );
        assert_eq!(
            feed("GET /status HTTP/1.1\r\nHost: x\r\n"),
            None,
            "not complete"
        );
    }

    #[test]
    fn malformed_requests_get_their_status() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(5000));
        for (text, status) in [
            ("\r\n\r\n", Status::BadRequest),
            ("GET /\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/2\r\n\r\n", Status::BadRequest),
            ("GET  / HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("GET x HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("DELETE / HTTP/1.1\r\n\r\n", Status::NotImplemented),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Status::NotImplemented,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 1025\r\n\r\n",
                Status::BodyTooLong,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
                Status::BadRequest,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                Status::BodyTooLong,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                Status::BadRequest,
            ),
            ("POST / HTTP/1.1\r\nnonsense\r\n\r\n", Status::BadRequest),
            (&long, Status::HeadTooLong),
        ] {
            assert_eq!(feed(text), Some(Err(status)), "{text:.60}");
        }
        let mut head = Head::default();
        assert_eq!(
            head.feed(b"GET /\xff HTTP/1.1\r\n\r\n"),
            Some(Err(Status::BadRequest))
        );
    }

    #[test]
    fn answers_say_their_length_and_close() {
        let bytes = Answer::json("{}".into()).to_bytes();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(text.contains("Content-Length: 2\r\n") && text.contains("Connection: close\r\n"));
        assert!(text.ends_with("\r\n\r\n{}"));
    }
}
