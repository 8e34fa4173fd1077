//! Derivations that came as store paths (`nix copy --derivation`): stock Nix sends none by itself, so a .drv that was pushed
//! like any path is evidence for the paths whose claims name it.

use std::{collections::BTreeSet, sync::Arc};

use pushgate_formats::{StorePath, api::PathState, derivation::Derivation};

use crate::{
    app::App,
    error::ApiError,
    push::{derivations_came, intake::Plan, quarantine::examine_again, session::Session},
};

/// Takes the derivation out of a push of one .drv, if it is one. A text that doesn't fit its path is refused when the claim
/// is judged; it is no evidence here either.
pub async fn take(app: &Arc<App>, session: &Arc<Session>) -> Result<(), ApiError> {
    let Some(path) = session.signed.first().map(|s| s.path().clone()).filter(StorePath::is_derivation) else {
        return Ok(());
    };
    let nar = {
        let progress = session.progress();
        let open = progress.claims.first().is_some_and(|c| c.state != PathState::Rejected);
        progress.nars.first().cloned().flatten().filter(|_| open)
    };
    let Some(nar) = nar else { return Ok(()) };
    let blobs = app.blobs.clone();
    // when the NAR came its name wasn't known: it is read again, and is small
    let text = tokio::task::spawn_blocking(move || {
        let plan = Plan { capture: true, ..Plan::default() };
        examine_again(blobs.as_ref(), nar.nar(), plan).map(|examined| examined.contents)
    })
    .await
    .map_err(|e| ApiError::unavailable(&e))?
    // damaged bytes are found again by the judge, which asks for them once more
    .unwrap_or_default();
    let Some(text) = text else { return Ok(()) };
    let inputs: BTreeSet<StorePath> =
        Derivation::parse(&text).map(|d| d.input_drvs.into_keys().collect()).unwrap_or_default();
    let (db, identity) = (app.db.as_ref(), session.identity);
    // copied inputs first, as Nix does, so that each can be checked when it comes
    let inputs: Vec<StorePath> = inputs.into_iter().collect();
    let sent: Vec<StorePath> =
        db.derivations_at_hand(&session.cache.name, identity, &inputs).await?.into_iter().collect();
    app.derivations.take(db, identity, &sent, vec![(path.clone(), text)], app.clock.now()).await?;
    derivations_came(app, identity, &[path]).await
}
