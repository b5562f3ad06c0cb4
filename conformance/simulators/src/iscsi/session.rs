//! A session after its login: commands, data, and the end.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Luns;
use super::login::{Agreed, login};
use super::pdu::Pdu;
use super::scsi::{Done, Unit};

/// How long a login may take.
const LOGIN: Duration = Duration::from_secs(15);

pub(super) async fn run(
    mut stream: TcpStream,
    portal: SocketAddr,
    mut luns: Luns,
) -> io::Result<()> {
    let agreed = timeout(LOGIN, login(&mut stream, &mut luns)).await??;
    let Some(agreed) = agreed else { return Ok(()) };
    let open = agreed.target.clone().map(|target| Open::new(&luns, target, &agreed.initiator));
    let unit = Unit::default();
    let mut session = Session { stream, portal, luns, agreed, unit, waiting: VecDeque::new() };
    let ended = session.serve().await;
    drop(open);
    ended
}

/// A session as the array counts it.
struct Open {
    array: crate::core::Array,
    target: String,
    initiator: String,
}

impl Open {
    fn new(luns: &Luns, target: String, initiator: &str) -> Self {
        luns.array.login(&target, initiator);
        Self { array: luns.array.clone(), target, initiator: initiator.to_owned() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.array.logout(&self.target, &self.initiator);
    }
}

struct Session {
    stream: TcpStream,
    portal: SocketAddr,
    luns: Luns,
    agreed: Agreed,
    unit: Unit,
    /// What came while data was waited for.
    waiting: VecDeque<Pdu>,
}

impl Session {
    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let pdu = match self.waiting.pop_front() {
                Some(pdu) => pdu,
                None => Pdu::read(&mut self.stream).await?,
            };
            if !pdu.is_immediate() && pdu.opcode() != 0x05 {
                // Out of its turn on the only connection there is: not carried out.
                if pdu.word(24) != self.agreed.cmd_sn {
                    continue;
                }
                self.agreed.cmd_sn = self.agreed.cmd_sn.wrapping_add(1);
            }
            match pdu.opcode() {
                0x00 => self.nop(&pdu).await?,
                0x01 => self.command(pdu).await?,
                0x02 => self.reply(&pdu, Pdu::new(0x22, 0x80)).await?,
                0x04 => self.text(&pdu).await?,
                0x06 => return self.reply(&pdu, Pdu::new(0x26, 0x80)).await,
                // Data that nobody waits for any more.
                0x05 => {}
                _ => {
                    let mut reject = Pdu::new(0x3f, 0x80);
                    reject.header[2] = 0x05;
                    reject.data = pdu.header.to_vec();
                    let reject = self.numbered(reject);
                    reject.write(&mut self.stream).await?;
                }
            }
        }
    }

    /// With the numbers that each answer carries.
    fn numbered(&mut self, mut pdu: Pdu) -> Pdu {
        pdu.set(24, self.agreed.stat_sn);
        self.agreed.stat_sn = self.agreed.stat_sn.wrapping_add(1);
        pdu.set(28, self.agreed.cmd_sn);
        pdu.set(32, self.agreed.cmd_sn.wrapping_add(31));
        pdu
    }

    async fn reply(&mut self, to: &Pdu, mut reply: Pdu) -> io::Result<()> {
        reply.copy(to, 16..20);
        self.numbered(reply).write(&mut self.stream).await
    }

    async fn nop(&mut self, pdu: &Pdu) -> io::Result<()> {
        if pdu.word(16) == u32::MAX {
            return Ok(());
        }
        let mut reply = Pdu::new(0x20, 0x80);
        reply.set(20, u32::MAX);
        reply.data.clone_from(&pdu.data);
        self.reply(pdu, reply).await
    }

    async fn text(&mut self, pdu: &Pdu) -> io::Result<()> {
        let mut said = Vec::new();
        if pdu.text().iter().any(|(key, _)| key == "SendTargets") {
            let all = self.luns.all();
            let mut names: Vec<&str> = all
                .iter()
                .filter(|export| export.who.lets(&self.agreed.initiator))
                .map(|export| export.target.as_str())
                .collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                said.push(("TargetName".to_owned(), name.to_owned()));
                said.push(("TargetAddress".to_owned(), format!("{},1", self.portal)));
            }
        }
        let mut reply = Pdu::new(0x24, 0x80);
        reply.set(20, u32::MAX);
        reply.set_text(&said);
        self.reply(pdu, reply).await
    }

    async fn command(&mut self, pdu: Pdu) -> io::Result<()> {
        let expected = pdu.word(20) as usize;
        let writes = pdu.flags() & 0x20 != 0;
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&pdu.header[32..48]);
        let lun = lun_of(&pdu.header[8..16]);
        let target = self.agreed.target.clone().unwrap_or_default();
        let own = self.luns.of(&target, &self.agreed.initiator);
        let data =
            if writes && expected > 0 { self.collect(&pdu, expected).await? } else { Vec::new() };
        let done = self.unit.command(&self.luns.array, &own, lun, &cdb, &data);
        match done {
            Done::Data(bytes) => self.data_in(&pdu, bytes, expected).await,
            Done::Good => self.status(&pdu, 0, &[], 0).await,
            Done::Check(sense) => self.status(&pdu, 2, &sense.bytes(), expected).await,
        }
    }

    /// Takes the data of a write: what came with the command, and what is asked for.
    async fn collect(&mut self, command: &Pdu, expected: usize) -> io::Result<Vec<u8>> {
        let too_much = || io::Error::new(io::ErrorKind::InvalidData, "data that was not asked for");
        let mut data = command.data.clone();
        let mut asked = 0;
        let final_ = command.flags() & 0x80 != 0;
        if !final_ {
            // Unsolicited data was agreed against (InitialR2T=Yes).
            return Err(io::Error::new(io::ErrorKind::InvalidData, "unsolicited data"));
        }
        while data.len() < expected {
            let want = (expected - data.len()).min(self.agreed.burst);
            let mut r2t = Pdu::new(0x31, 0x80);
            r2t.copy(command, 8..20);
            r2t.set(20, asked + 1);
            r2t.set(24, self.agreed.stat_sn);
            r2t.set(28, self.agreed.cmd_sn);
            r2t.set(32, self.agreed.cmd_sn.wrapping_add(31));
            r2t.set(36, asked);
            r2t.set(40, data.len() as u32);
            r2t.set(44, want as u32);
            r2t.write(&mut self.stream).await?;
            asked += 1;
            let until = data.len() + want;
            let mut number = 0;
            while data.len() < until {
                let pdu = Pdu::read(&mut self.stream).await?;
                if pdu.opcode() == 0x05 && pdu.word(16) == command.word(16) {
                    let in_turn = pdu.word(36) == number && pdu.word(40) as usize == data.len();
                    if !in_turn || data.len() + pdu.data.len() > until {
                        return Err(too_much());
                    }
                    number += 1;
                    data.extend_from_slice(&pdu.data);
                } else {
                    self.waiting.push_back(pdu);
                }
            }
        }
        if data.len() > expected {
            return Err(too_much());
        }
        Ok(data)
    }

    async fn data_in(&mut self, to: &Pdu, mut bytes: Vec<u8>, expected: usize) -> io::Result<()> {
        let there = bytes.len();
        bytes.truncate(expected);
        if bytes.is_empty() {
            return self.status(to, 0, &[], expected).await;
        }
        let (mut at, mut number) = (0, 0);
        while at < bytes.len() {
            let in_burst = self.agreed.burst - at % self.agreed.burst;
            let length = self.agreed.segment.min(in_burst).min(bytes.len() - at);
            let last = at + length == bytes.len();
            let mut pdu = Pdu::new(0x25, if last || length == in_burst { 0x80 } else { 0 });
            pdu.copy(to, 8..20);
            pdu.set(20, u32::MAX);
            pdu.set(36, number);
            pdu.set(40, at as u32);
            pdu.data = bytes.get(at..at + length).unwrap_or_default().to_vec();
            if last {
                pdu.header[1] |= 0x01;
                residual(&mut pdu, there, expected);
                pdu = self.numbered(pdu);
            } else {
                pdu.set(28, self.agreed.cmd_sn);
                pdu.set(32, self.agreed.cmd_sn.wrapping_add(31));
            }
            pdu.write(&mut self.stream).await?;
            at += length;
            number += 1;
        }
        Ok(())
    }

    async fn status(&mut self, to: &Pdu, status: u8, sense: &[u8], rest: usize) -> io::Result<()> {
        let mut pdu = Pdu::new(0x21, 0x80);
        pdu.header[3] = status;
        if rest > 0 {
            pdu.header[1] |= 0x02;
            pdu.set(44, rest as u32);
        }
        if !sense.is_empty() {
            pdu.data = (sense.len() as u16).to_be_bytes().to_vec();
            pdu.data.extend_from_slice(sense);
        }
        self.reply(to, pdu).await
    }
}

fn residual(pdu: &mut Pdu, there: usize, expected: usize) {
    if there < expected {
        pdu.header[1] |= 0x02;
        pdu.set(44, (expected - there) as u32);
    } else if there > expected {
        pdu.header[1] |= 0x04;
        pdu.set(44, (there - expected) as u32);
    }
}

/// Peripheral or flat addressing; both name numbers up to 16383.
fn lun_of(bytes: &[u8]) -> u16 {
    let high = bytes.first().copied().unwrap_or(0) & 0x3f;
    u16::from_be_bytes([high, bytes.get(1).copied().unwrap_or(0)])
}
