//! What a build sees, looked at from inside: the builder of the trial that [`crate::sandbox`] makes. Knows what must not be
//! there.

use std::{net::TcpStream, time::Duration};

use crate::cli::Probe;

/// Looks around; the first thing that must not be is the answer.
pub fn look(probe: &Probe) -> Result<(), String> {
    if probe.file.exists() {
        return Err(format!("a build sees files of the host, such as `{}`", probe.file.display()));
    }
    for dir in ["/root", "/home", "/boot", "/var/lib", "/nix/var"] {
        if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(format!("a build sees the host's `{dir}`"));
        }
    }
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], probe.port));
    if TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok() {
        return Err("a build reaches the host's network".into());
    }
    let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let others: Vec<_> = interfaces
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim())
        .filter(|name| *name != "lo" && !is_stub(name))
        .collect();
    if !others.is_empty() {
        return Err(format!("a build has network interfaces: {}", others.join(", ")));
    }
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(|e| format!("a build has no `/proc`: {e}"))?;
    if !status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"])) {
        return Err("a build may gain privileges".into());
    }
    let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outer = ids.lines().next().and_then(|line| line.split_whitespace().nth(1)).unwrap_or("0");
    if outer == "0" {
        return Err("builds run as root: there are no members of the group `build-users-group`".into());
    }
    std::fs::write(&probe.out, "confined\n").map_err(|e| format!("a build can't write its output: {e}"))
}

/// Tunnels that some kernels put into every new network namespace, down and without an address.
fn is_stub(name: &str) -> bool {
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"]
        .contains(&name)
}
