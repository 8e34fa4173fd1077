//! The verifier's secret key and its file in Nix's own form. Doesn't know what the key signs.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use pushgate_formats::keys::{KeyError, KeyName, SecretKey};

/// A key file has one line of some 190 bytes; more is read only to say that it is something else.
const MAX_KEY_FILE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("the key file `{path}` can't be written")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the key file `{path}` can't be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the key file `{path}` is no secret key")]
    Content {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error(
        "the key file `{path}` can be read by other users: they may attest in this verifier's name; `chmod 600` it, and \
         have the key revoked if they may have seen it"
    )]
    Readable { path: PathBuf },
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
}

/// The name for the key of a verifier on this machine: `verifier-HOST-N`, with what a key name can't have made a dash.
pub fn default_name(host: &str, n: u32) -> KeyName {
    // the domain says more than a key's name needs to tell everybody
    let host = host.split('.').next().unwrap_or_default();
    let mut clean: String = host
        .chars()
        .take(40)
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    if clean.is_empty() {
        clean.push_str("host");
    }
    KeyName::new(&format!("verifier-{clean}-{n}"))
        .expect("only characters of the alphabet, and fewer than 100")
}

/// The key in the file for this name; a new one where there is no file.
///
/// The file appears under its name with all its bytes or not at all: it is written under another name, then linked. A
/// crash in between leaves a `.tmp` file that nothing refers to, and that the next attempt removes.
pub fn read_or_make(dir: &Path, name: KeyName) -> Result<(SecretKey, PathBuf), KeyFileError> {
    let path = dir.join(format!("{name}.key"));
    if path.exists() {
        return Ok((read(&path)?, path));
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(KeyFileError::Random)?;
    let key = SecretKey::from_seed(name, &seed);
    let temporary = dir.join(".key.tmp");
    let _ = std::fs::remove_file(&temporary);
    let written = write_new(&temporary, format!("{}\n", key.to_file_text()).as_bytes())
        .and_then(|()| std::fs::hard_link(&temporary, &path))
        .and_then(|()| File::open(dir)?.sync_all());
    // the temporary name has done its work either way
    let _ = std::fs::remove_file(&temporary);
    written.map_err(|source| KeyFileError::Write { path: path.clone(), source })?;
    Ok((key, path))
}

/// Makes a file that wasn't there, for the owner only, and brings it to the disk.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads a key file. Refuses one that other users can read, as `ssh` does.
pub fn read(path: &Path) -> Result<SecretKey, KeyFileError> {
    let failed = |source| KeyFileError::Read { path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(KeyFileError::Readable { path: path.into() });
    }
    let mut text = String::new();
    file.take(MAX_KEY_FILE).read_to_string(&mut text).map_err(failed)?;
    SecretKey::parse(&text).map_err(|source| KeyFileError::Content { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("builder.example.org", "verifier-builder-1")]
    #[case("", "verifier-host-1")]
    #[case("Ö/..", "verifier----1")]
    fn names(#[case] host: &str, #[case] name: &str) {
        assert_eq!(default_name(host, 1).as_str(), name);
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (first, path) = read_or_make(dir.path(), default_name("h", 1)).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let (again, _) = read_or_make(dir.path(), default_name("h", 1)).unwrap();
        assert_eq!(first.public(), again.public());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Readable { .. })));
    }
}
