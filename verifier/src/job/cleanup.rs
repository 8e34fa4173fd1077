//! A job's directory: made, and gone afterwards with all that ran in it, whatever happened in between.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{nix::Layout, processes};

/// Makes the directory, after removing what an earlier job of the same name left.
pub fn make(layout: &Layout) -> io::Result<()> {
    remove_now(&layout.dir)?;
    fs::DirBuilder::new().mode(0o700).create(&layout.dir)?;
    layout.make()
}

/// Ends what runs in a directory.
pub async fn end(dir: &Path) {
    let dir = dir.to_owned();
    // a panic in there would be told by the other use of this directory
    let _ = tokio::task::spawn_blocking(move || processes::end(&dir)).await;
}

/// Ends what runs in a directory, and removes it. What can't be removed is tried again at the next start.
pub async fn remove(dir: &Path) {
    let dir = dir.to_owned();
    let _ = tokio::task::spawn_blocking(move || remove_logged(&dir)).await;
}

/// Removes all that earlier runs left.
pub fn leftovers(jobs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(jobs)? {
        let path = entry?.path();
        remove_logged(&path);
        all.push(path);
    }
    Ok(all)
}

fn remove_logged(dir: &Path) {
    processes::end(dir);
    if let Err(error) = remove_now(dir) {
        tracing::error!(dir = %dir.display(), %error, "a job's directory can't be removed");
    }
}

/// Removes a directory tree. Links in it are removed and never followed, by `remove_dir_all`'s own care.
fn remove_now(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => fs::remove_file(dir),
        // the store's directories can't be written to; root may do so anyhow, but not on every file system
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            make_writable(dir)?;
            fs::remove_dir_all(dir)
        }
        done => done,
    }
}

fn make_writable(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // of the entry itself and not of what it may point to; nothing runs here that could exchange it meanwhile
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "").unwrap();
        let job = dir.path().join("jobs/j");
        fs::create_dir_all(job.join("store/path")).unwrap();
        std::os::unix::fs::symlink(&outside, job.join("store/link")).unwrap();
        std::os::unix::fs::symlink("/", job.join("store/path/root")).unwrap();
        fs::set_permissions(job.join("store/path"), fs::Permissions::from_mode(0o555)).unwrap();
        make_writable(&job).unwrap();
        assert_eq!(leftovers(&dir.path().join("jobs")).unwrap(), std::slice::from_ref(&job));
        assert!(!job.exists() && outside.join("keep").exists());
        assert_eq!(outside.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    }
}
