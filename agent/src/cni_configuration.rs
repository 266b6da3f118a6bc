//! The network configuration by which the runtime calls the plugin: where it is, what is in it, and which one of a folder a runtime takes.

use std::fs;
use std::io;
use std::path::Path;

use podwire_cni::protocol::DEFAULT_SOCKET;
use serde_json::{Value, json};

use crate::files;
use crate::files::FileError;

/// Its file name. Runtimes go by the order of names.
pub const FILE: &str = "10-podwire.conflist";
/// For an agent with the default socket. It offers no version with STATUS, which runtimes call every few seconds from 1.1.0 on: while an agent
/// is replaced the answer can only be that no pod can be added, and a node of which the runtime says that counts as not ready, for the pods
/// that it has as well.
const TEXT: &str = include_str!("../../manifests/10-podwire.conflist");
/// What runtimes take for a network configuration.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What is in it for an agent with this socket.
pub fn text(socket: &Path) -> String {
    if socket == Path::new(DEFAULT_SOCKET) {
        return TEXT.to_owned();
    }
    let mut configuration: Value = serde_json::from_str(TEXT).unwrap_or_default();
    configuration["plugins"][0]["socket"] = json!(socket);
    format!("{configuration:#}\n")
}

/// Whether the folder's has this text.
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

/// Writes it, in one step: runtimes look at the folder whenever it changes.
///
/// # Errors
/// [`FileError::Io`], [`FileError::FolderOfAnother`].
pub fn write(folder: &Path, text: &str) -> Result<(), FileError> {
    files::replace(&folder.join(FILE), text.as_bytes()).map_err(FileError::in_shared(folder))
}

/// Removes it, and what an agent that was killed meanwhile has begun. Nothing happens when it is not there.
///
/// # Errors
/// [`FileError::Io`], [`FileError::FolderOfAnother`].
pub fn remove(folder: &Path) -> Result<(), FileError> {
    files::remove_shared(&folder.join(FILE))
}

/// The names of a folder's network configurations. A runtime takes the first, or asks for one by its network's name.
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
