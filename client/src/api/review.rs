//! What people ask before they decide about claims, and what was decided.

use pushgate_formats::{
    StorePath,
    review::{Conflict, Differences, HeldClaims},
};
use pushgate_policies::review::{RecordedDecisions, Why};

use super::{Api, ApiError, Signer, in_url};

impl Api {
    /// Why a path is what it is; the cache's name is checked, here and below.
    pub async fn why(&self, cache: &str, path: &StorePath, signer: &Signer<'_>) -> Result<Why, ApiError> {
        let path = in_url(path.base_name());
        self.signed_get(&format!("/api/v1/caches/{cache}/paths/{path}/why"), signer).await
    }

    /// How rebuilds of a path differ from its claims.
    pub async fn differences(
        &self,
        cache: &str,
        path: &StorePath,
        signer: &Signer<'_>,
    ) -> Result<Differences, ApiError> {
        let path = in_url(path.base_name());
        self.signed_get(&format!("/api/v1/caches/{cache}/paths/{path}/differences"), signer).await
    }

    /// A page of what is held, oldest first, beginning behind a claim.
    pub async fn held(&self, cache: &str, after: i64, signer: &Signer<'_>) -> Result<HeldClaims, ApiError> {
        self.signed_get(&format!("/api/v1/caches/{cache}/held?after={after}"), signer).await
    }

    /// All open claims of a path.
    pub async fn open_claims(
        &self,
        cache: &str,
        path: &StorePath,
        signer: &Signer<'_>,
    ) -> Result<HeldClaims, ApiError> {
        // a name's `+` would be read as a space
        let path = in_url(path.base_name()).replace('+', "%2B");
        self.signed_get(&format!("/api/v1/caches/{cache}/held?path={path}"), signer).await
    }

    /// Paths with claims that differ and that nobody has settled: a page in their order, beginning behind one.
    pub async fn conflicts(
        &self,
        cache: &str,
        after: Option<&StorePath>,
        signer: &Signer<'_>,
    ) -> Result<Vec<Conflict>, ApiError> {
        // see above
        let name = |path: &StorePath| in_url(path.base_name()).replace('+', "%2B");
        let after = after.map_or_else(String::new, |path| format!("?after={}", name(path)));
        self.signed_get(&format!("/api/v1/caches/{cache}/conflicts{after}"), signer).await
    }

    /// A page of recorded decisions, oldest first, beginning behind one.
    pub async fn decisions(
        &self,
        cache: &str,
        after: i64,
        signer: &Signer<'_>,
    ) -> Result<RecordedDecisions, ApiError> {
        self.signed_get(&format!("/api/v1/caches/{cache}/decisions?after={after}"), signer).await
    }
}
