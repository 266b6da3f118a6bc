//! Volumes of a pod, made on the node as kubelet makes them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, HostPathVolumeSource, PodSpec};

use super::Kubelet;

/// The path on the node of each of a pod's volumes, by name.
pub type Volumes = BTreeMap<String, String>;

/// The name of the volume with a pod's token. The API server adds it to pods that ask for one.
pub const TOKEN: &str = "kube-api-access";

impl Kubelet<'_> {
    pub(super) fn make_volumes(&self, pod: &str, spec: &PodSpec) -> Result<Volumes> {
        let mut volumes = Volumes::new();
        let folder = format!("/var/lib/kubelet/pods/{pod}/volumes");
        for volume in spec.volumes.iter().flatten() {
            let path = match (&volume.host_path, &volume.config_map) {
                (Some(source), None) => self.host_path(source)?,
                (None, Some(source)) => self.config_map(source, &format!("{folder}/{}", volume.name))?,
                _ => bail!("the volume {} is of a kind that is not known here", volume.name),
            };
            volumes.insert(volume.name.clone(), path);
        }
        if spec.automount_service_account_token != Some(false) {
            let path = format!("{folder}/{TOKEN}");
            let files = [("token", &*self.token), ("ca.crt", &self.authority), ("namespace", "kube-system")];
            let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
            self.write(&path, &BTreeMap::from(files))?;
            volumes.insert(TOKEN.to_owned(), path);
        }
        Ok(volumes)
    }

    fn host_path(&self, source: &HostPathVolumeSource) -> Result<String> {
        let there = self.runtime.file(&source.path)?;
        match source.type_.as_deref() {
            Some("DirectoryOrCreate") => {
                fs::create_dir_all(&there).with_context(|| format!("make {}", source.path))?;
            }
            Some("Directory") => ensure!(there.is_dir(), "there is no folder {}", source.path),
            other => bail!("a hostPath of the type {other:?} is not known here"),
        }
        Ok(source.path.clone())
    }

    fn config_map(&self, source: &ConfigMapVolumeSource, path: &str) -> Result<String> {
        let found = self.config_maps.iter().find(|map| map.metadata.name.as_deref() == Some(&source.name));
        let map = found.with_context(|| format!("there is no ConfigMap {}", source.name))?;
        self.write(path, map.data.as_ref().context("a ConfigMap without data")?)?;
        Ok(path.to_owned())
    }

    /// Writes files that can all be replaced at once: links into a folder, which is a link itself.
    fn write(&self, path: &str, files: &BTreeMap<String, String>) -> Result<()> {
        let folder = self.runtime.file(path)?;
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let data = folder.join("..2026_11_22");
        fs::create_dir_all(&data)?;
        symlink("..2026_11_22", folder.join("..data"))?;
        for (name, text) in files {
            fs::write(data.join(name), text)?;
            symlink(Path::new("..data").join(name), folder.join(name))?;
        }
        Ok(())
    }
}
