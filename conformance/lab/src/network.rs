//! Networks of guests: a switch in this process, whose cables can be pulled.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use crate::error::{Doing, Result};
use crate::guest::Guest;

/// Longer than any frame, also one that the guests' cards have joined.
const LONGEST: usize = 1 << 16;
/// Frames taken from one port before the others have their turn.
const TURN: usize = 64;

/// One switch. A frame goes only to the port of its destination, once that is known. Frames that
/// a port cannot take are lost, as in a switch of metal.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
    number: u8,
    /// Its last clone takes the switch with it.
    _end: Arc<End>,
}

struct Shared {
    state: Mutex<State>,
    /// Written when the state has changed.
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    ports: Vec<Port>,
    /// Pairs of ports, the smaller first, that do not hear each other.
    apart: HashSet<(usize, usize)>,
    over: bool,
}

struct Port {
    socket: Arc<OwnedFd>,
    guest: u8,
    plugged: bool,
    delay: Duration,
}

struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.change(|state| state.over = true);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Network {
    pub(crate) fn new(number: u8) -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .doing(|| "make an event".into())?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake });
        let switch =
            Switch { shared: Arc::clone(&shared), known: HashMap::new(), late: BinaryHeap::new() };
        thread::Builder::new()
            .name(format!("switch {number}"))
            .spawn(move || switch.run())
            .doing(|| "start a switch".into())?;
        Ok(Self { _end: Arc::new(End(Arc::clone(&shared))), shared, number })
    }

    /// The third byte of its addresses: `10.9.<number>.<guest>`.
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// A new port; the answer is the guest's end of its cable.
    pub(crate) fn port(&self, guest: u8) -> Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.doing(|| "make a cable".into())?;
        for end in [&ours, &theirs] {
            set_socket_send_buffer_size(end, 1 << 20).doing(|| "widen a cable".into())?;
        }
        let socket = Arc::new(ours);
        self.shared.change(|state| {
            state.ports.push(Port { socket, guest, plugged: true, delay: Duration::ZERO });
        });
        Ok(theirs)
    }

    /// Pulls the cable of a guest. Its card does not notice; nothing comes through.
    pub fn unplug(&self, guest: &Guest) {
        self.port_of(guest, |port| port.plugged = false);
    }

    /// Plugs it in again.
    pub fn plug(&self, guest: &Guest) {
        self.port_of(guest, |port| port.plugged = true);
    }

    /// Makes every frame to and from a guest take that much longer.
    pub fn delay(&self, guest: &Guest, delay: Duration) {
        self.port_of(guest, |port| port.delay = delay);
    }

    /// Lets two guests no longer hear each other, while others hear both.
    pub fn separate(&self, one: &Guest, other: &Guest) {
        self.pair(one, other, |apart, pair| {
            apart.insert(pair);
        });
    }

    /// Ends a separation.
    pub fn join(&self, one: &Guest, other: &Guest) {
        self.pair(one, other, |apart, pair| {
            apart.remove(&pair);
        });
    }

    fn port_of(&self, guest: &Guest, change: impl Fn(&mut Port)) {
        self.shared.change(|state| {
            state.ports.iter_mut().filter(|port| port.guest == guest.number()).for_each(change);
        });
    }

    fn pair(
        &self,
        one: &Guest,
        other: &Guest,
        change: impl FnOnce(&mut HashSet<(usize, usize)>, (usize, usize)),
    ) {
        self.shared.change(|state| {
            let place =
                |guest: &Guest| state.ports.iter().position(|port| port.guest == guest.number());
            if let (Some(one), Some(other)) = (place(one), place(other)) {
                change(&mut state.apart, (one.min(other), one.max(other)));
            }
        });
    }
}

type Address = [u8; 6];

/// A frame on its way: when it arrives, a number that keeps the order, from which port, itself.
type Late = (Instant, u64, usize, Vec<u8>);

/// The thread of a network.
struct Switch {
    shared: Arc<Shared>,
    /// At which port an address was seen last.
    known: HashMap<Address, usize>,
    /// Frames on their way, the next one first.
    late: BinaryHeap<Reverse<Late>>,
}

impl Switch {
    fn run(mut self) {
        let mut frame = vec![0_u8; LONGEST];
        let mut count = 0;
        loop {
            let sockets: Vec<Arc<OwnedFd>> = {
                let state = self.shared.lock();
                if state.over {
                    return;
                }
                state.ports.iter().map(|port| Arc::clone(&port.socket)).collect()
            };
            let mut watched = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
            watched.extend(
                sockets
                    .iter()
                    .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)),
            );
            let wait = self.late.peek().map(|Reverse((when, ..))| {
                let left = when.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: left.as_secs().cast_signed(),
                    tv_nsec: i64::from(left.subsec_nanos()),
                }
            });
            // Interrupted or not: what is readable is asked of the sockets below.
            let _ = poll(&mut watched, wait.as_ref());
            let ready: Vec<bool> =
                watched.iter().skip(1).map(|port| !port.revents().is_empty()).collect();
            let _ = rustix::io::read(&self.shared.wake, &mut [0_u8; 8]);
            while self.late.peek().is_some_and(|Reverse((when, ..))| *when <= Instant::now()) {
                if let Some(Reverse((_, _, from, frame))) = self.late.pop() {
                    self.forward(from, &frame);
                }
            }
            for (from, socket) in
                sockets.iter().enumerate().filter(|(port, _)| ready.get(*port) == Some(&true))
            {
                for _ in 0..TURN {
                    let Ok((_, length @ 14..)) =
                        recv(socket, frame.as_mut_slice(), RecvFlags::DONTWAIT)
                    else {
                        break;
                    };
                    let frame = frame.get(..length).unwrap_or_default();
                    let delay = self.delay(from, frame);
                    if delay.is_zero() {
                        self.forward(from, frame);
                    } else {
                        count += 1;
                        self.late.push(Reverse((
                            Instant::now() + delay,
                            count,
                            from,
                            frame.to_vec(),
                        )));
                    }
                }
            }
        }
    }

    /// The delay of the sender's cable and of the receiver's.
    fn delay(&self, from: usize, frame: &[u8]) -> Duration {
        let state = self.shared.lock();
        let of = |port: usize| state.ports.get(port).map_or(Duration::ZERO, |port| port.delay);
        let to = frame.first_chunk::<6>().and_then(|to| self.known.get(to));
        of(from) + to.map_or(Duration::ZERO, |to| of(*to))
    }

    fn forward(&mut self, from: usize, frame: &[u8]) {
        let (Some(to), Some(source)) = (address(frame, 0), address(frame, 6)) else { return };
        let state = self.shared.lock();
        if !state.ports.get(from).is_some_and(|port| port.plugged) {
            return;
        }
        self.known.insert(source, from);
        let to = self.known.get(&to).copied();
        for (number, port) in state.ports.iter().enumerate() {
            let meant = number != from && to.is_none_or(|to| to == number);
            let apart = state.apart.contains(&(from.min(number), from.max(number)));
            if meant && port.plugged && !apart {
                let _ = send(&*port.socket, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        }
    }
}

fn address(frame: &[u8], at: usize) -> Option<Address> {
    frame.get(at..at + 6)?.try_into().ok()
}
