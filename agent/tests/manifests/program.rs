//! What the manifests ask of the program, compared with the program's own help.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::manifests::{self, CommandOption};

use crate::documents::{self, containers, find, mounts, words};

#[test]
fn the_charts_list_of_options_is_the_agents() -> Result<()> {
    let (path, text) = manifests::reference(&help("agent")?)?;
    let there = fs::read_to_string(manifests::root().join(&path))?;
    assert!(there == text, "{} is stale: run `cargo xtask manifests`", path.display());
    Ok(())
}

#[test]
fn every_default_in_the_list_can_be_had_by_taking_its_mark_away() -> Result<()> {
    let (path, _) = manifests::reference(&help("agent")?)?;
    let list = fs::read_to_string(manifests::root().join(path))?;
    let is_default =
        |line: &&str| line.chars().any(char::is_lowercase) && !line.ends_with(char::is_uppercase);
    let options =
        list.lines().filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')));
    let taken: Vec<&str> = options.filter(is_default).collect();
    assert!(taken.contains(&"mode: vxlan") && taken.len() > 10, "{taken:?}");
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), taken.join("\n"))?;
    // The agent checks the log level after all other options and before it changes anything. An
    // invalid level shows that it took the others, and ends the agent there.
    let output = Command::new(env!("CARGO_BIN_EXE_podwire"))
        .args(["agent", "--node-name", "node1", "--log-level", "podwire=wrong", "--config"])
        .arg(file.path())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("podwire: --log-level podwire=wrong"), "{said}");
    Ok(())
}

#[test]
fn the_help_of_each_command_has_an_example() -> Result<()> {
    let text = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_podwire")).args(arguments).arg("--help").output()?;
        ensure!(output.status.success(), "{arguments:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let overview = text(&[])?;
    let listed = overview.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let commands: Vec<_> = listed.filter(|name| !["help", "migrate"].contains(name)).collect();
    assert!(commands.contains(&"agent") && commands.contains(&"flows"), "{overview}");
    let all = commands.iter().map(|name| vec![*name]).chain([vec!["migrate", "flannel"]]);
    for command in all {
        let help = text(&command)?;
        assert!(help.contains("Example"), "{command:?}: {help}");
    }
    Ok(())
}

/// An option without a value could be in no configuration.
#[test]
fn every_option_has_a_value() -> Result<()> {
    for option in manifests::options(&help("agent")?)? {
        assert!(!option.value.is_empty(), "{option:?}");
    }
    Ok(())
}

#[test]
fn every_argument_and_variable_is_one_of_the_programs() -> Result<()> {
    each_container(|container| {
        let (_, options) = command(container)?;
        for argument in words(&container["args"]).into_iter().skip(1) {
            let name = argument.split('=').next().unwrap_or_default().trim_start_matches("--");
            ensure!(options.iter().any(|option| option.name == name), "no option {argument}");
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("a variable without a name")?;
            let known = options.iter().any(|option| option.variable.as_deref() == Some(name));
            ensure!(known, "no option takes the variable {name}");
        }
        Ok(())
    })
}

#[test]
fn every_place_that_the_program_uses_is_mounted_and_no_other() -> Result<()> {
    each_container(|container| {
        let (name, options) = command(container)?;
        let mounts = mounts(container);
        let given = words(&container["args"]);
        let mut used = BTreeSet::new();
        for option in options.iter().filter(|option| ["FILE", "FOLDER"].contains(&option.value.as_str())) {
            let set = given.iter().find_map(|argument| argument.strip_prefix(&format!("--{}=", option.name)));
            let Some(place) = set.or(option.default.as_deref()) else { continue };
            let mount = mounts.keys().find(|mount| {
                // `--sysctl-dir` names the whole folder of sysctls, but only its `net` folder is
                // mounted: a container can write no others.
                Path::new(place).starts_with(mount) || Path::new(mount).starts_with(place)
            });
            let mount = mount.with_context(|| format!("--{} {place} is not mounted", option.name))?;
            used.insert(*mount);
        }
        // The agent finds cgroup2 by its mounts.
        let found: &[&str] = if name == "agent" { &["/sys/fs/cgroup"] } else { &[] };
        let unused: Vec<_> =
            mounts.keys().filter(|mount| !used.contains(*mount) && !found.contains(*mount)).collect();
        ensure!(unused.is_empty(), "nothing uses {unused:?}");
        Ok(())
    })
}

#[test]
fn every_volume_is_mounted_and_every_mount_has_its_volume() -> Result<()> {
    for daemon_set in daemon_sets()? {
        let mounted: BTreeSet<&str> = containers(&daemon_set)?
            .into_iter()
            .flat_map(|container| mounts(container).into_values())
            .collect();
        let volumes = daemon_set["spec"]["template"]["spec"]["volumes"].as_array().context("no volumes")?;
        let there: BTreeSet<&str> = volumes.iter().filter_map(|volume| volume["name"].as_str()).collect();
        assert_eq!(mounted, there);
    }
    Ok(())
}

#[test]
fn every_key_of_the_config_map_is_a_file_that_the_agent_reads() -> Result<()> {
    for release in documents::other_releases() {
        let documents = documents::rendered(&release)?;
        let data = find(&documents, "ConfigMap", "podwire")?["data"].as_object().context("no data")?;
        let daemon_set = find(&documents, "DaemonSet", "podwire")?;
        let agent = &daemon_set["spec"]["template"]["spec"]["containers"][0];
        for key in data.keys() {
            let file = format!("=/etc/podwire/{key}");
            assert!(words(&agent["args"]).iter().any(|argument| argument.ends_with(&file)), "{key}");
        }
    }
    Ok(())
}

#[test]
fn only_who_reads_a_node_list_has_a_token_and_rights() -> Result<()> {
    let documents = documents::rendered(&manifests::Release::default())?;
    for (name, has_token) in [("podwire", true), ("podwire-uninstall", false)] {
        let pod = &find(&documents, "DaemonSet", name)?["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], has_token, "{name}");
    }
    assert_eq!(find(&documents, "ServiceAccount", "podwire")?["automountServiceAccountToken"], false);
    assert_eq!(rights(&documents, "ClusterRole")?, OF_NODES);
    assert_eq!(rights(&documents, "Role")?, ["events.k8s.io events: create, patch"]);
    Ok(())
}

/// The rights of an agent without services.
const OF_NODES: [&str; 2] = [" nodes: list, watch", " nodes/status: patch"];

#[test]
fn rights_for_services_come_with_the_option_and_only_then() -> Result<()> {
    let of_services = [" services: list, watch", "discovery.k8s.io endpointslices: list, watch"];
    for (value, also) in [("on", &of_services[..]), ("off", &[])] {
        let values = json!({ "config": { "services": value } });
        let documents = documents::rendered(&manifests::Release { values, ..manifests::Release::default() })?;
        assert_eq!(rights(&documents, "ClusterRole")?, [&OF_NODES, also].concat(), "{value}");
        let config = &find(&documents, "ConfigMap", "podwire")?["data"]["config.yaml"];
        let config: Value = serde_saphyr::from_str(config.as_str().context("no config.yaml")?)?;
        assert_eq!(config, json!({ "services": value }));
    }
    Ok(())
}

/// Returns API group, resource and verbs of each rule of a role.
fn rights(documents: &[Value], kind: &str) -> Result<Vec<String>> {
    let rules = find(documents, kind, "podwire")?["rules"].as_array().context("no rules")?;
    let right = |rule: &Value| match (&words(&rule["apiGroups"])[..], &words(&rule["resources"])[..]) {
        ([group], [resource]) => Ok(format!("{group} {resource}: {}", words(&rule["verbs"]).join(", "))),
        _ => bail!("a rule of the {kind} names several kinds: {rule}"),
    };
    rules.iter().map(right).collect()
}

#[test]
fn each_container_has_the_capabilities_it_needs_and_no_other() -> Result<()> {
    each_container(|container| {
        let needed: &[&str] = match command(container)?.0.as_str() {
            "agent" => &["NET_ADMIN", "BPF", "PERFMON", "DAC_OVERRIDE"],
            "install" => &["DAC_OVERRIDE"],
            "uninstall" => &["NET_ADMIN", "DAC_OVERRIDE"],
            _ => &[],
        };
        let capabilities = &container["securityContext"]["capabilities"];
        assert_eq!(
            (words(&capabilities["drop"]), words(&capabilities["add"])),
            (vec!["ALL"], needed.to_vec())
        );
        Ok(())
    })
}

/// Runs a check with every container of every release. An error names the container.
fn each_container(check: impl Fn(&Value) -> Result<()>) -> Result<()> {
    for daemon_set in daemon_sets()? {
        for container in containers(&daemon_set)? {
            check(container)
                .with_context(|| format!("{}, {}", daemon_set["metadata"]["name"], container["name"]))?;
        }
    }
    Ok(())
}

fn daemon_sets() -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for release in documents::other_releases() {
        found.extend(documents::rendered(&release)?.into_iter().filter(|one| one["kind"] == "DaemonSet"));
    }
    ensure!(!found.is_empty(), "no DaemonSet");
    Ok(found)
}

/// Returns the command that a container runs, and the command's options.
fn command(container: &Value) -> Result<(String, Vec<CommandOption>)> {
    ensure!(container["command"].is_null(), "a container must run the image's entrypoint");
    let name = *words(&container["args"]).first().context("no command")?;
    let options = manifests::options(&help(name)?).with_context(|| format!("podwire {name}"))?;
    Ok((name.to_owned(), options))
}

fn help(command: &str) -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_podwire")).args([command, "--help"]).output()?;
    ensure!(output.status.success(), "podwire {command} --help: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
