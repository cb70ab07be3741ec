//! The frontends of an engine. Each is a machine that serves clients by a protocol of its own; the
//! wiring treats them alike. A further one is a further case of [`Server`].

use super::ublk::UblkFrontend;
use crate::host::Outbox;
use trilith_block::{
    Completion, ConnId, FrontendAction, FrontendEvent, Machine, Monotonic, Stream, Tag, Want,
};
use trilith_engine::order::Holders;
use trilith_frontend_iscsi::IscsiTarget;
use trilith_frontend_nbd::NbdServer;
use trilith_runtime::{Arena, ListenerId};

/// Bits of a tag that its frontend may use; above them is the frontend's number.
const TAG_BITS: u32 = 56;

/// A frontend's machine.
#[derive(Debug)]
pub(crate) enum Server {
    /// NBD.
    Nbd(Box<NbdServer>),
    /// iSCSI.
    Iscsi(Box<IscsiTarget>),
    /// A ublk device.
    Ublk(Box<UblkFrontend>),
}

impl Server {
    /// Its number in the tags of requests. Never 0.
    fn number(&self) -> u64 {
        match self {
            Server::Nbd(_) => 1,
            Server::Iscsi(_) => 2,
            Server::Ublk(_) => 3,
        }
    }

    /// True when it may ask for exclusive ranges.
    fn may_hold(&self) -> bool {
        match self {
            Server::Nbd(_) | Server::Ublk(_) => false,
            Server::Iscsi(_) => true,
        }
    }

    /// True when the request is of a command that reads, decides and writes, under way.
    fn is_exclusive(&self, tag: Tag) -> bool {
        match self {
            Server::Nbd(_) | Server::Ublk(_) => false,
            Server::Iscsi(target) => target.is_exclusive(tag),
        }
    }
}

/// A frontend.
#[derive(Debug)]
pub(crate) struct Frontend {
    /// Its machine.
    pub(crate) server: Server,
    /// Where its clients come in.
    pub(crate) listeners: Vec<ListenerId>,
    /// Where clients find the volume, in their own words.
    pub(crate) uris: Vec<String>,
    /// What its machine has asked for.
    pub(crate) out: Outbox<FrontendAction>,
}

impl Frontend {
    /// A frontend.
    pub(crate) fn new(server: Server, listeners: Vec<ListenerId>, uris: Vec<String>) -> Frontend {
        Frontend {
            server,
            listeners,
            uris,
            out: Outbox::default(),
        }
    }

    /// An event for its machine.
    pub(crate) fn step(&mut self, now: Monotonic, event: FrontendEvent<'_>, data: &mut Arena) {
        let out = &mut self.out.fill;
        match &mut self.server {
            Server::Nbd(server) => server.step(now, event, data, out),
            Server::Iscsi(target) => target.step(now, event, data, out),
            Server::Ublk(ublk) => ublk.step(now, event, data),
        }
    }

    /// The end of a batch of events.
    pub(crate) fn settle(&mut self, now: Monotonic, data: &mut Arena) {
        let out = &mut self.out.fill;
        match &mut self.server {
            Server::Nbd(server) => server.settle(now, data, out),
            Server::Iscsi(target) => target.settle(now, data, out),
            Server::Ublk(ublk) => ublk.settle(now, data),
        }
    }

    /// When it wants to settle at the latest.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        match &self.server {
            Server::Nbd(server) => server.deadline(),
            Server::Iscsi(target) => target.deadline(),
            Server::Ublk(ublk) => ublk.deadline(),
        }
    }

    /// What a connection of it wants.
    pub(crate) fn want(&mut self, conn: ConnId, data: &mut Arena) -> Want {
        match &mut self.server {
            Server::Nbd(server) => server.want(conn, data),
            Server::Iscsi(target) => target.want(conn, data),
            // It has no connections.
            Server::Ublk(_) => Want::Pause,
        }
    }
}

/// All frontends of an engine, each kind at most once. They are told apart by their place here.
#[derive(Debug, Default)]
pub(crate) struct Frontends(Vec<Frontend>);

impl Frontends {
    /// Adds one.
    pub(crate) fn add(&mut self, frontend: Frontend) {
        self.0.push(frontend);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The one at a place.
    pub(crate) fn at(&mut self, at: usize) -> &mut Frontend {
        &mut self.0[at]
    }

    /// When one of them wants to settle at the latest.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        self.0.iter().filter_map(Frontend::deadline).min()
    }

    /// The one that has the listener.
    pub(crate) fn of_listener(&self, listener: ListenerId) -> Option<usize> {
        self.0.iter().position(|f| f.listeners.contains(&listener))
    }

    /// The NBD server and where it serves.
    pub(crate) fn nbd(&self) -> Option<(&NbdServer, &[String])> {
        self.0.iter().find_map(|frontend| match &frontend.server {
            Server::Nbd(server) => Some((&**server, frontend.uris.as_slice())),
            Server::Iscsi(_) | Server::Ublk(_) => None,
        })
    }

    /// The iSCSI target and where it serves.
    pub(crate) fn iscsi(&self) -> Option<(&IscsiTarget, &[String])> {
        self.0.iter().find_map(|frontend| match &frontend.server {
            Server::Iscsi(target) => Some((&**target, frontend.uris.as_slice())),
            Server::Nbd(_) | Server::Ublk(_) => None,
        })
    }

    /// The iSCSI target and where it puts its actions.
    pub(crate) fn iscsi_mut(&mut self) -> Option<(&mut IscsiTarget, &mut Outbox<FrontendAction>)> {
        self.0
            .iter_mut()
            .find_map(|frontend| match &mut frontend.server {
                Server::Iscsi(target) => Some((&mut **target, &mut frontend.out)),
                Server::Nbd(_) | Server::Ublk(_) => None,
            })
    }

    /// The ublk device.
    pub(crate) fn ublk(&self) -> Option<&UblkFrontend> {
        self.0.iter().find_map(|frontend| match &frontend.server {
            Server::Ublk(ublk) => Some(&**ublk),
            Server::Nbd(_) | Server::Iscsi(_) => None,
        })
    }

    /// The ublk device and its place.
    pub(crate) fn ublk_mut(&mut self) -> Option<(usize, &mut UblkFrontend)> {
        let mut all = self.0.iter_mut().enumerate();
        all.find_map(|(at, frontend)| match &mut frontend.server {
            Server::Ublk(ublk) => Some((at, &mut **ublk)),
            Server::Nbd(_) | Server::Iscsi(_) => None,
        })
    }

    fn others(&self, at: usize) -> impl Iterator<Item = &Server> {
        let all = self.0.iter().enumerate();
        all.filter(move |(other, _)| *other != at)
            .map(|(_, frontend)| &frontend.server)
    }

    /// A frontend's tag as the engine gets it.
    pub(crate) fn tag(&self, at: usize, tag: Tag) -> Tag {
        debug_assert!(tag.0 >> TAG_BITS == 0, "tag {tag:?} is too long");
        Tag(tag.0 | self.0[at].server.number() << TAG_BITS)
    }

    /// A completion as the frontend gets it.
    pub(crate) fn own(completion: Completion) -> Completion {
        Completion {
            tag: Tag(completion.tag.0 & ((1 << TAG_BITS) - 1)),
            ..completion
        }
    }
}

impl Holders for Frontends {
    fn may_hold_against(&self, at: usize) -> bool {
        self.others(at).any(Server::may_hold)
    }

    fn is_exclusive(&self, tag: Tag) -> bool {
        let at = self.of_tag(tag);
        at.is_some_and(|at| self.0[at].server.is_exclusive(tag))
    }

    fn of_tag(&self, tag: Tag) -> Option<usize> {
        let number = tag.0 >> TAG_BITS;
        self.0.iter().position(|f| f.server.number() == number)
    }
}
