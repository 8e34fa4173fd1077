//! A forging client of the stock push prefix: files as Nix would put them, each of which can be a lie.

use std::io::Write as _;

use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{Sha256, StorePath, api::ErrorAnswer, narinfo::UnverifiedNarInfo};
use pushgate_gateway::push::intake::Compression;
use reqwest::{Body, Method};

use super::{Forge, Item, Refused, Submitter};

/// Compresses as Nix does.
#[derive(Debug, Clone, Copy)]
pub enum Packing {
    Plain,
    Xz,
    Zstd,
}

impl Packing {
    pub fn pack(self, nar: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => nar.to_vec(),
            Self::Zstd => zstd::bulk::compress(nar, 1).expect("zstd"),
            Self::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 3);
                encoder.write_all(nar).expect("xz");
                encoder.finish().expect("xz")
            }
        }
    }

    const fn compression(self) -> Compression {
        match self {
            Self::Plain => Compression::None,
            Self::Zstd => Compression::Zstd,
            Self::Xz => Compression::Xz,
        }
    }

    /// The name of a file in `nar/`.
    pub fn file(self, packed: &[u8]) -> String {
        format!("{}.nar{}", Sha256::of(packed).base32(), self.compression().suffix())
    }
}

/// Somebody with a token in a netrc file, and a key.
#[derive(Debug, Clone)]
pub struct StockUser {
    pub submitter: Submitter,
    pub login: String,
    pub token: String,
}

impl StockUser {
    /// What stands in `Authorization`.
    pub fn authorization(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.login, self.token)))
    }

    /// The narinfo of an item that lies in a file, as Nix prints it.
    pub fn narinfo(&self, item: &Item, packing: Packing) -> UnverifiedNarInfo {
        let packed = packing.pack(&item.nar);
        let announced = item.announced(&self.submitter.key);
        UnverifiedNarInfo {
            path: item.path.clone(),
            url: format!("nar/{}", packing.file(&packed)),
            compression: packing.compression().as_str().to_owned(),
            file_hash: Some(Sha256::of(&packed)),
            file_size: Some(packed.len() as u64),
            nar_hash: item.nar_hash,
            nar_size: item.nar_size,
            references: item.references.clone(),
            deriver: item.deriver.clone(),
            signatures: vec![announced.signature],
            ca: item.ca.clone(),
        }
    }
}

impl Forge {
    /// Enrols somebody who pushes by stock Nix.
    pub async fn stock_user(&self, name: &str) -> StockUser {
        let submitter = self.submitter(name).await;
        let token = self.token(name).await;
        StockUser { submitter, login: name.to_owned(), token }
    }

    /// A token for the cache `main`.
    pub async fn token(&self, name: &str) -> String {
        let now = self.clock.now();
        pushgate_gateway::tokens::make_for(self.app.db.as_ref(), name, "main", now, None)
            .await
            .expect("a token")
    }

    /// Asks for or puts a file at the push prefix; gives the answer's status and body.
    pub async fn stock(
        &self,
        user: &StockUser,
        method: Method,
        name: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (u16, Vec<u8>) {
        let mut request = self
            .http
            .request(method, format!("{}/main/push/{name}", self.url))
            .header("authorization", user.authorization())
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.bytes().await.expect("a body").to_vec())
    }

    /// Puts a file; what was said, or the refusal.
    pub async fn put(&self, user: &StockUser, name: &str, body: impl Into<Body>) -> Result<String, Refused> {
        self.put_with(user, name, &[], body).await
    }

    pub async fn put_with(
        &self,
        user: &StockUser,
        name: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<String, Refused> {
        let (status, body) = self.stock(user, Method::PUT, name, headers, body).await;
        if status == 200 {
            return Ok(String::from_utf8(body).expect("text"));
        }
        let error: ErrorAnswer = serde_json::from_slice(&body)
            .unwrap_or_else(|e| panic!("{status} without an error's body: {e}: {}", body.escape_ascii()));
        let error = error.error;
        Err(Refused { status, code: error.code, message: error.message, path: error.path })
    }

    /// Asks for a file; `None` where it is 404.
    pub async fn get_stock(&self, user: &StockUser, name: &str) -> Option<Vec<u8>> {
        match self.stock(user, Method::GET, name, &[], vec![]).await {
            (200, body) => Some(body),
            (404, _) => None,
            (other, body) => panic!("{name}: {other}: {}", body.escape_ascii()),
        }
    }

    /// Puts the NAR file of an item, right or not.
    pub async fn put_nar(&self, user: &StockUser, item: &Item, packing: Packing) -> Result<String, Refused> {
        let packed = packing.pack(&item.nar);
        self.put(user, &format!("nar/{}", packing.file(&packed)), packed).await
    }

    /// Puts a narinfo under its own name.
    pub async fn put_narinfo(&self, user: &StockUser, info: &UnverifiedNarInfo) -> Result<String, Refused> {
        self.note(&info.path);
        self.put(user, &format!("{}.narinfo", info.path.hash_part()), info.print()).await
    }

    /// Pushes an item as Nix would: the file, then the narinfo.
    pub async fn copy(&self, user: &StockUser, item: &Item, packing: Packing) -> Result<String, Refused> {
        self.put_nar(user, item, packing).await?;
        self.put_narinfo(user, &user.narinfo(item, packing)).await
    }

    /// Waits until a path is published.
    pub async fn settle(&self, path: &StorePath) {
        for _ in 0..400 {
            if self.narinfo(path).await.is_some() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("{path} is not published within 10 seconds");
    }
}
