//! Sources from the network, for derivations with the builder `builtin:fetchurl`. Nix would run that outside the sandbox
//! and follow any redirection; so the verifier fetches itself, from addresses that the operator allows, and has Nix take the
//! file as what its hash makes it. What is fetched is known by its hash: nothing is gained by lying about it.
//!
//! The attack is a URL that leads to the verifier's own network: directly, by a name that resolves there, by a name that
//! resolves there only the second time, or by a redirection. Names are therefore resolved and judged where the connection
//! is made.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use pushgate_formats::{
    StorePath,
    derivation::{Derivation, Method},
    jobs::Failure,
};
use reqwest::{
    Url, dns,
    redirect::{Action, Attempt, Policy},
};
use tokio::io::AsyncWriteExt;

use super::{Order, build::Finished, failure, fault, refuse::Permitted};
use crate::{config::Config, nix::Nix};

/// Redirections that are followed.
const MAX_HOPS: usize = 8;

/// How allowed addresses begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(Url);

impl Prefix {
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let plain = url.query().is_none() && url.fragment().is_none();
        (plain && is_plain(&url)).then_some(Self(url))
    }

    /// Whether the URL is below it: the same server, and a path that begins so.
    fn covers(&self, url: &Url) -> bool {
        self.0.origin() == url.origin() && url.path().starts_with(self.0.path())
    }

    /// Whether it names this very address: the operator then wants it, wherever it is.
    fn names(&self, url: &Url) -> bool {
        literal(url).is_some() && self.covers(url)
    }
}

fn is_plain(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
}

/// The address where the URL has one instead of a name.
fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// Whether the URL may be asked as far as can be told before its name is resolved.
fn may_ask(url: &Url, prefixes: &[Prefix]) -> bool {
    is_plain(url) && literal(url).is_none_or(|ip| is_public(ip) || prefixes.iter().any(|p| p.names(url)))
}

/// Whether an address is one of the internet, and not of this machine, its network or its cloud.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        // shared address space of providers, protocol assignments, benchmarks
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // mapped and translated addresses are what they stand for
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0x2001, 0xdb8, ..] | [0x2001, 0, ..] => false,
        // all that is global unicast
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

/// Resolves names and leaves out addresses that aren't public.
struct PublicOnly;

impl dns::Resolve for PublicOnly {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("`{}` has no public address", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as dns::Addrs)
        })
    }
}

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    url: Url,
    path: StorePath,
    recursive: bool,
    executable: bool,
    algo: &'static str,
}

impl Source {
    /// From a derivation of `builtin:fetchurl`; the reason why not otherwise.
    pub fn of(derivation: &Derivation, prefixes: &[Prefix]) -> Result<Self, String> {
        let leaf = derivation.fixed_leaf().map_err(|e| e.to_string())?;
        let leaf = leaf.ok_or("its output isn't fixed")?;
        let is_set = |name| derivation.env_var(name).is_some_and(|value| value == b"1");
        if is_set("unpack") {
            return Err("unpacking is not supported".into());
        }
        let allowed = |url: &Url| prefixes.iter().any(|p| p.covers(url)) && may_ask(url, prefixes);
        let url = leaf.urls.iter().filter_map(|text| Url::parse(text).ok()).find(allowed);
        let url = url.ok_or("none of its URLs is below what this verifier may fetch from")?;
        let recursive = match leaf.method {
            Method::Flat => false,
            Method::Recursive => true,
            _ => return Err("its output is neither a flat nor a recursive hash".into()),
        };
        let executable = is_set("executable");
        Ok(Self { url, path: leaf.path, recursive, executable, algo: leaf.hash.algo().name() })
    }
}

/// Fetches, and has Nix take the file for what the derivation says.
pub async fn fetch(
    nix: &Nix,
    order: &Order,
    _permitted: &Permitted,
    source: &Source,
    config: &Config,
) -> Result<Finished, Failure> {
    let dir = nix.layout.dir.join("fetched");
    std::fs::create_dir(&dir).map_err(|e| fault(format!("no directory: {e}")))?;
    let file = dir.join(source.path.name());
    let prefixes: Vec<_> = config.fetch.iter().filter_map(|text| Prefix::parse(text)).collect();
    let work = download(source, prefixes, &file, order.limits.output);
    tokio::time::timeout(Duration::from_secs(order.limits.time), work)
        .await
        .map_err(|_| failure("timed-out", format!("fetching `{}` took too long", source.url)))??;
    let mode = if source.executable { 0o755 } else { 0o644 };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))
        .map_err(|e| fault(e.to_string()))?;
    let name = file.to_string_lossy().into_owned();
    let mut arguments = vec!["--add-fixed"];
    if source.recursive {
        arguments.push("--recursive");
    }
    arguments.extend([source.algo, &name]);
    let made = nix.ask("nix-store", &arguments).await.map_err(|e| fault(e.to_string()))?;
    if made.trim() != source.path.absolute() {
        return Err(failure("build-failed", format!("what `{}` gives has another hash", source.url)));
    }
    Ok(Finished { sandbox: format!("none: fetched by the verifier from {}", source.url) })
}

async fn download(source: &Source, prefixes: Vec<Prefix>, file: &Path, limit: u64) -> Result<(), Failure> {
    let failed = |e: reqwest::Error| {
        let passing = e.is_timeout() || e.is_connect() || e.status().is_some_and(|s| s.is_server_error());
        let mut cause: &dyn std::error::Error = &e;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure {
            retry: passing,
            ..failure("build-failed", format!("`{}` can't be fetched: {cause}", source.url))
        }
    };
    let io = |e: io::Error| fault(format!("what is fetched can't be written: {e}"));
    let follow = move |attempt: Attempt<'_>| -> Action {
        match attempt.previous().len() > MAX_HOPS || !may_ask(attempt.url(), &prefixes) {
            true => attempt.error("it leads to an address that isn't public"),
            false => attempt.follow(),
        }
    };
    let client = reqwest::Client::builder()
        .user_agent(concat!("pushgate-verifier/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(PublicOnly))
        // a proxy would resolve names itself
        .no_proxy()
        .redirect(Policy::custom(follow))
        .connect_timeout(Duration::from_secs(15))
        .read_timeout(Duration::from_secs(60))
        .build()
        .map_err(failed)?;
    let response = client.get(source.url.clone()).send().await.map_err(failed)?;
    let mut response = response.error_for_status().map_err(failed)?;
    let mut out = tokio::fs::File::create(file).await.map_err(io)?;
    let mut size = 0;
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        size += chunk.len() as u64;
        if size > limit {
            return Err(failure("output-too-large", format!("`{}` has more than {limit} bytes", source.url)));
        }
        out.write_all(&chunk).await.map_err(io)?;
    }
    out.flush().await.map_err(io)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1.1.1.1", true)]
    #[case("127.0.0.1", false)]
    #[case("10.1.2.3", false)]
    #[case("172.31.0.1", false)]
    #[case("192.168.0.1", false)]
    #[case("169.254.169.254", false)]
    #[case("100.64.0.1", false)]
    #[case("0.0.0.0", false)]
    #[case("2606:4700::1111", true)]
    #[case("::1", false)]
    #[case("::ffff:127.0.0.1", false)]
    #[case("64:ff9b::a00:1", false)]
    #[case("2002:7f00:1::", false)]
    #[case("fe80::1", false)]
    #[case("fd00::1", false)]
    #[case("::", false)]
    fn addresses(#[case] ip: &str, #[case] public: bool) {
        assert_eq!(is_public(ip.parse().unwrap()), public, "{ip}");
    }

    #[rstest]
    #[case("https://example.org/src/", "https://example.org/src/a.tar", true)]
    #[case("https://example.org/src/", "https://example.org/src/../etc", false)]
    #[case("https://example.org/src/", "https://example.org.evil.net/src/a", false)]
    #[case("https://example.org/src/", "https://example.org@evil.net/src/a", false)]
    #[case("https://example.org/", "http://example.org/a", false)]
    #[case("https://example.org", "https://example.org:8443/a", false)]
    #[case("https://example.org", "https://EXAMPLE.org/a", true)]
    fn prefixes(#[case] prefix: &str, #[case] url: &str, #[case] covered: bool) {
        let prefix = Prefix::parse(prefix).unwrap();
        assert_eq!(prefix.covers(&Url::parse(url).unwrap()), covered);
    }

    #[test]
    fn only_the_operator_can_name_an_address_that_is_not_public() {
        let local = Url::parse("http://127.0.0.1:8000/a").unwrap();
        let decimal = Url::parse("http://2130706433:8000/a").unwrap();
        let prefix = |text| vec![Prefix::parse(text).unwrap()];
        assert!(!may_ask(&local, &prefix("http://localhost:8000/")));
        assert!(!may_ask(&decimal, &prefix("http://localhost:8000/")));
        assert!(may_ask(&local, &prefix("http://127.0.0.1:8000/")));
        assert!(!may_ask(&local, &prefix("http://127.0.0.1:8001/")));
        assert!(!may_ask(&Url::parse("file:///etc/passwd").unwrap(), &prefix("http://127.0.0.1/")));
    }

    #[tokio::test]
    async fn names_of_this_machine_have_no_public_address() {
        let error = dns::Resolve::resolve(&PublicOnly, "localhost".parse().unwrap()).await.err().unwrap();
        assert!(error.to_string().contains("no public address"), "{error}");
    }
}
