//! Stock Nix as a client that has never heard of pushgate: `nix copy --to http://…/main/push`, with each version.

mod copies;
mod evidence;

use std::{fs, path::PathBuf};

use pushgate_formats::StorePath;
use pushgate_tests::process::{Gateway, Nix, Ran, Submitter, names};

/// Somebody who has a key, a token in a netrc file, and stock Nix.
struct Pusher {
    submitter: Submitter,
    netrc: PathBuf,
    url: String,
}

impl Pusher {
    fn enrol(gateway: &Gateway, nix: &Nix, name: &str) -> Self {
        let submitter = gateway.enrol(name, &[]);
        let token = gateway.admin(&["token", name]).line();
        Self::with(gateway, nix, submitter, name, &token)
    }

    fn with(gateway: &Gateway, nix: &Nix, submitter: Submitter, login: &str, token: &str) -> Self {
        // beside the store, where each version of Nix can read them
        let netrc = nix.dir().join(format!("netrc-{login}"));
        fs::write(&netrc, format!("machine 127.0.0.1 login {login} password {token}\n")).unwrap();
        let key = nix.dir().join(format!("{login}.key"));
        fs::write(&key, submitter.key().to_file_text()).unwrap();
        let url = format!("{}/push?secret-key={}", gateway.cache_url("main"), key.display());
        Self { submitter, netrc, url }
    }

    /// `nix copy` with more parameters of the store's URL and more arguments.
    fn copy(&self, nix: &Nix, parameters: &str, paths: &[String]) -> Ran {
        let netrc = self.netrc.to_str().unwrap();
        let url = format!("{}{parameters}", self.url);
        let mut args = vec!["copy", "--option", "netrc-file", netrc, "--to", &url];
        args.extend(paths.iter().map(String::as_str));
        nix.run("nix", &args)
    }

    /// Copies a derivation with all that it refers to, as evidence.
    fn copy_derivation(&self, nix: &Nix, drv: &str) -> Ran {
        let netrc = self.netrc.to_str().unwrap();
        nix.run("nix", &["copy", "--option", "netrc-file", netrc, "--derivation", "--to", &self.url, drv])
    }

    /// What became of a path, in the words of `pushgate status`.
    fn status(&self, nix: &Nix, path: &str) -> String {
        self.submitter.run_on(nix, &["status", path]).out
    }
}

/// A library and a tool that refers to it, and to itself.
const TREE: &str = r#"
let make = name: attrs: derivation ({
  inherit name; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
} // attrs);
in rec {
  library = make "library-1.0" { args = [ "-c" "echo building the library; mkdir -p $out/lib; echo text > $out/lib/x" ]; };
  tool = make "tool-2.1" { args = [ "-c" "mkdir -p $out/bin; echo ${library} $out > $out/bin/tool; echo built" ]; };
}.tool
"#;

/// Builds [`TREE`]: the tool, and what it is built by.
fn tree(nix: &Nix) -> (Vec<String>, String) {
    (nix.build(TREE), nix.instantiate(TREE))
}

fn hash_part(path: &str) -> String {
    StorePath::parse(path).unwrap().hash_part().to_owned()
}

/// Whether a path can be fetched by anybody.
fn is_public(gateway: &Gateway, path: &str) -> bool {
    gateway.public("main").join(format!("{}.narinfo", hash_part(path))).exists()
}

/// Nothing at all is public, and nothing was logged.
fn assert_nothing_public(gateway: &Gateway) {
    assert_eq!(names(&gateway.public("main")), ["nix-cache-info"]);
}
