//! Joining a gateway: makes a key, enrols it with an invite, and pins what the gateway says of itself. Doesn't know
//! how the gateway's admin hands out invites.

use pushgate_formats::{
    api::{self, CLOCK_SKEW, Role},
    dsse::{self, Envelope},
    keys::{KeyError, KeyName, SecretKey},
};

use crate::{
    api::{Api, ApiError, json, printable},
    clock,
    config::{Cache, Config, ConfigDir, ConfigError, Gateway, normal_url},
    keyfile::{self, KeyFileError},
    session::{is_cache_name, is_public_key},
};

/// How many names are tried for a key that wasn't given one.
const MOST_NAMES: u32 = 100;

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(transparent)]
    Name(#[from] KeyError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(
        "the gateway `{url}` is joined already, as `{submitter}` with the key `{key}`: just push; `--again` makes another key and \
         uses that from now on, `--as admin` joins as an admin too"
    )]
    Already { url: String, submitter: String, key: String },
    #[error("`{0}.key` belongs to a gateway joined before; choose another name with `--name`")]
    NameTaken(KeyName),
    #[error(
        "the gateway at `{url}` and the one that enrolled this key have different ids; ask its admin, and don't push"
    )]
    Inconsistent { url: String },
}

/// What came of joining.
pub struct Joined {
    pub gateway: Gateway,
    pub role: String,
    pub key: String,
    /// By how much the clock is off, where that will be in the way.
    pub clock: Option<String>,
    /// Whether it is the one that commands use without `--gateway`.
    pub is_default: bool,
}

/// What a person may want of joining.
#[derive(Debug, Default)]
pub struct How<'a> {
    /// The key's name; without one it gets one of `USER-HOST-N`.
    pub name: Option<&'a str>,
    /// A gateway that was joined before is joined with another key, which takes the place of the first; that one's file
    /// stays.
    pub again: bool,
    /// What the invite is for. Only a gateway that was joined in this role counts as joined.
    pub role: Option<Role>,
}

/// Joins the gateway at `url` with the invite `code`.
pub async fn join(dir: &ConfigDir, url: &str, code: &str, how: &How<'_>) -> Result<Joined, JoinError> {
    let url = normal_url(url)?;
    let fixed_name = how.name.map(KeyName::new).transpose()?;
    let lock = dir.lock()?;
    let mut config = dir.load()?;
    let already = |gateway: &Gateway| JoinError::Already {
        url: gateway.url.clone(),
        submitter: gateway.submitter.clone(),
        key: gateway.key_file.display().to_string(),
    };
    let in_the_way = |g: &&Gateway| !how.again && how.role.is_none_or(|role| role == g.role);
    if let Some(gateway) = config.gateways.iter().filter(in_the_way).find(|g| g.url == url) {
        return Err(already(gateway));
    }
    let api = Api::new(&url)?;
    let info = api.gateway().await?;
    let ours = clock::now();
    if let Some(gateway) = config.gateways.iter().filter(in_the_way).find(|g| g.id == info.gateway) {
        // the same one by another address
        return Err(already(gateway));
    }
    if info.gateway.is_empty() || info.gateway.len() > 200 || info.gateway != printable(&info.gateway) {
        return Err(ApiError::not_a_gateway(&url, "its id is malformed").into());
    }

    let mut n = 0;
    let (key, enrolled) = loop {
        n += 1;
        let name = match &fixed_name {
            Some(name) => name.clone(),
            None => keyfile::default_name(&user(), &host(), n),
        };
        let another_name = fixed_name.is_none() && n < MOST_NAMES;
        let (key, is_new) = match key_for(dir, &config, name) {
            Err(JoinError::NameTaken(_)) if another_name => continue,
            other => other?,
        };
        // From here on the key is on the disk: if the answer doesn't arrive, the next `join` sends the same key, and
        // the gateway can tell that it is the one that it has just enrolled.
        match api.enrol(&enrolment(&key, code)).await {
            Ok(enrolled) => break (key, enrolled),
            Err(error) => {
                let reserved = error.code() == Some("key-name-reserved");
                // left from an earlier attempt of which only the answer was lost: it can't be enrolled again
                let enrolled = error.code() == Some("key-enrolled");
                if reserved && is_new {
                    // The name can't be used, so the key will never be. After any other error the file stays: the
                    // gateway may have enrolled the key although its answer was lost.
                    let _ = std::fs::remove_file(dir.path().join(keyfile::file_name(key.name())));
                }
                if !((reserved || enrolled) && another_name) {
                    return Err(error.into());
                }
            }
        }
    };
    if enrolled.gateway != info.gateway {
        return Err(JoinError::Inconsistent { url });
    }

    let caches =
        enrolled.caches.into_iter().filter(|c| is_cache_name(&c.name) && is_public_key(&c.public_key));
    let gateway = Gateway {
        url,
        id: enrolled.gateway,
        submitter: printable(&enrolled.submitter),
        role: enrolled.role.parse().unwrap_or(Role::Submitter),
        key_file: keyfile::file_name(key.name()).into(),
        caches: caches.map(Cache::from).collect(),
    };
    let same = |g: &&mut Gateway| g.role == gateway.role && (g.id == gateway.id || g.url == gateway.url);
    match config.gateways.iter_mut().find(same) {
        Some(before) => *before = gateway.clone(),
        None => config.gateways.push(gateway.clone()),
    }
    // A crash before this is seen leaves a key that is enrolled and a gateway that isn't in the configuration; the
    // next `join` finds the key file again.
    dir.save(&config, &lock)?;
    let off = ours.abs_diff(info.time) > CLOCK_SKEW;
    Ok(Joined {
        role: printable(&enrolled.role),
        key: key.public().to_string(),
        clock: off.then(|| clock::offset_in_words(ours, info.time)),
        is_default: config.gateways.first().is_some_and(|first| first.id == gateway.id),
        gateway,
    })
}

/// The key with this name, and whether it is a new one or that of an earlier attempt that wasn't finished.
fn key_for(dir: &ConfigDir, config: &Config, name: KeyName) -> Result<(SecretKey, bool), JoinError> {
    let path = dir.path().join(keyfile::file_name(&name));
    if config.gateways.iter().any(|g| dir.key_path(g) == path) {
        return Err(JoinError::NameTaken(name));
    }
    let key = keyfile::generate(name)?;
    match keyfile::create(dir.path(), &key) {
        Ok(_) => Ok((key, true)),
        Err(KeyFileError::Exists(path)) => Ok((keyfile::read(&path)?, false)),
        Err(error) => Err(error.into()),
    }
}

fn enrolment(key: &SecretKey, code: &str) -> Envelope {
    let payload = api::Enrolment { code: code.trim().to_owned(), key: key.public().to_string() };
    Envelope::seal(dsse::ENROLMENT, &json(&payload), key)
}

fn user() -> String {
    ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default()
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_attempt_is_taken_up_and_a_used_key_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let dir = ConfigDir::at(dir.path().into());
        let name = || KeyName::new("alice-1").unwrap();
        let (first, is_new) = key_for(&dir, &Config::default(), name()).unwrap();
        assert!(is_new);
        let (again, is_new) = key_for(&dir, &Config::default(), name()).unwrap();
        assert!(!is_new);
        assert_eq!(first.public(), again.public());

        let gateway = Gateway {
            url: "http://a".into(),
            id: "5f".into(),
            submitter: "alice".into(),
            role: Role::Submitter,
            key_file: "alice-1.key".into(),
            caches: vec![],
        };
        let config = Config { gateways: vec![gateway] };
        assert!(matches!(key_for(&dir, &config, name()), Err(JoinError::NameTaken(_))));
    }

    #[test]
    fn an_enrolment_is_signed_by_the_key_that_it_names() {
        let key = keyfile::generate(KeyName::new("alice-1").unwrap()).unwrap();
        let envelope = enrolment(&key, " code\n");
        let payload = envelope.unverified_payload(dsse::ENROLMENT).unwrap();
        envelope.verify(&payload, &key.public()).unwrap();
        let read: api::Enrolment = serde_json::from_slice(&payload).unwrap();
        assert_eq!((read.code.as_str(), read.key), ("code", key.public().to_string()));
    }
}
