//! The script `kubectl podwire`, with a kubectl that writes down how it is called.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::Result;
use tempfile::TempDir;
use xtask::manifests::root;

/// Knows one agent: on the node `node1`.
const KUBECTL: &str = r#"#!/bin/sh
printf '<%s>' "$@" >> "$CALLS"
echo >> "$CALLS"
case "$*" in
    *exec*) echo "on the node"; exit 3 ;;
    *spec.nodeName=node1,*) printf 'network podwire-x7k2p' ;;
    *) echo "error: array index out of bounds" >&2; exit 1 ;;
esac
"#;

struct Script {
    folder: TempDir,
}

impl Script {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kubectl = folder.path().join("kubectl");
        fs::write(&kubectl, KUBECTL)?;
        fs::set_permissions(&kubectl, Permissions::from_mode(0o755))?;
        Ok(Self { folder })
    }

    fn calls(&self) -> std::path::PathBuf {
        self.folder.path().join("calls")
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let path = format!("{}:{}", self.folder.path().display(), std::env::var("PATH")?);
        let script: &Path = &root().join("manifests/kubectl-podwire");
        Ok(Command::new(script).args(arguments).env("PATH", path).env("CALLS", self.calls()).output()?)
    }
}

#[test]
fn kubectl_podwire_runs_the_command_in_the_nodes_agent() -> Result<()> {
    let script = Script::new()?;
    let output = script.run(&["--context", "my cluster", "--node=node1", "flows", "--pod", "a b"])?;
    assert_eq!(String::from_utf8(output.stdout)?, "on the node\n");
    assert_eq!(output.status.code(), Some(3), "the command's own exit code");
    let calls = fs::read_to_string(script.calls())?;
    let exec = calls.lines().nth(1).unwrap_or_default();
    let context = "<--context><my cluster>";
    let place = "<exec><--namespace><network><podwire-x7k2p><--container><agent>";
    assert_eq!(exec, format!("{context}{place}<--><podwire><flows><--pod><a b>"), "{calls}");
    assert!(calls.starts_with(context), "{calls}");
    Ok(())
}

#[test]
fn kubectl_podwire_says_what_is_missing() -> Result<()> {
    let script = Script::new()?;
    let output = script.run(&["--node", "node7", "status"])?;
    let said = String::from_utf8(output.stderr)?;
    assert!(output.status.code() == Some(1) && said.contains("no agent runs on node node7"), "{said}");
    for wrong in [&["status"][..], &["--node", "node1"], &["--node"], &["--nodes", "node1", "status"]] {
        let output = script.run(wrong)?;
        let said = String::from_utf8(output.stderr)?;
        assert!(
            output.status.code() == Some(2) && said.contains("usage: kubectl podwire"),
            "{wrong:?}: {said}"
        );
    }
    Ok(())
}
