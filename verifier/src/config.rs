//! The operator's file: what this verifier builds, and within which bounds. Doesn't know what a gateway asks for.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use pushgate_formats::jobs::JobLimits;
use serde::{Deserialize, Deserializer};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration `{path}` can't be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration `{path}`: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error("`{name}` has `{value}`, which can't stand in Nix's settings")]
    Word { name: &'static str, value: String },
    #[error("`{0}` is not a URL prefix: `https://HOST/` and perhaps the beginning of a path")]
    Fetch(String),
    #[error("`{0}` is not a name of an architecture and a system, such as `x86_64-linux`")]
    System(String),
    #[error("`jobs` is 0")]
    NoJobs,
}

/// The file, with what stands for an absent setting.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What it builds for; the first is Nix's `system`.
    pub systems: Vec<String>,
    /// Nix's `system-features`.
    pub features: BTreeSet<String>,
    /// Builds at a time.
    pub jobs: usize,
    /// Where Nix's commands are; those of `PATH` where it isn't set.
    pub nix: Option<PathBuf>,
    /// As whose members builds run.
    pub build_users_group: String,
    /// Cores that a build is told to use; 0 for all.
    pub cores: u32,
    /// What builds see of the host beyond Nix's own defaults, as in Nix's setting of that name.
    pub sandbox_paths: Vec<String>,
    /// From where sources may be fetched.
    pub fetch: Vec<String>,
    /// How long running builds may go on after a request to stop.
    #[serde(deserialize_with = "seconds")]
    pub stop_after: u64,
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            systems: vec![this_system()],
            features: BTreeSet::new(),
            jobs: 1,
            nix: None,
            build_users_group: "nixbld".to_owned(),
            cores: 0,
            sandbox_paths: Vec::new(),
            fetch: Vec::new(),
            stop_after: 60,
            limits: Limits::default(),
        }
    }
}

/// Bounds of every job. Sizes in bytes, times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    #[serde(deserialize_with = "seconds")]
    pub time: u64,
    #[serde(deserialize_with = "seconds")]
    pub silence: u64,
    #[serde(deserialize_with = "bytes")]
    pub log: u64,
    /// Of one output.
    #[serde(deserialize_with = "bytes")]
    pub output: u64,
    #[serde(deserialize_with = "bytes")]
    pub memory: u64,
    /// With their threads.
    pub processes: u64,
    /// Of all that a job has on the disk.
    #[serde(deserialize_with = "bytes")]
    pub disk: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: 12 * 3600,
            silence: 3600,
            log: 64 << 20,
            output: 8 << 30,
            memory: 8 << 30,
            processes: 4096,
            disk: 64 << 30,
        }
    }
}

impl Limits {
    /// The tighter of these and the job's.
    pub fn tightened(self, job: &JobLimits) -> Self {
        let tighter = |own: u64, asked: Option<u64>| own.min(asked.unwrap_or(u64::MAX)).max(1);
        Self {
            time: tighter(self.time, job.time),
            silence: tighter(self.silence, job.silence),
            log: tighter(self.log, job.log),
            output: tighter(self.output, job.output),
            ..self
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let config: Self = toml::from_str(&text).map_err(|e| ConfigError::Malformed {
            path: path.into(),
            // with the line, which the parser draws
            why: e.to_string().trim_end().replace('\n', " "),
        })?;
        config.checked()
    }

    /// Makes sure that each word can stand in Nix's settings, where white space separates and a line end begins another
    /// setting.
    pub fn checked(self) -> Result<Self, ConfigError> {
        let word = |name: &'static str, value: &str| {
            let fit = !value.is_empty()
                && !value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
            if fit {
                Ok(())
            } else {
                Err(ConfigError::Word { name, value: value.escape_debug().to_string() })
            }
        };
        for system in &self.systems {
            if !is_system(system) {
                return Err(ConfigError::System(system.escape_debug().to_string()));
            }
        }
        if self.systems.is_empty() {
            return Err(ConfigError::System(String::new()));
        }
        self.features.iter().try_for_each(|value| word("features", value))?;
        self.sandbox_paths.iter().try_for_each(|value| word("sandbox-paths", value))?;
        word("build-users-group", &self.build_users_group)?;
        for prefix in &self.fetch {
            crate::job::fetch::Prefix::parse(prefix)
                .ok_or_else(|| ConfigError::Fetch(prefix.escape_debug().to_string()))?;
        }
        if self.jobs == 0 {
            return Err(ConfigError::NoJobs);
        }
        Ok(self)
    }

    pub const fn stop_after(&self) -> Duration {
        Duration::from_secs(self.stop_after)
    }
}

/// Whether the text is what derivations call a system.
pub fn is_system(text: &str) -> bool {
    (1..=100).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

/// This machine in Nix's words.
fn this_system() -> String {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    let machine = match machine.as_str() {
        "i386" | "i486" | "i586" => "i686".to_owned(),
        "arm64" => "aarch64".to_owned(),
        _ => machine,
    };
    format!("{machine}-linux")
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

/// A number, or one with one of the units.
fn amount(given: Amount, units: &[(&str, u64)]) -> Option<u64> {
    let text = match given {
        Amount::Number(n) => return Some(n),
        Amount::Text(text) => text,
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let units = [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    amount(Amount::deserialize(d)?, &units)
        .ok_or_else(|| serde::de::Error::custom("not a size: bytes, or such as `64 MiB`"))
}

fn seconds<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    amount(Amount::deserialize(d)?, &[("", 1), ("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)])
        .ok_or_else(|| serde::de::Error::custom("not a time: seconds, or such as `12h`"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = load("").unwrap();
        assert_eq!(config, Config::default());
        assert!(config.systems[0].ends_with("-linux"), "{config:?}");
    }

    #[test]
    fn amounts_and_lists() {
        let config = load(
            "systems = ['x86_64-linux', 'i686-linux']\njobs = 4\nstop-after = '5m'\n[limits]\ntime = '2h'\nlog = '3 MiB'\nmemory = 5\n",
        )
        .unwrap();
        assert_eq!((config.jobs, config.stop_after, config.systems.len()), (4, 300, 2));
        assert_eq!((config.limits.time, config.limits.log, config.limits.memory), (7200, 3 << 20, 5));
    }

    #[rstest]
    #[case("jobs = 0")]
    #[case("jbs = 1")]
    #[case("[limits]\ntime = '2 weeks'")]
    #[case("[limits]\ndisk = '99999999999 TiB'")]
    #[case("features = [\"a\\nsandbox = false\"]")]
    #[case("sandbox-paths = ['/a /b']")]
    #[case("systems = []")]
    #[case("systems = ['x y']")]
    #[case("fetch = ['ftp://x/']")]
    fn refused(#[case] text: &str) {
        assert!(load(text).is_err(), "{text}");
    }

    #[test]
    fn the_tighter_bound_holds() {
        let job = JobLimits { time: Some(10), silence: Some(u64::MAX), log: None, output: Some(0) };
        let limits = Limits::default().tightened(&job);
        assert_eq!((limits.time, limits.silence, limits.output), (10, 3600, 1));
    }
}
