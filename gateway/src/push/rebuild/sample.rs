//! The rebuild sample: epochs with their seeds, and the facts that weigh in a draw. The draw itself is a pure function in the
//! `policies` crate. A seed's hash is in the log before its first draw, and the seed after its last.

use std::{collections::HashMap, sync::Arc};

use pushgate_formats::{
    Sha256, StorePath,
    sample::{Draw, Epoch, Seed, Weighed},
};
use pushgate_policies::{
    Policy,
    facts::Claim,
    matching::Found,
    names::package,
    sample::{Drawing, is_mismatched},
};

use crate::{
    app::App,
    caches::Cache,
    db::{DbError, EpochRow, Reputation},
    push::recover,
};

/// Whether a policy draws at all.
pub fn samples(policy: &Policy) -> bool {
    policy.rules.iter().any(|rule| rule.sample.is_some())
}

/// What draws are made with, looked up for a batch.
#[derive(Debug, Default)]
pub struct Drawer {
    epoch: Option<(u64, Seed)>,
    made: HashMap<(StorePath, Sha256), bool>,
    reputations: HashMap<i64, Reputation>,
    /// By package.
    dependants: HashMap<String, u32>,
    now: u64,
}

impl Drawer {
    /// Looks up what the draws of these claims rest on.
    pub async fn gather(
        app: &App,
        cache: &Cache,
        policy: &Policy,
        paths: &[StorePath],
        identities: &[i64],
    ) -> Result<Self, DbError> {
        if !samples(policy) {
            return Ok(Self::default());
        }
        let epoch = current(app, cache).await?;
        let made = app.db.draws(&cache.name, paths).await?;
        let mut pnames: Vec<&str> = paths.iter().map(|path| package(path.name()).0).collect();
        pnames.sort_unstable();
        pnames.dedup();
        Ok(Self {
            epoch: Some((epoch.number, epoch.seed)),
            made: made.into_iter().map(|row| ((row.path, row.nar_hash), row.drawn)).collect(),
            reputations: app.db.reputations(identities).await?,
            dependants: app.db.dependants(&cache.name, &pnames).await?,
            // not later than the lookup of the epoch
            now: app.clock.now().max(epoch.opened),
        })
    }

    /// Whether a claim is drawn, and the draw itself where it is new.
    pub fn draw(&self, policy: &Policy, claim: &Claim<'_>, identity: i64) -> (bool, Option<Draw>) {
        let key = (claim.path.clone(), claim.nar_hash);
        if let Some(drawn) = self.made.get(&key) {
            return (*drawn, None);
        }
        let (Some((epoch, seed)), Found::Rule(i)) = (&self.epoch, policy.find(claim)) else {
            return (false, None);
        };
        let rule = &policy.rules[i];
        let Some(sample) = &rule.sample else { return (false, None) };
        let known = self.reputations.get(&identity).copied().unwrap_or_default();
        let weighed = Weighed {
            claims: known.claims,
            dependants: self.dependants.get(package(claim.path.name()).0).copied().unwrap_or(0),
            matches: known.matches,
            mismatched: is_mismatched(known.mismatched, known.matches),
        };
        let drawing = Drawing {
            cache: claim.cache,
            path: claim.path,
            nar_hash: claim.nar_hash,
            rule: &rule.name,
            sample,
            weighed,
            time: self.now,
        };
        let draw = drawing.draw(*epoch, seed);
        (draw.drawn, Some(draw))
    }
}

/// The epoch that is open, which is opened where there is none, or the last one is over.
async fn current(app: &App, cache: &Cache) -> Result<EpochRow, DbError> {
    loop {
        let now = app.clock.now();
        let number = match app.db.epoch(&cache.name).await? {
            Some(row) if row.closed.is_none() && now < row.opened + app.config.sample.epoch => {
                return Ok(row);
            }
            Some(row) => {
                if row.closed.is_none() {
                    app.db.close_epoch(&cache.name, &row, now).await?;
                }
                row.number + 1
            }
            None => 1,
        };
        let row = EpochRow { number, seed: Seed(crate::random::bytes::<32>()), opened: now, closed: None };
        // whoever was faster: his is taken
        app.db.open_epoch(&cache.name, &row).await?;
    }
}

/// Ends epochs whose time is over although nothing is drawn any more, so that their seeds become known.
pub async fn close_over(app: &Arc<App>) -> Result<(), DbError> {
    let now = app.clock.now();
    for cache in app.caches.all() {
        if let Some(row) = app.db.epoch(&cache.name).await?
            && row.closed.is_none()
            && now >= row.opened + app.config.sample.epoch
        {
            app.db.close_epoch(&cache.name, &row, now).await?;
        }
    }
    Ok(())
}

/// How often it is looked whether an epoch is over, in seconds.
const LOOK: u64 = 10;

/// Closes epochs as long as the gateway runs.
pub async fn tend(app: Arc<App>) {
    let mut stopping = app.stopping.subscribe();
    loop {
        let pause = LOOK.min(app.config.sample.epoch.max(1));
        tokio::select! {
            () = tokio::time::sleep(std::time::Duration::from_secs(pause)) => {}
            () = recover::stopped(&mut stopping) => return,
        }
        if let Err(e) = close_over(&app).await {
            tracing::warn!(
                error = &e as &dyn std::error::Error,
                "epochs of the sample can't be closed; tried again"
            );
        }
    }
}

/// An epoch as everybody may see it: without its seed while it is open.
pub fn shown(cache: &str, row: &EpochRow) -> Epoch {
    Epoch {
        cache: cache.to_owned(),
        closed: row.closed,
        commitment: row.seed.commitment(),
        kind: "epoch".to_owned(),
        number: row.number,
        opened: row.opened,
        seed: row.closed.map(|_| row.seed),
        v: 1,
    }
}
