//! Licences of the crates that Podwire is built from: which ones are allowed, and the texts that
//! the binaries must be shipped with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
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
const LICENCES: [&str; 3] = ["LICEN", "COPYING", "UNLICENSE"];
/// Beginnings of the names of files that go with a licence.
const NOTICES: [&str; 2] = ["COPYRIGHT", "NOTICE"];
/// Names of folders of a crate whose code is in no binary.
const NOT_LINKED: [&str; 4] = ["tests", "benches", "examples", "fuzz"];
/// The licence of the C library that the static binaries contain.
const C_LIBRARY: &str = "LGPL-2.1-or-later";
/// The licence of a crate that ships no text, if the crate may be used under it.
const OWN: (&str, &str) = ("Apache-2.0", include_str!("../../LICENSE"));
const HEAD: &str = "\
Third-party software in Podwire's binaries

The binaries are linked with the crates below, each under the licence that it names. They also
contain Rust's standard library (MIT OR Apache-2.0) and, because they are static, the GNU C library
(LGPL-2.1-or-later, its text is the last one below) and the unwinder of GCC
(GPL-3.0-or-later WITH GCC-exception-3.1). To link them with another C library, build Podwire from
its source.
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
/// The number of faults. Each was printed.
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
    ensure!(faults.is_empty(), "{} faults in the licences of the crates", faults.len());
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
    let of_c_library = spdx::license_id(C_LIBRARY).with_context(|| format!("spdx lacks {C_LIBRARY}"))?;
    parts.push((vec![format!("GNU C library ({C_LIBRARY})")], of_c_library.text().to_owned()));
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

    /// Returns the licence texts in the crate's folder, with those of code that it has copied.
    fn texts(&self) -> Result<Vec<String>> {
        let folder = self.manifest_path.parent().context("a manifest without a folder")?;
        let mut texts = BTreeMap::new();
        collect(folder, &mut texts)?;
        let is_licensed = texts.keys().any(|file| begins_with(file, &LICENCES));
        if !is_licensed {
            let (own, text) = OWN;
            if !self.is_allowed(&[own])? {
                bail!("{} has no licence text that could be shipped with the binaries", self.title());
            }
            texts.insert(own.into(), text.to_owned());
        }
        Ok(texts.into_values().collect())
    }
}

/// Collects the licence files at or below a folder.
fn collect(folder: &Path, texts: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        let is_linked = || !NOT_LINKED.iter().any(|name| path.ends_with(name));
        if path.is_dir() && is_linked() {
            collect(&path, texts)?;
        } else if path.is_file() && (begins_with(&path, &LICENCES) || begins_with(&path, &NOTICES)) {
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            texts.insert(path, String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
        }
    }
    Ok(())
}

fn begins_with(path: &Path, beginnings: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    // A module named `license.rs` is no licence.
    !name.ends_with(".RS") && beginnings.iter().any(|beginning| name.starts_with(beginning))
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
        assert!(text.contains("GNU LESSER GENERAL PUBLIC LICENSE"));
        // Code that tracing-core has copied has a licence of its own.
        assert!(text.contains("Mathijs van de Nes"), "licences in folders of a crate are missing");
        // plotters draws charts of the benches, proptest makes inputs of tests, syn is in macros.
        assert_eq!(["plotters", "proptest", "syn", "podwire-common"].map(lists), [false; 4]);
    }
}
