//! tests/toolset: what builds in a sandbox that shows nothing of this machine, a verifier's among them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use pushgate_formats::Sha256;

use super::{read, workspace};

/// The directory that tests/toolset/default.nix takes as `busybox`, made once for all tests.
fn busybox() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let make = workspace().join("tests/toolset/make");
        let paths = env::var_os("PATH").unwrap_or_default();
        let program = env::split_paths(&paths).map(|dir| dir.join("busybox")).find(|file| file.exists());
        let program = program.expect("these tests need busybox-static, which scripts/test installs");
        // one directory for each busybox and each way to make it
        let digest = Sha256::of(&[read(&program), read(&make)].concat()).hex();
        let test = env::current_exe().expect("the path of this test");
        // TARGET/PROFILE/deps/TEST
        let target = test.ancestors().nth(3).expect("a test lies in the target directory");
        let dir = target.join("toolset").join(&digest[..16]);
        if !dir.exists() {
            fs::create_dir_all(target.join("toolset")).expect("a directory");
            // appears at once: other tests may look for it at this moment
            let new = tempfile::tempdir_in(target.join("toolset")).expect("a directory");
            let made = Command::new(make).arg(new.path().join("made")).status().expect("a shell");
            assert!(made.success(), "tests/toolset/make failed");
            let moved = fs::rename(new.path().join("made"), &dir);
            assert!(moved.is_ok() || dir.exists(), "{moved:?}");
        }
        dir
    })
}

/// An expression with `run` and `tools` of tests/toolset/default.nix in scope, for [`super::Nix::build`] and the like.
pub fn toolset(expression: &str) -> String {
    let file = workspace().join("tests/toolset/default.nix");
    format!("with import {} {{ busybox = {}; }}; {expression}", file.display(), busybox().display())
}
