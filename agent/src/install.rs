//! `podwire install`: copies the plugin to where the runtime looks for it.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

use clap::Args;
use rustix::fs::{FlockOperation, flock};
use tracing::info;

use crate::config::Logging;
use crate::files;
use crate::files::FileError;

/// The plugin's file name, by which a network configuration names it.
pub const PLUGIN: &str = "podwire-cni";

/// Options of `podwire install`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Folder where the runtime looks for plugins, /opt/cni/bin on most nodes.
    #[arg(long, env = "PODWIRE_CNI_BIN_DIR", value_name = "FOLDER")]
    pub cni_bin_dir: PathBuf,
    /// Plugin file to copy. Default: `podwire-cni` beside this program.
    #[arg(long, env = "PODWIRE_PLUGIN", value_name = "FILE")]
    pub plugin: Option<PathBuf>,
    /// What the command logs.
    #[command(flatten)]
    pub logging: Logging,
}

/// Why the plugin could not be installed.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The folder of plugins does not exist.
    #[error("the folder of plugins {} does not exist: create it, or set --cni-bin-dir to the folder where the runtime looks for plugins", path.display())]
    NoPluginFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Replaces the plugin in one step, even while the earlier one runs. At any moment the folder has a
/// complete plugin, the earlier one or the new one. Overwrites what an interrupted attempt has
/// left.
///
/// # Errors
/// [`InstallError::NoPluginFolder`], [`InstallError::File`].
pub fn run(options: &Options) -> Result<(), InstallError> {
    let source = options.plugin.clone().map_or_else(beside_this_program, Ok)?;
    let plugin = fs::read(&source).map_err(FileError::of("read the plugin (--plugin)", &source))?;
    let folder = &options.cni_bin_dir;
    let held = File::open(folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => InstallError::NoPluginFolder { path: folder.clone() },
        _ => FileError::in_shared(folder)(FileError::of("open the folder of plugins", folder)(error)).into(),
    })?;
    // Two installs at once would write into the same temporary file.
    flock(&held, FlockOperation::LockExclusive)
        .map_err(|errno| FileError::of("lock", folder)(errno.into()))?;
    let installed = folder.join(PLUGIN);
    files::replace_executable(&installed, &plugin).map_err(FileError::in_shared(folder))?;
    files::sync_folder(folder)?;
    info!(path = %installed.display(), bytes = plugin.len(), "plugin installed");
    Ok(())
}

/// Removes the plugin, and what an interrupted attempt has left. A missing plugin is no error.
///
/// # Errors
/// [`FileError::Io`], [`FileError::FolderOfAnother`].
pub fn remove(folder: &Path) -> Result<(), FileError> {
    files::remove_shared(&folder.join(PLUGIN))
}

fn beside_this_program() -> Result<PathBuf, FileError> {
    let program = env::current_exe().map_err(FileError::of("find", "this program"))?;
    Ok(program.with_file_name(PLUGIN))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::config::LogFormat;

    fn install(folder: &Path, plugin: &Path) -> Result<(), InstallError> {
        let logging = Logging { log_level: "off".into(), log_format: LogFormat::Text };
        run(&Options { cni_bin_dir: folder.into(), plugin: Some(plugin.into()), logging })
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn plugin_replaces_one_that_runs_and_half_a_one() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, installed) = (folder.path(), folder.path().join(PLUGIN));
        install(folder, Path::new("/bin/cat")).unwrap();
        let mut running = Command::new(&installed).stdin(Stdio::piped()).spawn().unwrap();
        fs::write(folder.join("podwire-cni.tmp"), "half of a plugin that is longer than what comes").unwrap();
        let next = folder.join("next");
        fs::write(&next, "#!/bin/sh\n").unwrap();
        let outcome = install(folder, &next);
        drop(running.stdin.take());
        assert!(running.wait().unwrap().success());
        outcome.unwrap();
        fs::remove_file(next).unwrap();
        assert_eq!(names(folder), [PLUGIN]);
        assert_eq!(fs::read(&installed).unwrap(), b"#!/bin/sh\n");
        assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o7777, 0o755);
    }

    #[test]
    fn failed_install_leaves_what_was_there_and_names_the_fault() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, installed) = (folder.path(), folder.path().join(PLUGIN));
        let absent = folder.join("absent");
        let refusal = install(&absent, Path::new("/bin/cat")).unwrap_err().to_string();
        assert!(refusal.contains("absent") && refusal.contains("--cni-bin-dir"), "{refusal}");
        fs::write(&installed, "the one before").unwrap();
        let refusal = install(folder, &absent).unwrap_err().to_string();
        assert!(refusal.contains("absent") && refusal.contains("--plugin"), "{refusal}");
        // Like a full disk, this makes the write fail.
        fs::create_dir(folder.join("podwire-cni.tmp")).unwrap();
        let refusal = install(folder, Path::new("/bin/cat")).unwrap_err().to_string();
        assert!(refusal.contains("podwire-cni: "), "{refusal}");
        assert_eq!(fs::read(&installed).unwrap(), b"the one before");
    }
}
