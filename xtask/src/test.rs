//! `cargo xtask test` and `soak`: builds every test once, then runs one layer after the other.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::envtest::{ASSETS, Binaries};
use xtask::family_table::{self, Table};

use crate::budget::{Group, Spent};
use crate::kernels::{Guest, Kernel, Report};
use crate::{build, check, run};

/// The variable that asks for the longer version of tests that have one; see
/// [`xtask::lab::is_soak`].
const SOAK: &str = "PODWIRE_SOAK";
/// Layers with tests that have a longer version.
const SOAK_LAYERS: [&str; 4] = [NAMESPACE_LAYER, "plugin", "release", "runtime"];

/// The layer of network namespaces, whose tests record the family of each path.
const NAMESPACE_LAYER: &str = "netns";
/// Tests of that layer that run at the same time, for each core: they wait most of their time.
const NAMESPACE_TESTS_PER_CORE: usize = 2;
/// The variable with which the user chooses how many tests run at the same time.
const TEST_THREADS: &str = "RUST_TEST_THREADS";
/// The layer that also tests against a cluster's own API server, if its binaries are found.
const KUBE_LAYER: &str = "kube";
/// Layers that also run on other kernels, and a filter: only tests with this text in their name run
/// there. An empty filter means all tests.
const KERNEL_LAYERS: [(&str, &str); 2] = [("prog", ""), (NAMESPACE_LAYER, "every_path_between")];
/// Tests of `prog` that only soak runs on other kernels. They take about half of the time there, and
/// what they show does not depend on the kernel.
const SOAK_ON_KERNELS: [&str; 11] = [
    "chain::",
    "costs::a_packet_costs_what_is_recorded",
    "forgotten::",
    "known::other_packets_of_the_sender_do_not_follow_what_is_known",
    "known::what_is_known_ends_with_what_it_was_made_of",
    "to_uplink::when_the_table_is_full_the_flow_is_refused",
    "upgrade::a_rolled_back_upgrade_is_removed_by_the_layout_that_counts",
    "upgrade::an_attempt_that_did_not_fill_its_maps_is_begun_anew",
    "upgrade::an_upgrade_killed_after_its_last_step_is_cleaned_up",
    "upgrade::until_it_ends_an_upgrade_leaves_the_earlier_maps_alone",
    "upgrade::what_earlier_programs_write_meanwhile_is_carried_over",
];
/// The variable that makes tests write a new record instead of comparing with the old one.
const RECORD_ANEW: &str = "PODWIRE_RECORD";

/// Options of `cargo xtask test` and `cargo xtask soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only this layer: `unit`, `doc`, or an integration test (`prog`, `netns`, `plugin`, …).
    #[arg(long, value_name = "LAYER")]
    only: Option<String>,
    /// Run the packet tables and the paths between pods and nodes only, on this Debian kernel.
    ///
    /// The kernel runs in an emulated machine.
    #[arg(long, value_name = "VERSION", conflicts_with = "only")]
    kernel: Option<Kernel>,
    /// Run only tests with this text in their name.
    filter: Option<String>,
}

impl Options {
    /// Returns whether they select everything.
    fn is_whole(&self) -> bool {
        self.only.is_none() && self.kernel.is_none() && self.filter.is_none()
    }

    /// Returns the kernels that they select besides this machine's.
    fn kernels(&self) -> Vec<Kernel> {
        if self.is_whole() { Kernel::ALL.to_vec() } else { Vec::from_iter(self.kernel) }
    }
}

/// Runs `check`, then every layer. With an option or a filter, runs only the tests that it selects.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure_root()?;
    let (start, mut spent) = (Instant::now(), Spent::default());
    let mut layers = spent.timed(Group::Checks, || {
        build::for_tests()?;
        if options.is_whole() {
            check::run()?;
        }
        layers(options)
    })?;
    if !options.kernels().is_empty() {
        spent.timed(Group::Kernels, || add_kernels(&mut layers, options, &SOAK_ON_KERNELS))?;
    }
    let outcome = report(&layers, options, &[], start, &mut spent);
    println!("\n{}", spent.lines().join("\n"));
    outcome
}

/// Runs the longer version of the tests in the layers that have one.
pub(crate) fn soak(options: &Options) -> Result<()> {
    ensure_root()?;
    let start = Instant::now();
    build::for_tests()?;
    let mut layers = layers(options)?;
    if !options.kernels().is_empty() {
        add_kernels(&mut layers, options, &[])?;
    }
    let is_longer = |layer: &Layer| layer.guest.is_some() || SOAK_LAYERS.contains(&layer.name.as_str());
    layers.retain(|layer| options.only.is_some() || is_longer(layer));
    report(&layers, options, &[(SOAK, "1")], start, &mut Spent::default())
}

/// Tests that run as one group.
struct Layer {
    name: String,
    programs: Vec<Program>,
    /// The machine that runs the tests; `None` is this machine.
    guest: Option<Guest>,
}

/// A test executable.
#[derive(Clone)]
struct Program {
    executable: PathBuf,
    package: PathBuf,
    /// The default filter: only tests with this text in their name run if the user gives no filter.
    filter: &'static str,
    /// Texts: tests with one of them in their name do not run if the user gives no filter.
    left_out: &'static [&'static str],
}

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// What the failed tests said, by test: its name and its first lines.
    said: Vec<Vec<String>>,
    is_told: bool,
}

/// Fails unless the user is root. No test is skipped for lack of privilege: a skipped test proves
/// nothing.
fn ensure_root() -> Result<()> {
    ensure!(run::is_root(), "the tests load BPF programs and make network namespaces: run them as root");
    Ok(())
}

/// Builds all tests with one cargo command. So each package has the same features in all tests, and
/// cargo compiles nothing twice. Cargo also builds the binaries that integration tests run.
fn layers(options: &Options) -> Result<Vec<Layer>> {
    let messages = run::step("cargo test --no-run", || {
        let mut command = run::cargo(&["test", "--no-run", "--message-format", "json-render-diagnostics"]);
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "the tests do not compile");
        Ok(String::from_utf8(output.stdout)?)
    })?;
    let mut unit = Layer { name: "unit".to_owned(), programs: Vec::new(), guest: None };
    let mut layers = Vec::new();
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("decode what cargo says")?;
        let Some(executable) = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)
        else {
            continue;
        };
        let target = &message["target"];
        let manifest = PathBuf::from(message["manifest_path"].as_str().unwrap_or_default());
        let program = Program {
            executable: executable.into(),
            package: manifest.parent().context("a manifest without a folder")?.to_owned(),
            filter: "",
            left_out: &[],
        };
        if target["kind"][0] == "test" {
            let name = target["name"].as_str().context("a test without a name")?.to_owned();
            layers.push(Layer { name, programs: vec![program], guest: None });
        } else {
            unit.programs.push(program);
        }
    }
    layers.sort_by(|one, other| one.name.cmp(&other.name));
    layers.insert(0, unit);
    layers.push(Layer { name: "doc".to_owned(), programs: Vec::new(), guest: None });
    if let Some(only) = &options.only {
        let names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
        layers.retain(|layer| layer.name == *only);
        ensure!(!layers.is_empty(), "there is no layer {only}; there are {}", names.join(", "));
    }
    Ok(layers)
}

/// Adds one layer for each kernel that the options select. If they name one, it is the only layer.
/// `left_out`: tests that do not run there, unless the user gives a filter.
fn add_kernels(layers: &mut Vec<Layer>, options: &Options, left_out: &'static [&'static str]) -> Result<()> {
    let mut programs = Vec::new();
    for (name, filter) in KERNEL_LAYERS {
        let layer = layers.iter().find(|layer| layer.name == name);
        let layer = layer.with_context(|| format!("there is no layer {name}"))?;
        programs.extend(layer.programs.iter().cloned().map(|program| Program {
            filter,
            left_out,
            ..program
        }));
    }
    if options.kernel.is_some() {
        layers.clear();
    }
    for kernel in options.kernels() {
        let guest = Some(Guest::prepare(kernel)?);
        layers.push(Layer { name: format!("Linux {kernel}"), programs: programs.clone(), guest });
    }
    Ok(())
}

/// Runs all layers, even after one has failed, and prints a line for each at the end.
fn report(
    layers: &[Layer],
    options: &Options,
    environment: &[(&str, &str)],
    start: Instant,
    spent: &mut Spent,
) -> Result<()> {
    let cluster = Binaries::from_environment()?;
    let mut lines = Vec::new();
    let (mut failed, mut said) = (Vec::new(), Vec::new());
    for layer in layers {
        let layer_start = Instant::now();
        let mut tally = Tally::default();
        let outcome = spent.timed(layer.group(), || {
            run::step(&format!("tests: {}", layer.name), || layer.run(options, environment, &mut tally))
        });
        let seconds = layer_start.elapsed().as_secs_f64();
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        lines.push(format!(
            "{:<10} {:>5} passed {:>3} failed {seconds:>7.1} s  {word}",
            layer.name, tally.passed, tally.failed
        ));
        if let Err(error) = outcome {
            eprintln!("{}: {error:#}", layer.name);
            failed.push(layer.name.as_str());
        }
        said.append(&mut tally.said);
    }
    if layers.iter().any(|layer| layer.name == KUBE_LAYER) {
        lines.push(cluster.map_or_else(did_not_run, ran));
    }
    println!("\n{}\n{:.0} s in all", lines.join("\n"), start.elapsed().as_secs_f64());
    if !failed.is_empty() {
        bail!("failed: {}\n{}", failed.join(", "), said.concat().join("\n"));
    }
    Ok(())
}

fn ran(cluster: Binaries) -> String {
    format!("the tests of {KUBE_LAYER} asked {}, too", cluster.kube_apiserver.display())
}

fn did_not_run() -> String {
    format!(
        "not run: the tests of {KUBE_LAYER} against a cluster's own API server ({ASSETS} names no folder with etcd and kube-apiserver)"
    )
}

impl Layer {
    fn group(&self) -> Group {
        match &self.guest {
            Some(_) => Group::Kernels,
            None if self.name == NAMESPACE_LAYER => Group::Namespaces,
            None => Group::Rest,
        }
    }

    fn run(&self, options: &Options, environment: &[(&str, &str)], tally: &mut Tally) -> Result<()> {
        if self.group() != Group::Namespaces {
            return self.run_programs(options, environment, tally);
        }
        let file = run::target_dir().join("family-table.txt");
        fs::write(&file, "").with_context(|| format!("empty {}", file.display()))?;
        let path = file.to_string_lossy();
        let threads = namespace_threads()?;
        let own = [(family_table::FILE, &*path), (TEST_THREADS, &*threads)];
        let outcome = self.run_programs(options, &[environment, &own].concat(), tally);
        let records = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let table = Table::parse(&records);
        if !table.is_empty() {
            println!("Paths that were checked, by family:\n{table}");
        }
        outcome?;
        let faults = if options.filter.is_none() { table.faults() } else { Vec::new() };
        ensure!(faults.is_empty(), "a path has one family only:\n{}", faults.join("\n"));
        Ok(())
    }

    fn run_programs(&self, options: &Options, environment: &[(&str, &str)], tally: &mut Tally) -> Result<()> {
        if self.name == "doc" {
            return run_tests(&mut run::cargo(&["test", "--quiet", "--doc"]), tally, None);
        }
        let mut failed = Vec::new();
        for program in &self.programs {
            let outcome = match &self.guest {
                Some(guest) => program.run_on(guest, options, tally),
                None => program.run(options, environment, tally),
            };
            if let Err(error) = outcome {
                failed.push(format!("{}: {error:#}", name_of(&program.executable)));
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("; "));
        ensure!(options.filter.is_some() || tally.passed > 0, "not one test ran");
        Ok(())
    }
}

impl Program {
    fn run(&self, options: &Options, environment: &[(&str, &str)], tally: &mut Tally) -> Result<()> {
        let mut command = Command::new(&self.executable);
        command
            .args(&options.filter)
            .current_dir(&self.package)
            .env("CARGO_MANIFEST_DIR", &self.package)
            .envs(environment.iter().copied());
        run_tests(&mut command, tally, None)
    }

    fn run_on(&self, guest: &Guest, options: &Options, tally: &mut Tally) -> Result<()> {
        let filter = options.filter.as_deref().unwrap_or(self.filter);
        let mut arguments = if filter.is_empty() { vec![] } else { vec![filter] };
        if options.filter.is_none() {
            arguments.extend(self.left_out.iter().flat_map(|test| ["--skip", test]));
        }
        let is_recorded = std::env::var_os(RECORD_ANEW).is_some();
        let environment: &[_] = if is_recorded { &[(RECORD_ANEW, "1")] } else { &[] };
        let mut command = guest.command(&self.executable, &self.package, &arguments, environment)?;
        let mut report = Report::default();
        run_tests(&mut command, tally, Some(&mut report))?;
        guest.finish(&report)
    }
}

/// Prints the output of the test harness and adds its results to the tally. Lines of a guest's
/// first process go to the guest's report instead.
fn run_tests(command: &mut Command, tally: &mut Tally, mut report: Option<&mut Report>) -> Result<()> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {}", run::shown(command)))?;
    let watchdog = Watchdog::start(&child);
    let output = child.stdout.take().context("the tests have no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let text = String::from_utf8_lossy(&line);
        if report.as_mut().is_some_and(|report| report.takes(&text)) {
            continue;
        }
        std::io::stdout().write_all(&line)?;
        println!();
        tally.add(&text);
    }
    let status = child.wait()?;
    drop(watchdog);
    ensure!(status.success(), "{status}");
    ensure!(tally.ignored == 0, "a test was skipped: it shows nothing");
    Ok(())
}

/// A timer that kills tests that hang, so that CI names them before CI's own time limit ends the
/// run.
struct Watchdog {
    ended: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    const PATIENCE: Duration = Duration::from_secs(30 * 60);

    fn start(child: &std::process::Child) -> Self {
        let pid = rustix::process::Pid::from_child(child);
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if end.recv_timeout(Self::PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                eprintln!(
                    "the tests did not end within {} minutes and are killed",
                    Self::PATIENCE.as_secs() / 60
                );
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        Self { ended }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.ended.send(());
    }
}

impl Tally {
    /// The most lines to keep of what one test said.
    const LINES: usize = 20;

    /// Adds the numbers of a line such as `test result: ok. 8 passed; 0 failed; 0 ignored; …`.
    /// Keeps what follows `---- name stdout ----` until the list of names, `failures:`.
    fn add(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.is_told = true;
            self.said.push(Vec::new());
        }
        self.is_told &= line != "failures:";
        match self.said.last_mut() {
            Some(said) if self.is_told && said.len() < Self::LINES => said.push(line.to_owned()),
            _ => {}
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        for part in result.split([';', '.']) {
            match part.split_whitespace().collect::<Vec<_>>()[..] {
                [count, "passed"] => self.passed += count.parse().unwrap_or(0),
                [count, "failed"] => self.failed += count.parse().unwrap_or(0),
                [count, "ignored"] => self.ignored += count.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

/// Returns how many tests of the namespace layer run at the same time.
fn namespace_threads() -> Result<String> {
    if let Ok(wanted) = std::env::var(TEST_THREADS) {
        return Ok(wanted);
    }
    let cores = std::thread::available_parallelism().context("count the cores")?;
    Ok((NAMESPACE_TESTS_PER_CORE * cores.get()).to_string())
}

fn name_of(executable: &Path) -> String {
    executable.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut tally = Tally::default();
        for line in [
            "test a ... ok",
            "test result: ok. 8 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 7.10s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 7.10s",
        ] {
            tally.add(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.ignored), (10, 3, 1));
    }

    #[test]
    fn first_lines_of_what_failed_tests_said_are_kept() {
        let mut tally = Tally::default();
        let long = vec!["x"; Tally::LINES + 1];
        let first = ["failures:", "", "---- one stdout ----", "left: 1"];
        let rest = ["---- two stdout ----", "right: 2", "failures:", "    one", "test result: FAILED."];
        for line in [&first[..], &long, &rest].concat() {
            tally.add(line);
        }
        let kept = [&first[2..], &long[3..]].concat();
        assert_eq!(tally.said, [kept, rest[..2].to_vec()]);
    }
}
