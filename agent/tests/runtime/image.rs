//! The one image: Debian's static busybox and a web server's script that tells the client its address. Made here,
//! loaded from nowhere.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// A name that no registry can have (RFC 6761, section 6.4).
pub const NAME: &str = "podwire.invalid/busybox:test";
/// The one program in it.
pub const BUSYBOX: &str = "/bin/busybox";
/// The folder that the web server serves.
pub const WEB_FOLDER: &str = "/www";
/// What the web server answers with the client's address.
pub const PEER_PAGE: &str = "/cgi-bin/peer";

/// Writes the image as `docker save` would, and gives the archive's path. Its default command sleeps: the runtime
/// holds a pod's namespaces open with it.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let (root, archive) = (folder.join("root"), folder.join("archive"));
    for new in [root.join("bin"), root.join("www/cgi-bin"), archive.clone()] {
        fs::create_dir_all(&new).with_context(|| format!("create {}", new.display()))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| {
        format!("copy {BUSYBOX} (Debian package busybox-static): run `cargo xtask setup`")
    })?;
    let page = root.join("www/cgi-bin/peer");
    fs::write(&page, format!("#!{BUSYBOX} sh\necho 'Content-Type: text/plain'\necho\necho $REMOTE_ADDR\n"))?;
    fs::set_permissions(&page, Permissions::from_mode(0o755))?;

    let layer = archive.join("layer.tar");
    pack(&root, &layer)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": [BUSYBOX, "sleep", "86400"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)] },
        "history": [],
    });
    fs::write(archive.join("config.json"), config.to_string())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    fs::write(archive.join("manifest.json"), manifest.to_string())?;
    let image = folder.join("image.tar");
    pack(&archive, &image)?;
    Ok(image)
}

fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--owner=0", "--group=0", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    let output = tar.output().context("run tar")?;
    ensure!(output.status.success(), "{tar:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output().context("run sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
