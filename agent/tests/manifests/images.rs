//! One version and one image name in all files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use xtask::archive::File;
use xtask::oci::Image;
use xtask::{image, manifests};

use crate::documents::{self, containers};

#[test]
fn every_container_runs_this_releases_image() -> Result<()> {
    for document in documents::rendered(&manifests::Release::default())? {
        if document["kind"] == "DaemonSet" {
            for container in containers(&document)? {
                assert_eq!(container["image"], format!("{}:{}", image::REPOSITORY, image::TAG));
            }
        }
    }
    let chart: Value = serde_saphyr::from_str(&fs::read_to_string(manifests::chart().join("Chart.yaml"))?)?;
    assert_eq!([&chart["version"], &chart["appVersion"]], [image::TAG; 2]);
    for page in ["docs/install.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(manifests::root().join(page))?;
        assert!(text.contains(image::TAG), "{page} does not mention {}", image::TAG);
    }
    Ok(())
}

#[test]
fn the_image_has_the_binaries_and_every_licence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in image::BINARIES {
        fs::write(folder.path().join(name), name)?;
    }
    let (config, files) = unpack(&image::image(folder.path())?.archive()?)?;
    assert_eq!(config["config"]["Entrypoint"], json!(["/podwire"]));
    assert_eq!(config["config"]["Env"], json!(["PATH=/"]));
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], image::TAG);
    let expected = [
        "licenses/LICENSE",
        "licenses/LICENSE-GPL-2.0",
        "licenses/THIRD-PARTY-LICENSES",
        "podwire",
        "podwire-cni",
    ];
    assert_eq!(files.keys().collect::<Vec<_>>(), expected);
    Ok(())
}

#[test]
fn the_same_files_are_the_same_archive_whenever_it_is_made() -> Result<()> {
    let image = || {
        let files = BTreeMap::from([
            ("bin/run".to_owned(), File::program("#!/bin/sh\n")),
            ("bin/read".to_owned(), File::text("text")),
        ]);
        Image { name: "podwire.invalid/test:1".to_owned(), files, config: json!({}) }
    };
    let archive = image().archive()?;
    // A timestamp in the archive would differ after this pause.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(archive == image().archive()?);
    let (_, files) = unpack(&archive)?;
    assert_eq!(files, BTreeMap::from([("bin/read".to_owned(), 0o644), ("bin/run".to_owned(), 0o755)]));
    Ok(())
}

#[test]
fn an_image_without_registry_or_tag_has_no_archive() {
    for name in ["podwire", "podwire:1", "podwire.invalid:5000/podwire"] {
        let image = Image { name: name.to_owned(), files: BTreeMap::new(), config: json!({}) };
        assert!(image.archive().is_err(), "{name}");
    }
}

/// Returns an image's configuration and the permissions of its files. Asserts that all files have
/// owner and time 0.
fn unpack(archive: &[u8]) -> Result<(Value, BTreeMap<String, u32>)> {
    let mut parts = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        parts.insert(format!("/{}", entry.path()?.display()), content);
    }
    let part = |path: &str| parts.get(path).with_context(|| format!("no {path}"));
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        part(&format!("/blobs/{}", digest.replace(':', "/")))
    };
    let index: Value = serde_json::from_slice(part("/index.json")?)?;
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    let config: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
    let mut files = BTreeMap::new();
    let layer = flate2::read::GzDecoder::new(&**blob(&manifest["layers"][0])?);
    for entry in tar::Archive::new(layer).entries()? {
        let entry = entry?;
        let header = entry.header();
        assert_eq!((header.uid()?, header.gid()?, header.mtime()?), (0, 0, 0));
        if header.entry_type().is_file() {
            files.insert(entry.path()?.display().to_string(), header.mode()? & 0o777);
        }
    }
    Ok((config, files))
}
