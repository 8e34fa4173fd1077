//! Acts that are about claims: approve, reject, waive, settle.

use pushgate_formats::acts::Act;

use crate::{app::App, db::EnrolledKey, error::ApiError};

/// Carries out an act about a claim. Its signature, audience and time are checked, and the key is good; whether it may is
/// checked here. `envelope` is the JSON of the DSSE envelope, as sent.
pub async fn act(
    _app: &App,
    _key: &EnrolledKey,
    act: &Act,
    _envelope: &[u8],
) -> Result<serde_json::Value, ApiError> {
    let path = act.what.claim().map(|(_, path, _)| path.absolute());
    let message = "nobody claims these contents for this path in this cache";
    let error = ApiError::new(http::StatusCode::NOT_FOUND, "claim-unknown", message);
    Err(ApiError { path, ..error })
}
