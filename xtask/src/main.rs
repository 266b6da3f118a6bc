//! `cargo xtask …`: set-up, builds, checks, tests, demonstration, measurements and releases.

mod bench;
mod budget;
mod build;
mod check;
mod demo;
mod docs;
mod documents;
mod kernels;
mod layers;
mod packages;
mod reasons;
mod release;
mod run;
mod setup;
mod tables;
mod test;
mod toolchain;
mod write_manifests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Set up, build, check, test, demonstrate and measure Podwire.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what the BPF object, the demonstration and the tests need.
    Setup,
    /// Build the BPF object and the two static release binaries.
    Build,
    /// Build the two binaries and pack them into an image (OCI layout) for runtimes to import.
    ///
    /// Neither a container engine nor a registry is needed.
    Image {
        /// Archive to write.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Build what a release consists of: image, binaries, manifests, chart, checksums.
    ///
    /// The same source and compilers give the same bytes. `docs/releasing.md` has the steps of a
    /// release.
    Release {
        /// Folder to write; it must be empty or absent.
        #[arg(long, value_name = "FOLDER")]
        output: PathBuf,
    },
    /// Write the manifests and the chart's list of options.
    ///
    /// The manifests, `manifests/podwire.yaml` and `manifests/uninstall.yaml`, come from the chart;
    /// the list comes from the agent's help.
    Manifests,
    /// Write the documents' picture, tables of maps, reasons and metrics, and output of commands. Needs
    /// root.
    Docs,
    /// Show who reaches whom, how fast, and from which address. Needs root.
    ///
    /// The demonstration has two nodes, four pods and a world on this machine.
    Demo(demo::Options),
    /// Measure Podwire beside the reference, the peers' way and the limit. Needs root.
    ///
    /// The figures are latency, throughput and cost.
    Bench(bench::Options),
    /// Check formatting, lints, layer rules, documents and licences.
    Check,
    /// Run `check`, then every test. Needs root.
    Test(test::Options),
    /// Run the longer version of every test that has one. Needs root.
    Soak(test::Options),
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // `main` does not return the error: a backtrace would hide the advice in the message.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::everything().map(|_| ()),
        Command::Build => build::release(),
        Command::Image { output } => build::image(&output),
        Command::Release { output } => release::make(&output),
        Command::Manifests => write_manifests::run(),
        Command::Docs => docs::write(),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Check => check::run(),
        Command::Test(options) => test::run(&options),
        Command::Soak(options) => test::soak(&options),
    }
}
