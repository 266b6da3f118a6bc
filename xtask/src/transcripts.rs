//! What commands print, as the documents show it: each is run in a lab of two nodes.
//!
//! A document has a place for each: the line `<!-- cargo xtask docs: NAME -->`, then an indented
//! block.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podwire_common::names::maps;
use podwire_common::reason::Drop;
use serde_json::json;

use crate::lab::traffic::{self, Route};
use crate::lab::{Families, Lab, Node, Pod};
use crate::manifests::root;
use crate::matrix;

/// The usual folder of pins. The documents show it in place of the lab's.
const PINS: &str = "/sys/fs/bpf/podwire";
/// An address of a service, and its port.
const SERVICE: (&str, u16) = ("10.96.0.10", 80);
const SERVER_PORT: u16 = 8080;
/// A multicast group, to which the programs send nothing, and a port.
const GROUP: &str = "239.1.2.3:5000";
/// Packets that are sent until the monitor shows one, and the pause between two of them.
const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(100);

/// The printed text of one place.
pub struct Transcript {
    /// The document's path in the repository.
    pub document: &'static str,
    /// The name of the place.
    pub name: &'static str,
    /// The command after `# `, where there is one, and what it printed.
    pub text: String,
}

/// Runs all commands in a lab.
///
/// # Errors
/// When the lab cannot be built, or a command fails.
pub fn record() -> Result<Vec<Transcript>> {
    let table = demo()?;
    // The dumps have an entry for each family. One shows as much and takes half the lines.
    let lab = Lab::builder().families(Families::V4).node_file().build()?;
    let (node, other) = (lab.node(0), lab.node(1));
    let ports = json!({
        "portMappings": [{ "hostPort": 9088, "containerPort": SERVER_PORT, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 50_000_000, "ingressBurst": 1_000_000 },
    });
    let pods =
        [node.add_pod_with("a", &ports)?, node.add_pod("b")?, other.add_pod("c")?, other.add_pod("d")?];
    make_traffic(&lab, node, &pods)?;

    let inspect = |name, command: &[&str]| -> Result<Transcript> {
        Ok(Transcript { document: "docs/inspect.md", name, text: run(node, command)? })
    };
    let show = |name, arguments: &[&str]| -> Result<Transcript> {
        let printed = node.show(arguments)?;
        ensure!(printed.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&printed.stderr));
        let shown = format!("# podwire {}\n{}", arguments.join(" "), String::from_utf8(printed.stdout)?);
        let text = usual_names(&lab, node, &shown);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
        let text = text.replace(kernel.trim(), "6.18.0");
        let text = if ["status", "packets"].contains(&name) { text } else { aligned(&text) };
        Ok(Transcript { document: "docs/commands.md", name, text })
    };
    let pin = |map: &str| node.bpf_dir().join(map).to_string_lossy().into_owned();
    let dump = |map| inspect(map, &["bpftool", "map", "dump", "pinned", &pin(map)]);
    let lookup = |map, key: &str| {
        let pin = pin(map);
        let command: Vec<&str> =
            ["bpftool", "map", "lookup", "pinned", &pin, "key"].into_iter().chain(key.split(' ')).collect();
        inspect(map, &command)
    };
    Ok(vec![
        Transcript { document: "README.md", name: "demo", text: table },
        dump(maps::ENDPOINTS)?,
        lookup(maps::NODES, &format!("128 0 0 0 0 0 0 0 0 0 0 0 0 0 255 255 {}", spaced(other)))?,
        dump(maps::FRONTENDS)?,
        dump(maps::STACK_FLOWS)?,
        lookup(maps::DROPS, "7 0 0 0")?,
        show("status", &["status"])?,
        show("endpoints", &["endpoints"])?,
        show("nodes", &["nodes"])?,
        show("hostports", &["hostports"])?,
        services()?,
        show("drops", &["drops"])?,
        show("packets", &["drops", "--pod", &name(&pods[0])])?,
        show("flows", &["flows", "--pod", &name(&pods[0]), "--kind", "translation,stack"])?,
        inspect("qdisc", &["tc", "-s", "qdisc", "show", "dev", pods[0].host_interface()])?,
        Transcript {
            document: "docs/monitor.md",
            name: "monitor",
            text: usual_names(&lab, node, &monitored(&lab, node, &pods)?),
        },
    ])
}

/// Returns what `podwire monitor` prints of a new flow, a drop and a translation.
fn monitored(lab: &Lab, node: &Node, [pod, near, ..]: &[Pod; 4]) -> Result<String> {
    let options = ["--pod", &name(pod), "--protocol", "udp"];
    let monitor = node.monitor(&options)?;
    let send = |to: SocketAddr| {
        let sent = pod.enter(|| UdpSocket::bind((pod.address(), 0))?.send_to(b"podwire!", to))?;
        sent.with_context(|| format!("send to {to}"))
    };
    // The monitor does not say when it begins to listen.
    let mut flow = None;
    for _ in 0..ATTEMPTS {
        send((near.address(), SERVER_PORT).into())?;
        flow = monitor.lines.recv_timeout(PAUSE).ok();
        if flow.is_some() {
            break;
        }
    }
    let flow = flow.context("the monitor shows no flow")?;
    send(GROUP.parse()?)?;
    let dropped = monitor.line_with(" drop ").context("the monitor shows no drop")?;
    send((lab.world_address(), SERVER_PORT).into())?;
    let translated = monitor.line_with(" translation ").context("the monitor shows no translation")?;
    Ok(format!("# podwire monitor {}\n{flow}\n{dropped}\n{translated}\n", options.join(" ")))
}

/// Returns what `podwire services` prints of a service with three backends.
fn services() -> Result<Transcript> {
    let lab = Lab::builder().families(Families::V4).agent_arguments(&["--services", "on"]).build()?;
    let (node, other) = (lab.node(0), lab.node(1));
    let pods = [node.add_pod("a")?, other.add_pod("c")?, other.add_pod("d")?];
    let name = "web";
    let port = |number| json!({ "name": "http", "port": number, "protocol": "TCP", "nodePort": 30080 });
    let endpoint = |(pod, node, is_ready): (&Pod, &Node, bool)| {
        let conditions = json!({ "ready": is_ready });
        json!({ "addresses": [pod.address()], "nodeName": node.name(), "conditions": conditions })
    };
    let endpoints = [(&pods[0], node, true), (&pods[1], other, true), (&pods[2], other, false)].map(endpoint);
    let api = lab.api_server()?;
    let metadata = json!({
        "namespace": "shop", "name": name, "labels": { "kubernetes.io/service-name": name },
    });
    let spec = json!({
        "clusterIPs": [SERVICE.0], "externalTrafficPolicy": "Local", "ports": [port(SERVICE.1)],
    });
    api.put(json!({ "kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": spec }));
    api.put(json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata,
        "addressType": "IPv4", "ports": [port(SERVER_PORT)], "endpoints": endpoints,
    }));
    // The agent writes the table before it answers the next question.
    for _ in 0..ATTEMPTS {
        let printed = String::from_utf8(node.show(&["services"])?.stdout)?;
        if printed.contains(SERVICE.0) && printed.contains("not-ready") {
            let text = usual_names(&lab, node, &format!("# podwire services\n{printed}"));
            return Ok(Transcript { document: "docs/commands.md", name: "services", text: aligned(&text) });
        }
        std::thread::sleep(PAUSE);
    }
    anyhow::bail!("the agent does not show the service")
}

/// Returns the table of `cargo xtask demo`.
fn demo() -> Result<String> {
    let lab = Lab::builder().node_file().service_file().build()?;
    let (node, other) = (lab.node(0), lab.node(1));
    let pods = [node.add_pod("a")?, node.add_pod("b")?, other.add_pod("c")?, other.add_pod("d")?];
    let (table, wrong) = matrix::table(&lab, &pods)?;
    ensure!(wrong.is_empty(), "the matrix is wrong: {}", wrong.join("; "));
    Ok(table)
}

/// Returns the document with the text in its place.
///
/// # Errors
/// When the document has no such place.
pub fn renewed(document: &str, transcript: &Transcript) -> Result<String> {
    let (before, _, after) = place(document, transcript.name)
        .with_context(|| format!("{} has no place {}", transcript.document, transcript.name))?;
    // An empty line would end the block.
    let lines = transcript.text.lines().filter(|line| !line.trim().is_empty());
    let lines = lines.map(|line| format!("    {}\n", line.trim_end()));
    Ok(format!("{before}{}{after}", lines.collect::<String>()))
}

/// Returns the names of a document's places.
///
/// # Errors
/// When the document cannot be read.
pub fn places(document: &str) -> Result<BTreeSet<String>> {
    let path = root().join(document);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let marks = text.lines().filter_map(|line| line.strip_prefix("<!-- cargo xtask docs: "));
    Ok(marks.filter_map(|rest| rest.strip_suffix(" -->")).map(str::to_owned).collect())
}

/// Returns why the document's text is stale: its words are not those of the transcript. Numbers may
/// differ.
///
/// # Errors
/// When the document cannot be read or has no such place.
pub fn fault(transcript: &Transcript) -> Result<Option<String>> {
    let path = root().join(transcript.document);
    let document = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (_, shown, _) = place(&document, transcript.name)
        .with_context(|| format!("{} has no place {}", transcript.document, transcript.name))?;
    let is_fresh = shape(shown) == shape(&transcript.text);
    Ok((!is_fresh).then(|| {
        format!(
            "{}: the output {} is stale: run `cargo xtask docs`. Now it is\n{}",
            transcript.document, transcript.name, transcript.text
        )
    }))
}

fn make_traffic(lab: &Lab, node: &Node, pods: &[Pod; 4]) -> Result<()> {
    let [first, _, far, _] = pods;
    let (address, port) = SERVICE;
    let port_text = port.to_string();
    let backend = format!("{}:{SERVER_PORT}", far.address());
    let rule = ["iptables", "-w", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", address, "--dport"];
    let target = [&*port_text, "-j", "DNAT", "--to-destination", &backend];
    node.exec(&rule.into_iter().chain(target).collect::<Vec<_>>())?;
    let route = Route {
        destination: (address.parse::<IpAddr>()?, port).into(),
        listen: (far.address(), SERVER_PORT).into(),
    };
    traffic::tcp_exchange_on(first, far, route, 4096)?;
    traffic::tcp_exchange(first, lab.world(), lab.world_address(), SERVER_PORT, 4096)?;
    // Its answer never comes: the programs drop broadcasts.
    first.output(&["ping", "-b", "-c2", "-i0.2", "-W1", "255.255.255.255"])?;
    ensure!(node.drops()?.contains_key(Drop::Broadcast.name()), "the broadcast was not counted");
    Ok(())
}

/// Runs a command on the node. Returns it and its output, as a terminal shows them.
fn run(node: &Node, command: &[&str]) -> Result<String> {
    let printed = node.exec(command)?;
    let shown = command.join(" ").replace(&node.bpf_dir().to_string_lossy().into_owned(), PINS);
    Ok(format!("# {shown}\n{printed}"))
}

/// Aligns the columns of a table again, after names in it have changed. Two spaces end a column.
fn aligned(text: &str) -> String {
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    // The first line is the command.
    let width =
        |column: usize| rows[1..].iter().filter_map(|row| row.get(column)).map(|cell| cell.len()).max();
    let pad = |(column, cell): (usize, &&str)| format!("{cell:<0$}", width(column).unwrap_or_default() + 2);
    let lines = rows.iter().map(|row| row.iter().enumerate().map(pad).collect::<String>());
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Replaces the names of the lab's pods: they contain the lab's name.
fn usual_names(lab: &Lab, node: &Node, text: &str) -> String {
    text.replace(&format!("{}-{}-", lab.name(), node.name()), "").replace("lab/", "default/")
}

/// Returns a pod's namespace and name.
fn name(pod: &Pod) -> String {
    format!("lab/{}", pod.call().container_id)
}

fn spaced(node: &Node) -> String {
    node.address().to_string().replace('.', " ")
}

/// Splits a document into what stands before a place's block, the block, and the rest.
fn place<'a>(document: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let mark = format!("<!-- cargo xtask docs: {name} -->\n\n");
    let begin = document.find(&mark)? + mark.len();
    let rest = &document[begin..];
    let block: usize =
        rest.split_inclusive('\n').take_while(|line| line.starts_with("    ")).map(str::len).sum();
    Some((&document[..begin], &rest[..block], &rest[block..]))
}

/// Returns the different lines of a text, without what differs between two runs: numbers, names and
/// addresses of links, the widths of columns. Lines that come again do not count, as there is a block of them
/// for each processor or pod.
fn shape(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let words = line.split([' ', ',', '─']).map(|word| {
            let link = word.trim_end_matches(':');
            let is_link = link.len() == 14 && link.starts_with("pw");
            match is_link {
                true => word.replace(link, "pw…"),
                false if is_mac(word) => "…:…".to_owned(),
                false => without_numbers(word),
            }
        });
        let shape = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        if !shape.is_empty() && !lines.contains(&shape) {
            lines.push(shape);
        }
    }
    lines
}

/// Returns whether a word is a link address.
fn is_mac(word: &str) -> bool {
    let is_byte = |part: &str| part.len() == 2 && part.chars().all(|letter| letter.is_ascii_hexdigit());
    word.split(':').count() == 6 && word.split(':').all(is_byte)
}

/// Returns the word with one `0` for each number, also for one with a decimal point, and for the
/// hexadecimal handle of a queueing discipline (`8089:`).
fn without_numbers(word: &str) -> String {
    let is_handle = word.strip_suffix(':').is_some_and(|handle| {
        (1..=4).contains(&handle.len()) && handle.chars().all(|letter| letter.is_ascii_hexdigit())
    });
    if is_handle {
        return "0:".to_owned();
    }
    let number = |letter: char| letter.is_ascii_digit() || letter == '.';
    let mut letters: Vec<char> =
        word.chars().map(|letter| if number(letter) { '0' } else { letter }).collect();
    letters.dedup_by(|one, other| *one == '0' && *other == '0');
    letters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "Text\n<!-- cargo xtask docs: links -->\n\n    # old\n    1\n\nmore\n";

    #[test]
    fn a_place_takes_a_new_text() {
        let transcript = Transcript { document: "a.md", name: "links", text: "# new\n\n2 \n3\n".to_owned() };
        let renewed = renewed(DOCUMENT, &transcript).unwrap();
        assert_eq!(renewed, "Text\n<!-- cargo xtask docs: links -->\n\n    # new\n    2\n    3\n\nmore\n");
        let other = Transcript { name: "pods", ..transcript };
        assert!(super::renewed(DOCUMENT, &other).is_err());
    }

    #[test]
    fn numbers_make_no_output_stale_but_words_do() {
        let shown = "│ pod a │ 0.039 ms NAT │\n├──────┤\n\"bytes\": [1,22,255\n]\npw44ac1a02f855 sent 7\nof pw44ac1a02f855: tcp\ntbf 8089: lat 30ms\n8a:ae:48:23:3a:72";
        let same = "│ pod a   │ 12.4 ms NAT │\n├─┤\n\"bytes\": [3,4,5\n]\n]\npw0123456789ab sent 70\nof pw0123456789ab: tcp\ntbf a9e2: lat 30.9ms\n96:11:af:c5:38:4c";
        assert_eq!(shape(shown), shape(same));
        assert_ne!(shape(shown), shape(&same.replace("sent", "dropped")));
        assert_ne!(shape(shown), shape(&same.replace(" NAT", "")));
    }
}
