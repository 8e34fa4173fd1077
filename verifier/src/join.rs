//! Joining a gateway: makes a key, enrols it with a verifier's invite, and pins what the gateway says of itself.

use pushgate_formats::{
    api::{self, Role},
    dsse::{self, Envelope},
    keys::SecretKey,
};

use crate::{
    api::{Api, ApiError, json, normal_url, printable},
    key::{self, KeyFileError},
    workdir::{Joined, WorkDir, WorkDirError},
};

/// How many names are tried.
const MOST_NAMES: u32 = 100;

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    WorkDir(#[from] WorkDirError),
    #[error(transparent)]
    Key(#[from] KeyFileError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("`{0}` is not a gateway's address: `https://HOST`, perhaps with a path")]
    Url(String),
    #[error(
        "this directory belongs to the gateway `{url}`, joined as `{verifier}`; use another, or remove `verifier.toml`"
    )]
    Already { url: String, verifier: String },
    #[error("the gateway at `{0}` and the one that enrolled this key have different ids; ask its admin")]
    Inconsistent(String),
    #[error(
        "the invite was for the role `{found}`, not for a verifier: ask the gateway's admin for one with `--role verifier`"
    )]
    Role { found: String },
}

/// Joins the gateway at `url` with the invite `code`.
pub async fn join(dir: &WorkDir, url: &str, code: &str) -> Result<Joined, JoinError> {
    let url = normal_url(url).ok_or_else(|| JoinError::Url(printable(url)))?;
    match dir.joined() {
        Ok(joined) => return Err(JoinError::Already { url: joined.url, verifier: joined.verifier }),
        Err(WorkDirError::NotJoined(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let api = Api::new(&url)?;
    let info = api.gateway().await?;
    if info.gateway.is_empty() || info.gateway.len() > 200 || info.gateway != printable(&info.gateway) {
        return Err(ApiError::NotAGateway { url, why: "its id is malformed".into() }.into());
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut n = 0;
    let (key, path, enrolled) = loop {
        n += 1;
        // The key is on the disk before it is sent: if the answer gets lost, the next `join` sends the same key, and the
        // gateway can tell that it is the one that it has just enrolled.
        let (key, path) = key::read_or_make(dir.path(), key::default_name(&host, n))?;
        match api.enrol(&enrolment(&key, code)).await {
            Ok(enrolled) => break (key, path, enrolled),
            Err(error) if error.code() == Some("key-name-reserved") && n < MOST_NAMES => {
                // the name can't be used, so the key will never be
                let _ = std::fs::remove_file(path);
            }
            // left from an earlier attempt with another invite
            Err(error) if error.code() == Some("key-enrolled") && n < MOST_NAMES => {}
            Err(error) => return Err(error.into()),
        }
    };
    if enrolled.gateway != info.gateway {
        return Err(JoinError::Inconsistent(url));
    }
    if enrolled.role != Role::Verifier.as_str() {
        return Err(JoinError::Role { found: printable(&enrolled.role) });
    }
    let key_file = path.file_name().map_or_else(|| format!("{}.key", key.name()).into(), Into::into);
    let joined = Joined { url, id: enrolled.gateway, verifier: printable(&enrolled.submitter), key_file };
    // A crash before this leaves a key that is enrolled and no gateway; the next `join` finds the key file again.
    dir.save(&joined)?;
    Ok(joined)
}

fn enrolment(key: &SecretKey, code: &str) -> Envelope {
    let payload = api::Enrolment { code: code.trim().to_owned(), key: key.public().to_string() };
    Envelope::seal(dsse::ENROLMENT, &json(&payload), key)
}
