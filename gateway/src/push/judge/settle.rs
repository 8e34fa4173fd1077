//! Carries a round's results out, in the order that a crash can't harm: bytes, rows with leaves, narinfos.

use std::sync::Arc;

use pushgate_formats::{StorePath, api::PathState};
use pushgate_policies::Policy;

use super::{
    JudgeError,
    evaluate::{Round, WAITS, damaged_state},
};
use crate::{
    app::App,
    blobs::Blobs,
    caches::Cache,
    db::{ClaimUpdate, Committed, Judged, NewPublication},
    push::{
        publish::{Publishable, Published},
        rebuild::demand::Ask,
        session::{ClaimState, Session},
    },
};

/// Asks again for a NAR whose stored bytes are damaged. A crash between the two writes leaves a row of the quarantine that
/// the next judgement finds damaged again; the other way round the claim would want bytes without saying why.
pub(super) async fn step_back(app: &Arc<App>, session: &Arc<Session>, i: usize) -> Result<(), JudgeError> {
    let claim = session.signed[i].claim().clone();
    let state = damaged_state(&claim);
    let claims = vec![session.update(i, &state, vec![])];
    let (cache, now) = (session.cache.name.clone(), app.clock.now());
    app.db.commit(&Judged { cache, now, claims, ..Judged::default() }).await?;
    let length = session.progress().nars[i].as_ref().map_or(0, |nar| nar.nar().range.length);
    let dropping = async {
        app.db.drop_quarantined(session.identity, &claim.nar_hash).await?;
        Ok([(session.identity, length)])
    };
    app.freeing(dropping, |freed| freed).await?;
    let mut progress = session.progress();
    progress.claims[i] = state;
    progress.nars[i] = None;
    Ok(())
}

/// Carries a round out: places NARs, commits, reveals narinfos, tells the sessions. Gives the paths published. The policy and
/// the newest event are those that the round was judged by.
pub(super) async fn settle(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    round: Round,
    (policy, seen): (&Arc<Policy>, u64),
) -> Result<Vec<StorePath>, JudgeError> {
    if round.publish.is_empty() && round.states.is_empty() {
        return Ok(vec![]);
    }
    // looking things up may have taken long: nothing is published or refused by a policy that another has replaced
    if !Arc::ptr_eq(policy, &cache.policy()) {
        return Err(JudgeError::Outdated);
    }
    let now = app.clock.now();
    let mut round = round;
    let (publish, states) = (std::mem::take(&mut round.publish), std::mem::take(&mut round.states));
    let (needs, draws) = (std::mem::take(&mut round.needs), std::mem::take(&mut round.draws));
    let rebuilt = publish.iter().filter(|(_, _, publishable)| publishable.is_checked());
    let matched = rebuilt.map(|(session, ..)| session.identity).collect();
    let (conflicts, evidence) = (std::mem::take(&mut round.conflicts), std::mem::take(&mut round.evidence));
    // the commit asks again; here it keeps the bytes of what is refused by now from becoming public
    let about: Vec<StorePath> =
        publish.iter().map(|(_, _, publishable)| publishable.path().clone()).collect();
    if !about.is_empty() && app.db.outdated(&cache.name, seen, &about).await? {
        return Err(JudgeError::Outdated);
    }
    // attestations of what is about to be published. A crash leaves some that no narinfo leads to.
    attest(app, cache, &publish).await?;
    // 1. bytes. A crash from here to the commit leaves NARs that nothing names.
    let (publishing, blobs, composing) = (!publish.is_empty(), app.blobs.clone(), cache.clone());
    let (publish, publications) = tokio::task::spawn_blocking(move || -> Result<_, JudgeError> {
        let publications = place(&publish, &composing, blobs.as_ref(), now)?;
        if publishing {
            blobs.sync()?;
        }
        Ok((publish, publications))
    })
    .await??;
    // 2. leaves and rows, with the claims' new states.
    let published_state = ClaimState::plain(PathState::Published);
    let mut claims: Vec<ClaimUpdate> =
        publish.iter().map(|(session, i, _)| round.update(session, *i, &published_state, vec![])).collect();
    claims.extend(states.iter().filter_map(|(session, i, state, waits_on)| {
        let unchanged = session.progress().claims[*i] == *state && !round.is_new(session, *i);
        (!unchanged).then(|| round.update(session, *i, state, waits_on.iter().take(WAITS).cloned().collect()))
    }));
    let judged =
        Judged { cache: cache.name.clone(), now, publications, seen, claims, conflicts, draws, matched };
    match app.db.commit(&judged).await {
        Ok(Committed::Done) => {}
        Ok(Committed::Raced) => return Err(JudgeError::Raced),
        Ok(Committed::Outdated) => return Err(JudgeError::Outdated),
        Err(e) => {
            // it may be stored all the same, and then the next judgement finds the paths published: nobody but the one who
            // looks for rows that aren't visible would write their narinfos
            app.unrevealed.store(true, std::sync::atomic::Ordering::Relaxed);
            app.sweep.notify_one();
            return Err(e.into());
        }
    }
    // 3. narinfos, in the order of the leaves, references first. A crash here is mended at the next start.
    let published: Vec<Published> =
        judged.publications.into_iter().map(|p| Published::committed(p.row)).collect();
    let paths: Vec<StorePath> = published.iter().map(|p| p.path().clone()).collect();
    let revealed = reveal(app, cache, published).await;
    for (session, i, _) in publish {
        session.progress().claims[i] = ClaimState::plain(PathState::Published);
        session.progress().nars[i] = None;
    }
    let mut over = false;
    for (session, i, state, _) in states {
        let mut progress = session.progress();
        if state.state == PathState::Held && evidence.get(&session.id) != Some(&progress.evidence) {
            // Out of date: the push is reported already to be judged again. The row says what was found, and has to be written
            // whatever that comes to.
            progress.claims[i].decided = None;
            continue;
        }
        over |= matches!(state.state, PathState::Rejected | PathState::Published);
        if matches!(state.state, PathState::Rejected | PathState::Wanted | PathState::Published) {
            progress.nars[i] = None;
        }
        progress.claims[i] = state;
    }
    if over || !paths.is_empty() {
        app.sweep.notify_one();
    }
    // committed is published, come what may: the narinfos that couldn't be written are tried again
    if let Err(e) = revealed {
        tracing::error!(
            cache = cache.name,
            error = &e as &dyn std::error::Error,
            "narinfos can't be written"
        );
        app.unrevealed.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    for need in needs {
        app.rebuilds.ask(Ask::Claim(Box::new(need)));
    }
    Ok(paths)
}

/// Puts the attestations of those verifiers in place that got what is about to be published: one JSON text a line.
async fn attest(
    app: &Arc<App>,
    cache: &Arc<Cache>,
    publish: &[(Arc<Session>, usize, Publishable)],
) -> Result<(), JudgeError> {
    for (_, _, publishable) in publish {
        let jobs: Vec<String> = publishable.witnesses().map(str::to_owned).collect();
        if jobs.is_empty() {
            continue;
        }
        let mut lines = Vec::new();
        for attestation in app.db.attestations(&jobs).await? {
            lines.extend_from_slice(&attestation.envelope);
            lines.push(b'\n');
        }
        let name = format!("attestations/{}.jsonl", publishable.path().hash_part());
        let (blobs, cache) = (app.blobs.clone(), cache.name.clone());
        tokio::task::spawn_blocking(move || blobs.publish_bytes(&cache, &name, &lines)).await??;
    }
    Ok(())
}

/// Puts NARs in place and composes narinfos, on all cores: files are many and small.
fn place(
    publish: &[(Arc<Session>, usize, Publishable)],
    cache: &Cache,
    blobs: &dyn Blobs,
    now: u64,
) -> Result<Vec<NewPublication>, JudgeError> {
    let one = |(session, i, publishable): &(Arc<Session>, usize, Publishable)| {
        if let Err(e) = publishable.place_nar(cache, blobs) {
            tracing::error!(path = %publishable.path(), error = %e, "a checked NAR can't be published");
            let damaged = e.is_damage();
            return Err(if damaged { JudgeError::Damaged(session.clone(), *i) } else { e.into() });
        }
        Ok(publishable.compose(cache, now))
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = publish.len().div_ceil(threads).max(16);
    std::thread::scope(|scope| {
        let shares: Vec<_> = publish
            .chunks(share)
            .map(|share| scope.spawn(move || share.iter().map(one).collect::<Result<Vec<_>, _>>()))
            .collect();
        let mut all = Vec::with_capacity(publish.len());
        for share in shares {
            // a panic goes on where it would have without threads
            all.extend(share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Writes narinfos, to be marked as visible once they are durable: what the hot path and recovery both go through.
pub async fn reveal(app: &Arc<App>, cache: &Arc<Cache>, published: Vec<Published>) -> Result<(), JudgeError> {
    if published.is_empty() {
        return Ok(());
    }
    let paths: Vec<StorePath> = published.iter().map(|p| p.path().clone()).collect();
    let (blobs, name) = (app.blobs.clone(), cache.name.clone());
    tokio::task::spawn_blocking(move || published.iter().try_for_each(|p| p.reveal(&name, blobs.as_ref())))
        .await??;
    app.revealed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((cache.name.clone(), paths));
    Ok(())
}
