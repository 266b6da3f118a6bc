//! The chart for a cluster, and the two manifests for kubectl that are rendered from it.

mod options;
mod reference;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub use options::CommandOption;
pub use reference::config_reference;

/// The template that becomes a separate manifest for kubectl. For helm it is a hook.
const UNINSTALL: &str = "uninstall.yaml";

/// An installation of the chart.
#[derive(Clone, Debug)]
pub struct Release {
    /// Values that replace those of `values.yaml`.
    pub values: Value,
    /// The namespace of the installation.
    pub namespace: String,
}

impl Default for Release {
    /// Returns the release from which the manifests for kubectl are rendered.
    fn default() -> Self {
        Self { values: json!({}), namespace: "kube-system".to_owned() }
    }
}

impl Release {
    /// Renders the chart, and returns the text of each template by file name.
    ///
    /// # Errors
    /// When Go or its YAML library is missing, or when a template cannot be rendered. The message
    /// has the reason.
    pub fn render(&self) -> Result<BTreeMap<String, String>> {
        let request = json!({
            "Values": self.values,
            "Namespace": self.namespace,
        });
        let mut command = Command::new("go");
        command
            .args(["run", "xtask/src/manifests/render.go"])
            .arg(chart())
            .current_dir(root())
            // Use Debian's libraries and no network.
            .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")])
            .env("GOCACHE", root().join("target/go"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("start go: `cargo xtask setup` installs it")?;
        // render.go reads all of its input before it writes, so neither side can block.
        child.stdin.take().context("go has no input")?.write_all(request.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "render the chart with {request}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("decode what render.go printed")
    }
}

/// Renders the manifests for kubectl from the chart with its own values. Returns them by path in
/// the repository.
///
/// # Errors
/// Those of [`Release::render`].
pub fn for_kubectl() -> Result<BTreeMap<PathBuf, String>> {
    let mut rendered = Release::default().render()?;
    let uninstall = rendered.remove(UNINSTALL).context("the chart has no uninstall.yaml")?;
    let written = |documents: &str| {
        format!(
            "# For kubectl: manifests/chart with its own values. Written by `cargo xtask manifests`.\n---\n{}\n",
            documents.trim_end()
        )
    };
    let texts = rendered.values().map(|text| text.trim());
    // A template that a value switches on may have no document.
    let install: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
    Ok(BTreeMap::from([
        ("manifests/podwire.yaml".into(), written(&install.join("\n---\n"))),
        ("manifests/uninstall.yaml".into(), written(&uninstall)),
    ]))
}

/// Returns the chart's list of the agent's options: its path in the repository, and its text for an
/// agent that prints this help.
///
/// # Errors
/// When the chart cannot be read, or when the help lists no options.
pub fn reference(help: &str) -> Result<(PathBuf, String)> {
    let agent = chart().join("templates/daemonset.yaml");
    let pod = std::fs::read_to_string(&agent).with_context(|| format!("read {}", agent.display()))?;
    let options = options::parse(help)?;
    let free: Vec<&CommandOption> = options.iter().filter(|option| !option.is_the_pods(&pod)).collect();
    Ok(("manifests/chart/config.yaml".into(), config_reference(&free)))
}

/// Returns the options that a command's `--help` lists.
///
/// # Errors
/// When it lists none.
pub fn options(help: &str) -> Result<Vec<CommandOption>> {
    options::parse(help)
}

/// Returns the folder of the chart.
pub fn chart() -> PathBuf {
    root().join("manifests/chart")
}

/// Returns the folder of the repository.
///
/// `cargo run` says where this package lies now; the compiler said where it lay. They differ after
/// a checkout was moved or copied with its builds.
pub fn root() -> &'static Path {
    static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
        let now = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        now.filter(|folder| folder.ends_with("xtask")).unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into())
    });
    PACKAGE.parent().unwrap_or(&PACKAGE)
}
