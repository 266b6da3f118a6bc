//! A real cluster's binaries, found in the same way as Kubernetes' own test environment finds them.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// The variable that names the folder with the binaries.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The paths of an API server and of its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The store.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
}

impl Binaries {
    /// Returns the binaries in the folder that the environment names; `None` if it names no folder.
    ///
    /// # Errors
    /// When the folder lacks one of the binaries.
    pub fn from_environment() -> Result<Option<Self>> {
        let folder = std::env::var_os(ASSETS).filter(|folder| !folder.is_empty());
        folder.map(|folder| Self::of(Path::new(&folder))).transpose()
    }

    fn of(folder: &Path) -> Result<Self> {
        let binary = |name| {
            let path = folder.join(name);
            ensure!(
                path.is_file(),
                "{ASSETS} names {}, and there is no {name}: name a folder with etcd and kube-apiserver, or none",
                folder.display()
            );
            Ok(path)
        };
        Ok(Self { etcd: binary("etcd")?, kube_apiserver: binary("kube-apiserver")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_lacks_one_is_an_error_that_names_it() {
        let folder = std::env::temp_dir().join(format!("podwire-assets-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("etcd"), "").unwrap();
        let lacking = Binaries::of(&folder).unwrap_err().to_string();
        std::fs::write(folder.join("kube-apiserver"), "").unwrap();
        let complete = Binaries::of(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(lacking.contains("no kube-apiserver") && lacking.contains(ASSETS), "{lacking}");
        assert_eq!(complete.unwrap().etcd, folder.join("etcd"));
    }
}
