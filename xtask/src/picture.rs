//! The picture of a packet's way in README.md, as SVG for light and for dark pages.

use std::fmt::Write as _;

/// Colours of a picture.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// The picture's path in the repository.
    pub path: &'static str,
    text: &'static str,
    faint: &'static str,
    line: &'static str,
    node: &'static str,
    program: &'static str,
}

/// The two pictures: README shows the one that fits the reader's page.
pub const PALETTES: [Palette; 2] = [
    Palette {
        path: "docs/pictures/packet-light.svg",
        text: "#1f2328",
        faint: "#59636e",
        line: "#1a7f37",
        node: "#f6f8fa",
        program: "#dafbe1",
    },
    Palette {
        path: "docs/pictures/packet-dark.svg",
        text: "#f0f6fc",
        faint: "#9198a1",
        line: "#3fb950",
        node: "#151b23",
        program: "#12361f",
    },
];

const WIDTH: u32 = 960;
const HEIGHT: u32 = 292;
/// The height of a line of text.
const LINE: u32 = 17;

/// A node: where its box begins, and what stands in it.
struct Node {
    left: u32,
    name: &'static str,
    pod: [&'static str; 2],
    pod_left: u32,
    program: &'static str,
    program_left: u32,
    does: &'static [&'static str],
    uplink: &'static str,
    uplink_left: u32,
}

const NODES: [Node; 2] = [
    Node {
        left: 10,
        name: "node 1, 10.244.1.0/24",
        pod: ["pod a", "10.244.1.2"],
        pod_left: 24,
        program: "from_pod",
        program_left: 132,
        does: &[
            "the source is the pod's",
            "ENDPOINTS: not here",
            "NODES: 10.244.2.0/24 is",
            "        node 10.200.0.2",
            "writes the outer headers",
        ],
        uplink: "10.200.0.1",
        uplink_left: 346,
    },
    Node {
        left: 520,
        name: "node 2, 10.244.2.0/24",
        pod: ["pod c", "10.244.2.2"],
        pod_left: 852,
        program: "from_uplink",
        program_left: 636,
        does: &[
            "the sender is a node",
            "the inner source is one of",
            "        that node's pods",
            "removes the outer headers",
            "ENDPOINTS: pod c is here",
        ],
        uplink: "10.200.0.2",
        uplink_left: 534,
    },
];

/// Stations of the same packet in flannel's set-up.
const REFERENCE: [&str; 9] = [
    "veth",
    "bridge",
    "iptables",
    "route",
    "flannel.1, ARP, FDB",
    "underlay",
    "flannel.1",
    "iptables, route",
    "bridge, veth",
];

/// Draws the picture.
pub fn draw(palette: &Palette) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\" font-family=\"ui-sans-serif, system-ui, sans-serif\" \
         font-size=\"13\">\n<title>A packet from a pod to a pod on another node</title>\n"
    );
    for node in &NODES {
        rectangle(&mut svg, (node.left, 10), (430, 190), palette.node, palette.faint);
        text(&mut svg, (node.left + 14, 32), palette.faint, node.name);
        rectangle(&mut svg, (node.pod_left, 78), (84, 52), palette.node, palette.text);
        for (line, words) in (0..).zip(node.pod) {
            text(&mut svg, (node.pod_left + 10, 100 + line * LINE), palette.text, words);
        }
        rectangle(&mut svg, (node.program_left, 46), (198, 138), palette.program, palette.line);
        text(&mut svg, (node.program_left + 10, 68), palette.line, node.program);
        for (line, words) in (0..).zip(node.does) {
            text(&mut svg, (node.program_left + 10, 92 + line * LINE), palette.text, words);
        }
        rectangle(&mut svg, (node.uplink_left, 78), (84, 52), palette.node, palette.text);
        text(&mut svg, (node.uplink_left + 8, 100), palette.text, "eth0");
        text(&mut svg, (node.uplink_left + 8, 117), palette.text, node.uplink);
    }
    for (from, to) in [(108, 132), (330, 346), (430, 534), (618, 636), (834, 852)] {
        arrow(&mut svg, (from, 104), to, palette.line);
    }
    for (line, words) in (0..).zip(["VXLAN", "UDP 8472"]) {
        text(&mut svg, (449, 140 + line * LINE), palette.faint, words);
    }
    text(&mut svg, (10, 230), palette.faint, "The same way with a bridge and iptables:");
    let mut left = 10;
    for (index, station) in REFERENCE.iter().enumerate() {
        let width = 7 * u32::try_from(station.len()).unwrap_or_default() + 16;
        rectangle(&mut svg, (left, 244), (width, 30), palette.node, palette.faint);
        text(&mut svg, (left + 8, 264), palette.faint, station);
        if index + 1 < REFERENCE.len() {
            arrow(&mut svg, (left + width, 259), left + width + 16, palette.faint);
        }
        left += width + 16;
    }
    svg + "</svg>\n"
}

fn rectangle(svg: &mut String, at: (u32, u32), size: (u32, u32), fill: &str, stroke: &str) {
    let ((x, y), (width, height)) = (at, size);
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"{stroke}\"/>"
    );
}

/// Writes a line of text. Spaces at its beginning indent it.
fn text(svg: &mut String, (x, y): (u32, u32), colour: &str, words: &str) {
    let indented = words.trim_start();
    let indent = 4 * u32::try_from(words.len() - indented.len()).unwrap_or_default();
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\" fill=\"{colour}\">{indented}</text>", x + indent);
}

fn arrow(svg: &mut String, (x, y): (u32, u32), to: u32, colour: &str) {
    let _ = writeln!(
        svg,
        "<path d=\"M{x} {y}H{to}m-5 -4l5 4l-5 4\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::root;

    #[test]
    fn the_pictures_are_those_of_their_source() {
        for palette in &PALETTES {
            let shown = std::fs::read_to_string(root().join(palette.path)).unwrap();
            assert!(shown == draw(palette), "{} is stale: run `cargo xtask docs`", palette.path);
        }
    }
}
