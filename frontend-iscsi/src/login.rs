//! The login phase of one connection (RFC 7143 6.3, 12, 13): stages, CHAP, names. Pure text in and
//! out; what a successful login means for sessions is in `session.rs`.

use crate::bytes::len32;
use crate::chap::{Algorithm, Challenges, decode, encode, same};
use crate::config::{ChapConfig, ChapUser, IscsiConfig, is_iscsi_name};
use crate::limits::{LOGIN_REQUESTS_MAX, TEXT_BYTES_MAX};
use crate::params::Params;
use crate::pdu::{Bhs, flag};
use crate::text::{add, number, pairs};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Status class and detail of a login response (RFC 7143 11.13.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LoginStatus(pub(crate) u8, pub(crate) u8);

impl LoginStatus {
    pub(crate) const SUCCESS: LoginStatus = LoginStatus(0, 0);
    pub(crate) const INITIATOR_ERROR: LoginStatus = LoginStatus(2, 0);
    pub(crate) const AUTHENTICATION: LoginStatus = LoginStatus(2, 1);
    pub(crate) const AUTHORIZATION: LoginStatus = LoginStatus(2, 2);
    pub(crate) const NOT_FOUND: LoginStatus = LoginStatus(2, 3);
    pub(crate) const VERSION: LoginStatus = LoginStatus(2, 5);
    pub(crate) const TOO_MANY_CONNECTIONS: LoginStatus = LoginStatus(2, 6);
    pub(crate) const MISSING_PARAMETER: LoginStatus = LoginStatus(2, 7);
    pub(crate) const SESSION_TYPE: LoginStatus = LoginStatus(2, 9);
    pub(crate) const NO_SESSION: LoginStatus = LoginStatus(2, 0xa);
    pub(crate) const INVALID_REQUEST: LoginStatus = LoginStatus(2, 0xb);
    pub(crate) const UNAVAILABLE: LoginStatus = LoginStatus(3, 1);
    pub(crate) const OUT_OF_RESOURCES: LoginStatus = LoginStatus(3, 2);
}

/// Stages, as CSG and NSG number them.
const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// How far CHAP has come.
#[derive(Clone, PartialEq, Eq)]
enum Chap {
    /// AuthMethod has not been chosen.
    Start,
    /// CHAP was chosen; CHAP_A comes next.
    Chosen,
    /// The challenge has been sent.
    Challenged {
        algorithm: Algorithm,
        id: u8,
        challenge: [u8; 32],
    },
    /// The initiator has proved who it is, or needs not.
    Done,
}

/// The login of one connection.
pub(crate) struct Login {
    stage: u8,
    requests: u32,
    text: Vec<u8>,
    chap: Chap,
    first: bool,
    portal_group_told: bool,
    pub(crate) isid: [u8; 6],
    pub(crate) tsih: u16,
    pub(crate) cid: u16,
    pub(crate) cmd_sn: u32,
    pub(crate) initiator: String,
    target: Option<String>,
    pub(crate) params: Params,
}

impl core::fmt::Debug for Login {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Login")
            .field("stage", &self.stage)
            .field("initiator", &self.initiator)
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}

/// What becomes of a login request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Answer with the text and these flags of byte 1, and go on.
    Answer(u8),
    /// As `Answer`; the login is over and full feature phase begins.
    Finish(u8),
    /// Answer with this status and close the connection.
    Fail(LoginStatus),
}

impl Login {
    pub(crate) fn new() -> Login {
        Login {
            stage: SECURITY,
            requests: 0,
            text: Vec::new(),
            chap: Chap::Start,
            first: true,
            portal_group_told: false,
            isid: [0; 6],
            tsih: 0,
            cid: 0,
            cmd_sn: 0,
            initiator: String::new(),
            target: None,
            params: Params::default(),
        }
    }

    /// Takes a login request with its text, appends the answer's text to `out`.
    pub(crate) fn request(
        &mut self,
        head: &Bhs,
        text: &[u8],
        config: &IscsiConfig,
        challenges: &mut Challenges,
        out: &mut Vec<u8>,
    ) -> Step {
        match self.advance(head, text, config, challenges, out) {
            Ok(step) => step,
            Err(status) => Step::Fail(status),
        }
    }

    fn advance(
        &mut self,
        head: &Bhs,
        text: &[u8],
        config: &IscsiConfig,
        challenges: &mut Challenges,
        out: &mut Vec<u8>,
    ) -> Result<Step, LoginStatus> {
        self.requests += 1;
        if self.requests > LOGIN_REQUESTS_MAX {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let flags = head.flags();
        let (transit, more) = (flags & flag::FINAL != 0, flags & flag::CONTINUE != 0);
        let (current, next) = (flags >> 2 & 3, flags & 3);
        self.check_head(head, current)?;
        // RFC 7143 11.12.1, 11.12.2: T and C exclude each other; stages only go forward.
        if transit && (more || next <= current || next == 2) {
            return Err(LoginStatus::INVALID_REQUEST);
        }
        if self.text.len() + text.len() > TEXT_BYTES_MAX {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        self.text.extend_from_slice(text);
        if more {
            return Ok(Step::Answer(current << 2));
        }
        let text = core::mem::take(&mut self.text);
        self.keys(&text, config, challenges, out)?;
        self.first = false;
        if self.stage == OPERATIONAL {
            self.require_proof(config)?;
            self.params.declare(out);
        }
        if !transit {
            return Ok(Step::Answer(current << 2));
        }
        self.transit(current, next, config)
    }

    /// The transition that the initiator wants, if nothing is left to be done before it.
    fn transit(
        &mut self,
        current: u8,
        next: u8,
        config: &IscsiConfig,
    ) -> Result<Step, LoginStatus> {
        if self.stage == SECURITY {
            match self.chap {
                // The answer carries our keys of CHAP; the stage goes on.
                Chap::Chosen | Chap::Challenged { .. } => return Ok(Step::Answer(current << 2)),
                Chap::Start | Chap::Done => self.require_proof(config)?,
            }
        }
        self.stage = next;
        let flags = flag::FINAL | current << 2 | next;
        if next == FULL_FEATURE {
            self.params.finish();
            return Ok(Step::Finish(flags));
        }
        Ok(Step::Answer(flags))
    }

    /// No way past the security stage without what the configuration asks for.
    fn require_proof(&self, config: &IscsiConfig) -> Result<(), LoginStatus> {
        let proved = config.chap.is_none() || self.chap == Chap::Done;
        proved.then_some(()).ok_or(LoginStatus::AUTHENTICATION)
    }

    fn check_head(&mut self, head: &Bhs, current: u8) -> Result<(), LoginStatus> {
        if self.requests == 1 {
            // RFC 7143 11.12.4: the one version there is has number 0.
            if head.0[3] != 0 {
                return Err(LoginStatus::VERSION);
            }
            self.isid.copy_from_slice(&head.0[8..14]);
            self.tsih = head.half(14);
            self.cid = head.half(20);
            self.cmd_sn = head.cmd_sn();
            self.stage = current;
        }
        let same_login = head.0[8..14] == self.isid && head.half(20) == self.cid;
        if !same_login || current != self.stage || current > OPERATIONAL {
            return Err(LoginStatus::INVALID_REQUEST);
        }
        Ok(())
    }

    fn keys(
        &mut self,
        text: &[u8],
        config: &IscsiConfig,
        challenges: &mut Challenges,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        let pairs = pairs(text).map_err(|_| LoginStatus::INITIATOR_ERROR)?;
        if self.first {
            self.names(&pairs, config)?;
            if !self.params.discovery {
                // RFC 7143 13.9: told in the first response of a normal session.
                self.portal_group_told = true;
                add(
                    out,
                    "TargetPortalGroupTag",
                    &config.portal_group.to_string(),
                );
                if !config.alias.is_empty() {
                    add(out, "TargetAlias", &config.alias);
                }
            }
        }
        let find = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        for (key, value) in &pairs {
            match *key {
                "InitiatorName" | "TargetName" | "SessionType" if self.first => {}
                "InitiatorAlias" => {}
                "AuthMethod" if self.stage == SECURITY => self.method(value, config, out)?,
                "CHAP_A" => self.algorithm(value, challenges, out)?,
                "CHAP_N" => {
                    let proof = Proof {
                        name: value,
                        response: find("CHAP_R").unwrap_or(""),
                        id: find("CHAP_I"),
                        challenge: find("CHAP_C"),
                    };
                    self.prove(&proof, config, out)?;
                }
                "CHAP_R" | "CHAP_I" | "CHAP_C" if find("CHAP_N").is_some() => {}
                key if Params::knows(key) => {
                    if self.stage != OPERATIONAL {
                        // RFC 7143 6.3.2: operational keys wait for their stage.
                        return Err(LoginStatus::INITIATOR_ERROR);
                    }
                    self.params
                        .offer(key, value, true, out)
                        .map_err(|_| LoginStatus::INITIATOR_ERROR)?;
                }
                // RFC 7143 6.2: an answer to an offer of ours that we never made, or a key of a
                // stage or a role that is not theirs.
                "TargetName"
                | "InitiatorName"
                | "SessionType"
                | "TargetAlias"
                | "TargetAddress"
                | "TargetPortalGroupTag"
                | "SendTargets"
                | "AuthMethod"
                | "CHAP_R"
                | "CHAP_I"
                | "CHAP_C" => return Err(LoginStatus::INITIATOR_ERROR),
                _ if matches!(*value, "NotUnderstood" | "Irrelevant" | "Reject") => {}
                key => add(out, key, "NotUnderstood"),
            }
        }
        Ok(())
    }

    /// Names and type of the first request (RFC 7143 6.3.1).
    fn names(&mut self, pairs: &[(&str, &str)], config: &IscsiConfig) -> Result<(), LoginStatus> {
        let find = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let initiator = find("InitiatorName").ok_or(LoginStatus::MISSING_PARAMETER)?;
        if !is_iscsi_name(initiator) {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        // Names compare in their normal form, which has lower case only.
        self.initiator = initiator.to_lowercase();
        match find("SessionType").unwrap_or("Normal") {
            "Normal" => {
                let target = find("TargetName").ok_or(LoginStatus::MISSING_PARAMETER)?;
                if !target.eq_ignore_ascii_case(&config.target_name) {
                    return Err(LoginStatus::NOT_FOUND);
                }
                self.target = Some(target.to_string());
            }
            "Discovery" => self.params.discovery = true,
            _ => return Err(LoginStatus::SESSION_TYPE),
        }
        let listed = config.initiators.is_empty()
            || config
                .initiators
                .iter()
                .any(|name| name.eq_ignore_ascii_case(initiator));
        listed.then_some(()).ok_or(LoginStatus::AUTHORIZATION)
    }

    fn method(
        &mut self,
        offer: &str,
        config: &IscsiConfig,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        if self.chap != Chap::Start {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let wanted = if config.chap.is_some() {
            "CHAP"
        } else {
            "None"
        };
        if !offer.split(',').any(|method| method == wanted) {
            return Err(LoginStatus::AUTHENTICATION);
        }
        self.chap = if config.chap.is_some() {
            Chap::Chosen
        } else {
            Chap::Done
        };
        add(out, "AuthMethod", wanted);
        Ok(())
    }

    fn algorithm(
        &mut self,
        offer: &str,
        challenges: &mut Challenges,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        if self.chap != Chap::Chosen {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let chosen = offer.split(',').find_map(|n| Algorithm::of(number(n)?));
        let algorithm = chosen.ok_or(LoginStatus::AUTHENTICATION)?;
        let (id, challenge) = challenges.next();
        add(out, "CHAP_A", algorithm.name());
        add(out, "CHAP_I", &id.to_string());
        add(out, "CHAP_C", &encode(&challenge));
        self.chap = Chap::Challenged {
            algorithm,
            id,
            challenge,
        };
        Ok(())
    }

    fn prove(
        &mut self,
        proof: &Proof<'_>,
        config: &IscsiConfig,
        out: &mut Vec<u8>,
    ) -> Result<(), LoginStatus> {
        let Chap::Challenged {
            algorithm,
            id,
            challenge,
        } = self.chap
        else {
            return Err(LoginStatus::INITIATOR_ERROR);
        };
        let chap = config.chap.as_ref().ok_or(LoginStatus::INITIATOR_ERROR)?;
        let response = decode(proof.response).ok_or(LoginStatus::AUTHENTICATION)?;
        let known = user_named(chap, proof.name)
            .is_some_and(|user| same(&algorithm.response(id, &user.secret, &challenge), &response));
        if !known {
            return Err(LoginStatus::AUTHENTICATION);
        }
        if let (Some(id), Some(theirs)) = (proof.id, proof.challenge) {
            let id = number(id).and_then(|id| u8::try_from(id).ok());
            let id = id.ok_or(LoginStatus::INITIATOR_ERROR)?;
            let theirs = decode(theirs).ok_or(LoginStatus::INITIATOR_ERROR)?;
            // RFC 7143 12.1.3: a challenge that comes back is a reflection attack.
            if theirs == challenge {
                return Err(LoginStatus::AUTHENTICATION);
            }
            let us = chap.target.as_ref().ok_or(LoginStatus::AUTHENTICATION)?;
            add(out, "CHAP_N", &us.name);
            add(
                out,
                "CHAP_R",
                &encode(&algorithm.response(id, &us.secret, &theirs)),
            );
        }
        self.chap = Chap::Done;
        Ok(())
    }

    /// The answer's header, its sequence numbers left out.
    pub(crate) fn answer(&self, flags: u8, tsih: u16, itt: u32, text: &[u8]) -> Bhs {
        Bhs::new(crate::pdu::opcode::LOGIN_RESPONSE, flags)
            .with_data_bytes(len32(text.len()))
            .with(8, &self.isid)
            .with16(14, tsih)
            .with32(16, itt)
    }
}

/// What the initiator says of itself in the last step of CHAP.
struct Proof<'a> {
    name: &'a str,
    response: &'a str,
    id: Option<&'a str>,
    challenge: Option<&'a str>,
}

fn user_named<'a>(chap: &'a ChapConfig, name: &str) -> Option<&'a ChapUser> {
    chap.initiators.iter().find(|user| user.name == name)
}
