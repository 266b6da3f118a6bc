//! Files that are there whole or not at all, whenever the power goes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::error::{Error, absent_is_fine};

/// Ends the name of a file that is being written, until it gets its own.
const BEGUN: &str = "tmp";

/// Removes a file of a folder that others use as well, and what was begun of it by somebody who was killed. Nothing happens when neither is there.
///
/// # Errors
/// [`Error::File`], [`Error::FolderOfAnother`].
pub(crate) fn remove_shared(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    for path in [&path.with_extension(BEGUN), path] {
        absent_is_fine(fs::remove_file(path))
            .map_err(Error::file("remove", path))
            .map_err(Error::in_shared(folder))?;
    }
    Ok(())
}

/// Writes a file so that there is the one before or the whole of this one. It is for root alone.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_after(path, bytes, 0o600, || Ok(()))
}

/// The same of a program, which everybody may execute.
pub(crate) fn replace_executable(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_after(path, bytes, 0o755, || Ok(()))
}

/// The same with something to be done when all is written and has not got its name.
pub(crate) fn replace_after(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    written: impl FnOnce() -> io::Result<()>,
) -> Result<(), Error> {
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
        Error::file("write", path)(error)
    })
}

/// Has a folder's names outlive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("sync", folder))
}
