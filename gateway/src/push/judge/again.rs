//! Judges held claims again after the policy changed, by the facts that are stored with their last decisions: no push is
//! read back and no signature checked for those that come out as before, or are held or refused by the policy alone. Those
//! that may be published take the way that all pushes take.

use std::{collections::BTreeSet, sync::Arc};

use pushgate_formats::api::PathState;
use pushgate_policies::{
    self as policies, Needs, Policy,
    facts::Decision,
    record::{Outcome, Recorded},
};

use super::JudgeError;
use crate::{
    app::App,
    caches::Cache,
    db::{ClaimUpdate, HeldDecision, Judged},
    push::{decide, evidence},
};

/// Claims that are judged in one go; pushes have their turn in between.
const CLAIMS: u32 = 1000;

/// What a held claim comes to under another policy.
enum Fate {
    Same,
    /// Its state changes, and nothing else.
    State(Box<ClaimUpdate>),
    /// Its push has to be judged.
    Report,
}

/// Judges the next claims behind one: so many, and fewer where their facts are large. Gives where to go on, if there may be
/// more.
pub(super) async fn step(app: &Arc<App>, cache: &Arc<Cache>, after: i64) -> Result<Option<i64>, JudgeError> {
    let rows = app.db.held_decisions(&cache.name, after, CLAIMS).await?;
    let Some(last) = rows.last().map(|row| row.claim) else { return Ok(None) };
    let (policy, now) = (cache.policy(), app.clock.now());
    let by = policy.clone();
    let judged = tokio::task::spawn_blocking(move || fates(&policy, rows, now)).await?;
    // nothing is refused by a policy that another has replaced: all are judged again by that one
    if !Arc::ptr_eq(&by, &cache.policy()) {
        return Ok(Some(after));
    }
    let (mut claims, mut pushes) = (Vec::new(), BTreeSet::new());
    for (fate, row) in judged {
        match fate {
            Fate::Same => {}
            // What is in memory is judged there, or it would show the old state. And of what is reported more is known by now
            // than was stored: nothing is refused for want of it.
            Fate::State(update) if !cache.is_queued(&row.push) && app.sessions.peek(&row.push).is_none() => {
                claims.push(*update);
                pushes.insert(row.push);
            }
            Fate::State(_) | Fate::Report => evidence::concerns(app, cache, &row.push),
        }
    }
    if !claims.is_empty() {
        // one transaction; a crash before it leaves what every restart judges again
        let refused = claims.iter().any(|claim| claim.state == PathState::Rejected);
        let judged = Judged { cache: cache.name.clone(), now, claims, ..Judged::default() };
        app.db.update_held(&judged).await?;
        // one that was read back meanwhile may have read the rows before they changed
        app.sessions.loaded().await;
        for push in pushes.iter().filter(|push| app.sessions.peek(push).is_some()) {
            evidence::concerns(app, cache, push);
        }
        if refused {
            app.sweep.notify_one();
        }
    }
    Ok(Some(last))
}

/// What each of them comes to, found out on all cores.
fn fates(policy: &Policy, rows: Vec<HeldDecision>, now: u64) -> Vec<(Fate, HeldDecision)> {
    let needs = policy.needs();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = rows.len().div_ceil(threads).max(100);
    let fates: Vec<Fate> = std::thread::scope(|scope| {
        let judge = |rows: &[HeldDecision]| -> Vec<Fate> {
            rows.iter().map(|row| fate(policy, &needs, row, now)).collect()
        };
        let shares: Vec<_> = rows.chunks(share).map(|rows| scope.spawn(move || judge(rows))).collect();
        // a panic goes on where it would have without threads
        let join = |share: std::thread::ScopedJoinHandle<'_, Vec<Fate>>| {
            share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        shares.into_iter().flat_map(join).collect()
    });
    fates.into_iter().zip(rows).collect()
}

fn fate(policy: &Policy, needs: &Needs, row: &HeldDecision, now: u64) -> Fate {
    let Ok(recorded) = serde_json::from_str::<Recorded>(&row.facts) else { return Fate::Report };
    // his groups or owner may have changed and the push not been judged since
    if !recorded.covers(needs) || recorded.submitter != row.submitter {
        return Fate::Report;
    }
    let decision = recorded
        .replay(now, &needs.env, |claim, evidence, moment| policies::decide(policy, claim, evidence, moment));
    let outcome = Outcome::of(&decision);
    // held by the policy itself, and not by something that comes after it
    let by_policy = row.code == row.decided.outcome.code;
    let (state, code, message, waits, again) = match decision {
        Decision::Publish { .. } if outcome.decision == row.decided.outcome.decision => return Fate::Same,
        Decision::Publish { .. } => return Fate::Report,
        _ if !by_policy => {
            return if outcome == row.decided.outcome { Fate::Same } else { Fate::Report };
        }
        Decision::Hold { code: "needs-derivation", .. } if outcome != row.decided.outcome => {
            return Fate::Report;
        }
        Decision::Hold { code, message, waits, until, again, .. } => {
            let again = [until, again].into_iter().flatten().min();
            (PathState::Held, code, message, decide::waits_shown(&waits).0, again)
        }
        Decision::Reject { code, message, .. } => (PathState::Rejected, code, message, vec![], None),
    };
    if outcome == row.decided.outcome && row.message.as_ref() == Some(&message) {
        return Fate::Same;
    }
    let recorded = Recorded { now, ..recorded };
    Fate::State(Box::new(ClaimUpdate {
        id: row.claim,
        state,
        code: Some(code.to_owned()),
        message: Some(message),
        waits,
        waits_on: vec![],
        decision: Some(decide::stored_outcome(policy, outcome, &recorded)),
        again,
    }))
}
