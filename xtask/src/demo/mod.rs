//! `cargo xtask demo`: Podwire's main job on one machine, without a cluster.

mod throughput;

use std::process::Command;

use anyhow::{Result, ensure};
use xtask::lab::{self, Families, Lab, Mode, Node, Pod};
use xtask::matrix;

use crate::{build, run};

/// The name of a demonstration that goes on after its command has ended.
const KEPT: &str = "podwire-demo";

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How pod packets travel between nodes.
    #[arg(long, value_enum, default_value_t = ModeOption::Vxlan)]
    mode: ModeOption,
    /// Leave nodes, pods and agents running, and say how to enter a pod.
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier `--keep` left.
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ModeOption {
    Vxlan,
    Direct,
}

/// The lab of the demonstration, and its pods.
struct Stage {
    lab: Lab,
    /// Two pods for each node, in the order of the nodes.
    pods: Vec<Pod>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        run::is_root(),
        "the demonstration makes network namespaces and loads BPF programs: run it as root"
    );
    if options.remove {
        let word = if lab::remove(KEPT)? { "removed" } else { "nothing to remove" };
        println!("{word}");
        return Ok(());
    }
    let binaries = build::for_demonstration()?;
    let mode = match options.mode {
        ModeOption::Vxlan => Mode::Vxlan,
        ModeOption::Direct => Mode::Direct,
    };
    let stage = run::step("two nodes, two agents, a world, four pods", || {
        let mut builder =
            Lab::builder().node_file().service_file().families(Families::Dual).mode(mode).binaries(&binaries);
        if options.keep {
            builder = builder.name(KEPT);
        }
        Stage::set(builder.build()?)
    })?;
    let wrong = stage.show()?;
    if options.keep {
        stage.say_how_to_enter();
        stage.lab.keep();
    } else {
        run::step("remove everything", || {
            drop(stage);
            Ok(())
        })?;
    }
    ensure!(wrong == 0, "{wrong} of the cells are not as Kubernetes wants them");
    Ok(())
}

impl Stage {
    fn set(lab: Lab) -> Result<Self> {
        let mut pods = Vec::new();
        for (node, names) in lab.nodes().iter().zip([["a", "b"], ["c", "d"]]) {
            for name in names {
                pods.push(node.add_pod(name)?);
            }
        }
        Ok(Self { lab, pods })
    }

    /// Prints all results, and returns the number of wrong cells.
    fn show(&self) -> Result<usize> {
        let (table, wrong) =
            run::step("ping, TCP and UDP between all of them", || matrix::table(&self.lab, &self.pods))?;
        println!(
            "\nFrom each row to each column: round-trip time of a ping; TCP, UDP and ICMP each; NAT if the server saw another address. A service answers no ping"
        );
        print!("{table}");
        for complaint in &wrong {
            println!("WRONG {complaint}");
        }
        throughput::show(&self.lab, &self.pods)?;
        self.show_endpoints(self.lab.node(0))?;
        Ok(wrong.len())
    }

    fn show_endpoints(&self, node: &Node) -> Result<()> {
        let pin = node.bpf_dir().join("ENDPOINTS");
        println!(
            "\nWhat {}'s programs know of its pods\n$ bpftool map dump pinned {}",
            node.name(),
            pin.display()
        );
        run::visibly(Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin))?;
        println!("\nPackets by path on {}", node.name());
        for (path, packets) in node.traffic()? {
            println!("{packets:>12} {path}");
        }
        for (reason, packets) in node.drops()? {
            println!("{packets:>12} dropped: {reason}");
        }
        Ok(())
    }

    fn say_how_to_enter(&self) {
        println!("\nEverything is left running. A shell in a pod:");
        for pod in &self.pods {
            let addresses: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
            println!("    nsenter --net={}    # {}", pod.path().display(), addresses.join(", "));
        }
        println!("Remove it:\n    cargo xtask demo --remove");
    }
}
