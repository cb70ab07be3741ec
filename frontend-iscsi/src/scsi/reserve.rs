//! Persistent reservations (SPC-4 5.9, 6.15, 6.16) and RESERVE 6 (SPC-2). The state is a value;
//! keeping it over a restart (APTPL) is the wiring's, by [`Reservations::to_bytes`].

use crate::bytes::{be16, be32, be64, byte, len32, put32};
use crate::limits::{NAME_BYTES_MAX, REGISTRATIONS_MAX};
use crate::scsi::access::Access;
use crate::scsi::sense::{Attention, Sense, attention};
use alloc::string::String;
use alloc::vec::Vec;

/// An initiator port: an initiator's name and the ISID of its session.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) isid: [u8; 6],
}

impl Port {
    /// Appends the TransportID (SPC-4 7.6.4.6, format 1).
    fn transport_id(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0x45, 0, 0, 0]);
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(b",i,0x");
        for byte in self.isid {
            out.extend_from_slice(alloc::format!("{byte:02x}").as_bytes());
        }
        out.push(0);
        let len = (out.len() - start - 4).max(20).next_multiple_of(4);
        out.resize(start + 4 + len, 0);
        let len = u16::try_from(len).unwrap_or(0);
        crate::bytes::put16(out, start + 2, len);
    }

    /// The port that a TransportID names.
    fn of_transport_id(id: &[u8]) -> Option<Port> {
        if byte(id, 0) != 0x45 {
            return None;
        }
        let text = id.get(4..4 + usize::from(be16(id, 2)))?;
        let text = core::str::from_utf8(text.split(|b| *b == 0).next()?).ok()?;
        let (name, isid) = text.split_once(",i,0x")?;
        let isid = u64::from_str_radix(isid, 16).ok()?;
        let [_, _, isid @ ..] = isid.to_be_bytes();
        let fits = name.len() <= NAME_BYTES_MAX && !name.is_empty();
        fits.then(|| Port {
            name: name.to_lowercase(),
            isid,
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Registration {
    port: Port,
    key: u64,
}

/// Type of a reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    WriteExclusive,
    ExclusiveAccess,
    WriteRegistrants,
    ExclusiveRegistrants,
    WriteAll,
    ExclusiveAll,
}

impl Kind {
    fn of(number: u8) -> Option<Kind> {
        match number {
            1 => Some(Kind::WriteExclusive),
            3 => Some(Kind::ExclusiveAccess),
            5 => Some(Kind::WriteRegistrants),
            6 => Some(Kind::ExclusiveRegistrants),
            7 => Some(Kind::WriteAll),
            8 => Some(Kind::ExclusiveAll),
            _ => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Kind::WriteExclusive => 1,
            Kind::ExclusiveAccess => 3,
            Kind::WriteRegistrants => 5,
            Kind::ExclusiveRegistrants => 6,
            Kind::WriteAll => 7,
            Kind::ExclusiveAll => 8,
        }
    }

    /// Every registrant holds it.
    fn is_all(self) -> bool {
        matches!(self, Kind::WriteAll | Kind::ExclusiveAll)
    }

    /// Registrants may do what the holder may.
    fn admits_registrants(self) -> bool {
        !matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
    }

    fn keeps_reads(self) -> bool {
        matches!(
            self,
            Kind::ExclusiveAccess | Kind::ExclusiveRegistrants | Kind::ExclusiveAll
        )
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    kind: Kind,
    /// Who made it; of meaning for types that one port holds.
    holder: Port,
}

/// Why a command about reservations fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    Conflict,
    Sense(Sense),
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Refusal {
        Refusal::Sense(sense)
    }
}

/// What a command about reservations means for other initiators.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Effects {
    pub(crate) attentions: Vec<(Port, Attention)>,
    /// Ports whose tasks are aborted.
    pub(crate) aborted: Vec<Port>,
}

/// How an initiator stands to the reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    registered: bool,
    holds: bool,
}

/// All reservations of the unit.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Reservations {
    registrations: Vec<Registration>,
    held: Option<Held>,
    generation: u32,
    /// Keep it all over a loss of power.
    aptpl: bool,
    /// There is something that keeps it.
    pub(crate) can_keep: bool,
    /// Holder of RESERVE 6.
    simple: Option<Port>,
    /// Counts changes: what was asked before a change must be asked again.
    pub(crate) version: u64,
}

impl Reservations {
    fn find(&self, port: &Port) -> Option<usize> {
        self.registrations.iter().position(|r| r.port == *port)
    }

    fn holds(&self, port: &Port) -> bool {
        self.held.as_ref().is_some_and(|held| {
            if held.kind.is_all() {
                self.find(port).is_some()
            } else {
                held.holder == *port
            }
        })
    }

    /// How a port stands to the reservation.
    pub(crate) fn standing(&self, port: &Port) -> Standing {
        Standing {
            registered: self.find(port).is_some(),
            holds: self.holds(port),
        }
    }

    /// True when the command conflicts. Cheap when nothing is reserved.
    pub(crate) fn conflicts(&self, port: &Port, standing: Standing, access: Access) -> bool {
        if let Some(holder) = &self.simple
            && holder != port
            && access != Access::Free
        {
            return true;
        }
        let Some(held) = &self.held else {
            return false;
        };
        let admitted = standing.holds || (standing.registered && held.kind.admits_registrants());
        match access {
            Access::Free | Access::Open | Access::Persistent => false,
            Access::Reads => !admitted && held.kind.keeps_reads(),
            Access::Changes => !admitted,
        }
    }

    /// RESERVE 6. False: conflict.
    pub(crate) fn reserve6(&mut self, port: &Port) -> bool {
        // SPC-4 5.9.3: no mix with persistent reservations.
        if !self.registrations.is_empty() {
            return false;
        }
        if self.simple.as_ref().is_some_and(|holder| holder != port) {
            return false;
        }
        self.simple = Some(port.clone());
        self.version += 1;
        true
    }

    /// RELEASE 6, and the end of a session.
    pub(crate) fn release6(&mut self, port: &Port) {
        if self.simple.as_ref() == Some(port) {
            self.simple = None;
            self.version += 1;
        }
    }

    /// A reset of the unit: RESERVE 6 ends, persistent reservations stay.
    pub(crate) fn reset(&mut self) {
        self.simple = None;
        self.version += 1;
    }

    /// PERSISTENT RESERVE OUT with its parameter list.
    pub(crate) fn out(
        &mut self,
        port: &Port,
        action: u8,
        scope_type: u8,
        list: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let (key, new_key) = (be64(list, 0), be64(list, 8));
        if action == 7 {
            self.register_and_move(port, key, list, effects)?;
            self.version += 1;
            return Ok(());
        }
        // SPEC_I_PT is not supported; ALL_TG_PT is so by having one port.
        if byte(list, 20) & 0x08 != 0 {
            return Err(Sense::parameter(20).into());
        }
        // Only REGISTER says whether the state is to be kept; only who can keep it may promise.
        if matches!(action, 0 | 6) && byte(list, 20) & 0x01 != 0 && !self.can_keep {
            return Err(Sense::parameter(20).into());
        }
        match action {
            0 | 6 => self.register(port, key, new_key, action == 6, list, effects)?,
            1 => self.reserve(port, key, scope_type)?,
            2 => self.release(port, key, scope_type, effects)?,
            3 => self.clear(port, key, effects)?,
            4 | 5 => self.preempt(port, key, new_key, scope_type, action == 5, effects)?,
            _ => return Err(Sense::cdb(1).into()),
        }
        self.version += 1;
        Ok(())
    }

    /// The registration of a port that shows its key.
    fn proven(&self, port: &Port, key: u64) -> Result<usize, Refusal> {
        self.find(port)
            .filter(|at| self.registrations[*at].key == key)
            .ok_or(Refusal::Conflict)
    }

    fn register(
        &mut self,
        port: &Port,
        key: u64,
        new_key: u64,
        ignore: bool,
        list: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        match self.find(port) {
            Some(at) => {
                if !ignore && self.registrations[at].key != key {
                    return Err(Refusal::Conflict);
                }
                if new_key == 0 {
                    self.unregister(at, effects);
                } else {
                    self.registrations[at].key = new_key;
                }
            }
            None => {
                if !ignore && key != 0 {
                    return Err(Refusal::Conflict);
                }
                if new_key != 0 {
                    if self.registrations.len() >= REGISTRATIONS_MAX {
                        return Err(Sense::REGISTRATION_RESOURCES.into());
                    }
                    self.registrations.push(Registration {
                        port: port.clone(),
                        key: new_key,
                    });
                }
            }
        }
        self.aptpl = byte(list, 20) & 0x01 != 0;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn unregister(&mut self, at: usize, effects: &mut Effects) {
        let gone = self.registrations.remove(at);
        let Some(held) = &self.held else {
            return;
        };
        let ends = if held.kind.is_all() {
            self.registrations.is_empty()
        } else {
            held.holder == gone.port
        };
        if ends {
            let tells = held.kind.admits_registrants();
            self.held = None;
            if tells {
                self.tell_others(&gone.port, attention::RESERVATIONS_RELEASED, effects);
            }
        }
    }

    fn tell_others(&self, port: &Port, code: Attention, effects: &mut Effects) {
        let others = self.registrations.iter().filter(|r| r.port != *port);
        effects
            .attentions
            .extend(others.map(|r| (r.port.clone(), code)));
    }

    fn reserve(&mut self, port: &Port, key: u64, scope_type: u8) -> Result<(), Refusal> {
        self.proven(port, key)?;
        let kind = kind_of(scope_type)?;
        match &self.held {
            Some(held) if self.holds(port) && held.kind == kind => {}
            Some(_) => return Err(Refusal::Conflict),
            None => {
                self.held = Some(Held {
                    kind,
                    holder: port.clone(),
                });
            }
        }
        Ok(())
    }

    fn release(
        &mut self,
        port: &Port,
        key: u64,
        scope_type: u8,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        self.proven(port, key)?;
        let Some(held) = &self.held else {
            return Ok(());
        };
        if !self.holds(port) {
            return Ok(());
        }
        if scope_type >> 4 != 0 || Kind::of(scope_type & 0x0f) != Some(held.kind) {
            return Err(Sense::INVALID_RELEASE.into());
        }
        let tells = held.kind.admits_registrants();
        self.held = None;
        if tells {
            self.tell_others(port, attention::RESERVATIONS_RELEASED, effects);
        }
        Ok(())
    }

    fn clear(&mut self, port: &Port, key: u64, effects: &mut Effects) -> Result<(), Refusal> {
        self.proven(port, key)?;
        self.tell_others(port, attention::RESERVATIONS_PREEMPTED, effects);
        self.registrations.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn preempt(
        &mut self,
        port: &Port,
        key: u64,
        victim: u64,
        scope_type: u8,
        abort: bool,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        self.proven(port, key)?;
        let held = self.held.clone();
        // SPC-4 5.9.11.4: the reservation goes over when the key is its holder's, or 0 when all
        // registrants hold it.
        let takes = held.as_ref().is_some_and(|held| {
            if held.kind.is_all() {
                victim == 0
            } else {
                let at = self.find(&held.holder);
                at.is_some_and(|at| self.registrations[at].key == victim)
            }
        });
        if victim == 0 && !takes {
            return Err(Sense::parameter(8).into());
        }
        let kind = if takes {
            Some(kind_of(scope_type)?)
        } else {
            None
        };
        let everybody = takes && victim == 0;
        let hit = |r: &Registration| everybody || r.key == victim;
        if !takes && !self.registrations.iter().any(hit) {
            return Err(Refusal::Conflict);
        }
        for gone in self
            .registrations
            .iter()
            .filter(|r| hit(r) && r.port != *port)
        {
            effects
                .attentions
                .push((gone.port.clone(), attention::REGISTRATIONS_PREEMPTED));
            if abort {
                effects.aborted.push(gone.port.clone());
            }
        }
        // Without taking the reservation one's own registration can be removed too.
        self.registrations
            .retain(|r| !hit(r) || (takes && r.port == *port));
        if let Some(kind) = kind {
            if held.is_some_and(|held| held.kind != kind && held.kind.admits_registrants()) {
                self.tell_others(port, attention::RESERVATIONS_RELEASED, effects);
            }
            self.held = Some(Held {
                kind,
                holder: port.clone(),
            });
        } else if self.registrations.is_empty() {
            self.held = None;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn register_and_move(
        &mut self,
        port: &Port,
        key: u64,
        list: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let new_key = be64(list, 8);
        if byte(list, 17) & 0x01 != 0 && !self.can_keep {
            return Err(Sense::parameter(17).into());
        }
        let at = self.proven(port, key)?;
        let Some(held) = self.held.clone() else {
            return Err(Refusal::Conflict);
        };
        if held.kind.is_all() || held.holder != *port {
            return Err(Refusal::Conflict);
        }
        if new_key == 0 {
            return Err(Sense::parameter(8).into());
        }
        if be16(list, 18) != 1 {
            return Err(Sense::parameter(18).into());
        }
        let len = be32(list, 20) as usize;
        if list.len() != 24usize.saturating_add(len) {
            return Err(Sense::PARAMETER_LENGTH.into());
        }
        let target = Port::of_transport_id(&list[24..]).filter(|target| target != port);
        let target = target.ok_or(Sense::parameter(24))?;
        match self.find(&target) {
            Some(at) => self.registrations[at].key = new_key,
            None if self.registrations.len() >= REGISTRATIONS_MAX => {
                return Err(Sense::REGISTRATION_RESOURCES.into());
            }
            None => self.registrations.push(Registration {
                port: target.clone(),
                key: new_key,
            }),
        }
        self.held = Some(Held {
            kind: held.kind,
            holder: target,
        });
        if byte(list, 17) & 0x02 != 0 {
            self.unregister(at, effects);
        }
        self.aptpl = byte(list, 17) & 0x01 != 0;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// PERSISTENT RESERVE IN.
    pub(crate) fn read(&self, cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        match cdb[1] & 0x1f {
            0 => {
                for registration in &self.registrations {
                    out.extend_from_slice(&registration.key.to_be_bytes());
                }
            }
            1 => self.read_reservation(out),
            2 => {
                out.clear();
                // ATP_C, PTPL_C; TMV and PTPL_A; all types.
                let active = 0x80 | u8::from(self.aptpl);
                let able = 0x04 | u8::from(self.can_keep);
                out.extend_from_slice(&[0, 8, able, active, 0xea, 0x01, 0, 0]);
            }
            3 => self.read_full(out),
            _ => return Err(Sense::cdb(1)),
        }
        if cdb[1] & 0x1f != 2 {
            let len = len32(out.len() - 8);
            put32(out, 4, len);
        }
        out.truncate(usize::from(be16(cdb, 7)));
        Ok(())
    }

    fn read_reservation(&self, out: &mut Vec<u8>) {
        let Some(held) = &self.held else {
            return;
        };
        let key = match self.find(&held.holder) {
            Some(at) if !held.kind.is_all() => self.registrations[at].key,
            _ => 0,
        };
        out.extend_from_slice(&key.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0, 0, 0, held.kind.number(), 0, 0]);
    }

    fn read_full(&self, out: &mut Vec<u8>) {
        for registration in &self.registrations {
            let holds = self.holds(&registration.port);
            let kind = self
                .held
                .as_ref()
                .filter(|_| holds)
                .map_or(0, |held| held.kind.number());
            out.extend_from_slice(&registration.key.to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 0, u8::from(holds), kind, 0, 0, 0, 0, 0, 1]);
            let at = out.len();
            out.extend_from_slice(&[0; 4]);
            registration.port.transport_id(out);
            let len = len32(out.len() - at - 4);
            put32(out, at, len);
        }
    }

    /// What must survive a restart: everything when the initiators asked for it (APTPL), nothing
    /// (an empty text) otherwise. Big-endian: magic "TRPR", version 1, generation, number of
    /// registrations, each {key, ISID, length of name, name}; type or 0, index of the holder.
    pub(crate) fn to_bytes(&self, out: &mut Vec<u8>) {
        out.clear();
        if !self.aptpl || self.registrations.is_empty() {
            return;
        }
        out.extend_from_slice(b"TRPR\x01");
        out.extend_from_slice(&self.generation.to_be_bytes());
        let count = u16::try_from(self.registrations.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for registration in &self.registrations {
            out.extend_from_slice(&registration.key.to_be_bytes());
            out.extend_from_slice(&registration.port.isid);
            out.push(u8::try_from(registration.port.name.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(registration.port.name.as_bytes());
        }
        let (kind, holder) = match &self.held {
            Some(held) => (held.kind.number(), self.find(&held.holder).unwrap_or(0)),
            None => (0, 0),
        };
        out.push(kind);
        out.extend_from_slice(&u16::try_from(holder).unwrap_or(0).to_be_bytes());
    }

    /// The state that [`Reservations::to_bytes`] wrote. `None` when the bytes are anything else.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Option<Reservations> {
        let mut state = Reservations::default();
        if bytes.is_empty() {
            return Some(state);
        }
        let rest = bytes.strip_prefix(b"TRPR\x01")?;
        state.aptpl = true;
        state.generation = be32(rest, 0);
        let count = usize::from(be16(rest, 4));
        let mut rest = rest.get(6..)?;
        if count > REGISTRATIONS_MAX {
            return None;
        }
        for _ in 0..count {
            let (head, tail) = rest.split_at_checked(15)?;
            let (name, tail) = tail.split_at_checked(usize::from(head[14]))?;
            let mut isid = [0; 6];
            isid.copy_from_slice(&head[8..14]);
            let port = Port {
                name: String::from(core::str::from_utf8(name).ok()?),
                isid,
            };
            if port.name.len() > NAME_BYTES_MAX || state.find(&port).is_some() {
                return None;
            }
            state.registrations.push(Registration {
                port,
                key: be64(head, 0),
            });
            rest = tail;
        }
        if rest.len() != 3 {
            return None;
        }
        if rest[0] != 0 {
            let kind = Kind::of(rest[0])?;
            let holder = state
                .registrations
                .get(usize::from(be16(rest, 1)))?
                .port
                .clone();
            state.held = Some(Held { kind, holder });
        }
        Some(state)
    }
}

fn kind_of(scope_type: u8) -> Result<Kind, Refusal> {
    // Scope: the logical unit is the only one there is.
    let kind = Kind::of(scope_type & 0x0f).filter(|_| scope_type >> 4 == 0);
    kind.ok_or(Refusal::Sense(Sense::cdb(2)))
}
