//! Two images, which the test makes here and never downloads: Podwire's own, and one for the test's
//! pods. The second has Debian's static busybox, and a web server's script that tells the client
//! its address.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use xtask::archive::File;
use xtask::oci::Image;

use crate::containerd;

/// A name that no registry can have (RFC 6761, section 6.4).
pub const NAME: &str = "podwire.invalid/busybox:test";
/// The only program in the image.
pub const BUSYBOX: &str = "/bin/busybox";
/// The folder that the web server serves.
pub const WEB_FOLDER: &str = "/www";
/// The page with which the web server answers the client's address.
pub const PEER_PAGE: &str = "/cgi-bin/peer";

/// The page's script in the image.
const SCRIPT: &str = "www/cgi-bin/peer";

/// Writes the image and returns the archive's path. Its default command sleeps: with it the runtime
/// holds a pod's namespaces open. The folder `root` beside it has the page for a web server that
/// runs outside containers.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let busybox = fs::read(BUSYBOX).with_context(|| {
        format!("read {BUSYBOX} (Debian package busybox-static): run `cargo xtask setup`")
    })?;
    let page = format!("#!{BUSYBOX} sh\necho 'Content-Type: text/plain'\necho\necho $REMOTE_ADDR\n");
    let script = folder.join("root").join(SCRIPT);
    fs::create_dir_all(script.parent().context("the script has no folder")?)?;
    fs::write(&script, &page).with_context(|| format!("write {}", script.display()))?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;

    let files = BTreeMap::from([
        (BUSYBOX.trim_start_matches('/').to_owned(), File::program(busybox)),
        (SCRIPT.to_owned(), File::program(page)),
    ]);
    let config = json!({ "Cmd": [BUSYBOX, "sleep", "86400"] });
    let archive = folder.join("image.tar");
    fs::write(&archive, Image { name: NAME.to_owned(), files, config }.archive()?)?;
    Ok(archive)
}

/// Writes Podwire's image and returns the archive's path. It is the image of `cargo xtask image`,
/// with the libraries that the lab's binaries are linked with. The binaries that `PODWIRE_BIN_DIR`
/// names may be static.
pub fn podwire(folder: &Path) -> Result<PathBuf> {
    let program = containerd::binary("podwire")?;
    let mut image = xtask::image::image(program.parent().context("the program has no folder")?)?;
    for library in libraries(&program)? {
        let content = fs::read(&library).with_context(|| format!("read {library}"))?;
        image.files.insert(library.trim_start_matches('/').to_owned(), File::program(content));
    }
    let archive = folder.join("podwire.tar");
    fs::write(&archive, image.archive()?)?;
    Ok(archive)
}

/// Returns the files that the loader needs, including the loader itself.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd (Debian package libc-bin)")?;
    let printed = String::from_utf8(output.stdout)?;
    Ok(printed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}
