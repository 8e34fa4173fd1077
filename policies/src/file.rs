//! The policy file: parsed whole or refused whole, with line and column of what is wrong.

use pushgate_formats::{Sha256, keys::PublicKey};
use serde::{Deserialize, Deserializer, de::Error};

use crate::units::{de_duration, de_size};

/// Largest policy file read, in bytes.
pub const MAX_POLICY: usize = 4 << 20;

/// A policy file that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("{file}: the file has {bytes} bytes; {MAX_POLICY} are allowed")]
    TooLarge { file: String, bytes: usize },
    /// The message is several lines: what is wrong, then the source line with a marker.
    #[error("{file}: {message}")]
    Syntax { file: String, message: String },
    #[error("{file}: `version = {version}` is not known; this gateway reads version 1")]
    Version { file: String, version: u32 },
    #[error(
        "{file}: the policy is for the cache `{found}`, and lies where that of `{expected}` is looked for"
    )]
    Cache { file: String, found: String, expected: String },
}

/// A policy in force for one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Name of the cache.
    pub cache: String,
    pub closure: Closure,
    pub limits: Limits,
    pub upstreams: Vec<Upstream>,
    /// sha256 of the file's text, by which decisions name the policy that made them.
    pub digest: Sha256,
}

/// What counts as "every reference is served".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closure {
    /// Published in this cache, or at one of the policy's upstreams.
    #[default]
    Upstreams,
    /// Published in this cache, always.
    SelfContained,
}

/// Bounds on what a submitter may send.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Largest NAR, in bytes. Default: 4 GiB.
    #[serde(deserialize_with = "de_size")]
    pub nar_size: u64,
    /// How long a push may wait in quarantine, in seconds. Default: 7 days.
    #[serde(deserialize_with = "de_duration")]
    pub quarantine_ttl: u64,
    /// Most bytes (compressed) that one submitter may have in quarantine. Default: 64 GiB.
    #[serde(deserialize_with = "de_size")]
    pub quarantine_size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nar_size: 4 << 30, quarantine_ttl: 7 * 86_400, quarantine_size: 64 << 30 }
    }
}

/// A cache that is trusted to serve references.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// `http://…` or `https://…`, without a slash at its end.
    #[serde(deserialize_with = "de_url")]
    pub url: String,
    /// The key whose signature its narinfos must carry.
    #[serde(deserialize_with = "de_key")]
    pub key: PublicKey,
}

fn de_url<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() && !text.contains(['?', '#', ' ']) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(D::Error::custom(format!("`{text}` is not an `http://` or `https://` address of a cache"))),
    }
}

fn de_key<'de, D: Deserializer<'de>>(d: D) -> Result<PublicKey, D::Error> {
    PublicKey::parse(&String::deserialize(d)?).map_err(D::Error::custom)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    cache: String,
    #[serde(default)]
    closure: Closure,
    #[serde(default)]
    limits: Limits,
    #[serde(default, rename = "upstream")]
    upstreams: Vec<Upstream>,
}

impl Policy {
    /// Parses the text of the policy file of the cache `cache`; `file` is only shown in messages.
    pub fn parse(text: &str, file: &str, cache: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY {
            return Err(PolicyError::TooLarge { file: file.into(), bytes: text.len() });
        }
        let parsed: File = toml::from_str(text).map_err(|e| PolicyError::Syntax {
            file: file.into(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        if parsed.version != 1 {
            return Err(PolicyError::Version { file: file.into(), version: parsed.version });
        }
        if parsed.cache != cache {
            return Err(PolicyError::Cache {
                file: file.into(),
                found: parsed.cache,
                expected: cache.into(),
            });
        }
        Ok(Self {
            cache: parsed.cache,
            closure: parsed.closure,
            limits: parsed.limits,
            upstreams: parsed.upstreams,
            digest: Sha256::of(text.as_bytes()),
        })
    }
}

/// The text of the policy that a new cache starts with.
pub fn starting_policy(cache: &str) -> String {
    format!(
        r#"# The policy of the cache `{cache}`. Every path needs an enrolled submitter and either a provable derivation or contents
# that hash to the path itself; what can't be shown waits in quarantine.
version = 1
cache   = "{cache}"

# What a path refers to has to be published here or at one of the upstreams below.
# "self-contained" wants everything published here.
closure = "upstreams"

[limits]
nar-size        = "4 GiB"    # largest NAR
quarantine-ttl  = "7d"       # how long a push may wait
quarantine-size = "64 GiB"   # per submitter, compressed

# Paths that are here aren't sent, and count as served.
[[upstream]]
url = "https://cache.nixos.org"
key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[test]
    fn the_starting_policy_is_what_the_defaults_say() {
        let text = starting_policy("main");
        let policy = Policy::parse(&text, "main.toml", "main").unwrap();
        assert_eq!(policy.limits, Limits::default());
        assert_eq!(policy.closure, Closure::Upstreams);
        assert_eq!(policy.upstreams[0].url, "https://cache.nixos.org");
        assert_eq!(policy.digest, Sha256::of(text.as_bytes()));
    }

    #[rstest]
    #[case::unknown_field("version = 1\ncache = \"main\"\nlimit = 3\n", "unknown field `limit`")]
    #[case::unknown_limit(
        "version = 1\ncache = \"main\"\n[limits]\nnar_size = \"1 B\"\n",
        "unknown field `nar_size`"
    )]
    #[case::size("version = 1\ncache = \"main\"\n[limits]\nnar-size = \"4 GB\"\n", "`4 GB` is not a size")]
    #[case::ttl("version = 1\ncache = \"main\"\n[limits]\nquarantine-ttl = \"x\"\n", "`x` is not a duration")]
    #[case::key(
        "version = 1\ncache = \"main\"\n[[upstream]]\nurl = \"https://a\"\nkey = \"a:b\"\n",
        "not 32 bytes"
    )]
    #[case::url(
        "version = 1\ncache = \"main\"\n[[upstream]]\nurl = \"file:///a\"\nkey = \"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"\n",
        "`file:///a` is not"
    )]
    #[case::version("version = 2\ncache = \"main\"\n", "`version = 2`")]
    #[case::cache("version = 1\ncache = \"other\"\n", "for the cache `other`")]
    #[case::closure("version = 1\ncache = \"main\"\nclosure = \"open\"\n", "unknown variant `open`")]
    fn refused_with_what_is_wrong(#[case] text: &str, #[case] says: &str) {
        let error = Policy::parse(text, "main.toml", "main").unwrap_err().to_string();
        assert!(error.starts_with("main.toml: ") && error.contains(says), "{error}");
    }

    #[test]
    fn messages_have_line_and_column() {
        let error = Policy::parse("version = 1\ncache = \"main\"\nbad\n", "p.toml", "main").unwrap_err();
        assert!(error.to_string().contains("line 3, column 4"), "{error}");
    }

    proptest! {
        /// Every policy that a file can hold, printed by hand, is read as what it is.
        #[test]
        fn what_is_written_is_read(
            numbers in any::<[u32; 3]>(),
            units in (0..5usize, 0..5usize),
            closed: bool,
            upstreams in proptest::collection::vec("[a-z]{1,9}(/[a-z]{1,5})?/?", 0..4),
            spaces in " {0,3}",
        ) {
            let sizes = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1u64 << 40)];
            let times = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800u64)];
            let (size, time) = (sizes[units.0], times[units.1]);
            let [nar, ttl, all] = numbers;
            // as large as they may be, and no larger
            let nar = if size.0 == "TiB" { nar >> 9 } else { nar };
            let ttl = u64::from(ttl) % (crate::units::MAX_DURATION / time.1 + 1);
            let closure = if closed { "self-contained" } else { "upstreams" };
            let key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
            let mut text = format!(
                "version = 1\ncache = \"main\"\nclosure = \"{closure}\"\n[limits]\nnar-size = \"{nar}{spaces}{}\"\n\
                 quarantine-ttl = \"{ttl}{spaces}{}\"\nquarantine-size = \"{all} B\"\n",
                size.0, time.0
            );
            for host in &upstreams {
                text.push_str(&format!("[[upstream]]\nurl = \"https://{host}\"\nkey = \"{key}\"\n"));
            }
            let policy = Policy::parse(&text, "main.toml", "main").unwrap();
            let limits = Limits {
                nar_size: u64::from(nar) * size.1,
                quarantine_ttl: ttl * time.1,
                quarantine_size: u64::from(all),
            };
            prop_assert_eq!(&policy.limits, &limits);
            prop_assert_eq!(policy.closure == Closure::SelfContained, closed);
            let found: Vec<&str> = policy.upstreams.iter().map(|u| u.url.as_str()).collect();
            let wanted: Vec<String> =
                upstreams.iter().map(|host| format!("https://{}", host.trim_end_matches('/'))).collect();
            prop_assert_eq!(found, wanted);
            prop_assert!(policy.upstreams.iter().all(|u| u.key.to_string() == key));
        }

        #[test]
        fn any_text_is_read_or_refused_with_the_file_s_name(
            text in "(version = 1\n)?(cache = \"main\"\n)?\\PC{0,40}(\n\\[\\[?[a-z]{0,8}\\]?\\]?\n)?\\PC{0,40}",
        ) {
            if let Err(error) = Policy::parse(&text, "main.toml", "main") {
                prop_assert!(error.to_string().starts_with("main.toml: "));
            }
        }
    }
}
