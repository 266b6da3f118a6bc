//! Many flows to one server: fewer in the ordinary run than in `soak`.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use podwire_common::reason::Drop as Reason;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use xtask::lab::{Lab, Pod, is_soak};

use crate::sockets::{PATIENCE, listen};
use crate::{FAMILIES, world_end};

const PODS: usize = 8;
const PORT: u16 = 443;

#[test]
fn thousands_of_connections_to_one_server_are_open_at_once() {
    let connections = if is_soak() { 20_000 } else { 1_000 };
    let (lab, pods) = lab();
    lab.world().sysctl("net/core/somaxconn", "32768").unwrap();
    lab.world().sysctl("net/ipv4/tcp_max_syn_backlog", "32768").unwrap();
    // The kernel establishes the connections. The server accepts them one by one when all are
    // there.
    let servers = servers(&lab);
    servers.iter().for_each(|(server, _)| rustix::net::listen(server, 32_768).unwrap());
    let clients = servers.each_ref().map(|(_, to)| {
        on_every_pod(&pods, |pod| {
            let connections = pod.enter(|| {
                (0..connections / PODS).map(|_| TcpStream::connect_timeout(to, PATIENCE).unwrap()).collect()
            });
            Parked::new(connections.unwrap())
        })
    });
    let mut peers = BTreeSet::new();
    for ((server, _), node) in servers.iter().zip(lab.node(0).addresses()) {
        for _ in 0..connections {
            let (mut accepted, peer) = server.accept().unwrap();
            assert_eq!(peer.ip(), node);
            assert!(peers.insert(peer), "{peer} twice");
            accepted.write_all(b"!").unwrap();
        }
    }
    for mut client in clients.into_iter().flatten().flat_map(Parked::take) {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    assert_nothing_refused(&lab);
}

/// Open connections that use none of the process's file descriptors: there may be fewer descriptors
/// than connections. The connections lie in a socket's queue.
struct Parked {
    queue: UnixStream,
    messages: usize,
    // The queue stays open as long as this exists.
    _sender: UnixStream,
}

/// The file descriptors of one message (`SCM_MAX_FD` is 253).
const BATCH: usize = 100;

impl Parked {
    fn new(connections: Vec<TcpStream>) -> Self {
        let (sender, queue) = UnixStream::pair().unwrap();
        for batch in connections.chunks(BATCH) {
            let files: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
            sendmsg(&sender, &[IoSlice::new(b"+")], &mut control, SendFlags::empty()).unwrap();
        }
        Self { queue, messages: connections.len().div_ceil(BATCH), _sender: sender }
    }

    /// Returns the connections batch by batch. Each batch is closed before the next.
    fn take(self) -> impl Iterator<Item = TcpStream> {
        (0..self.messages).flat_map(move |_| {
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            recvmsg(&self.queue, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .unwrap();
            let mut streams = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    streams.extend(files.map(TcpStream::from));
                }
            }
            streams
        })
    }
}

#[test]
fn short_connections_in_a_row_never_run_out_of_ports() {
    let connections = if is_soak() { 200_000 } else { 2_000 };
    let (lab, pods) = lab();
    lab.world().sysctl("net/core/somaxconn", "4096").unwrap();
    for (server, to) in servers(&lab) {
        std::thread::scope(|scope| {
            // The server closes first, so the server is the end that remembers the connection for a
            // minute.
            let serving = scope.spawn(|| {
                for _ in 0..connections {
                    drop(server.accept().unwrap());
                }
            });
            on_every_pod(&pods, |pod| {
                pod.enter(|| {
                    for number in 0..connections / PODS {
                        let mut client = TcpStream::connect_timeout(&to, PATIENCE)
                            .unwrap_or_else(|error| panic!("{}: {number} to {to}: {error}", pod.name()));
                        client.set_read_timeout(Some(PATIENCE)).unwrap();
                        assert_eq!(client.read(&mut [0]).unwrap(), 0, "closed by the server");
                    }
                })
                .unwrap();
            });
            serving.join().unwrap();
        });
    }
    assert_nothing_refused(&lab);
}

/// Returns a server of the world of each family, and its address.
fn servers(lab: &Lab) -> [(TcpListener, SocketAddr); 2] {
    FAMILIES.map(|family| {
        let to = SocketAddr::new(world_end(lab, family).1, PORT);
        (listen(lab.world(), to), to)
    })
}

fn lab() -> (Lab, Vec<Pod>) {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let pods = (0..PODS).map(|number| lab.node(0).add_pod(&format!("pod{number}")).unwrap()).collect();
    (lab, pods)
}

/// Runs an action in each pod, in all of them at once.
fn on_every_pod<T: Send>(pods: &[Pod], action: impl Fn(&Pod) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| action(pod))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn assert_nothing_refused(lab: &Lab) {
    let drops = lab.node(0).drops().unwrap();
    for reason in [Reason::SnatPortsExhausted, Reason::TranslationsFull] {
        assert!(!drops.contains_key(reason.name()), "{drops:?}");
    }
}
