//! A release: what is in it, and the same bytes at two places.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output};

use xtask::image::TAG;
use xtask::lab::is_soak;
use xtask::manifests::root;

/// What is not source.
const NO_SOURCE: [&str; 3] = ["target", "release", ".git"];

#[test]
fn a_release_is_whole_and_names_no_folder_of_its_builder() {
    let folder = tempfile::tempdir().unwrap();
    assert_succeeds(&release(root(), folder.path()));
    let here = files(folder.path());

    let home = std::env::var("HOME").unwrap();
    let folders =
        [root().to_string_lossy().into_owned(), format!("{home}/.cargo"), format!("{home}/.rustup")];
    for name in [format!("podwire-{TAG}-linux-amd64"), format!("podwire-cni-{TAG}-linux-amd64")] {
        for folder in &folders {
            assert!(!contains(&here[&name], folder.as_bytes()), "{name} names {folder}");
        }
    }
    let agent = folder.path().join(format!("podwire-{TAG}-linux-amd64"));
    let version = Command::new(agent).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains(TAG), "{version:?}");
    let mut check = Command::new("sha256sum");
    check.args(["--check", "--strict", "SHA256SUMS"]).current_dir(folder.path());
    assert_succeeds(&check.output().unwrap());
    let summed = String::from_utf8(here["SHA256SUMS"].clone()).unwrap();
    assert_eq!(summed.lines().count(), here.len() - 1, "{summed}");

    let chart = chart(&here[&format!("podwire-{TAG}.tgz")]);
    assert!(chart["podwire/Chart.yaml"].contains(&format!("version: {TAG}\n")));
    assert!(chart.contains_key("podwire/templates/daemonset.yaml"), "{:?}", chart.keys());
    // A build at another place shares nothing with this one and takes minutes.
    if is_soak() {
        assert_same_elsewhere(&here);
    }
}

/// Builds a release from a copy of the checkout.
fn assert_same_elsewhere(here: &BTreeMap<String, Vec<u8>>) {
    let folder = tempfile::tempdir().unwrap();
    let [checkout, output] = ["other place", "there"].map(|name| folder.path().join(name));
    copy(root(), &checkout);
    assert_succeeds(&release(&checkout, &output));
    let there = files(&output);
    let differing: Vec<&String> =
        here.keys().chain(there.keys()).filter(|name| here.get(*name) != there.get(*name)).collect();
    assert!(differing.is_empty(), "two builds differ in {differing:?}");
}

#[test]
fn a_release_writes_into_no_folder_with_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("podwire.yaml"), "").unwrap();
    let output = release(root(), folder.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is not empty"), "{said}");
    assert_eq!(files(folder.path()).len(), 1);
}

/// Runs the command in a checkout, as `cargo run` would there.
fn release(checkout: &Path, output: &Path) -> Output {
    let linker = root().join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([linker].into_iter().chain(std::env::split_paths(&path))).unwrap();
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["release", "--output"])
        .arg(output)
        .current_dir(checkout)
        .env("CARGO_MANIFEST_DIR", checkout.join("xtask"))
        .env("PATH", path)
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap()
}

fn assert_succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Copies the source of a checkout.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if path.is_dir() && !NO_SOURCE.iter().any(|no| name == *no) {
            copy(&path, &to.join(name));
        } else if path.is_file() {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = entries
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()));
    named.collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn chart(packed: &[u8]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(packed)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), text);
    }
    files
}
