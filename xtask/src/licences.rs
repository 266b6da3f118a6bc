//! Licences of the crates that Podwire is built from: which ones are allowed, and the texts that
//! the binaries must be shipped with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::manifests::root;

/// Licences under which Podwire may use a crate, as SPDX names them. All allow binaries under
/// Apache-2.0.
const ALLOWED: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];
/// The only place that crates may come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// The packages that are shipped.
const SHIPPED: [&str; 3] = ["podwire", "podwire-cni", "podwire-ebpf"];
/// Beginnings of the names of licence files in crates, in upper case.
const FILES: [&str; 5] = ["LICEN", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
/// The licence of a crate that ships no text, if the crate may be used under it.
const OWN: (&str, &str) = ("Apache-2.0", include_str!("../../LICENSE"));
const HEAD: &str = "\
Third-party software in Podwire's binaries

The binaries are linked with the crates below, each under the licence that it names. They also
contain Rust's standard library (MIT OR Apache-2.0) and, because they are static, the GNU C library
(LGPL-2.1-or-later). To link them with another C library, build Podwire from its source.
";

/// What `cargo metadata` prints, as far as it is used here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Clone, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Clone, Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` for what is linked; otherwise `dev` or `build`.
    kind: Option<String>,
}

/// Checks the licence and the source of every crate, tools and tests included, and that the text
/// of every shipped licence is at hand.
///
/// # Errors
/// The number of crates that must not be used. Each was printed with the reason.
pub fn check() -> Result<()> {
    let metadata = Metadata::read()?;
    let mut faults: Vec<String> = metadata.packages.iter().filter_map(Package::fault).collect();
    for package in metadata.shipped()? {
        if let Err(error) = package.texts() {
            faults.push(format!("{error:#}"));
        }
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    ensure!(faults.is_empty(), "{} crates must not be used", faults.len());
    Ok(())
}

/// Returns the licence texts of all crates that the binaries are linked with. Crates with the same
/// text share it.
///
/// # Errors
/// When cargo cannot list the crates, or a crate has no text.
pub fn third_party() -> Result<String> {
    let mut crates: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in Metadata::read()?.shipped()? {
        for text in package.texts()? {
            crates.entry(text).or_default().insert(package.title());
        }
    }
    let mut parts: Vec<(Vec<String>, String)> =
        crates.into_iter().map(|(text, names)| (names.into_iter().collect(), text)).collect();
    parts.sort();
    let rule = "-".repeat(80);
    let parts = parts
        .iter()
        .map(|(names, text)| format!("\n{rule}\n{}\n{rule}\n\n{}\n", names.join("\n"), text.trim_end()));
    Ok(std::iter::once(HEAD.to_owned()).chain(parts).collect())
}

impl Metadata {
    fn read() -> Result<Self> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["metadata", "--locked", "--format-version", "1", "--filter-platform"]);
        let output = command
            .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
            .current_dir(root())
            .output()
            .context("start cargo")?;
        ensure!(
            output.status.success(),
            "list the crates with cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        serde_json::from_slice(&output.stdout).context("decode what cargo metadata printed")
    }

    /// Returns the crates of others that are linked into the shipped binaries, by name.
    fn shipped(&self) -> Result<Vec<&Package>> {
        let packages: BTreeMap<&str, &Package> =
            self.packages.iter().map(|package| (&*package.id, package)).collect();
        let nodes: BTreeMap<&str, &Node> = self.resolve.nodes.iter().map(|node| (&*node.id, node)).collect();
        let own = self.packages.iter().filter(|package| SHIPPED.contains(&&*package.name));
        let mut open: Vec<&str> = own.map(|package| &*package.id).collect();
        let mut found = BTreeMap::new();
        while let Some(id) = open.pop() {
            let package = packages.get(id).with_context(|| format!("cargo lists no package {id}"))?;
            // A procedural macro runs in the compiler; none of it is in a binary.
            if package.is_macro() || found.insert((&package.name, &package.version), *package).is_some() {
                continue;
            }
            let node = nodes.get(id).with_context(|| format!("cargo resolved no package {id}"))?;
            let linked = node.deps.iter().filter(|one| one.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            open.extend(linked.map(|one| &*one.pkg));
        }
        Ok(found.into_values().filter(|package| package.source.is_some()).collect())
    }
}

impl Package {
    fn title(&self) -> String {
        format!("{} {} ({})", self.name, self.version, self.license.as_deref().unwrap_or_default())
    }

    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }

    /// Returns why this crate must not be used.
    fn fault(&self) -> Option<String> {
        let title = format!("{} {}", self.name, self.version);
        if let Some(source) = self.source.as_ref().filter(|source| *source != REGISTRY) {
            return Some(format!("{title} comes from {source}: take it from {REGISTRY}"));
        }
        let Some(licence) = &self.license else {
            return Some(format!("{title} names no licence: use another crate"));
        };
        match self.is_allowed(&ALLOWED) {
            Ok(true) => None,
            Ok(false) => Some(format!(
                "{title} has the licence {licence}, which `ALLOWED` in xtask/src/licences.rs lacks: use another \
                 crate, or add the licence if it allows binaries under Apache-2.0"
            )),
            Err(error) => Some(format!("{title}: the licence {licence} is no SPDX expression: {error:#}")),
        }
    }

    /// Returns whether these licences are enough to use the crate.
    fn is_allowed(&self, licences: &[&str]) -> Result<bool> {
        // Old crates write "MIT/Apache-2.0".
        let expression = Expression::parse_mode(self.license.as_deref().unwrap_or_default(), ParseMode::LAX)?;
        Ok(expression.evaluate(|one| licences.contains(&one.to_string().as_str())))
    }

    /// Returns the licence texts in the crate's folder.
    fn texts(&self) -> Result<Vec<String>> {
        let folder = self.manifest_path.parent().context("a manifest without a folder")?;
        let mut texts = BTreeMap::new();
        let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", folder.display()))?;
            let name = entry.file_name().to_string_lossy().to_uppercase();
            if FILES.iter().any(|beginning| name.starts_with(beginning)) && entry.path().is_file() {
                let bytes =
                    fs::read(entry.path()).with_context(|| format!("read {}", entry.path().display()))?;
                texts.insert(name, String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
            }
        }
        if texts.is_empty() {
            let (own, text) = OWN;
            if !self.is_allowed(&[own])? {
                bail!("{} has no licence text that could be shipped with the binaries", self.title());
            }
            texts.insert(own.to_owned(), text.to_owned());
        }
        Ok(texts.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(license: Option<&str>, source: &str) -> Package {
        Package {
            id: String::new(),
            name: "some".to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: Some(source.to_owned()),
            manifest_path: PathBuf::new(),
            targets: Vec::new(),
        }
    }

    #[test]
    fn licences_and_sources_that_are_not_allowed_are_faults() {
        for licence in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR ISC", "(MIT OR GPL-2.0-only) AND Zlib"] {
            assert_eq!(package(Some(licence), REGISTRY).fault(), None, "{licence}");
        }
        for (licence, reason) in [
            (Some("GPL-3.0-only"), "which `ALLOWED`"),
            (Some("MIT AND GPL-2.0-only"), "which `ALLOWED`"),
            (Some("GPL-2.0-only WITH Classpath-exception-2.0"), "which `ALLOWED`"),
            (Some("No licence that I know"), "no SPDX expression"),
            (None, "names no licence"),
        ] {
            let fault = package(licence, REGISTRY).fault().unwrap();
            assert!(fault.contains(reason), "{licence:?}: {fault}");
        }
        let fault = package(Some("MIT"), "git+https://example.org/some").fault().unwrap();
        assert!(fault.contains("comes from git+https://example.org/some"), "{fault}");
    }

    #[test]
    fn texts_of_shipped_crates_are_found_and_those_of_tools_are_not() {
        let text = third_party().unwrap();
        assert!(text == third_party().unwrap(), "two calls give two texts");
        let lists = |name: &str| text.lines().any(|line| line.starts_with(&format!("{name} ")));
        assert!(["aya", "aya-ebpf", "kube", "rustix", "nix"].map(lists).iter().all(|is_listed| *is_listed));
        // plotters draws charts of the benches, proptest makes inputs of tests, syn is in macros.
        assert_eq!(["plotters", "proptest", "syn", "podwire-common"].map(lists), [false; 4]);
    }
}
