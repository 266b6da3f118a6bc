//! The command line: wires the agent's tasks together.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use podwire::claim::Claim;
use podwire::cmd::{self, completions, drops, endpoints, flows, host_ports, nodes, status};
use podwire::cni_server;
use podwire::config::{Config, Logging, ServiceMode};
use podwire::config_file::CommandLine;
use podwire::daemon::Daemon;
use podwire::dataplane::flows::Collector;
use podwire::dataplane::pins;
use podwire::dataplane::probe::Capabilities;
use podwire::events::Event;
use podwire::link_watch;
use podwire::log;
use podwire::log_level;
use podwire::migrate_flannel;
use podwire::monitor;
use podwire::nodes::file;
use podwire::nodes::kube::Source;
use podwire::non_masquerade;
use podwire::objects::Pace;
use podwire::objects::client::Server;
use podwire::operator;
use podwire::packet_events::{self, Listeners};
use podwire::service_health;
use podwire::services::{self, api_server};
use podwire::store::{API_SERVERS, NODES, SERVICES, Store};
use podwire::uninstall::{self, Options};
use podwire::unix_socket::{self, ListeningSocket};
use podwire::{health, housekeeping, install};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

/// Enough file descriptors for all connections of socket and metrics, maps, programs, links, and
/// files.
const DESCRIPTORS: u64 = 1024;

/// Largest number of events that wait for the owner of state.
const QUEUE: usize = 256;

/// A Kubernetes node's pod network in eBPF.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve this node's pods, in the foreground.
    #[command(after_help = "Example: podwire agent --node-name node1 --mode direct")]
    Agent(Box<Config>),
    /// Copy the plugin to where the runtime looks for it, in one step, even while an earlier one
    /// runs.
    #[command(after_help = "Example: podwire install --cni-bin-dir /opt/cni/bin")]
    Install(install::Options),
    /// Remove everything that agents and the plugin have made on this node, and cut its pods off.
    /// Stop the agent first.
    #[command(after_help = "Example: podwire uninstall --cni-conf-dir /etc/cni/net.d")]
    Uninstall(Options),
    /// Do nothing until SIGTERM or SIGINT, to keep a pod running after another of its containers
    /// has done the work.
    #[command(after_help = "Example: podwire wait --log-level warn")]
    Wait(Logging),
    /// Print the state of this node's pod network, on one screen.
    Status(status::Options),
    /// Print the pods of this node that have a network.
    Endpoints(endpoints::Options),
    /// Print the nodes that the programs know.
    Nodes(nodes::Options),
    /// Print the hostPorts of this node's pods.
    Hostports(host_ports::Options),
    /// Print where clients reach services, who serves them, and which backends they reach.
    Services(cmd::services::Options),
    /// Print how many packets the programs have dropped, and why.
    Drops(drops::Options),
    /// Print what the programs remember of flows, or delete one flow.
    Flows(flows::Options),
    /// Print what the programs do with packets, while they do it: drops, new flows, translations.
    Monitor(monitor::Options),
    /// Change what the running agent logs, until it restarts.
    LogLevel(log_level::Options),
    /// Print a script with which a shell completes commands and options.
    Completions(completions::Options),
    /// Print how to move a cluster to Podwire.
    #[command(subcommand)]
    Migrate(Migrate),
}

#[derive(Subcommand)]
enum Migrate {
    /// Print the configuration that replaces flannel's, followed by the steps as comments.
    #[command(
        after_help = "Example: kubectl get configmap -n kube-flannel kube-flannel-cfg -o jsonpath='{.data.net-conf\\.json}' | podwire migrate flannel --net-conf -"
    )]
    Flannel(migrate_flannel::Options),
}

fn main() -> ExitCode {
    let command_line = match CommandLine::new(Cli::command(), std::env::args_os()) {
        Ok(command_line) => command_line,
        Err(error) => {
            eprintln!("podwire: {error}");
            return ExitCode::FAILURE;
        }
    };
    let command = Cli::parse_from(command_line.arguments()).command;
    let logging = match &command {
        Command::Agent(config) => &config.logging,
        Command::Install(options) => &options.logging,
        Command::Uninstall(options) => &options.logging,
        Command::Wait(logging) => logging,
        Command::Status(options) => &options.common.logging,
        Command::Endpoints(options) => &options.common.logging,
        Command::Nodes(options) => &options.common.logging,
        Command::Hostports(options) => &options.common.logging,
        Command::Services(options) => &options.common.logging,
        Command::Drops(options) => &options.common.logging,
        Command::Flows(options) => &options.common.logging,
        Command::Completions(options) => &options.logging,
        Command::Monitor(options) => &options.logging,
        Command::LogLevel(options) => &options.logging,
        Command::Migrate(Migrate::Flannel(options)) => &options.logging,
    };
    let log = match log::start(logging) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("podwire: {error}");
            return ExitCode::FAILURE;
        }
    };
    match run(command, command_line, log) {
        Ok(code) => code,
        Err(error) if error.downcast_ref().is_some_and(cmd::Error::is_closed_output) => ExitCode::SUCCESS,
        Err(error) => {
            // Each error's message includes its sources. Logging them too would repeat them.
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, command_line: CommandLine, log: log::Control) -> Result<ExitCode> {
    // One thread is enough: one task owns the state, and all others wait most of the time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Agent(config) => runtime.block_on(serve(*config, command_line, log))?,
        Command::Install(options) => install::run(&options)?,
        Command::Uninstall(options) => runtime.block_on(uninstall(&options))?,
        Command::Status(options) => return Ok(status::run(&options)?),
        Command::Endpoints(options) => endpoints::run(&options)?,
        Command::Nodes(options) => nodes::run(&options)?,
        Command::Hostports(options) => host_ports::run(&options)?,
        Command::Services(options) => cmd::services::run(&options)?,
        Command::Drops(options) => drops::run(&options)?,
        Command::Flows(options) => flows::run(&options)?,
        Command::Completions(options) => completions::run(&options, &mut Cli::command()),
        Command::Monitor(options) => monitor::run(&options)?,
        Command::LogLevel(options) => log_level::run(&options)?,
        Command::Wait(_) => runtime.block_on(wait())?,
        Command::Migrate(Migrate::Flannel(options)) => {
            io::stdout().write_all(migrate_flannel::run(&options)?.as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn uninstall(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("`podwire uninstall` removes devices, routes and programs: run it as root");
    }
    match uninstall::run(options).await? {
        0 => Ok(()),
        failed => bail!(
            "podwire could not remove everything ({failed} errors above): correct their causes, then run `podwire uninstall` again"
        ),
    }
}

async fn serve(config: Config, command_line: CommandLine, log: log::Control) -> Result<()> {
    info!(version = env!("CARGO_PKG_VERSION"), node = config.node_name, mode = ?config.mode, "podwire agent");
    if !rustix::process::geteuid().is_root() {
        bail!("the agent loads BPF programs and makes devices and routes: run it as root");
    }
    config.check().map_err(|contradiction| anyhow!(contradiction))?;
    reserve_descriptors(DESCRIPTORS + service_health::descriptors(&config));
    let store = Store::open(&config.places.state_dir)?;
    Claim::own(&config.places.bpf_dir)?.check(&config.places.state_dir)?;
    let socket_lock = unix_socket::hold(&config.places.socket())?;
    let operator_socket = config.places.operator_socket();
    let operator_lock = unix_socket::hold(&operator_socket)?;
    let bpf_lock = pins::hold(&config.places.bpf_dir)?;
    let capabilities = Capabilities::probe(config.cgroup_dir.as_deref());
    capabilities.print();
    let metrics = health::Listeners::bind(config.metrics_address, &config.metrics_node_addresses)?;
    let config_file = config.config_file.clone();
    let (socket, nodes, excluded) =
        (config.places.socket(), config.nodes.clone(), config.non_masquerade_file.clone());
    let (reads_services, services_file) = (config.services == ServiceMode::On, config.services_file.clone());
    // Fail before the node is changed.
    let api = match nodes {
        Some(_) => None,
        None => {
            // Only an agent that serves services knows the endpoints.
            let endpoints = reads_services.then(|| config.places.state_dir.join(API_SERVERS));
            Some(Server::new(config.api.clone(), Pace::default().silence, endpoints).await?)
        }
    };
    let service_health_address = config.service_health_address;
    let (node_name, state_dir) = (config.node_name.clone(), config.places.state_dir.clone());
    let mut daemon = Daemon::start(config, &capabilities, store, bpf_lock).await?;
    daemon.note_api_server(api.as_ref().and_then(|server| server.address()));

    let server = ListeningSocket::bind(&socket, socket_lock)?;
    let (events, queue) = mpsc::channel(QUEUE);
    let (ring, switch) = daemon.event_ring()?;
    let listeners = Listeners::new(switch);
    tokio::spawn(packet_events::read(ring, listeners.clone()));
    let operators = ListeningSocket::bind(&operator_socket, operator_lock)?;
    tokio::spawn(serve_operators(operators, events.clone(), listeners, log));
    collect_in_background(daemon.collector()?, events.clone());
    if reads_services {
        let closer = daemon.socket_closer()?;
        std::thread::spawn(move || closer.run());
    }
    tokio::spawn(metrics.serve(events.clone(), daemon.readiness()));
    if let Some(address) = service_health_address {
        tokio::spawn(service_health::serve(address, daemon.service_health(), events.clone()));
    }
    tokio::spawn(ticks(events.clone()));
    tokio::spawn(stop_on(SignalKind::terminate(), events.clone()));
    tokio::spawn(stop_on(SignalKind::interrupt(), events.clone()));
    let mut watching = JoinSet::new();
    watching.spawn(lasting(link_watch::watch(events.clone())));
    if let Some(file) = nodes {
        watching.spawn(lasting(file::watch(file, events.clone())));
    }
    if let Some(file) = services_file {
        watching.spawn(lasting(services::file::watch(file, events.clone())));
    } else if let (Some(server), true) = (&api, reads_services) {
        let (server, saved) = (server.clone(), state_dir.join(SERVICES));
        let source = api_server::Source { server, saved, pace: api_server::Source::pace() };
        watching.spawn(endless(source.watch(events.clone())));
    }
    if let Some(server) = api {
        let (saved, pace, looks) = (state_dir.join(NODES), Pace::default(), Source::LOOKS);
        let source = Source { server, node_name, saved, pace, looks };
        watching.spawn(endless(source.watch(events.clone(), daemon.readiness())));
    }
    if let Some(excluded) = excluded {
        watching.spawn(lasting(non_masquerade::watch(excluded, events.clone())));
    }
    if let Some(file) = config_file {
        watching.spawn(lasting(command_line.watch(file, events.clone())));
    }
    let mut serving = tokio::spawn(cni_server::serve(server, events, daemon.durations()));
    tokio::select! {
        () = daemon.run(queue) => {}
        // End the agent when a source fails. If the node list cannot be watched, for example, this
        // node would silently lose touch with the cluster.
        Some(failed) = watching.join_next() => failed??,
        // Without the socket, no plugin reaches the agent.
        ended = &mut serving => return Ok(ended??),
    }
    // The server ends when the queue is dropped, and removes the socket's file.
    Ok(serving.await??)
}

/// Serves operators. Pods do not need this, so the agent goes on without it.
async fn serve_operators(
    socket: ListeningSocket,
    events: mpsc::Sender<Event>,
    listeners: Listeners,
    log: log::Control,
) {
    if let Err(error) = operator::serve(socket, events, listeners, log).await {
        error!("`podwire monitor` and others no longer reach the agent: {error}");
    }
}

/// Raises the limit of open files if it is too low, so that no client can keep the agent from
/// opening a file.
fn reserve_descriptors(needed: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let current = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit }) {
        warn!("cannot raise the limit of open files to {current}: {error}");
    } else if current < needed {
        warn!(
            "the agent may open only {current} files: raise its limit to {needed} (LimitNOFILE=, ulimit -n)"
        );
    }
}

/// Runs a source that ends only when the agent does, or with an error that makes it useless.
async fn lasting<E>(source: impl Future<Output = Result<(), E>>) -> Result<()>
where
    anyhow::Error: From<E>,
{
    Ok(source.await?)
}

/// Runs a source that ends only when the agent does.
async fn endless(source: impl Future<Output = ()>) -> Result<()> {
    source.await;
    Ok(())
}

async fn wait() -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    info!("waiting for SIGTERM or SIGINT");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn stop_on(kind: SignalKind, events: mpsc::Sender<Event>) {
    match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
            let _ = events.send(Event::Stop).await;
        }
        Err(error) => error!("cannot listen for signals: {error}"),
    }
}

/// Removes expired entries from the tables until the receiver of the events is dropped. Runs on its
/// own thread, because a round through a full table takes a tenth of a second.
fn collect_in_background(mut collector: Collector, events: mpsc::Sender<Event>) {
    std::thread::spawn(move || {
        let mut pause = housekeeping::INTERVAL;
        loop {
            std::thread::sleep(pause);
            match collector.collect(housekeeping::now()) {
                Ok(collected) => {
                    pause = housekeeping::pause(collected.is_pressed());
                    if events.blocking_send(Event::Collected(collected)).is_err() {
                        return;
                    }
                }
                Err(error) => error!("cannot remove expired entries from the tables: {error}"),
            }
        }
    });
}

async fn ticks(events: mpsc::Sender<Event>) {
    let mut ticks = interval(housekeeping::INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if events.send(Event::Tick).await.is_err() {
            return;
        }
    }
}
