//! The submitter's secret key: its name, and its file in Nix's own form. Doesn't know what the key is for.

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
    #[error("the key file `{0}` exists already")]
    Exists(PathBuf),
    #[error("the key file `{path}` can't be written")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the key file `{path}` can't be read; if it is lost, join the gateway with a new invite and `--again`"
    )]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the key file `{path}` is no secret key; if it is lost, move the file away, and join the gateway with a new \
         invite and `--again`"
    )]
    Content {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error(
        "the key file `{path}` can be read by other users; `chmod 600` it, and ask for a new invite if they may have seen it"
    )]
    Readable { path: PathBuf },
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
}

/// Makes a key from the system's random bytes.
pub fn generate(name: KeyName) -> Result<SecretKey, KeyFileError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(KeyFileError::Random)?;
    Ok(SecretKey::from_seed(name, &seed))
}

/// The name of a file for this key.
pub fn file_name(name: &KeyName) -> String {
    format!("{name}.key")
}

/// Writes the key to a new file that only its owner can read.
///
/// The file appears under its name with all its bytes or not at all: it is written under another name, then linked,
/// which fails where the name is taken. A crash in between leaves a `.tmp` file that nothing refers to.
pub fn create(dir: &Path, key: &SecretKey) -> Result<PathBuf, KeyFileError> {
    let path = dir.join(file_name(key.name()));
    let temporary = dir.join(format!(".{}.{}.tmp", file_name(key.name()), std::process::id()));
    let failed = |source| KeyFileError::Write { path: path.clone(), source };
    // left by a process that had the same number, in another container perhaps
    let _ = std::fs::remove_file(&temporary);
    let written = write_new(&temporary, format!("{}\n", key.to_file_text()).as_bytes());
    let linked = written.and_then(|()| std::fs::hard_link(&temporary, &path));
    // the temporary name has done its work either way
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Ok(()) => sync_dir(dir).map_err(failed).map(|()| path.clone()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(KeyFileError::Exists(path)),
        Err(error) => Err(failed(error)),
    }
}

/// Makes a file that wasn't there, for the owner only, and brings it to the disk.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Brings new names in a directory to the disk.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a key file. Refuses one that other users can read, as `ssh` does: whoever reads it can push as its owner.
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

/// The name for a key of this user on this machine: `USER-HOST-N`, with what a key name can't have made a dash.
pub fn default_name(user: &str, host: &str, n: u32) -> KeyName {
    // 40 and 40 and the number stay below the 100 that a key name may have
    let clean = |text: &str, fallback: &str| {
        let mut out = String::new();
        for c in text.chars().take(40) {
            if c.is_ascii_alphanumeric() || c == '_' {
                out.push(c.to_ascii_lowercase());
            } else if !out.is_empty() && !out.ends_with('-') {
                out.push('-');
            }
        }
        let out = out.trim_end_matches('-');
        if out.is_empty() { fallback.to_owned() } else { out.to_owned() }
    };
    // "host.example.org" says more than a key's name needs to tell everybody
    let host = host.split('.').next().unwrap_or_default();
    KeyName::new(&format!("{}-{}-{n}", clean(user, "user"), clean(host, "host")))
        .expect("only characters of the alphabet, and fewer than 100")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("alice", "laptop", "alice-laptop-1")]
    #[case("Alice B.", "laptop.example.org", "alice-b-laptop-1")]
    #[case("", "", "user-host-1")]
    #[case("../..", "::1", "user-1-1")]
    #[case("jürgen", "häß", "j-rgen-h-1")]
    #[case("a\nb:c", "x", "a-b-c-x-1")]
    fn names(#[case] user: &str, #[case] host: &str, #[case] name: &str) {
        assert_eq!(default_name(user, host, 1).as_str(), name);
    }

    #[test]
    fn names_are_never_too_long() {
        assert!(default_name(&"u".repeat(300), &"h".repeat(300), u32::MAX).as_str().len() <= 100);
    }

    #[test]
    fn a_file_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let key = generate(default_name("a", "b", 1)).unwrap();
        let path = create(dir.path(), &key).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().public(), key.public());

        let other = generate(default_name("a", "b", 1)).unwrap();
        assert!(matches!(create(dir.path(), &other), Err(KeyFileError::Exists(_))));
        assert_eq!(read(&path).unwrap().public(), key.public(), "the first key must stay");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Readable { .. })));
    }
}
