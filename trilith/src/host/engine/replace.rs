//! Replacing a replica, as an engine's process sees it: what an operator asks for goes to the
//! supervisor, which remembers it, starts the new replica and tells the engine in turn.

use super::wiring::EngineHost;
use crate::admin::api::ChangeReport;
use crate::admin::http::{Answer, Status};
use crate::control::{News, unhex};
use trilith_block::{MemberId, MemberSet, Uuid};
use trilith_engine::status::{Link, MemberStatus, Role};
use trilith_engine::{ChangeError, ChangeStep, Operator};
use trilith_runtime::Io;

/// What such a request begins with; `OLD/NEW/IDENTITY/DIRECTORY` follow, the last as hexadecimal
/// digits.
pub(crate) const TARGET: &str = "/volume/replace-replica/";

/// The words of a request.
fn parse(target: &str) -> Option<(MemberId, MemberId, Uuid, &str)> {
    let mut words = target.strip_prefix(TARGET)?.split('/');
    let mut member = || MemberId::new(words.next()?.parse().ok()?);
    let (old, new) = (member()?, member()?);
    let id = Uuid::parse(words.next()?)?;
    let dir = words.next()?;
    words.next().is_none().then_some((old, new, id, dir))
}

impl EngineHost {
    /// `POST /volume/replace-replica/...`
    pub(super) fn ask_to_replace(&mut self, io: &Io, target: &str) -> Answer {
        let parsed = parse(target).and_then(|(old, new, id, dir)| {
            let dir = unhex(dir)?;
            Some((old, new, id, dir))
        });
        let Some((old, new, id, dir)) = parsed else {
            return Answer::text(Status::BadRequest, "expected OLD/NEW/IDENTITY/DIRECTORY");
        };
        if let Err(why) = self.check_replacement(io, old, new) {
            return Answer::text(Status::Conflict, &why);
        }
        if !self.parts.supervisor.is_there() {
            let why = "no `trilith up` runs this engine: nobody would start the new replica";
            return Answer::text(Status::Conflict, why);
        }
        let (old, new) = (old.index(), new.index());
        self.parts
            .supervisor
            .tell(&News::Replace { old, new, id, dir });
        Answer::text(Status::Ok, "the replacement begins")
    }

    fn check_replacement(&self, io: &Io, old: MemberId, new: MemberId) -> Result<(), String> {
        let engine = &self.parts.engine;
        engine.may_replace(old, new).map_err(|e| e.to_string())?;
        if self.replacement.is_some() {
            return Err(ChangeError::Running.to_string());
        }
        // Whoever types the wrong number must not lose the copy that is left.
        let status = engine.status(io.now());
        let is_sound =
            |m: &MemberStatus| m.role == Role::InSync && m.link == Link::Up && m.promised;
        let sound = status.members.iter().filter(|m| is_sound(m));
        let sound = sound.fold(MemberSet::EMPTY, |set, m| set.with(m.member));
        match status.membership.voters.minus(sound).iter().next() {
            Some(weak) if sound.contains(old) => Err(format!(
                "replica {old} is in sync and needed, as replica {weak} is not: expected \
                 --member {weak}, or all others in sync"
            )),
            _ => Ok(()),
        }
    }

    /// `POST /volume/keep-replica`
    pub(super) fn keep_replica(&mut self, io: &mut Io) -> Answer {
        let step = self.parts.engine.status(io.now()).change.map(|c| c.0);
        match step {
            Some(ChangeStep::Learning) => {}
            Some(ChangeStep::Joint | ChangeStep::Retiring) => {
                let why = "the new replica has its vote already: it is too late";
                return Answer::text(Status::Conflict, why);
            }
            None if self.replacement.is_none() => {
                return Answer::text(Status::Conflict, "no replica is being replaced");
            }
            None => {}
        }
        if !self.parts.engine.mode().is_active() {
            let why = "the volume is not served: a majority of in-sync replicas is needed";
            return Answer::text(Status::Conflict, why);
        }
        self.replacement = None;
        self.operator(io, Operator::KeepOld);
        self.parts.supervisor.tell(&News::KeepOld);
        Answer::text(Status::Ok, "the replacement is given up")
    }

    /// The supervisor wants a replacement; it runs, or has been done already.
    pub(super) fn want_replacement(&mut self, old: usize, new: usize, id: Uuid, address: &str) {
        let members = MemberId::new(old).zip(MemberId::new(new));
        let (Some((old, new)), Ok(address)) = (members, address.parse()) else {
            tracing::error!(old, new, address, "expected two members and an address");
            return;
        };
        self.parts.members.set(new, address);
        self.parts.engine.expect_identity(new, id);
        self.replacement = Some((old, new));
    }

    /// Begins what is wanted as soon as it can, and tells the supervisor who the members are.
    pub(super) fn tend_replacement(&mut self, io: &mut Io) {
        let engine = &self.parts.engine;
        let config = engine.membership();
        if let Some((old, new)) = self.replacement {
            if config.is_simple() && config.voters.contains(new) && !config.voters.contains(old) {
                self.replacement = None;
            } else if engine.may_replace(old, new).is_ok() {
                tracing::info!(%old, %new, "a replica is replaced");
                self.operator(io, Operator::Replace { old, new });
            }
        }
        self.drop_what_nobody_wants(io);
        let engine = &self.parts.engine;
        let config = engine.membership();
        let told = (engine.dealt_with().0, config.is_simple());
        // Before its first term an engine knows only what it was started with.
        if engine.mode().is_active() && self.told_members != Some(told) {
            self.told_members = Some(told);
            let (bits, settled) = told;
            // Beside a witness an entry needs all of the in-sync set: nobody can be done without.
            let majority = settled && !config.has_witness();
            let is_quiet = majority && engine.dealt_with() == config.voters;
            self.wait_for(is_quiet.then_some(config.voters));
            self.parts.supervisor.tell(&News::Members { bits, settled });
        }
    }

    /// A replacement that was given up, but whose end the engine before could not decide any more:
    /// the supervisor has forgotten the new replica, so nobody would ever start it.
    fn drop_what_nobody_wants(&mut self, io: &mut Io) {
        let engine = &self.parts.engine;
        let config = engine.membership();
        let learns = !config.is_simple() && !config.joint && engine.mode().is_active();
        let new = config.joining().iter().next();
        let lost = new.is_some_and(|new| self.parts.members.get(new).is_none());
        if learns && lost && self.parts.supervisor.is_there() {
            self.operator(io, Operator::KeepOld);
        }
    }

    /// How far a replacement is, for the status.
    pub(super) fn change_report(&self, io: &mut Io) -> Option<ChangeReport> {
        let (step, leaving, joining) = self.parts.engine.status(io.now()).change?;
        let first = |set: trilith_block::MemberSet| set.iter().next().map(MemberId::index);
        let step = match step {
            ChangeStep::Learning => "learning",
            ChangeStep::Joint => "joint",
            ChangeStep::Retiring => "retiring",
        };
        Some(ChangeReport {
            step: step.to_owned(),
            old: first(leaving),
            new: first(joining),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_request_names_members_identity_and_directory() {
        let dir = crate::control::hex(Path::new("/a b"));
        let id = "0123456789abcdef0123456789abcdef";
        let target = format!("{TARGET}2/3/{id}/{dir}");
        let (old, new, found, text) = parse(&target).unwrap();
        assert_eq!((old.index(), new.index()), (2, 3));
        assert_eq!((Some(found), text), (Uuid::parse(id), dir.as_str()));
        assert_eq!(unhex(text).as_deref(), Some(Path::new("/a b")));
        for wrong in ["2/3", "2/9/x/y", &format!("2/3/{id}/{dir}/more"), ""] {
            assert!(parse(&format!("{TARGET}{wrong}")).is_none(), "{wrong}");
        }
    }
}
