//! The rebuild sample, checked by whoever wants to: draws again all that an epoch drew, from the seed that was revealed after
//! it. Trusts the gateway in nothing but for what it drew.

use pushgate_formats::sample::{Draw, Draws, Epoch};
use pushgate_policies::sample::{Wrong, replay};
use serde::Serialize;

use super::{AdminError, Said, columns};
use crate::{
    cli::admin::{Sample, SampleList, SampleReplay},
    clock,
    session::Session,
};

pub(super) async fn run(session: &Session, command: &Sample) -> Result<Said, AdminError> {
    match command {
        Sample::List(args) => list(session, args).await,
        Sample::Replay(args) => again(session, args).await,
    }
}

async fn list(session: &Session, args: &SampleList) -> Result<Said, AdminError> {
    let greeting = session.greet().await?;
    let epochs = session.api.epochs(&args.cache, &session.signer()).await;
    let epochs = epochs.map_err(|e| greeting.explain(e))?;
    Ok(Said::new(&args.common, &epochs, || {
        if epochs.is_empty() {
            let note =
                format!("nothing was ever drawn in `{}`: no rule of its policy has a `sample`", args.cache);
            return Said { out: String::new(), note };
        }
        Said::words(lines(&epochs))
    }))
}

/// One line each: number, from when to when, and the hash of the seed.
fn lines(epochs: &[Epoch]) -> String {
    let rows: Vec<Vec<String>> = epochs
        .iter()
        .map(|epoch| {
            let closed = epoch.closed.map_or_else(|| "open".to_owned(), clock::utc);
            vec![epoch.number.to_string(), clock::utc(epoch.opened), closed, epoch.commitment.to_string()]
        })
        .collect();
    columns(&rows).into_iter().map(|line| line + "\n").collect()
}

async fn again(session: &Session, args: &SampleReplay) -> Result<Said, AdminError> {
    let greeting = session.greet().await?;
    let (mut epoch, mut draws, mut after): (Option<Epoch>, Vec<Draw>, Option<i64>) = (None, vec![], None);
    loop {
        let page = session.api.draws(&args.cache, args.epoch, after, &session.signer()).await;
        let Draws { epoch: shown, draws: more, after: next } = page.map_err(|e| greeting.explain(e))?;
        epoch.get_or_insert(shown);
        draws.extend(more);
        // numbers only grow, so that an odd gateway can't have the same page read for ever
        if next <= after {
            break;
        }
        after = next;
    }
    let Some(epoch) = epoch else { return Ok(Said::default()) };
    let found = Replayed::new(&epoch, &draws);
    if !found.wrong.is_empty() {
        let words = found.wrong.iter().map(|fault| fault.to_string()).collect();
        return Err(AdminError::Dishonest { epoch: epoch.number, words });
    }
    Ok(Said::new(&args.common, &found, || Said::words(found.words(&args.cache))))
}

/// What came of drawing an epoch again.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replayed {
    epoch: u64,
    draws: usize,
    drawn: usize,
    wrong: Vec<String>,
}

impl Replayed {
    fn new(epoch: &Epoch, draws: &[Draw]) -> Self {
        let words = |Wrong { place, what }: Wrong| match place.and_then(|i| draws.get(i)) {
            Some(draw) => format!("{}: {what}", draw.path),
            None => format!("the epoch: {what}"),
        };
        Self {
            epoch: epoch.number,
            draws: draws.len(),
            drawn: draws.iter().filter(|draw| draw.drawn).count(),
            wrong: replay(epoch, draws).into_iter().map(words).collect(),
        }
    }

    fn words(&self, cache: &str) -> String {
        format!(
            "epoch {} of {cache}: the seed is the one whose hash was logged, and each of {} draws ({} for a rebuild) follows from it\n",
            self.epoch, self.draws, self.drawn
        )
    }
}

#[cfg(test)]
mod tests {
    use pushgate_formats::{Sha256, StorePath, sample::Seed};
    use pushgate_policies::{
        rule::{Rate, Sample},
        sample::{Drawing, Weighed},
    };

    use super::*;

    fn epoch() -> (Epoch, Vec<Draw>) {
        let seed = Seed([3; 32]);
        let epoch = Epoch {
            cache: "main".into(),
            closed: Some(2_000),
            commitment: seed.commitment(),
            kind: "epoch".into(),
            number: 4,
            opened: 1_000,
            seed: Some(seed),
            v: 1,
        };
        let draw = |n: u8| {
            let drawing = Drawing {
                cache: "main",
                path: &StorePath::from_digest(&[n; 20], "hello").unwrap(),
                nar_hash: Sha256([n; 32]),
                rule: "all",
                sample: &Sample { rate: Rate::new(0.5).unwrap(), probation: 0 },
                weighed: Weighed::default(),
                time: 1_500,
            };
            drawing.draw(4, &seed)
        };
        (epoch, (0..40).map(draw).collect())
    }

    #[test]
    fn honest_draws_pass_and_a_changed_one_is_named() {
        let (epoch, mut draws) = epoch();
        let good = Replayed::new(&epoch, &draws);
        assert!(good.wrong.is_empty() && good.draws == 40 && (5..35).contains(&good.drawn), "{good:?}");
        draws[7].drawn = !draws[7].drawn;
        let bad = Replayed::new(&epoch, &draws);
        assert_eq!(bad.wrong.len(), 1);
        assert!(bad.wrong[0].starts_with(&draws[7].path.to_string()), "{bad:?}");
        let other = Epoch { commitment: Sha256([0; 32]), ..epoch };
        assert!(Replayed::new(&other, &[]).wrong[0].starts_with("the epoch: the seed isn't"));
    }

    #[test]
    fn lines_of_epochs() {
        let (closed, _) = epoch();
        let open = Epoch { number: 5, opened: 2_000, closed: None, seed: None, ..closed.clone() };
        let text = lines(&[open, closed]);
        assert!(text.starts_with("5  1970-01-01 00:33:20Z  open "), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
