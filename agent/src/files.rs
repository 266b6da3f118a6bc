//! Files that are there whole or not at all, whenever the power goes.

use podwire_cni::protocol::codes;
use rustix::process::geteuid;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Ends the name of a file that is being written, until it gets its own.
const BEGUN: &str = "tmp";

/// A file or folder, and what is wrong with it.
#[derive(Debug, Error)]
pub enum FileError {
    /// A file or folder.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder that another tool has made for a user of its own.
    #[error("{operation} {}: permission denied: {} belongs to user {owner}, and root without the capability DAC_OVERRIDE may not write there: run `chown root:root {}` on the node, or add the capability", path.display(), folder.display(), folder.display())]
    FolderOfAnother {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The folder that it is in, or is.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A folder without a name, in which nothing can be made: it was removed where it was mounted from.
    #[error("{} is the mount of a folder that was removed: mount one that is there; a runtime does so when the container starts anew", path.display())]
    RemovedFolder {
        /// The folder.
        path: PathBuf,
    },
}

impl FileError {
    /// What a plugin is told with it.
    pub(crate) const CNI_CODE: u32 = codes::IO_FAILURE;

    /// For `map_err` on file operations.
    pub fn of(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// Of something in a folder that other tools use as well: whose it is, if that is why.
    pub(crate) fn in_shared(folder: &Path) -> impl FnOnce(Self) -> Self {
        move |error| match (error, fs::metadata(folder).map(|folder| folder.uid())) {
            (Self::Io { operation, path, source }, Ok(owner))
                if source.raw_os_error() == Some(libc::EACCES) && owner != geteuid().as_raw() =>
            {
                Self::FolderOfAnother { operation, path, folder: folder.into(), owner }
            }
            (other, _) => other,
        }
    }
}

/// A removal that found nothing to remove has succeeded.
pub(crate) fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a file of a folder that others use as well, and what was begun of it by somebody who was killed. Nothing happens when neither is there.
///
/// # Errors
/// [`FileError::Io`], [`FileError::FolderOfAnother`].
pub(crate) fn remove_shared(path: &Path) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or(path);
    for path in [&path.with_extension(BEGUN), path] {
        absent_is_fine(fs::remove_file(path))
            .map_err(FileError::of("remove", path))
            .map_err(FileError::in_shared(folder))?;
    }
    Ok(())
}

/// Writes a file so that there is the one before or the whole of this one. It is for root alone.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_after(path, bytes, 0o600, || Ok(()))
}

/// The same of a program, which everybody may execute.
pub(crate) fn replace_executable(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_after(path, bytes, 0o755, || Ok(()))
}

/// The same with something to be done when all is written and has not got its name.
pub(crate) fn replace_after(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    written: impl FnOnce() -> io::Result<()>,
) -> Result<(), FileError> {
    let temporary = path.with_extension(BEGUN);
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        // Whatever the umask, and an attempt before.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        written()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        FileError::of("write", path)(error)
    })
}

/// Has a folder's names outlive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(FileError::of("sync", folder))
}
