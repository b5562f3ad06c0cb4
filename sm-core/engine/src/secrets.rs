//! Secrets of device configurations, apart from everything that is printed or copied about.
//!
//! One file for each SR under `secrets/`, mode 0600 in a folder of mode 0700. The catalog holds
//! references (`secret://<sr>/<key>`); only the driver of that SR gets the text.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sm_model::host::SECRET_PREFIX;
use sm_model::{DeviceConfig, Error, Manifest, Result, SrUuid};

/// The folder of secrets.
#[derive(Clone, Debug)]
pub(crate) struct Secrets(PathBuf);

impl Secrets {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| Error::from(error).context("path", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }

    fn file(&self, sr: SrUuid) -> PathBuf {
        self.0.join(format!("{sr}.json"))
    }

    /// Takes the secrets out of a device configuration and leaves references.
    pub(crate) fn seal(
        &self,
        sr: SrUuid,
        manifest: &Manifest,
        config: &DeviceConfig,
    ) -> Result<DeviceConfig> {
        let mut sealed = config.clone();
        let mut texts = BTreeMap::new();
        for (key, value) in &mut sealed {
            let secret = manifest.field(key).is_some_and(|field| field.secret);
            if secret && !value.starts_with(SECRET_PREFIX) {
                let reference = format!("{SECRET_PREFIX}{sr}/{key}");
                texts.insert(key.clone(), std::mem::replace(value, reference));
            }
        }
        if !texts.is_empty() {
            self.write(sr, &texts)?;
        }
        Ok(sealed)
    }

    /// The text behind a reference, for the driver of `sr` only.
    pub(crate) fn get(&self, sr: SrUuid, reference: &str) -> Result<String> {
        let unknown = || Error::not_found(format!("SR {sr} has no secret {reference}"));
        let key = reference
            .strip_prefix(SECRET_PREFIX)
            .and_then(|rest| rest.strip_prefix(&format!("{sr}/")))
            .ok_or_else(unknown)?;
        let path = self.file(sr);
        let text = std::fs::read(&path)
            .map_err(|error| Error::from(error).context("path", path.display()))?;
        let mut texts: BTreeMap<String, String> = serde_json::from_slice(&text).map_err(|_| {
            // The parser's message could quote the secret.
            Error::new(sm_model::Kind::Corrupt, "the file of secrets cannot be read")
                .context("path", path.display())
        })?;
        texts.remove(key).ok_or_else(unknown)
    }

    /// Removes the secrets of an SR.
    pub(crate) fn remove(&self, sr: SrUuid) -> Result<()> {
        match std::fs::remove_file(self.file(sr)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn write(&self, sr: SrUuid, texts: &BTreeMap<String, String>) -> Result<()> {
        let path = self.file(sr);
        let temporary = path.with_extension("tmp");
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&serde_json::to_vec(texts)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(&self.0)?.sync_all()
        };
        write().map_err(|error| Error::from(error).context("path", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sm_model::manifest::{ConfigField, FieldKind, Isolation, PanicStrategy};

    fn manifest() -> Manifest {
        let field = |name: &str, secret| ConfigField {
            name: name.into(),
            kind: FieldKind::Text,
            required: true,
            secret,
            default: None,
            help: String::new(),
        };
        Manifest {
            name: "demo".into(),
            title: String::new(),
            version: "1.0.0".into(),
            vendor: String::new(),
            abi: "1.0".into(),
            sdk: "0.1.0".into(),
            panic: PanicStrategy::Unwind,
            isolation: Isolation::Any,
            needs_root: false,
            services: vec![],
            capabilities: vec![],
            config: vec![field("server", false), field("password", true)],
        }
    }

    #[test]
    fn a_secret_leaves_the_configuration_and_comes_back_only_to_its_sr() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(&folder.path().join("secrets")).unwrap();
        let (sr, other) = (SrUuid::random(), SrUuid::random());
        let config: DeviceConfig = [("server", "a"), ("password", "canary-7781")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let sealed = secrets.seal(sr, &manifest(), &config).unwrap();
        let reference = format!("secret://{sr}/password");
        assert_eq!(sealed["server"], "a");
        assert_eq!(sealed["password"], reference);
        assert_eq!(secrets.get(sr, &reference).unwrap(), "canary-7781");
        assert_eq!(
            secrets.get(other, &reference).unwrap_err().message,
            format!("SR {other} has no secret {reference}")
        );
        let mode = std::fs::metadata(secrets.file(sr)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Sealing what is sealed changes nothing.
        assert_eq!(secrets.seal(sr, &manifest(), &sealed).unwrap(), sealed);
        secrets.remove(sr).unwrap();
        assert!(secrets.get(sr, &reference).is_err());
    }
}
