//! Addresses that the plugin host-local has assigned: one file per address, in one folder per
//! network.

use std::fs;
use std::io;
use std::path::Path;

use ipnet::IpNet;
use podwire_core::other_pods::{Held, Holder};

use crate::files::FileError;

/// host-local's folder in the folder for the plugins' state, unless its configuration names another
/// one (`dataDir`).
const NETWORKS: &str = "networks";

/// Returns the addresses of podCIDRs that host-local has assigned; none if it was never used here.
///
/// # Errors
/// [`FileError::Io`].
pub fn held(cni_state_dir: &Path, networks: &[IpNet]) -> Result<Held, FileError> {
    let folder = cni_state_dir.join(NETWORKS);
    let mut held = Held::new();
    for name in names(&folder)? {
        let addresses = names(&folder.join(&name))?;
        let addresses = addresses.iter().filter_map(|address| address.parse().ok());
        let addresses = addresses.filter(|address| networks.iter().any(|network| network.contains(address)));
        held.extend(addresses.map(|address| (address, Holder::HostLocal(name.clone()))));
    }
    Ok(held)
}

/// Returns the names of a folder's entries; none if there is no such folder.
fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(FileError::of("list", folder)(error)),
    };
    entries
        .map(|entry| {
            Ok(entry.map_err(FileError::of("list", folder))?.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_an_address_and_the_others_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let of_pods = |network: &str| held(folder.path(), &[network.parse().unwrap()]).unwrap();
        assert_eq!(of_pods("10.244.1.0/24"), Held::new());
        for file in [
            "cbr0/10.244.1.2",
            "cbr0/10.244.2.2",
            "cbr0/fd00:10:244:1::2",
            "cbr0/last_reserved_ip.0",
            "cbr0/last_reserved_ip.1",
            "cbr0/lock",
            "other/10.244.1.3",
            "other/fd00:10:244:2::3",
        ] {
            let path = folder.path().join(NETWORKS).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "container\neth0").unwrap();
        }
        fs::write(folder.path().join(NETWORKS).join("10.244.1.4"), "").unwrap();
        let of = |network: &str| Holder::HostLocal(network.into());
        let expected = [("10.244.1.2", of("cbr0")), ("10.244.1.3", of("other"))];
        let expected = expected.map(|(address, holder)| (address.parse().unwrap(), holder));
        assert_eq!(of_pods("10.244.1.0/24"), expected.into());
        let expected = [("fd00:10:244:1::2".parse().unwrap(), of("cbr0"))];
        assert_eq!(of_pods("fd00:10:244:1::/64"), expected.into());
    }
}
