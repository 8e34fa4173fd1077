//! What every command that talks to a joined gateway starts with: its entry in the configuration, the key, and the
//! check that what answers is the gateway that was joined. Doesn't know what the command wants there.

use pushgate_formats::{
    api::{GatewayInfo, MAX_PATHS, Role},
    keys::{PublicKey, SecretKey},
};

use crate::{
    api::{Api, ApiError, SIGNED_REQUEST_VALIDITY, Signer, printable},
    clock,
    config::{ConfigDir, ConfigError, Gateway},
    keyfile::{self, KeyFileError},
};

/// Most caches named where the wanted one isn't among them.
const MOST_NAMED: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(
        "`{url}` is not the gateway that you joined: it has the id `{found}`, pinned is `{pinned}`; ask its admin, and if it \
         was set up anew, join it with `--again`"
    )]
    OtherGateway { url: String, found: String, pinned: String },
    #[error("the gateway has no cache `{wanted}`; it has {known}")]
    NoSuchCache { wanted: String, known: String },
    #[error("{refusal}; this machine's clock is {offset} the gateway's: set it right and try again")]
    Clock { refusal: ApiError, offset: String },
}

/// A joined gateway and the key for it.
pub struct Session {
    pub gateway: Gateway,
    pub key: SecretKey,
    pub api: Api,
}

impl Session {
    /// Opens the gateway with this address, or the first one, as a submitter.
    pub fn open(dir: &ConfigDir, url: Option<&str>) -> Result<Self, SessionError> {
        Self::open_as(dir, url, Role::Submitter)
    }

    /// The same with the key for a role, where one was joined with.
    pub fn open_as(dir: &ConfigDir, url: Option<&str>, role: Role) -> Result<Self, SessionError> {
        let gateway = dir.load()?.choose(url, role)?.clone();
        let key = keyfile::read(&dir.key_path(&gateway))?;
        let api = Api::new(&gateway.url)?;
        Ok(Self { gateway, key, api })
    }

    /// Asks what answers at the address, and whether it is the gateway that was joined.
    pub async fn greet(&self) -> Result<Greeting, SessionError> {
        let info = self.api.gateway().await?;
        let ours = clock::now();
        if info.gateway != self.gateway.id {
            return Err(SessionError::OtherGateway {
                url: self.gateway.url.clone(),
                found: printable(&info.gateway),
                pinned: self.gateway.id.clone(),
            });
        }
        Ok(Greeting { info, ours })
    }

    /// Who signs questions now.
    pub fn signer(&self) -> Signer<'_> {
        Signer { key: &self.key, gateway: &self.gateway.id, now: clock::now() }
    }
}

/// The gateway's word about itself, and when it came.
pub struct Greeting {
    info: GatewayInfo,
    /// Our clock when the answer came.
    ours: u64,
}

impl Greeting {
    /// Most paths that the gateway takes in one announcement.
    pub fn max_paths(&self) -> usize {
        self.info.max_paths.unwrap_or(MAX_PATHS).clamp(1, MAX_PATHS)
    }

    /// Makes sure that the cache exists, so that its name can stand in a request line. Returns what the person should
    /// know about it.
    pub fn cache(&self, session: &Session, wanted: &str) -> Result<Option<String>, SessionError> {
        let Some(cache) = self.info.caches.iter().find(|c| c.name == wanted && is_cache_name(wanted)) else {
            let known: Vec<_> = self
                .info
                .caches
                .iter()
                .take(MOST_NAMED)
                .map(|c| format!("`{}`", printable(&c.name)))
                .collect();
            return Err(SessionError::NoSuchCache {
                wanted: printable(wanted),
                known: if known.is_empty() { "none".into() } else { known.join(", ") },
            });
        };
        let pinned = session.gateway.caches.iter().find(|c| c.name == wanted);
        // only those who fetch are harmed by a foreign key, so this doesn't stop a push
        Ok(pinned.filter(|pinned| pinned.public_key != cache.public_key).map(|pinned| {
            format!(
                "the cache `{wanted}` has the key `{}` now and had `{}` when you joined; ask the gateway's admin whether \
                 it was changed",
                printable(&cache.public_key),
                pinned.public_key
            )
        }))
    }

    /// Says by how much the clock is off, where that is what the gateway complains of.
    pub fn explain(&self, error: ApiError) -> SessionError {
        let blames_the_clock = match error.code() {
            Some("announcement-expired" | "announcement-from-future") => true,
            // one code for all that can be wrong with a signed question
            Some("request-signature-invalid") => {
                self.ours.abs_diff(self.info.time) >= SIGNED_REQUEST_VALIDITY
            }
            _ => false,
        };
        if blames_the_clock {
            SessionError::Clock { offset: clock::offset_in_words(self.ours, self.info.time), refusal: error }
        } else {
            error.into()
        }
    }
}

/// Whether the text can be a cache's name in a request line.
pub fn is_cache_name(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !text.starts_with('.')
}

/// Whether the text is a public key that Nix would take.
pub(crate) fn is_public_key(text: &str) -> bool {
    PublicKey::parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use pushgate_formats::api::{CacheInfo, ErrorAnswer};

    use super::*;
    use crate::{api::Refusal, config::Cache};

    fn greeting() -> Greeting {
        let caches = vec![CacheInfo { name: "main".into(), public_key: "main-1:new".into() }];
        let info =
            GatewayInfo { gateway: "5f".into(), version: "0".into(), time: 1000, caches, max_paths: None };
        Greeting { info, ours: 8200 }
    }

    fn session() -> Session {
        let caches = vec![Cache { name: "main".into(), public_key: "main-1:old".into() }];
        Session {
            gateway: Gateway {
                url: "http://h".into(),
                id: "5f".into(),
                submitter: "alice".into(),
                role: Role::Submitter,
                key_file: "k".into(),
                caches,
            },
            key: keyfile::generate(keyfile::default_name("a", "b", 1)).unwrap(),
            api: Api::new("http://h").unwrap(),
        }
    }

    #[test]
    fn caches() {
        let notice = greeting().cache(&session(), "main").unwrap().unwrap();
        assert!(notice.contains("`main-1:new` now and had `main-1:old`"), "{notice}");
        let error = greeting().cache(&session(), "../x").unwrap_err();
        assert_eq!(error.to_string(), "the gateway has no cache `../x`; it has `main`");
    }

    #[test]
    fn a_gateway_may_take_fewer_paths_and_not_more() {
        let mut greeting = greeting();
        let mut most = |most| {
            greeting.info.max_paths = most;
            greeting.max_paths()
        };
        assert_eq!(
            [most(None), most(Some(10)), most(Some(0)), most(Some(usize::MAX))],
            [MAX_PATHS, 10, 1, MAX_PATHS]
        );
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let answer: ErrorAnswer =
            serde_json::from_str(r#"{"error":{"code":"announcement-from-future","message":"no"}}"#).unwrap();
        let refusal =
            Refusal { status: 400, code: answer.error.code, message: answer.error.message, path: None };
        let error = greeting().explain(ApiError::Refused(refusal)).to_string();
        assert!(error.contains("clock is 2 h 0 min ahead of the gateway's: set it right"), "{error}");
    }
}
