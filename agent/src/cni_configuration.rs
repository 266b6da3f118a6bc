//! The network configuration with which the runtime calls the plugin: its place, its text, and
//! which configuration of a folder a runtime takes.

use std::fs;
use std::io;
use std::path::Path;

use podwire_cni::protocol::DEFAULT_SOCKET;
use serde_json::{Value, json};

use crate::files;
use crate::files::FileError;

/// The configuration's file name. Runtimes sort configurations by name.
pub const FILE: &str = "10-podwire.conflist";
/// The text for an agent with the default socket.
///
/// It offers no version that has STATUS (1.1.0 or later), because runtimes then call STATUS every
/// few seconds. While an agent is being replaced, STATUS can only report that no pod can be added.
/// The node then counts as not ready, which also affects the pods that it already has.
const TEXT: &str = include_str!("../../manifests/10-podwire.conflist");
/// File name extensions of the files that runtimes take as network configurations.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Returns the configuration's text for an agent with this socket.
pub fn text(socket: &Path) -> String {
    if socket == Path::new(DEFAULT_SOCKET) {
        return TEXT.to_owned();
    }
    let mut configuration: Value = serde_json::from_str(TEXT).unwrap_or_default();
    configuration["plugins"][0]["socket"] = json!(socket);
    format!("{configuration:#}\n")
}

/// Returns whether the folder has the configuration with exactly this text.
///
/// # Errors
/// [`FileError::Io`], [`FileError::FolderOfAnother`].
pub fn is_there(folder: &Path, text: &str) -> Result<bool, FileError> {
    let path = folder.join(FILE);
    match fs::read(&path) {
        Ok(found) => Ok(found == text.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::in_shared(folder)(FileError::of("read", path)(error))),
    }
}

/// Writes the configuration in one step, because runtimes read the folder whenever it changes.
///
/// # Errors
/// [`FileError::Io`], [`FileError::FolderOfAnother`].
pub fn write(folder: &Path, text: &str) -> Result<(), FileError> {
    files::replace(&folder.join(FILE), text.as_bytes()).map_err(FileError::in_shared(folder))
}

/// Removes the configuration, and the unfinished file of an agent that was killed. A missing file
/// is no error.
///
/// # Errors
/// [`FileError::Io`], [`FileError::FolderOfAnother`].
pub fn remove(folder: &Path) -> Result<(), FileError> {
    files::remove_shared(&folder.join(FILE))
}

/// Returns the names of a folder's network configurations, sorted. A runtime takes the first one,
/// or the one with a given network name.
///
/// # Errors
/// [`FileError::Io`].
pub fn list(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(FileError::of("list", folder))? {
        let name = entry.map_err(FileError::of("list", folder))?.file_name();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_named_only_where_it_is_not_the_default() {
        assert_eq!(text(Path::new(DEFAULT_SOCKET)), TEXT);
        let named: Value = serde_json::from_str(&text(Path::new("/run/other/agent.sock"))).unwrap();
        assert_eq!(named["plugins"][0]["socket"], "/run/other/agent.sock");
        assert_eq!(named["plugins"][0]["type"], "podwire-cni");
        assert!(!TEXT.contains("socket"));
    }

    #[test]
    fn no_runtime_takes_a_version_that_has_status() {
        for socket in [DEFAULT_SOCKET, "/run/other/agent.sock"] {
            let configuration: Value = serde_json::from_str(&text(Path::new(socket))).unwrap();
            assert_eq!(configuration["cniVersion"], "1.0.0");
            assert_eq!(configuration.get("cniVersions"), None, "the latest of these is taken");
        }
    }

    #[test]
    fn a_folders_configurations_are_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["87-podman.conflist", "10-flannel.conflist", "10-podwire.tmp", "net.json", "05.conf", "README"]
        {
            fs::write(folder.path().join(name), "{}").unwrap();
        }
        write(folder.path(), TEXT).unwrap();
        let expected = ["05.conf", "10-flannel.conflist", FILE, "87-podman.conflist", "net.json"];
        assert_eq!(list(folder.path()).unwrap(), expected);
    }
}
