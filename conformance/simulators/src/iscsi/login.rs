//! Logging in: who it is, what target, which secret, which parameters.

use std::io;

use md5::{Digest as _, Md5};
use tokio::net::TcpStream;

use super::Luns;
use super::pdu::{Pdu, SEGMENT};
use crate::core::hex;

/// What a login agreed upon.
#[derive(Clone, Debug, Default)]
pub(super) struct Agreed {
    pub(super) initiator: String,
    /// None is a session that only asks for targets.
    pub(super) target: Option<String>,
    /// Most bytes of a segment that the initiator takes.
    pub(super) segment: usize,
    pub(super) burst: usize,
    pub(super) stat_sn: u32,
    pub(super) cmd_sn: u32,
}

/// Status classes and details of RFC 7143, 11.13.5.
const AUTHENTICATION: u16 = 0x0201;
const NOT_FOUND: u16 = 0x0203;
const MISSING: u16 = 0x0207;
const INITIATOR_ERROR: u16 = 0x0200;

#[derive(Default)]
struct Login {
    agreed: Agreed,
    discovery: bool,
    target: Option<String>,
    chap: Option<(String, String)>,
    challenge: Option<(u8, Vec<u8>)>,
    proven: bool,
    tsih: u16,
    said_tag: bool,
}

/// Logs an initiator in, or refuses it and answers nothing.
pub(super) async fn login(stream: &mut TcpStream, luns: &mut Luns) -> io::Result<Option<Agreed>> {
    let mut login = Login::default();
    login.agreed.segment = 8192;
    login.agreed.burst = 256 << 10;
    login.agreed.stat_sn = 1;
    let random = uuid::Uuid::new_v4().into_bytes();
    login.tsih = u16::from_be_bytes([random[0], random[1]]) | 1;
    let mut text = Vec::new();
    loop {
        let pdu = Pdu::read(stream).await?;
        if pdu.opcode() != 0x03 {
            return Ok(None);
        }
        login.agreed.cmd_sn = pdu.word(24);
        text.extend_from_slice(&pdu.data);
        let continues = pdu.flags() & 0x40 != 0;
        let mut reply = Pdu::new(0x23, 0);
        reply.copy(&pdu, 8..16);
        reply.copy(&pdu, 16..20);
        reply.set(24, login.agreed.stat_sn);
        login.agreed.stat_sn = login.agreed.stat_sn.wrapping_add(1);
        reply.set(28, login.agreed.cmd_sn);
        reply.set(32, login.agreed.cmd_sn.wrapping_add(31));
        if continues {
            reply.header[1] = pdu.flags() & 0x0c;
            reply.write(stream).await?;
            continue;
        }
        let whole = Pdu { header: pdu.header, data: std::mem::take(&mut text) };
        match login.step(&whole, &mut reply, luns, random[2..].to_vec()) {
            Ok(done) => {
                if done {
                    reply.header[14..16].copy_from_slice(&login.tsih.to_be_bytes());
                }
                reply.write(stream).await?;
                if done {
                    let mut agreed = login.agreed;
                    agreed.target = login.target.filter(|_| !login.discovery);
                    return Ok(Some(agreed));
                }
            }
            Err(status) => {
                reply.header[36..38].copy_from_slice(&status.to_be_bytes());
                reply.write(stream).await?;
                return Ok(None);
            }
        }
    }
}

impl Login {
    /// One request. Answers whether the login is done, or the status of its refusal.
    fn step(
        &mut self,
        pdu: &Pdu,
        reply: &mut Pdu,
        luns: &mut Luns,
        random: Vec<u8>,
    ) -> Result<bool, u16> {
        let (stage, next) = ((pdu.flags() >> 2) & 3, pdu.flags() & 3);
        let wants_on = pdu.flags() & 0x80 != 0;
        let asked = pdu.text();
        let value =
            |key: &str| asked.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        if let Some(name) = value("InitiatorName") {
            self.agreed.initiator = name;
            self.discovery = value("SessionType").as_deref() == Some("Discovery");
            self.target = value("TargetName");
            self.find(luns)?;
        }
        if self.agreed.initiator.is_empty() {
            return Err(MISSING);
        }
        let mut said = Vec::new();
        let mut say = |key: &str, value: &str| said.push((key.to_owned(), value.to_owned()));
        if !self.said_tag && self.target.is_some() {
            say("TargetPortalGroupTag", "1");
            self.said_tag = true;
        }
        if stage == 0 {
            self.security(&value, random, &mut say)?;
        } else if self.chap.is_some() && !self.proven {
            return Err(AUTHENTICATION);
        }
        self.parameters(&asked, &mut say);
        let may = self.chap.is_none() || self.proven;
        let on = wants_on && may;
        reply.header[1] = (stage << 2) | if on { 0x80 | next } else { 0 };
        reply.set_text(&said);
        Ok(on && next == 3)
    }

    /// A target is there for those only who are let to it.
    fn find(&mut self, luns: &mut Luns) -> Result<(), u16> {
        if self.discovery {
            return Ok(());
        }
        let target = self.target.as_ref().ok_or(MISSING)?;
        let own = luns.of(target, &self.agreed.initiator);
        let first = own.first().ok_or(NOT_FOUND)?;
        self.chap.clone_from(&first.chap);
        Ok(())
    }

    fn security(
        &mut self,
        value: &impl Fn(&str) -> Option<String>,
        random: Vec<u8>,
        say: &mut impl FnMut(&str, &str),
    ) -> Result<(), u16> {
        if let Some(methods) = value("AuthMethod") {
            let wanted = if self.chap.is_some() { "CHAP" } else { "None" };
            if !methods.split(',').any(|method| method == wanted) {
                return Err(AUTHENTICATION);
            }
            say("AuthMethod", wanted);
        }
        let Some((user, secret)) = &self.chap else { return Ok(()) };
        if let Some(algorithms) = value("CHAP_A") {
            if !algorithms.split(',').any(|algorithm| algorithm == "5") {
                return Err(AUTHENTICATION);
            }
            let id = random.first().copied().unwrap_or(1);
            say("CHAP_A", "5");
            say("CHAP_I", &id.to_string());
            say("CHAP_C", &format!("0x{}", hex(&random)));
            self.challenge = Some((id, random));
        }
        if let Some(proof) = value("CHAP_R") {
            let (id, challenge) = self.challenge.take().ok_or(INITIATOR_ERROR)?;
            let mut digest = Md5::new();
            digest.update([id]);
            digest.update(secret.as_bytes());
            digest.update(&challenge);
            let right = format!("0x{}", hex(&digest.finalize()));
            if value("CHAP_N").as_deref() != Some(user) || !right.eq_ignore_ascii_case(&proof) {
                return Err(AUTHENTICATION);
            }
            self.proven = true;
        }
        Ok(())
    }

    fn parameters(&mut self, asked: &[(String, String)], say: &mut impl FnMut(&str, &str)) {
        for (key, value) in asked {
            let number = value.parse::<usize>().unwrap_or(0);
            match key.as_str() {
                "HeaderDigest" | "DataDigest" => say(key, "None"),
                "MaxRecvDataSegmentLength" => {
                    self.agreed.segment = number.clamp(512, 16 << 20);
                    say(key, &SEGMENT.to_string());
                }
                "MaxBurstLength" => {
                    self.agreed.burst = number.clamp(512, 1 << 20);
                    say(key, &self.agreed.burst.to_string());
                }
                "FirstBurstLength" => say(key, &number.clamp(512, 64 << 10).to_string()),
                "InitialR2T" | "DataPDUInOrder" | "DataSequenceInOrder" => say(key, "Yes"),
                "ImmediateData" => say(key, value),
                "MaxConnections" | "MaxOutstandingR2T" => say(key, "1"),
                "ErrorRecoveryLevel" | "DefaultTime2Retain" => say(key, "0"),
                "DefaultTime2Wait" => say(key, "2"),
                "InitiatorName" | "InitiatorAlias" | "SessionType" | "TargetName"
                | "AuthMethod" | "CHAP_A" | "CHAP_N" | "CHAP_R" | "CHAP_I" | "CHAP_C" => {}
                _ => say(key, "NotUnderstood"),
            }
        }
    }
}
