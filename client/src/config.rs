//! What the client keeps between commands: the gateways that it joined, in `config.toml` below
//! `$XDG_CONFIG_HOME/pushgate`. Doesn't hold secrets: keys are files of their own ([`crate::keyfile`]).

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;
use pushgate_formats::api::{CacheInfo, Role};
use serde::{Deserialize, Serialize};

use crate::keyfile::{sync_dir, write_new};

const FILE: &str = "config.toml";
const HEAD: &str =
    "# Written by `pushgate join`. The first gateway is the one that commands use without `--gateway`.\n\n";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no place for settings: set HOME or XDG_CONFIG_HOME")]
    NoHome,
    #[error("`{path}` can't be read; check its permissions")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` can't be written; check its permissions and that the disk isn't full")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not as `pushgate join` wrote it; mend or remove it: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error("`{0}` is not a gateway's address; write it as `https://HOST` or `http://HOST:PORT`")]
    Url(String),
    #[error("no gateway joined yet; ask its admin for an invite, then `pushgate join URL --invite CODE`")]
    NotJoined,
    #[error("the gateway `{wanted}` isn't joined; joined are: {joined}")]
    UnknownGateway { wanted: String, joined: String },
}

/// A gateway that was joined, and what was pinned then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Gateway {
    /// Without a slash at its end.
    pub url: String,
    /// The gateway's random id: part of everything that is signed for it.
    pub id: String,
    /// The name under which the gateway knows this client.
    pub submitter: String,
    /// What the gateway lets this client's key do; a gateway may be joined once in each role.
    #[serde(default = "submitter", skip_serializing_if = "is_submitter")]
    pub role: Role,
    /// The secret key's file: absolute, or relative to the configuration's directory.
    pub key_file: PathBuf,
    #[serde(default, rename = "cache", skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Cache>,
}

const fn submitter() -> Role {
    Role::Submitter
}

fn is_submitter(role: &Role) -> bool {
    *role == Role::Submitter
}

/// A cache's name and public key as they were when the gateway was joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cache {
    pub name: String,
    /// `NAME:base64`.
    pub public_key: String,
}

impl From<CacheInfo> for Cache {
    fn from(info: CacheInfo) -> Self {
        Self { name: info.name, public_key: info.public_key }
    }
}

/// All of `config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    #[serde(default, rename = "gateway", skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<Gateway>,
}

impl Config {
    /// The gateway with this address, or the first; one that was joined in this role, where there is such.
    pub fn choose(&self, url: Option<&str>, role: Role) -> Result<&Gateway, ConfigError> {
        // a variable that is set to nothing means the same as one that isn't set
        let wanted = url.filter(|url| !url.is_empty()).map(normal_url).transpose()?;
        let fits = |gateway: &&Gateway| wanted.as_ref().is_none_or(|wanted| gateway.url == *wanted);
        let mut fitting = self.gateways.iter().filter(fits);
        // whether another role is good enough, the gateway says
        let found = fitting.clone().find(|gateway| gateway.role == role).or_else(|| fitting.next());
        found.ok_or_else(|| match wanted {
            Some(wanted) if !self.gateways.is_empty() => ConfigError::UnknownGateway {
                wanted,
                joined: self.gateways.iter().map(|g| format!("`{}`", g.url)).collect::<Vec<_>>().join(", "),
            },
            _ => ConfigError::NotJoined,
        })
    }
}

/// One spelling for a gateway's address: scheme, host and port in lower case, no slash at the end, nothing after the
/// path.
pub fn normal_url(text: &str) -> Result<String, ConfigError> {
    let bad = || ConfigError::Url(text.escape_debug().to_string());
    let url = reqwest::Url::parse(text.trim()).map_err(|_| bad())?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if plain { Ok(url.as_str().trim_end_matches('/').to_owned()) } else { Err(bad()) }
}

/// The directory of settings and keys.
#[derive(Debug, Clone)]
pub struct ConfigDir {
    path: PathBuf,
}

impl ConfigDir {
    /// `$XDG_CONFIG_HOME/pushgate`, or `~/.config/pushgate`; on every system, so that scripts find it.
    pub fn from_env() -> Result<Self, ConfigError> {
        // asked first: services often have this and no home
        let set = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
        let base = match set {
            Some(dir) => dir,
            None => etcetera::base_strategy::Xdg::new().map_err(|_| ConfigError::NoHome)?.config_dir(),
        };
        Ok(Self::at(base.join("pushgate")))
    }

    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings.
    pub fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }

    /// Where a gateway's key lies.
    pub fn key_path(&self, gateway: &Gateway) -> PathBuf {
        // an absolute path replaces the directory
        self.path.join(&gateway.key_file)
    }

    /// Reads the configuration; an absent file is an empty one.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let path = self.file();
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|e| ConfigError::Malformed {
                path,
                // the parser draws the place over several lines; the message itself is one
                why: e.message().to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// Makes the directory and keeps other clients from changing it while the answer lives.
    pub fn lock(&self) -> Result<Lock, ConfigError> {
        let failed = |source| ConfigError::Write { path: self.path.clone(), source };
        // nobody else has any business among the keys
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(failed)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path.join(".lock"))
            .map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Lock { _file: file })
    }

    /// Replaces the configuration at once: a crash leaves the old one or the new one, and perhaps a `.tmp` file.
    pub fn save(&self, config: &Config, _lock: &Lock) -> Result<(), ConfigError> {
        let path = self.file();
        let failed = |source| ConfigError::Write { path: path.clone(), source };
        // plain structures of strings always have a TOML form
        let text = toml::to_string_pretty(config).expect("a configuration is TOML");
        let temporary = self.path.join(".config.toml.tmp");
        // whoever left it held the lock that we hold now
        let _ = std::fs::remove_file(&temporary);
        write_new(&temporary, format!("{HEAD}{text}").as_bytes()).map_err(failed)?;
        std::fs::rename(&temporary, &path).map_err(failed)?;
        sync_dir(&self.path).map_err(failed)
    }
}

/// Proof that nobody else changes the configuration; given back when dropped.
pub struct Lock {
    _file: File,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;

    use super::*;

    fn gateway(url: &str) -> Gateway {
        Gateway {
            url: url.into(),
            id: "5f".repeat(16),
            submitter: "alice".into(),
            role: Role::Submitter,
            key_file: "alice-laptop-1.key".into(),
            caches: vec![Cache { name: "main".into(), public_key: "main-1:AAAA".into() }],
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let dir = ConfigDir::at(dir.path().join("deep/pushgate"));
        assert_eq!(dir.load().unwrap(), Config::default());
        let mode = |dir: &ConfigDir| std::fs::metadata(dir.path()).unwrap().permissions().mode();
        let config = Config { gateways: vec![gateway("http://a"), gateway("https://b/x")] };
        dir.save(&config, &dir.lock().unwrap()).unwrap();
        assert_eq!(dir.load().unwrap(), config);
        assert_eq!(mode(&dir) & 0o777, 0o700);
        dir.save(&Config::default(), &dir.lock().unwrap()).unwrap();
        assert_eq!(dir.load().unwrap(), Config::default());
    }

    #[test]
    fn unknown_settings_are_let_pass_and_nonsense_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = ConfigDir::at(dir.path().into());
        std::fs::write(dir.file(), "future = 1\n[[gateway]]\nurl = 'http://a'\nid = 'x'\nsubmitter = 'a'\nkey-file = '/k'\nmore = []\n")
            .unwrap();
        let config = dir.load().unwrap();
        assert_eq!(dir.key_path(&config.gateways[0]), Path::new("/k"));
        std::fs::write(dir.file(), "[[gateway]]\nurl = 1\n").unwrap();
        assert!(matches!(dir.load(), Err(ConfigError::Malformed { .. })));
    }

    #[test]
    fn the_first_gateway_is_the_default() {
        let config = Config { gateways: vec![gateway("http://a"), gateway("https://b:8443/x")] };
        assert_eq!(config.choose(None, Role::Submitter).unwrap().url, "http://a");
        assert_eq!(config.choose(Some(""), Role::Submitter).unwrap().url, "http://a");
        assert_eq!(
            config.choose(Some("HTTPS://B:8443/x/"), Role::Submitter).unwrap().url,
            "https://b:8443/x"
        );
        let error = config.choose(Some("http://c"), Role::Submitter).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the gateway `http://c` isn't joined; joined are: `http://a`, `https://b:8443/x`"
        );
        assert!(matches!(Config::default().choose(None, Role::Submitter), Err(ConfigError::NotJoined)));
    }

    #[test]
    fn the_role_decides_between_keys() {
        let admin = |url: &str| Gateway { role: Role::Admin, ..gateway(url) };
        let config = Config { gateways: vec![gateway("http://a"), gateway("http://b"), admin("http://b")] };
        let role = |url, role| {
            let found = config.choose(url, role).unwrap();
            (found.url.as_str(), found.role)
        };
        assert_eq!(role(None, Role::Submitter), ("http://a", Role::Submitter));
        assert_eq!(role(None, Role::Admin), ("http://b", Role::Admin));
        assert_eq!(role(Some("http://b"), Role::Submitter), ("http://b", Role::Submitter));
        assert_eq!(role(Some("http://b"), Role::Admin), ("http://b", Role::Admin));
        // the gateway says what is wrong with it
        assert_eq!(role(Some("http://a"), Role::Admin), ("http://a", Role::Submitter));
        let text = toml::to_string(&config).unwrap();
        assert_eq!(text.matches("role = \"admin\"").count(), 1, "{text}");
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    }

    #[rstest]
    #[case("http://127.0.0.1:8080", "http://127.0.0.1:8080")]
    #[case(" HTTP://Host:80/ ", "http://host")]
    #[case("https://host/sub/", "https://host/sub")]
    fn addresses(#[case] text: &str, #[case] normal: &str) {
        assert_eq!(normal_url(text).unwrap(), normal);
    }

    #[rstest]
    #[case("host:8080")]
    #[case("127.0.0.1:8080")]
    #[case("ftp://host")]
    #[case("http://user:pw@host")]
    #[case("http://host/?x")]
    #[case("")]
    fn not_addresses(#[case] text: &str) {
        assert!(matches!(normal_url(text), Err(ConfigError::Url(_))));
    }
}
