//! nginx on a cache's published files, configured by the words of docs/admin.md.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use tempfile::TempDir;

use super::{Web, closed_port, command, wait_for, workspace};

/// An nginx. Killed when dropped.
pub struct Nginx {
    dir: TempDir,
    child: Child,
    port: u16,
}

impl Nginx {
    /// Serves a blob directory as docs/admin.md says, with nothing changed in its text but the port and the directory.
    pub fn serving(blobs: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = closed_port();
        let mut server = documented();
        for (documented, here) in [
            ("listen 80;", format!("listen 127.0.0.1:{port};")),
            ("root /var/lib/pushgate/blobs;", format!("root {};", blobs.display())),
        ] {
            assert_eq!(server.matches(documented).count(), 1, "`{documented}` in docs/admin.md");
            server = server.replace(documented, &here);
        }
        let place = dir.path().display();
        let mut temporary = String::new();
        for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            temporary.push_str(&format!("{name}_temp_path {place}/{name};\n"));
        }
        // As root it would change its user, who can't look into a test's directories. One process: it is gone when killed.
        let config = format!(
            "user root;\ndaemon off;\nmaster_process off;\npid {place}/pid;\nerror_log {place}/log;\nevents {{ }}\n\
             http {{\naccess_log off;\n{temporary}{server}\n}}\n"
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config).expect("a configuration");
        let mut nginx = command(program());
        nginx.arg("-c").arg(&file).arg("-p").arg(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = nginx.spawn().expect("nginx can be run: scripts/test installs it");
        let mut nginx = Self { dir, child, port };
        wait_for("nginx", || {
            let ended = nginx.child.try_wait().expect("its state");
            assert!(ended.is_none(), "nginx ended: {}", nginx.log());
            Web::new().try_get(&nginx.url("/")).map(|_| ())
        });
        nginx
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The block of docs/admin.md that serves a cache's files.
fn documented() -> String {
    let text = fs::read_to_string(workspace().join("docs/admin.md")).expect("the admin's guide");
    let blocks = text.split("```nginx\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let found: Vec<_> = blocks.map(|(block, _)| block).filter(|b| b.contains("nix-cache-info")).collect();
    let [block] = found.as_slice() else { panic!("{} such blocks", found.len()) };
    (*block).to_owned()
}

/// Debian has it where only root's `PATH` leads.
fn program() -> PathBuf {
    let paths = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir| dir.join("nginx")).find(|file| file.exists()).unwrap_or_else(|| "nginx".into())
}
