//! Questions to a name server by its service: fewer in the ordinary run than in `soak`.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use podwire_common::reason::Drop as Reason;
use xtask::lab::{Mode, Ns, Pod, is_soak};

use crate::FAMILIES;
use crate::service::service;
use crate::services::{ENTRIES, POD_PORT, SERVICE_PORT, lab, put};
use crate::sockets::{UdpSocket, connect_from, listen, udp, unspecified};

const LAST: u8 = 0x53;
/// Questions of a pod in each [`TURN`]: 2000 a second.
const BATCH: u32 = 20;
const TURN: Duration = Duration::from_millis(10);
const TURNS: u32 = 50;
/// Ten minutes.
const TURNS_SOAK: u32 = 60_000;

/// Each question has a socket of its own, as with most resolvers. Nothing says when its flow is over,
/// so the flows of half a minute are in the table at once.
#[test]
fn two_thousand_questions_a_second_leave_room_for_others() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let servers = [0, 1].map(|node| lab.node(node).add_pod("server").unwrap());
    let (resolver, other) = (node.add_pod("resolver").unwrap(), node.add_pod("other").unwrap());
    put(&lab, "dns", LAST, &servers.each_ref(), ENTRIES);
    // Connections of TCP have a service of their own, with one backend.
    put(&lab, "web", LAST + 1, &[&servers[1]], 2 * ENTRIES);
    for family in FAMILIES {
        let is_over = AtomicBool::new(false);
        let to = SocketAddr::new(service(LAST)[family], SERVICE_PORT);
        std::thread::scope(|scope| {
            for server in &servers {
                // It must be there before the first question.
                let socket = udp(server, (server.addresses()[family], POD_PORT));
                scope.spawn(|| answer(socket, &is_over));
            }
            let beside = scope.spawn(|| {
                let web = SocketAddr::new(service(LAST + 1)[family], SERVICE_PORT);
                keep_talking(&servers[1], &other, web, &is_over)
            });
            let turns = if is_soak() { TURNS_SOAK } else { TURNS };
            let over = Over(&is_over);
            ask(&resolver, to, turns);
            drop(over);
            assert!(beside.join().unwrap() > 0);
        });
    }
    let drops = node.drops().unwrap();
    for reason in [Reason::TranslationShareUsed, Reason::TranslationsFull, Reason::SnatPortsExhausted] {
        assert!(!drops.contains_key(reason.name()), "{drops:?}");
    }
}

/// Ends the other threads, also those of a test that fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Answers questions until it is over.
fn answer(socket: UdpSocket, is_over: &AtomicBool) {
    socket.set_read_timeout(Some(TURN)).unwrap();
    let mut question = [0; 64];
    while !is_over.load(Relaxed) {
        if let Ok((length, client)) = socket.recv_from(&mut question) {
            socket.send_to(&question[..length], client).unwrap();
        }
    }
}

/// Asks questions, each from another port, and expects all answers.
fn ask(resolver: &Ns, to: SocketAddr, turns: u32) {
    let begun = Instant::now();
    for turn in 0..turns {
        for number in 0..BATCH {
            let client = udp(resolver, (unspecified(to.ip()), 0));
            let question = (turn * BATCH + number).to_be_bytes();
            client.send_to(&question, to).unwrap();
            let mut answer = [0; 64];
            let (length, from) = client
                .recv_from(&mut answer)
                .unwrap_or_else(|error| panic!("question {number} of turn {turn} to {to}: {error}"));
            assert_eq!((&answer[..length], from), (&question[..], to));
        }
        std::thread::sleep((TURN * (turn + 1)).saturating_sub(begun.elapsed()));
    }
    println!("{} questions to {to} in {:?}", turns * BATCH, begun.elapsed());
}

/// Opens connections of another pod to a service until it is over, and talks by one that lasts.
/// Returns the number of connections.
fn keep_talking(server: &Pod, other: &Pod, to: SocketAddr, is_over: &AtomicBool) -> u32 {
    let listener = listen(server, SocketAddr::new(server.addresses()[usize::from(to.is_ipv6())], POD_PORT));
    let connect = || {
        let mut client = connect_from(other, (unspecified(to.ip()), 0), to).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"!").unwrap();
        client.read_exact(&mut [0]).unwrap();
        (client, accepted)
    };
    let (mut lasting, mut its_end) = connect();
    let mut connections = 0;
    while !is_over.load(Relaxed) {
        connect();
        lasting.write_all(b"?").unwrap();
        its_end.read_exact(&mut [0]).unwrap();
        connections += 1;
        std::thread::sleep(TURN);
    }
    connections
}
