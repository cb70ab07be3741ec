//! Sessions: how a login becomes one, what its end means, and what text requests say.

use crate::conn::{Phase, Recv};
use crate::limits::{PING_SPAN, SESSIONS_MAX};
use crate::login::{LoginStatus, Step};
use crate::params::Params;
use crate::scsi::reserve::Port;
use crate::scsi::sense::attention;
use crate::target::{IscsiTarget, Out};
use crate::text::{add, pairs};
use alloc::vec::Vec;
use trilith_block::Buffers;

impl IscsiTarget {
    /// A login request with its text.
    pub(crate) fn login(
        &mut self,
        slot: usize,
        text: &[u8],
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let head = self.conns[slot].head;
        let Some(mut login) = self.conns[slot].login.take() else {
            self.close(slot, data, out);
            return;
        };
        let mut answer = Vec::new();
        let step = login.request(&head, text, &self.config, &mut self.challenges, &mut answer);
        let step = match step {
            _ if !self.serving => Step::Fail(LoginStatus::UNAVAILABLE),
            Step::Finish(flags) => match self.admit(slot, &login, data, out) {
                Ok(()) => Step::Finish(flags),
                Err(status) => Step::Fail(status),
            },
            step => step,
        };
        match step {
            Step::Answer(flags) => {
                self.conns[slot].start_window(login.cmd_sn);
                let response = login.answer(flags, login.tsih, head.itt(), &answer);
                self.send(slot, response, true, &answer, data, out);
                self.conns[slot].login = Some(login);
            }
            Step::Finish(flags) => {
                let response = login.answer(flags, self.conns[slot].tsih, head.itt(), &answer);
                self.send(slot, response, true, &answer, data, out);
                // Digests and lengths hold from the next PDU on.
                let conn = &mut self.conns[slot];
                conn.params = login.params;
                conn.phase = Phase::Full;
                let end = conn.seen.after(PING_SPAN);
                self.watch_until(end);
            }
            Step::Fail(status) => {
                self.status.logins_failed += 1;
                if matches!(
                    status,
                    LoginStatus::AUTHENTICATION | LoginStatus::AUTHORIZATION
                ) {
                    self.status.logins_denied += 1;
                }
                let response = login
                    .answer(0, login.tsih, head.itt(), &[])
                    .with_byte(36, status.0)
                    .with_byte(37, status.1);
                self.send(
                    slot,
                    response,
                    status == LoginStatus::SUCCESS,
                    &[],
                    data,
                    out,
                );
                self.close(slot, data, out);
            }
        }
    }

    /// Makes the connection a session, or says why not (RFC 7143 6.3.1, 6.3.5).
    fn admit(
        &mut self,
        slot: usize,
        login: &crate::login::Login,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) -> Result<(), LoginStatus> {
        let port = Port {
            name: login.initiator.clone(),
            isid: login.isid,
        };
        let old = self.conns.iter().position(|conn| {
            conn.is_session()
                && conn.port == port
                && conn.params.discovery == login.params.discovery
        });
        let mut attentions = Vec::from([attention::POWER_ON]);
        if login.tsih != 0 {
            // One more connection of a session, or the same one again.
            let old = old.filter(|old| self.conns[*old].tsih == login.tsih);
            let old = old.ok_or(LoginStatus::NO_SESSION)?;
            if self.conns[old].cid != login.cid {
                return Err(LoginStatus::TOO_MANY_CONNECTIONS);
            }
            // Connection reinstatement: the session goes on, its tasks are gone (level 0).
            attentions = core::mem::take(&mut self.conns[old].attentions);
            let exp_cmd_sn = self.conns[old].exp_cmd_sn;
            self.conns[slot].start_window(exp_cmd_sn);
            self.conns[slot].tsih = login.tsih;
            self.conns[old].port = Port::default();
            self.close(old, data, out);
        } else {
            if let Some(old) = old {
                // Session reinstatement: the old session ends first.
                self.close(old, data, out);
            }
            let sessions = self.conns.iter().filter(|conn| conn.is_session());
            if sessions.count() >= SESSIONS_MAX {
                return Err(LoginStatus::OUT_OF_RESOURCES);
            }
            self.conns[slot].start_window(login.cmd_sn);
            self.conns[slot].tsih = self.new_tsih();
        }
        let conn = &mut self.conns[slot];
        conn.port = port;
        conn.cid = login.cid;
        conn.attentions = attentions;
        Ok(())
    }

    /// A session handle that is not in use; never 0.
    fn new_tsih(&mut self) -> u16 {
        loop {
            self.next_tsih = self.next_tsih.wrapping_add(1);
            let used = self
                .conns
                .iter()
                .any(|conn| conn.is_session() && conn.tsih == self.next_tsih);
            if self.next_tsih != 0 && !used {
                return self.next_tsih;
            }
        }
    }

    /// The session of a connection that closes is over: its tasks are aborted, what it reserved
    /// by RESERVE 6 is free again.
    pub(crate) fn end_session(
        &mut self,
        slot: usize,
        was_session: bool,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let conn = &mut self.conns[slot];
        conn.login = None;
        conn.recv = Recv::Head;
        if was_session {
            let port = conn.port.clone();
            self.disk.reservations.release6(&port);
        }
        self.managing.retain(|managing| managing.slot != slot);
        self.abort_tasks(slot, data, out);
    }

    /// Answers the keys of a text request. False: a protocol error.
    pub(crate) fn text_keys(&mut self, slot: usize, text: &[u8], out: &mut Vec<u8>) -> bool {
        let Ok(pairs) = pairs(text) else {
            return false;
        };
        for (key, value) in pairs {
            let conn = &mut self.conns[slot];
            match key {
                "SendTargets" => {
                    let discovery = conn.params.discovery;
                    // RFC 7143 Appendix C: All is for discovery sessions, nothing for normal ones.
                    let named = value.eq_ignore_ascii_case(&self.config.target_name);
                    let asked = named
                        || if value == "All" {
                            discovery
                        } else {
                            value.is_empty() && !discovery
                        };
                    if value == "All" && !discovery {
                        add(out, key, "Reject");
                    } else if asked {
                        self.tell_target(out);
                    }
                }
                "MaxRecvDataSegmentLength" => {
                    if conn.params.offer(key, value, false, out).is_err() {
                        return false;
                    }
                }
                key if Params::knows(key) => {
                    if conn.params.offer(key, value, false, out).is_err() {
                        return false;
                    }
                }
                "InitiatorAlias" => {}
                "InitiatorName" | "TargetName" | "SessionType" | "AuthMethod" => {
                    add(out, key, "Reject");
                }
                _ if matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") => {}
                key => add(out, key, "NotUnderstood"),
            }
        }
        true
    }

    fn tell_target(&self, out: &mut Vec<u8>) {
        add(out, "TargetName", &self.config.target_name);
        for portal in &self.config.portals {
            let address = alloc::format!("{portal},{}", self.config.portal_group);
            add(out, "TargetAddress", &address);
        }
    }

    /// The slots of all sessions.
    pub(crate) fn sessions(&self) -> Vec<usize> {
        let slots = 0..self.conns.len();
        slots
            .filter(|slot| self.conns[*slot].is_session())
            .collect()
    }

    /// Tells all sessions but one of a change.
    pub(crate) fn tell_others(&mut self, slot: usize, code: crate::scsi::sense::Attention) {
        for (other, conn) in self.conns.iter_mut().enumerate() {
            if other != slot && conn.is_session() {
                conn.attend(code);
            }
        }
    }
}
