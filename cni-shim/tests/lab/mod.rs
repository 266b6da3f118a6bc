//! A node and a pod, each a network namespace that is removed when the test ends, and a stand-in
//! for the node agent.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use podwire_cni::protocol::{self, Added, Call, Failure, Reply, Request};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tempfile::TempDir;

const PLUGIN: &str = env!("CARGO_BIN_EXE_podwire-cni");

/// Addresses of a pod with their gateways, in the order of the agent's answer.
pub(crate) type Addresses = &'static [(&'static str, &'static str)];
pub(crate) const IPV4: Addresses = &[("10.244.1.7/32", "10.244.1.1")];
pub(crate) const IPV6: Addresses = &[("fd00:10:244:1::7/128", "fe80::1")];
pub(crate) const DUAL: Addresses = &[IPV4[0], IPV6[0]];

/// Two namespaces and a folder for the agent's socket. Clones share them; dropping the last clone
/// removes them.
#[derive(Clone)]
pub(crate) struct Lab {
    spaces: Arc<Spaces>,
}

struct Spaces {
    node: String,
    pod: String,
    /// The links that the kernel makes in a new namespace.
    fresh: Vec<String>,
    folder: TempDir,
    /// The last answer to an ADD of the stand-in for the agent.
    added: Mutex<Option<Added>>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut spaces = Spaces {
            node: format!("pwshim-{tag}-node"),
            pod: format!("pwshim-{tag}-pod"),
            fresh: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
            added: Mutex::new(None),
        };
        for name in [&spaces.node, &spaces.pod] {
            ip(&["netns", "add", name]);
        }
        spaces.fresh = links_in(&spaces.pod);
        Lab { spaces: Arc::new(spaces) }
    }

    /// Returns `CNI_NETNS` of the pod.
    pub(crate) fn netns(&self) -> String {
        format!("/var/run/netns/{}", self.spaces.pod)
    }

    pub(crate) fn node_netns(&self) -> String {
        format!("/var/run/netns/{}", self.spaces.node)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.spaces.folder.path().join("agent.sock")
    }

    /// Prepares a call as a runtime makes it for this pod.
    pub(crate) fn call(&self, command: &str) -> PluginCall {
        // Ends a call that hangs.
        let mut plugin = Command::new("timeout");
        plugin.args(["60", "ip", "netns", "exec", &self.spaces.node, PLUGIN]).env_clear();
        plugin.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "podwire",
            "type": "podwire-cni",
            "socket": self.socket(),
        });
        let call = PluginCall { plugin, config, input: None, reader: true };
        call.env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "4ba8eb2dbdf81d46")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", &self.netns())
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web")
            .env("CNI_PATH", "/opt/cni/bin")
    }

    /// Returns the answer of a working agent, as far as the plugin can tell.
    pub(crate) fn serve(&self, call: Call) -> Answer {
        self.serve_with(IPV4, call)
    }

    /// The same, for a pod with these addresses.
    pub(crate) fn serve_with(&self, addresses: Addresses, call: Call) -> Answer {
        let mut held = self.spaces.added.lock().unwrap();
        Answer::Reply(match call {
            Call::Add(add) => {
                self.ip_on_node(&format!("link set {} up", add.host_interface));
                let added = Added {
                    addresses: addresses.iter().map(|(address, _)| address.parse().unwrap()).collect(),
                    gateways: addresses.iter().map(|(_, gateway)| gateway.parse().unwrap()).collect(),
                    mtu: add.mtu.unwrap_or(1450),
                    pod_mac: add.pod_mac,
                    host_mac: add.host_mac,
                    host_interface: add.host_interface,
                };
                Reply::Added(held.insert(added).clone())
            }
            Call::Propose(_) => Reply::Acceptable,
            Call::Check(_) => Reply::Checked(held.clone().unwrap()),
            Call::Status => Reply::Serving,
            Call::Gc(gc) => {
                let collected = u32::from(gc.valid.is_empty() && held.take().is_some());
                Reply::Collected(collected)
            }
            // The stand-in leaves the link to the plugin, which must remove it in any case.
            Call::Del(_) => {
                *held = None;
                Reply::Deleted
            }
        })
    }

    pub(crate) fn nothing_is_left(&self) {
        for space in [&self.spaces.node, &self.spaces.pod] {
            assert_eq!(links_in(space), self.spaces.fresh, "links in {space}");
        }
    }

    pub(crate) fn in_pod(&self, arguments: &str) -> Value {
        ip_json(&self.spaces.pod, arguments)
    }

    pub(crate) fn on_node(&self, arguments: &str) -> Value {
        ip_json(&self.spaces.node, arguments)
    }

    pub(crate) fn ip_in_pod(&self, arguments: &str) {
        ip_in(&self.spaces.pod, arguments);
    }

    pub(crate) fn ip_on_node(&self, arguments: &str) {
        ip_in(&self.spaces.node, arguments);
    }
}

/// Runs a function in a thread inside a network namespace, and returns its result.
pub(crate) fn inside<T: Send>(netns: &str, run: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let file = std::fs::File::open(netns).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        run()
    };
    thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

/// Returns an IPv6 switch of a link of the current network namespace.
pub(crate) fn ipv6_switch(link: &str, name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/{name}")).unwrap().trim().to_owned()
}

pub(crate) fn set_ipv6_switch(link: &str, name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{name}"), value).unwrap();
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for name in [&self.node, &self.pod] {
            // A namespace that was never made cannot be removed. In that case the test has already
            // failed.
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// A call of the plugin, before it runs.
pub(crate) struct PluginCall {
    plugin: Command,
    config: Value,
    input: Option<Vec<u8>>,
    reader: bool,
}

impl PluginCall {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.plugin.env(name, value);
        self
    }

    /// Sets one key of the network configuration.
    pub(crate) fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Replaces the network configuration.
    pub(crate) fn input(self, input: &Value) -> Self {
        self.raw_input(input.to_string())
    }

    pub(crate) fn raw_input(mut self, input: impl AsRef<[u8]>) -> Self {
        self.input = Some(input.as_ref().to_owned());
        self
    }

    /// Makes standard output full from the start.
    pub(crate) fn without_reader(mut self) -> Self {
        self.reader = false;
        self
    }

    pub(crate) fn run(mut self) -> Output {
        let stdout = match self.reader {
            true => Stdio::piped(),
            false => std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into(),
        };
        let mut child =
            self.plugin.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let input = self.input.unwrap_or_else(|| self.config.to_string().into_bytes());
        // A plugin that refuses its environment does not read its input.
        let _ = child.stdin.take().unwrap().write_all(&input);
        let output = child.wait_with_output().unwrap();
        Output {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The outcome of a call.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn succeeded(&self) {
        assert!(self.success, "{self:?}");
    }

    #[track_caller]
    pub(crate) fn failed_with(&self, code: u32, said: &str) {
        assert!(!self.success, "{self:?}");
        let error = self.json();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(said), "{said:?} is not in {error}");
    }
}

/// How the stand-in for the agent treats a request.
#[derive(Clone)]
pub(crate) enum Answer {
    Reply(Reply),
    Bytes(Vec<u8>),
    HangUp,
    /// No answer, and the connection stays open.
    Stall,
}

pub(crate) fn failed(code: u32, message: &str) -> Answer {
    Answer::Reply(Reply::Failed(Failure { code, message: message.to_owned() }))
}

/// A stand-in for the agent, which speaks the protocol on the lab's socket until it is dropped.
pub(crate) struct Agent {
    socket: PathBuf,
    requests: Arc<Mutex<Vec<Call>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(lab: &Lab, answer: impl Fn(&Lab, Call) -> Answer + Send + 'static) -> Self {
        let (lab, socket) = (lab.clone(), lab.socket());
        let listener = UnixListener::bind(&socket).unwrap();
        let (requests, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (record, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut stalled = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                stalled.extend(serve(stream, &record, |call| answer(&lab, call)));
            }
        });
        Agent { socket, requests, stop, thread: Some(thread) }
    }

    /// Returns the requests so far.
    pub(crate) fn requests(&self) -> Vec<Call> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread in `accept`.
        let _ = UnixStream::connect(&self.socket);
        let ended = self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.socket);
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// Serves one connection. Returns it if it must stay open.
fn serve(
    mut stream: UnixStream,
    record: &Mutex<Vec<Call>>,
    answer: impl FnOnce(Call) -> Answer,
) -> Option<UnixStream> {
    let request: Request = protocol::read_frame(&mut stream).unwrap();
    assert_eq!(request.version, protocol::VERSION);
    record.lock().unwrap().push(request.call.clone());
    match answer(request.call) {
        Answer::Reply(reply) => protocol::write_frame(&mut stream, &reply).unwrap(),
        Answer::Bytes(bytes) => {
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Waits until the plugin hangs up: closing with unread bytes would reset the
            // connection.
            let _ = stream.read_to_end(&mut Vec::new());
        }
        Answer::HangUp => {}
        Answer::Stall => return Some(stream),
    }
    None
}

fn links_in(space: &str) -> Vec<String> {
    let links = ip_json(space, "link show");
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

fn ip_json(space: &str, arguments: &str) -> Value {
    let output = ip_in(space, &format!("-j {arguments}"));
    if output.trim().is_empty() { json!([]) } else { serde_json::from_str(&output).unwrap() }
}

fn ip_in(space: &str, arguments: &str) -> String {
    let arguments: Vec<_> = ["-n", space].into_iter().chain(arguments.split_whitespace()).collect();
    ip(&arguments)
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {stderr} (the tests need root)", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}
