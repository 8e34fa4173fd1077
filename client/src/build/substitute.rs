//! Fetches what was built at the cache into the store on this machine, by stock Nix: it is Nix that decides whom it trusts.

use std::process::Stdio;

use pushgate_formats::StorePath;
use tokio::process::Command;

const PROGRAM: &str = "nix-store";

/// The arguments of `nix-store`.
fn args(cache_url: &str, key: &str, outputs: &[StorePath]) -> Vec<String> {
    let mut args = vec!["--realise".to_owned()];
    args.extend(outputs.iter().map(StorePath::absolute));
    let options = [
        ("extra-substituters", cache_url),
        ("extra-trusted-public-keys", key),
        // a moment ago it may have been told, rightly, that the path isn't there
        ("narinfo-cache-negative-ttl", "0"),
    ];
    for (name, value) in options {
        args.extend(["--option", name, value].map(str::to_owned));
    }
    args
}

/// The command with which a person does the same.
pub(super) fn command(cache_url: &str, key: &str, outputs: &[StorePath]) -> String {
    let quoted = args(cache_url, key, outputs).into_iter().map(|arg| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:+=?".contains(&b);
        if arg.bytes().all(is_plain) && !arg.contains('?') {
            arg
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    });
    format!("{PROGRAM} {}", quoted.collect::<Vec<_>>().join(" "))
}

/// Has Nix fetch them. Says whether they are in the store now; what hinders Nix, it says itself on standard error.
pub(super) async fn substitute(cache_url: &str, key: &str, outputs: &[StorePath]) -> bool {
    let run = Command::new(PROGRAM)
        .args(args(cache_url, key, outputs))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status();
    run.await.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_one_that_a_shell_takes() {
        let path = StorePath::parse("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x?y").unwrap();
        assert_eq!(
            command("https://h/main", "main-1:ab+/=", &[path]),
            "nix-store --realise '/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x?y' --option extra-substituters \
             https://h/main --option extra-trusted-public-keys main-1:ab+/= --option narinfo-cache-negative-ttl 0"
        );
        assert!(command("it's", "k", &[]).contains(r"'it'\''s'"));
    }
}
