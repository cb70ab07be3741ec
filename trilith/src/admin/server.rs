//! Admin connections on the loop of the data path: a small stream machine. It reads a request byte
//! by byte out of the loop's receive buffer (no system call each), so a slow client holds nothing
//! but one of [`HTTP_CONNECTIONS_MAX`] places for [`HTTP_REQUEST_TIME_MAX`].

use crate::admin::http::{Head, Request, Status};
use crate::limits::{HTTP_CONNECTIONS_MAX, HTTP_REQUEST_TIME_MAX};
use trilith_block::{ConnId, Monotonic, StreamEvent, Want};

#[derive(Debug)]
enum Stage {
    Head(Head),
    Body(Request),
    /// Answered: the rest is thrown away until the close.
    Answered,
}

#[derive(Debug)]
struct Connection {
    conn: ConnId,
    stage: Stage,
    until: Monotonic,
}

/// A request to be answered; then the connection is closed after what was sent.
pub(crate) type Ask = Result<Request, Status>;

/// The connections of one process.
#[derive(Debug, Default)]
pub(crate) struct AdminServer {
    connections: Vec<Connection>,
}

impl AdminServer {
    /// Takes a new connection; false when there are too many and it must be closed.
    pub(crate) fn accepted(&mut self, now: Monotonic, conn: ConnId) -> bool {
        if self.connections.len() >= HTTP_CONNECTIONS_MAX {
            return false;
        }
        let until = now.after(HTTP_REQUEST_TIME_MAX);
        self.connections.push(Connection {
            conn,
            stage: Stage::Head(Head::default()),
            until,
        });
        true
    }

    /// Something on one of its connections.
    pub(crate) fn stream(&mut self, conn: ConnId, event: StreamEvent<'_>) -> Option<Ask> {
        let at = self.connections.iter().position(|c| c.conn == conn)?;
        let connection = &mut self.connections[at];
        match (event, &mut connection.stage) {
            (StreamEvent::Closed, _) => {
                self.connections.swap_remove(at);
                None
            }
            (StreamEvent::Header(bytes), Stage::Head(head)) => match head.feed(bytes)? {
                Ok(request) if request.body_bytes > 0 => {
                    connection.stage = Stage::Body(request);
                    None
                }
                result => {
                    connection.stage = Stage::Answered;
                    Some(result)
                }
            },
            (StreamEvent::Payload, Stage::Body(request)) => {
                // No command takes a body; it is read so that the client sees its answer.
                let request = request.clone();
                connection.stage = Stage::Answered;
                Some(Ok(request))
            }
            (StreamEvent::Opened | StreamEvent::Header(_) | StreamEvent::Payload, _) => None,
        }
    }

    /// What a connection wants next.
    pub(crate) fn want(&self, conn: ConnId) -> Want {
        match self
            .connections
            .iter()
            .find(|c| c.conn == conn)
            .map(|c| &c.stage)
        {
            Some(Stage::Head(_)) => Want::Header(1),
            Some(Stage::Body(request)) => {
                Want::Discard(u64::try_from(request.body_bytes).unwrap_or(1))
            }
            Some(Stage::Answered) | None => Want::Pause,
        }
    }

    /// Connections whose time is over; each is named once.
    pub(crate) fn settle(&mut self, now: Monotonic, close: &mut Vec<ConnId>) {
        for connection in &mut self.connections {
            if connection.until <= now && !matches!(connection.stage, Stage::Answered) {
                connection.stage = Stage::Answered;
                close.push(connection.conn);
            }
        }
    }

    /// When `settle` has something to do at the latest.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        self.connections
            .iter()
            .filter(|c| !matches!(c.stage, Stage::Answered))
            .map(|c| c.until)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::http::Method;

    const CONN: ConnId = ConnId(1);

    fn feed(server: &mut AdminServer, text: &str) -> Option<Ask> {
        text.bytes().find_map(|byte| {
            assert_eq!(server.want(CONN), Want::Header(1));
            server.stream(CONN, StreamEvent::Header(&[byte]))
        })
    }

    #[test]
    fn request_with_and_without_body_is_asked_for_once() {
        let mut server = AdminServer::default();
        assert!(server.accepted(Monotonic(0), CONN));
        assert_eq!(server.stream(CONN, StreamEvent::Opened), None);
        let asked = feed(&mut server, "GET /status HTTP/1.1\r\n\r\n").unwrap();
        assert!(matches!(
            asked,
            Ok(Request {
                method: Method::Get,
                ..
            })
        ));
        assert_eq!(server.want(CONN), Want::Pause, "one request a connection");
        assert_eq!(server.deadline(), None);
        server.stream(CONN, StreamEvent::Closed);
        assert_eq!(server.want(CONN), Want::Pause);

        server.accepted(Monotonic(0), CONN);
        assert_eq!(
            feed(&mut server, "POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\n"),
            None
        );
        assert_eq!(server.want(CONN), Want::Discard(3));
        assert!(matches!(
            server.stream(CONN, StreamEvent::Payload),
            Some(Ok(_))
        ));
    }

    #[test]
    fn slow_and_surplus_clients_are_closed() {
        let mut server = AdminServer::default();
        for i in 0..HTTP_CONNECTIONS_MAX {
            assert!(server.accepted(Monotonic(0), ConnId(i as u64)));
        }
        assert!(!server.accepted(Monotonic(0), ConnId(99)));
        let mut close = Vec::new();
        server.settle(Monotonic(0), &mut close);
        assert!(close.is_empty());
        let end = server.deadline().unwrap();
        server.settle(end, &mut close);
        assert_eq!(close.len(), HTTP_CONNECTIONS_MAX);
        server.settle(end, &mut close);
        assert_eq!(close.len(), HTTP_CONNECTIONS_MAX, "each once");
    }
}
