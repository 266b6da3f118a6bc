//! `cargo xtask …`: sets the machine up, builds, checks, tests, demonstrates and measures.

mod bench;
mod build;
mod check;
mod demo;
mod kernels;
mod layers;
mod packages;
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

/// Everything that is done to this repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Finds or installs what the BPF object, the demonstration and the tests need.
    Setup,
    /// Builds the BPF object and the two static release binaries.
    Build,
    /// Builds, and packs the two binaries into an image that runtimes import (OCI's layout): no engine and no registry is needed.
    Image {
        /// The archive to write.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Writes `manifests/podwire.yaml`, `manifests/uninstall.yaml` and the chart's list of options, from the chart and the agent's help.
    Manifests,
    /// Writes the table "Maps" of `ARCHITECTURE.md`, from the rows of `common/src/tables.rs`.
    Tables,
    /// Two nodes, a world and four pods on this machine: who reaches whom, how fast, and under which address.
    Demo(demo::Options),
    /// Podwire beside the reference, its peers' way and the limit: latency, throughput, cost. Needs root.
    Bench(bench::Options),
    /// Formatting, lints and the layer rules.
    Check,
    /// `check`, then every test. Needs root.
    Test(test::Options),
    /// The tests that have a longer version, in it. Needs root.
    Soak(test::Options),
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Not as `main`'s result: a backtrace would hide what the message says to do.
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
        Command::Manifests => write_manifests::run(),
        Command::Tables => tables::write(),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Check => check::run(),
        Command::Test(options) => test::run(&options),
        Command::Soak(options) => test::soak(&options),
    }
}
