//! After a start: finishes what a crash left half done, with the code of the hot path. Nothing here trusts a status
//! column: narinfos are written from committed rows, claims are judged from their evidence.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{
    judge::{JudgeError, reveal},
    publish::Published,
    rebuild::audit::withdraw,
};
use crate::{app::App, caches::Cache, db::Forgotten};

/// How often what is open is looked at again, without anything having arrived.
const TICK: Duration = Duration::from_secs(30);
/// Ticks between two looks for what can be forgotten: an hour.
const FORGETTING: u32 = 120;
/// Ticks between two looks at everything that is open, for what another process may have changed: ten minutes.
const OPEN: u32 = 20;
const DAY: u64 = 86_400;

/// Removes half-written blobs, and packs that no row names. Before any upload is taken.
pub async fn clean(app: &Arc<App>) -> Result<(), JudgeError> {
    let named = app.db.packs().await?;
    let blobs = app.blobs.clone();
    let removed = tokio::task::spawn_blocking(move || -> std::io::Result<usize> {
        blobs.clean()?;
        let known: HashSet<String> = named;
        let orphans: Vec<String> = blobs.packs()?.into_iter().filter(|p| !known.contains(p)).collect();
        blobs.remove_packs(&orphans)?;
        Ok(orphans.len())
    })
    .await??;
    if removed > 0 {
        tracing::info!(packs = removed, "removed uploads that a stop had cut off");
    }
    Ok(())
}

/// Makes visible what is committed, before the first request is answered.
pub async fn finish_publications(app: &Arc<App>, cache: &Arc<Cache>) -> Result<(), JudgeError> {
    let unseen: Vec<Published> =
        app.db.unseen(&cache.name).await?.into_iter().map(Published::committed).collect();
    if !unseen.is_empty() {
        tracing::info!(
            cache = cache.name,
            paths = unseen.len(),
            "finishing publications that a stop had cut off"
        );
    }
    let some = !unseen.is_empty();
    reveal(app, cache, unseen).await?;
    if some {
        // one of them may have been withdrawn since it was looked up
        withdraw(app, &cache.name).await?;
    }
    Ok(())
}

/// Writes the narinfos that could not be written before, if there are some.
pub async fn finish_unrevealed(app: &Arc<App>) -> Result<(), JudgeError> {
    use std::sync::atomic::Ordering::Relaxed;
    if !app.unrevealed.load(Relaxed) {
        return Ok(());
    }
    for cache in app.caches.all() {
        finish_publications(app, &cache).await?;
    }
    app.unrevealed.store(false, Relaxed);
    Ok(())
}

/// Reports every push that isn't over to the judges.
pub async fn judge_open(app: &Arc<App>) -> Result<(), JudgeError> {
    for (cache, push) in app.db.open_pushes().await? {
        if let Ok(Some(cache)) = app.caches.get(app.db.as_ref(), &cache).await {
            cache.report(&push);
        }
    }
    Ok(())
}

/// Reports pushes with claims that time alone may have changed.
pub async fn judge_due(app: &Arc<App>) -> Result<(), JudgeError> {
    for (cache, push) in app.db.due_pushes(app.clock.now()).await? {
        if let Ok(Some(cache)) = app.caches.get(app.db.as_ref(), &cache).await {
            cache.report(&push);
        }
    }
    Ok(())
}

/// Marks published paths as visible once their narinfos are durable. One wait serves all that were written since the last
/// time; until it is over a restart writes them again.
pub async fn mark_revealed(app: &App) {
    let written =
        std::mem::take(&mut *app.revealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    if written.is_empty() {
        return;
    }
    let blobs = app.blobs.clone();
    let synced = match tokio::task::spawn_blocking(move || blobs.sync()).await {
        Ok(synced) => synced,
        Err(e) => Err(std::io::Error::other(e)),
    };
    if let Err(e) = synced {
        tracing::warn!(error = %e, "narinfos stay marked as unfinished");
        app.revealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(written);
        return;
    }
    for (cache, paths) in written {
        if let Err(e) = app.db.mark_visible(&cache, &paths).await {
            tracing::warn!(error = &e as &dyn std::error::Error, "narinfos stay marked as unfinished");
            // marked the next time: marking twice changes nothing
            app.revealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((cache, paths));
        }
    }
}

/// Sweeps and looks again, as long as the gateway runs.
pub async fn tend(app: Arc<App>) {
    let mut stopping = app.stopping.subscribe();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.tick().await;
    let mut ticks: u32 = 0;
    // what a crash kept from being freed shouldn't wait for the next tick
    app.sweep.notify_one();
    loop {
        let regular = tokio::select! {
            _ = tick.tick() => true,
            () = app.sweep.notified() => {
                // a burst of publications needs one sweep
                tokio::time::sleep(Duration::from_millis(500)).await;
                false
            }
            () = stopped(&mut stopping) => return,
        };
        tidy(&app).await;
        if regular {
            if ticks.is_multiple_of(FORGETTING)
                && let Err(e) = forget(&app).await
            {
                tracing::warn!(error = &e as &dyn std::error::Error, "forgetting what ended failed");
            }
            ticks = ticks.wrapping_add(1);
            let looked = match ticks.is_multiple_of(OPEN) {
                true => judge_open(&app).await,
                false => judge_due(&app).await,
            };
            if let Err(e) = looked {
                tracing::warn!(error = &e as &dyn std::error::Error, "looking at open pushes failed");
            }
        }
    }
}

/// How often policy files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Takes up policy files soon after they changed: once two looks find the same, so that an editor has done with them.
pub async fn watch_policies(app: Arc<App>) {
    let mut stopping = app.stopping.subscribe();
    let (mut last, mut taken) = (app.caches.stamp(), None);
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stopped(&mut stopping) => return,
        }
        let look = app.clone();
        // a few stat calls, which a network file system may take long for
        let Ok(now) = tokio::task::spawn_blocking(move || look.caches.stamp()).await else { continue };
        let steady = now == last;
        last = now;
        if !steady || taken.as_ref() == Some(&last) {
            continue;
        }
        match app.caches.reload_policies(app.db.as_ref()).await {
            Ok(_) => taken = Some(last.clone()),
            Err(e) => {
                tracing::warn!(error = &e as &dyn std::error::Error, "policies can't be kept; tried again");
            }
        }
    }
}

/// Finishes and frees whatever can be now. What fails is logged, and tried again the next time.
pub async fn tidy(app: &Arc<App>) {
    mark_revealed(app).await;
    if let Err(e) = finish_unrevealed(app).await {
        tracing::warn!(error = &e as &dyn std::error::Error, "narinfos still can't be written");
    }
    if let Err(e) = super::stock::beside::publish_logs(app).await {
        tracing::warn!(error = e.message, "build logs can't be published; they are tried again");
    }
    if let Err(e) = sweep(app).await {
        tracing::warn!(error = &e as &dyn std::error::Error, "sweeping failed");
    }
    if let Err(e) = remove_orphans(app).await {
        tracing::warn!(error = &e as &dyn std::error::Error, "packs without rows can't be looked for");
    }
}

/// Packs that no row named when somebody last looked.
#[derive(Debug, Default)]
pub struct Orphans {
    /// Seconds since 1970, UTC.
    looked: u64,
    seen: HashSet<String>,
}

/// How long a pack that no row names is left alone at least, in seconds. An upload writes its rows moments after its pack.
pub const ORPHANED: u64 = 600;

/// Removes packs that no row has named for some time: a store or a database that failed left them, and the next start may be
/// far away. Repeatable: a crash leaves some of them, which the next start removes.
async fn remove_orphans(app: &Arc<App>) -> Result<(), JudgeError> {
    let now = app.clock.now();
    let seen = {
        let mut orphans = app.orphans.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if now < orphans.looked + ORPHANED {
            return Ok(());
        }
        orphans.looked = now;
        std::mem::take(&mut orphans.seen)
    };
    let blobs = app.blobs.clone();
    let there = tokio::task::spawn_blocking(move || blobs.packs()).await??;
    // after the packs: whatever got its rows meanwhile has them by now
    let named = app.db.packs().await?;
    let orphans = there.into_iter().filter(|pack| !named.contains(pack));
    let (gone, fresh): (Vec<String>, Vec<String>) = orphans.partition(|pack| seen.contains(pack));
    app.orphans.lock().unwrap_or_else(std::sync::PoisonError::into_inner).seen.extend(fresh);
    if !gone.is_empty() {
        tracing::info!(packs = gone.len(), "removing packs that no row has named for a while");
        let blobs = app.blobs.clone();
        tokio::task::spawn_blocking(move || blobs.remove_packs(&gone)).await??;
    }
    Ok(())
}

/// Resolves once the gateway stops.
pub async fn stopped(stopping: &mut tokio::sync::watch::Receiver<bool>) {
    // an error means that the sender is gone, and with it the gateway
    let _ = stopping.wait_for(|s| *s).await;
}

/// Forgets pushes that ended long ago, and derivations that no push has used since. Those that wait are never so old.
pub async fn forget(app: &Arc<App>) -> Result<(), JudgeError> {
    let (now, keep) = (app.clock.now(), app.config.limits.keep_ended);
    let longest = app.caches.all().iter().map(|c| c.policy().limits.quarantine_ttl).max().unwrap_or(0);
    let unused = now.saturating_sub(keep.max(longest.saturating_add(DAY)));
    let mut all = Forgotten::default();
    // in small steps: whoever pushes meanwhile waits for one of them at most
    loop {
        let step = app.db.forget(now.saturating_sub(keep), unused);
        let some = app.freeing(step, |forgotten| &forgotten.freed).await?;
        all.pushes += some.pushes;
        all.claims += some.claims;
        all.derivations += some.derivations;
        if !some.more {
            break;
        }
    }
    if all != Forgotten::default() {
        tracing::info!(pushes = all.pushes, claims = all.claims, derivations = all.derivations, "forgotten");
    }
    Ok(())
}

/// Ends what ran out and frees what nothing needs. A crash between rows and packs leaves packs that the next start removes;
/// where only the answer is lost, [`remove_orphans`] does.
pub async fn sweep(app: &Arc<App>) -> Result<(), JudgeError> {
    let now = app.clock.now();
    let swept = app.freeing(app.db.sweep(now), |swept| &swept.freed).await?;
    for push in &swept.pushes {
        app.sessions.forget(push);
    }
    app.sessions.forget_expired(now);
    if swept.expired_claims > 0 {
        tracing::info!(claims = swept.expired_claims, "claims ran out");
    }
    if !swept.packs.is_empty() {
        let blobs = app.blobs.clone();
        tokio::task::spawn_blocking(move || blobs.remove_packs(&swept.packs)).await??;
    }
    Ok(())
}
