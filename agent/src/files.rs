//! Writes files so that each of them is complete or absent after a power cut.

use podwire_cni::protocol::codes;
use rustix::process::geteuid;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Extension of a file's name while the file is being written.
const BEGUN: &str = "tmp";

/// An error about a file or folder.
#[derive(Debug, Error)]
pub enum FileError {
    /// An operation on a file or folder failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The folder belongs to another tool's user, so this process may not write there.
    #[error("{operation} {}: permission denied: {} belongs to user {owner}, and root without the capability DAC_OVERRIDE may not write there: run `chown root:root {}` on the node, or add the capability", path.display(), folder.display(), folder.display())]
    FolderOfAnother {
        /// The operation.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The folder that contains it, or the folder itself.
        folder: PathBuf,
        /// The folder's owner (user id).
        owner: u32,
    },
    /// The folder was removed at the source of its mount: it has no name, and nothing can be made
    /// in it.
    #[error("{} is the mount of a folder that was removed: mount an existing folder there; a container gets one when it starts again", path.display())]
    RemovedFolder {
        /// The folder.
        path: PathBuf,
    },
}

impl FileError {
    /// The CNI error code for the plugin.
    pub(crate) const CNI_CODE: u32 = codes::IO_FAILURE;

    /// Returns a conversion from an I/O error to this error, for `map_err`.
    pub fn of(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// Returns a conversion for errors in a folder that other tools use as well. If permission was
    /// denied because another user owns the folder, the error becomes [`Self::FolderOfAnother`].
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

/// Treats a removal that found nothing to remove as a success.
pub(crate) fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a file from a folder that other tools use as well, and the unfinished file of a process
/// that was killed. Missing files are no error.
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

/// Replaces a file: at any moment there is the earlier file or all of the new one. Only root can
/// read it (mode 0600).
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_after(path, bytes, 0o600, || Ok(()))
}

/// Like [`replace`], for a program that everyone may execute (mode 0755).
pub(crate) fn replace_executable(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_after(path, bytes, 0o755, || Ok(()))
}

/// Like [`replace`], with a given mode. Calls `written` when the content is on disk and the file
/// does not have its name yet.
pub(crate) fn replace_after(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    written: impl FnOnce() -> io::Result<()>,
) -> Result<(), FileError> {
    replace_by(path, mode, |file| file.write_all(bytes), written)
}

/// Like [`replace`], for a content that `write` makes piece by piece.
pub(crate) fn replace_with(
    path: &Path,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> Result<(), FileError> {
    let buffered = |file: &mut File| {
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        file.flush()
    };
    replace_by(path, 0o600, buffered, || Ok(()))
}

fn replace_by(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
    written: impl FnOnce() -> io::Result<()>,
) -> Result<(), FileError> {
    let temporary = path.with_extension(BEGUN);
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        // The umask, or the file of an earlier attempt, may give another mode.
        file.set_permissions(Permissions::from_mode(mode))?;
        fill(&mut file)?;
        file.sync_all()?;
        written()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        FileError::of("write", path)(error)
    })
}

/// Syncs a folder, so that the names in it survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(FileError::of("sync", folder))
}
