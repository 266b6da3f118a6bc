//! The state folder: the only truth about addresses, and everything that an agent keeps on disk for
//! the next one.
//!
//! ```text
//! agent.lock                          locked while an agent runs; contains its process id
//! last-address                        the addresses that were assigned last, a line for each family
//! endpoints/<host interface>.json     one per pod
//! before.json                         the node's settings before the agent changed them
//! network-namespace.json              the network namespace of the pods
//! nodes.json                          the last good node list of the API server
//! services.json                       the last good services of the API server
//! api-servers.json                    the addresses of the API server's endpoints
//! ```

use podwire_cni::protocol::codes;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

use podwire_cni::fault::{self, Step};
use podwire_core::model::{Endpoint, Family};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::before;
use crate::claim;
use crate::files::{FileError, absent_is_fine};
use crate::files::{replace_after, sync_folder};
use crate::lock::ClaimError;
use crate::lock::{Held, Lock};

const LOCK: &str = "agent.lock";
const HELD: Held = Held { name: "the state folder", option: "--state-dir" };
const LAST_ADDRESS: &str = "last-address";
const ENDPOINTS: &str = "endpoints";
/// The last good node list of the API server.
pub const NODES: &str = "nodes.json";
/// The file's name while it is being written.
const NODES_BEGUN: &str = "nodes.tmp";
/// The last good services of the API server.
pub const SERVICES: &str = "services.json";
/// The services while they are being written.
const SERVICES_BEGUN: &str = "services.tmp";
/// The addresses of the API server's endpoints.
pub const API_SERVERS: &str = "api-servers.json";
/// The addresses while they are being written.
const API_SERVERS_BEGUN: &str = "api-servers.tmp";

/// Version of the files under `endpoints/`.
const FORMAT: u32 = 2;
/// The version that release 0.2.0 wrote: an endpoint has one address.
const FORMAT_OF_ONE_ADDRESS: u32 = 1;

/// Bytes of a trial write: one block of most file systems, which is enough for one pod's file.
const TRIAL: usize = 4096;

/// Largest size of an endpoint's file in bytes: far more than the plugin can ask for.
const LARGEST: u64 = 16 << 20;
/// Errors that pass by themselves: the next agent may be able to read the file.
const OVER_IN_A_MOMENT: [i32; 4] = [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EINTR];

/// Length in bytes of a line of the file of last addresses: the longest address and a newline.
const LAST_ADDRESS_LENGTH: usize = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\n".len();

/// What is wrong with the state folder.
#[derive(Debug, Error)]
pub enum StateError {
    /// A later release wrote the state.
    #[error("{} has format {found}, this agent knows up to {expected}: start the release that wrote it; nothing was touched", path.display())]
    Format {
        /// An endpoint's file.
        path: PathBuf,
        /// The file's format.
        found: u32,
        /// The latest format that this agent knows.
        expected: u32,
    },
    /// This process may not use the folder.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
}

impl StateError {
    /// The CNI error code for the plugin.
    pub(crate) const CNI_CODE: u32 = codes::IO_FAILURE;
}

/// The state folder, locked by this process.
#[derive(Debug)]
pub struct Store {
    endpoints: PathBuf,
    last_address: File,
    last_address_path: PathBuf,
    /// The kernel releases it when the process ends in any way.
    lock: Lock,
}

/// An entry of the endpoints' folder that is not a usable endpoint file.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// Its path now.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    endpoint: Endpoint,
}

impl Store {
    /// Opens the folder and locks it. Makes the folder if it is missing.
    ///
    /// # Errors
    /// [`StateError::Claim`] with the process that holds it; [`StateError::File`].
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let endpoints = folder.join(ENDPOINTS);
        create(&endpoints)?;
        let lock = lock(folder)?;
        let path = folder.join(LAST_ADDRESS);
        let last_address = open(&path)?;
        Ok(Self { endpoints, last_address, last_address_path: path, lock })
    }

    /// Returns whether the folder exists and this process holds it.
    pub fn is_there(&self) -> bool {
        self.lock.is_there() && self.endpoints.is_dir()
    }

    /// Makes a removed folder again and locks it. The folder is then empty: the caller restores its
    /// content.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn make_again(&mut self, folder: &Path) -> Result<(), StateError> {
        create(&self.endpoints)?;
        if !self.lock.is_there() {
            self.lock = lock(folder)?;
        }
        self.last_address = open(&self.last_address_path)?;
        Ok(())
    }

    /// Returns a function that tries whether the disk takes as many bytes as an endpoint's file
    /// has. It writes them into a file without a name, so nothing is left behind. Call it on
    /// another thread, because a disk may be slow.
    pub fn trial(&self) -> impl FnOnce() -> Result<(), FileError> + Send + use<> {
        let folder = self.endpoints.clone();
        move || {
            let mut options = OpenOptions::new();
            let options = options.write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
            let written = options.open(&folder).and_then(|mut file| {
                file.write_all(&[0; TRIAL])?;
                file.sync_all()
            });
            match written {
                // This file system has no files without a name (NFS). The next ADD shows whether
                // the agent can write to it.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
                written => written.map_err(FileError::of("write to", folder)),
            }
        }
    }

    /// Returns every endpoint on disk. Renames a file that does not decode to `*.corrupt` if
    /// possible, and reports it; the others are used. Removes unfinished files.
    ///
    /// # Errors
    /// [`StateError::Format`] if a later release wrote one of the files; then nothing was touched.
    /// [`StateError::File`] if the folder cannot be listed, or a file cannot be read now.
    pub fn load(&self) -> Result<(Vec<Endpoint>, Vec<Corrupt>), StateError> {
        let (mut endpoints, mut undecodable, mut unnamed) = (Vec::new(), Vec::new(), Vec::new());
        let entries = fs::read_dir(&self.endpoints).map_err(FileError::of("list", &self.endpoints))?;
        for entry in entries {
            let path = entry.map_err(FileError::of("list", &self.endpoints))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => match decode(&path)? {
                    Ok(endpoint) => endpoints.push(endpoint),
                    Err(reason) => undecodable.push((path, reason)),
                },
                // An unfinished write: its ADD was never answered.
                Some("tmp") => unnamed.push(path),
                _ => {}
            }
        }
        let corrupt = undecodable.into_iter().map(|(path, reason)| set_aside(path, reason));
        let corrupt = corrupt.chain(unnamed.into_iter().filter_map(remove_unnamed)).collect();
        endpoints.sort_by(|one, other| one.host_interface.cmp(&other.host_interface));
        Ok((endpoints, corrupt))
    }

    /// Writes an endpoint. After a power cut its file is complete or absent.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn save(&self, endpoint: &Endpoint) -> Result<(), FileError> {
        self.saving(endpoint)()
    }

    /// Returns a function that does the work of [`Self::save`]. Call it on another thread, because
    /// it waits for the disk twice.
    pub fn saving(&self, endpoint: &Endpoint) -> impl FnOnce() -> Result<(), FileError> + Send + use<> {
        let (folder, path) = (self.endpoints.clone(), self.path(endpoint));
        let record = Record { format: FORMAT, endpoint: endpoint.clone() };
        move || {
            let json = serde_json::to_vec_pretty(&record)
                .map_err(io::Error::from)
                .map_err(FileError::of("encode", &path))?;
            replace_after(&path, &json, 0o600, || fault::after(Step::FileWritten))?;
            fault::after(Step::FileNamed).map_err(FileError::of("write", &path))?;
            sync_folder(&folder)
        }
    }

    /// Removes an endpoint. A missing file is no error.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn remove(&self, endpoint: &Endpoint) -> Result<(), FileError> {
        let path = self.path(endpoint);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(&self.endpoints),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(FileError::of("remove", path)(error)),
        }
    }

    /// Returns the address of a family that was assigned last. `None` if it is not known:
    /// assignment then starts with the podCIDR's first address for pods.
    pub fn last_address(&self, family: Family) -> Option<IpAddr> {
        let mut text = [0; LAST_ADDRESS_LENGTH];
        let length = self.last_address.read_at(&mut text, place_of(family)).ok()?;
        let address = std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()?;
        Some(address).filter(|address| Family::of(*address) == family)
    }

    /// Stores the address of its family that was assigned last, for the next agent.
    ///
    /// The write goes in place, with a constant length, and is not synced. It survives the process.
    /// A power cut may lose it. But a power cut also ends all pods, so the next pod may get any
    /// address at once. A new file would cost an ADD more time than all other disk accesses for
    /// which it waits.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn save_last_address(&self, address: IpAddr) -> Result<(), FileError> {
        let text = format!("{address:<0$}\n", LAST_ADDRESS_LENGTH - 1);
        self.last_address
            .write_all_at(text.as_bytes(), place_of(Family::of(address)))
            .map_err(FileError::of("write", &self.last_address_path))
    }

    fn path(&self, endpoint: &Endpoint) -> PathBuf {
        self.endpoints.join(format!("{}.json", endpoint.host_interface))
    }
}

/// Returns where the line of a family begins in the file of last addresses.
fn place_of(family: Family) -> u64 {
    match family {
        Family::V4 => 0,
        Family::V6 => LAST_ADDRESS_LENGTH as u64,
    }
}

/// Makes the folder of endpoints, and with it the state folder.
fn create(endpoints: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(endpoints);
    made.map_err(FileError::of("create the state folder", endpoints))
}

/// Opens a file to keep it open. Leaves its content, and makes an empty file if it is missing.
fn open(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(FileError::of("open", path))
}

/// Locks a state folder against agents for as long as the lock exists, and changes nothing else in
/// it. Returns `None` if there is no such folder, or if no agent has ever used it.
///
/// # Errors
/// [`ClaimError::Locked`] with the process that holds it; [`ClaimError::File`].
pub fn hold(folder: &Path) -> Result<Option<Lock>, ClaimError> {
    if folder.join(LOCK).exists() { lock(folder).map(Some) } else { Ok(None) }
}

/// Returns the endpoints of a state folder that no agent uses any more, and the files that cannot
/// be read.
pub fn peek(folder: &Path) -> (Vec<Endpoint>, Vec<Corrupt>) {
    let (mut endpoints, mut corrupt) = (Vec::new(), Vec::new());
    let entries = fs::read_dir(folder.join(ENDPOINTS)).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| path.extension() != Some("tmp".as_ref())) {
        match decode(&path).unwrap_or_else(|error| Err(error.to_string())) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(reason) => corrupt.push(Corrupt { path, reason }),
        }
    }
    endpoints.sort_by(|one, other| one.host_interface.cmp(&other.host_interface));
    (endpoints, corrupt)
}

/// Removes everything that agents keep in a state folder. Removes the node's earlier settings only
/// if they have been `restored`. A missing folder is no error.
///
/// # Errors
/// [`FileError::Io`] for each thing that could not be removed.
pub fn erase(folder: &Path, restored: bool) -> Vec<FileError> {
    let endpoints = folder.join(ENDPOINTS);
    let removed = absent_is_fine(fs::remove_dir_all(&endpoints)).map_err(FileError::of("remove", endpoints));
    // Remove the lock last: while it is held, no agent can start here.
    let before = if restored { &[before::FILE][..] } else { &[] };
    let saved = [NODES, NODES_BEGUN, SERVICES, SERVICES_BEGUN, API_SERVERS, API_SERVERS_BEGUN];
    let others = [before::FILE_BEGUN, claim::FILE, claim::FILE_BEGUN, LAST_ADDRESS, LOCK];
    let files = before.iter().chain(&saved).chain(&others).map(|name| {
        let path = folder.join(name);
        absent_is_fine(fs::remove_file(&path)).map_err(FileError::of("remove", path))
    });
    [removed].into_iter().chain(files).filter_map(Result::err).collect()
}

fn lock(folder: &Path) -> Result<Lock, ClaimError> {
    Lock::by_file(&folder.join(LOCK), HELD, folder)
}

fn decode(path: &Path) -> Result<Result<Endpoint, String>, StateError> {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.raw_os_error().is_some_and(|code| OVER_IN_A_MOMENT.contains(&code)) => {
            return Err(FileError::of("read", path)(error).into());
        }
        // Only this entry is affected: a dangling link, a folder in its place, a bad sector.
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut record: Value = match serde_json::from_slice(&bytes) {
        Ok(record) => record,
        Err(error) => return Ok(Err(error.to_string())),
    };
    match record["format"].as_u64() {
        Some(format) if format > u64::from(FORMAT) => {
            let found = u32::try_from(format).unwrap_or(u32::MAX);
            return Err(StateError::Format { path: path.into(), found, expected: FORMAT });
        }
        Some(format) if format == u64::from(FORMAT_OF_ONE_ADDRESS) => convert_one_address(&mut record),
        Some(format) if format < u64::from(FORMAT) => return Ok(Err(format!("there is no format {format}"))),
        _ => {}
    }
    let record: Record = match serde_json::from_value(record) {
        Ok(record) => record,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let named = path.file_stem().and_then(|stem| stem.to_str());
    if named != Some(&record.endpoint.host_interface) {
        return Ok(Err(format!("it describes {}, but has another name", record.endpoint.host_interface)));
    }
    Ok(Ok(record.endpoint))
}

/// Converts a record of [`FORMAT_OF_ONE_ADDRESS`].
fn convert_one_address(record: &mut Value) {
    record["format"] = FORMAT.into();
    if let Some(endpoint) = record["endpoint"].as_object_mut() {
        let [address, gateway] = ["address", "gateway"].map(|field| endpoint.remove(field));
        endpoint.insert("pod_addresses".into(), json!([{ "address": address, "gateway": gateway }]));
    }
}

/// Reads a whole file, if it is a regular file and not too large.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Without `O_NONBLOCK`, opening a FIFO would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > LARGEST {
        return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Renames a file that cannot be used. If that fails, the file stays where it is.
fn set_aside(path: PathBuf, reason: String) -> Corrupt {
    let aside = path.with_extension("json.corrupt");
    match fs::rename(&path, &aside) {
        Ok(()) => Corrupt { path: aside, reason },
        Err(error) => Corrupt { reason: format!("{reason}; cannot rename it to *.corrupt: {error}"), path },
    }
}

fn remove_unnamed(path: PathBuf) -> Option<Corrupt> {
    let error = absent_is_fine(fs::remove_file(&path)).err()?;
    Some(Corrupt { reason: format!("cannot remove it: {error}"), path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_core::model::{Attachment, PortMapping, Transport};
    use std::num::NonZeroU16;

    fn endpoint(container: &str) -> Endpoint {
        let attachment = Attachment { container_id: container.into(), interface: "eth0".into() };
        Endpoint {
            host_interface: attachment.host_interface(),
            attachment,
            ifindex: 0,
            ..Endpoint::example()
        }
    }

    #[test]
    fn endpoints_come_back_as_they_were_saved() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.save(&endpoint("a")).unwrap();
        store.save(&endpoint("b")).unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        let (mut found, corrupt) = store.load().unwrap();
        found.sort_by(|one, other| one.attachment.cmp(&other.attachment));
        assert_eq!(found, [endpoint("a"), endpoint("b")]);
        assert_eq!(corrupt, []);
    }

    #[test]
    fn endpoint_of_the_first_release_keeps_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let path = store.path(&endpoint("a"));
        store.save(&endpoint("a")).unwrap();
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["format"] = 1.into();
        let of_first = record["endpoint"].as_object_mut().unwrap();
        let addresses = of_first.remove("pod_addresses").unwrap();
        for field in ["address", "gateway"] {
            of_first.insert(field.into(), addresses[0][field].clone());
        }
        fs::write(&path, record.to_string()).unwrap();
        assert_eq!(store.load().unwrap(), (vec![endpoint("a")], vec![]));
    }

    #[test]
    fn host_ports_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let port = |number| NonZeroU16::new(number).unwrap();
        let mapping = PortMapping {
            host_address: Some(IpAddr::from([10, 200, 0, 1])),
            host_port: port(9088),
            container_port: port(8080),
            protocol: Transport::Udp,
        };
        let with = Endpoint { port_mappings: vec![mapping], ..endpoint("a") };
        store.save(&with).unwrap();
        assert_eq!(store.load().unwrap().0, [with]);
    }

    #[test]
    fn a_removed_endpoint_is_gone_and_removing_it_again_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.save(&endpoint("a")).unwrap();
        store.remove(&endpoint("a")).unwrap();
        store.remove(&endpoint("a")).unwrap();
        assert_eq!(store.load().unwrap().0, []);
    }

    #[test]
    fn a_corrupt_file_is_set_aside_and_the_others_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.save(&endpoint("a")).unwrap();
        let endpoints = folder.path().join("endpoints");
        fs::write(endpoints.join("pw000000000001.json"), b"{\"format\":1,").unwrap();
        fs::write(endpoints.join("pw000000000002.json"), b"").unwrap();
        fs::write(endpoints.join("pw000000000003.tmp"), b"half").unwrap();
        fs::create_dir(endpoints.join("pw000000000005.json")).unwrap();
        let foreign = fs::read(store.path(&endpoint("a"))).unwrap();
        fs::write(endpoints.join("pw000000000004.json"), foreign).unwrap();
        let (found, mut corrupt) = store.load().unwrap();
        assert_eq!(found, [endpoint("a")]);
        corrupt.sort_by(|one, other| one.path.cmp(&other.path));
        let names: Vec<_> =
            corrupt.iter().map(|file| file.path.file_name().unwrap().to_str().unwrap()).collect();
        let expected = [1, 2, 4, 5].map(|number| format!("pw00000000000{number}.json.corrupt"));
        assert_eq!(names, expected);
        assert!(corrupt.iter().all(|file| file.path.exists()));
        assert!(!endpoints.join("pw000000000003.tmp").exists());
        assert_eq!(store.load().unwrap().1, []);
    }

    #[test]
    fn what_can_be_neither_removed_nor_set_aside_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.save(&endpoint("a")).unwrap();
        let endpoints = folder.path().join("endpoints");
        let (tmp, taken) = (endpoints.join("pw000000000001.tmp"), endpoints.join("pw000000000002.json"));
        fs::create_dir(&tmp).unwrap();
        fs::write(&taken, "{").unwrap();
        fs::create_dir_all(taken.with_extension("json.corrupt").join("full")).unwrap();
        for _ in 0..2 {
            let (found, corrupt) = store.load().unwrap();
            assert_eq!(found, [endpoint("a")]);
            assert_eq!(corrupt.iter().map(|file| &file.path).collect::<Vec<_>>(), [&taken, &tmp]);
        }
    }

    #[test]
    fn a_later_releases_file_is_named_and_nothing_touched() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.save(&endpoint("a")).unwrap();
        let endpoints = folder.path().join("endpoints");
        let later = fs::read_to_string(store.path(&endpoint("a"))).unwrap();
        fs::write(store.path(&endpoint("b")), later.replace("\"format\": 2", "\"format\": 3")).unwrap();
        fs::write(endpoints.join("pw000000000001.json"), b"{\"form").unwrap();
        fs::write(endpoints.join("pw000000000003.tmp"), b"half").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains(&endpoint("b").host_interface) && error.contains("format 3"), "{error}");
        assert_eq!(fs::read_dir(&endpoints).unwrap().count(), 4);
        assert!(
            endpoints.join("pw000000000001.json").exists() && endpoints.join("pw000000000003.tmp").exists()
        );
    }

    #[test]
    fn a_second_agent_is_refused_and_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let first = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Store::open(folder.path()).unwrap();
    }

    #[test]
    fn the_round_of_addresses_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let last = || Family::ALL.map(|family| store.last_address(family));
        assert_eq!(last(), [None; 2]);
        let (v4, v6) = (IpAddr::from([10, 244, 1, 9]), "fd00:10:244:1::9".parse().unwrap());
        store.save_last_address(v6).unwrap();
        assert_eq!(last(), [None, Some(v6)]);
        store.save_last_address(v4).unwrap();
        assert_eq!(last(), [Some(v4), Some(v6)]);
    }
}
