//! What admins ask and do.

use std::time::Duration;

use bytes::Bytes;
use pushgate_formats::{
    acts::{ActDone, Event, Events, IdentityInfo, TokenInfo},
    sample::{Draws, Epoch},
};
use reqwest::header::AUTHORIZATION;

use super::{Api, ApiError, PATIENCE, Signer, Tries};

impl Api {
    /// Sends the bytes of an act's sealed envelope. Sent again after a failure as it is: the gateway knows an act by its
    /// digest and does nothing twice.
    pub async fn act(&self, envelope: Bytes) -> Result<ActDone, ApiError> {
        let url = self.url("/api/v1/acts");
        self.ask(Tries::Few, || self.post_json(&url, envelope.clone())).await
    }

    /// Everybody who is enrolled.
    pub async fn identities(&self, signer: &Signer<'_>) -> Result<Vec<IdentityInfo>, ApiError> {
        self.signed_get("/api/v1/admin/identities", signer).await
    }

    /// Tokens of one submitter, whose name is checked, or of all.
    pub async fn tokens(&self, name: Option<&str>, signer: &Signer<'_>) -> Result<Vec<TokenInfo>, ApiError> {
        // of a name's alphabet only `+` means something in a query
        let query = name.map_or_else(String::new, |name| format!("?name={}", name.replace('+', "%2B")));
        self.signed_get(&format!("/api/v1/admin/tokens{query}"), signer).await
    }

    /// Epochs of a cache's sample. The cache's name is checked.
    pub async fn epochs(&self, cache: &str, signer: &Signer<'_>) -> Result<Vec<Epoch>, ApiError> {
        self.signed_get(&format!("/api/v1/caches/{cache}/epochs"), signer).await
    }

    /// Draws of an epoch that is over, behind one.
    pub async fn draws(
        &self,
        cache: &str,
        epoch: u64,
        after: Option<i64>,
        signer: &Signer<'_>,
    ) -> Result<Draws, ApiError> {
        let after = after.unwrap_or(0);
        self.signed_get(&format!("/api/v1/caches/{cache}/epochs/{epoch}?after={after}"), signer).await
    }

    /// Events after one; waits at the gateway for up to `wait` seconds until there are some. The cache's name is checked.
    pub async fn events(
        &self,
        after: Option<u64>,
        cache: Option<&str>,
        wait: u64,
        signer: &Signer<'_>,
    ) -> Result<Vec<Event>, ApiError> {
        let mut path = format!("/api/v1/admin/events?wait={wait}");
        if let Some(after) = after {
            path += &format!("&after={after}");
        }
        if let Some(cache) = cache {
            path += &format!("&cache={cache}");
        }
        let (url, header) = (self.url(&path), signer.header("GET", &path));
        let patience = PATIENCE + Duration::from_secs(wait);
        let page: Events = self
            .ask(Tries::Many, || self.http.get(&url).header(AUTHORIZATION, header.clone()).timeout(patience))
            .await?;
        Ok(page.events)
    }
}
