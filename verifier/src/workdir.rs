//! The verifier's directory: what it joined, its key, and a directory for each job. Doesn't know what jobs put there.
//!
//! ```text
//! DIR/verifier.toml   the gateway that was joined, pinned
//! DIR/NAME.key        the verifier's secret key
//! DIR/.lock           held by the one `run` or `join`
//! DIR/jobs/JOB/       all that a job writes
//! ```

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::key::write_new;

const FILE: &str = "verifier.toml";

#[derive(Debug, thiserror::Error)]
pub enum WorkDirError {
    #[error("`{path}` can't be used as the verifier's directory")]
    Use {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another pushgate-verifier works in `{0}`")]
    Busy(PathBuf),
    #[error("no gateway was joined in `{0}`: pushgate-verifier join URL --invite CODE --work-dir {path}", path = .0.display())]
    NotJoined(PathBuf),
    #[error("`{path}` is not what `join` wrote: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error(
        "the directory `{0}` has characters that Nix's settings can't have: white space, `?`, `#`, `=`, `&`"
    )]
    Characters(PathBuf),
}

/// What `join` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Joined {
    pub url: String,
    /// The gateway's random id, pinned.
    pub id: String,
    /// The name under which the gateway knows this verifier.
    pub verifier: String,
    pub key_file: PathBuf,
}

/// The directory, held against other verifiers while the value lives.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Makes the directory where there is none, and holds it.
    pub fn hold(path: &Path) -> Result<Self, WorkDirError> {
        let failed = |source| WorkDirError::Use { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let odd = |text: &str| text.chars().any(|c| c.is_whitespace() || "?#=&".contains(c));
        if path.to_str().is_none_or(odd) {
            return Err(WorkDirError::Characters(path));
        }
        let lock = File::options().write(true).create(true).truncate(false).open(path.join(".lock"));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(WorkDirError::Busy(path)),
            Err(std::fs::TryLockError::Error(source)) => return Err(WorkDirError::Use { path, source }),
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path.join("jobs")).map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where each job has a directory.
    pub fn jobs(&self) -> PathBuf {
        self.path.join("jobs")
    }

    pub fn joined(&self) -> Result<Joined, WorkDirError> {
        let path = self.path.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|e| WorkDirError::Malformed { path, why: e.message().to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(WorkDirError::NotJoined(self.path.clone()))
            }
            Err(source) => Err(WorkDirError::Use { path, source }),
        }
    }

    /// Writes what was joined at once: a crash leaves none or all of it, and perhaps a `.tmp` file.
    pub fn save(&self, joined: &Joined) -> Result<(), WorkDirError> {
        let failed = |source| WorkDirError::Use { path: self.path.clone(), source };
        let temporary = self.path.join(".verifier.toml.tmp");
        let _ = std::fs::remove_file(&temporary);
        // a plain structure of strings always has a TOML form
        let text = toml::to_string_pretty(joined).expect("strings are TOML");
        write_new(&temporary, text.as_bytes()).map_err(failed)?;
        std::fs::rename(&temporary, self.path.join(FILE)).map_err(failed)?;
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_what_was_joined() {
        let dir = tempfile::tempdir().unwrap();
        let held = WorkDir::hold(&dir.path().join("v")).unwrap();
        assert!(matches!(WorkDir::hold(&dir.path().join("v")), Err(WorkDirError::Busy(_))));
        assert!(matches!(held.joined(), Err(WorkDirError::NotJoined(_))));
        let joined = Joined {
            url: "http://g".into(),
            id: "5f".into(),
            verifier: "v1".into(),
            key_file: "v.key".into(),
        };
        held.save(&joined).unwrap();
        assert_eq!(held.joined().unwrap(), joined);
        assert!(matches!(WorkDir::hold(&dir.path().join("a b")), Err(WorkDirError::Characters(_))));
    }
}
