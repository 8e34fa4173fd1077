//! Derivations that came as store paths (`nix copy --derivation`): stock Nix sends none by itself, so a .drv that was pushed
//! like any path is evidence for the paths whose claims name it.

use std::{collections::BTreeSet, sync::Arc};

use pushgate_formats::{StorePath, derivation::Derivation};

use super::Pusher;
use crate::{
    app::App,
    error::ApiError,
    limits::Counted,
    push::{
        derivations_came,
        intake::Plan,
        quarantine::{Quarantined, examine_again},
    },
};

/// Takes the derivation out of the bytes of a .drv, if it is one. Before its claim is stored: were it the other way round, a
/// crash between the two could leave a .drv that is published, and that Nix therefore never sends again, without its
/// text as evidence. A text that doesn't fit its path is refused here and when the claim is judged.
pub async fn take(
    app: &Arc<App>,
    pusher: &Pusher,
    path: &StorePath,
    nar: Quarantined,
) -> Result<(), ApiError> {
    let blobs = app.blobs.clone();
    // when the NAR came its name wasn't known: it is read again, and is small
    let text = tokio::task::spawn_blocking(move || {
        let plan = Plan { capture: true, ..Plan::default() };
        examine_again(blobs.as_ref(), &nar, plan).map(|examined| examined.contents)
    })
    .await
    .map_err(|e| ApiError::unavailable(&e))?
    // damaged bytes are found again by the judge, which asks for them once more
    .unwrap_or_default();
    let Some(text) = text else { return Ok(()) };
    let inputs: BTreeSet<StorePath> =
        Derivation::parse(&text).map(|d| d.input_drvs.into_keys().collect()).unwrap_or_default();
    let (db, identity) = (app.db.as_ref(), pusher.identity);
    // copied inputs first, as Nix does, so that each can be checked when it comes
    let inputs: Vec<StorePath> = inputs.into_iter().collect();
    let sent = db.derivations_at_hand(&pusher.cache.name, identity, &inputs).await?;
    let sent: Vec<StorePath> = sent.into_iter().collect();
    let own = std::slice::from_ref(path);
    let known = db.derivations_sent(identity, own).await?.contains(path);
    let (_, budget) = app.submitter(identity, &pusher.limits()).await?;
    let (mut counted, bytes) = (Counted::new(budget), text.len() as u64);
    if !counted.take(bytes) {
        return Err(ApiError::full(&counted.budget().refusal(bytes)));
    }
    let now = app.clock.now();
    let taken = app.derivations.take(db, identity, &sent, vec![(path.clone(), text)], now).await?;
    app.stored(identity, taken.stored).await;
    drop(counted);
    // sent again it is no news, however many claims wait for it
    if known { Ok(()) } else { derivations_came(app, identity, own).await }
}
