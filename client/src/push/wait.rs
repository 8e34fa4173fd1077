//! Waits until a push is as far as it gets. Doesn't know how long is reasonable: the caller says until when.

use std::{collections::HashMap, time::Duration};

use pushgate_formats::{
    StorePath,
    api::{PathState, PushStatus},
};
use tokio::time::Instant;

use crate::{
    api::{Api, ApiError, PushHandle, Until},
    progress::Progress,
};

/// The longest that one question waits at the gateway, in seconds.
const LONGEST: u64 = 20;
/// Where some bytes never arrived the gateway can't know that nothing more will come, and is asked more often.
const LONGEST_WITH_LOSSES: u64 = 1;
/// An answer that comes this long after the deadline is still taken: the question may have been asked just before it.
const GRACE: Duration = Duration::from_secs(60);
/// A gateway that can't be reached for so long isn't waited for. People wait for hours; networks fail for minutes.
const LONGEST_SILENCE: Duration = Duration::from_secs(300);
/// The pause between two rounds of attempts meanwhile.
const SILENT_PAUSE: Duration = Duration::from_secs(10);
/// A gateway that answers at once although nothing has changed isn't asked again at once.
const LEAST_PAUSE: Duration = Duration::from_millis(300);

/// How waiting ended.
pub(super) struct Waited {
    pub(super) status: PushStatus,
    pub(super) timed_out: bool,
}

/// Asks for a push's state until every path is as `until` says, or `deadline`. Paths in `lost` aren't waited for while
/// their bytes are wanted.
pub(super) async fn wait(
    api: &Api,
    push: &PushHandle,
    until: Until,
    deadline: Instant,
    lost: &HashMap<StorePath, String>,
    progress: &Progress,
) -> Result<Waited, ApiError> {
    let longest = if lost.is_empty() { LONGEST } else { LONGEST_WITH_LOSSES };
    let mut heard = Instant::now();
    loop {
        let asked = Instant::now();
        let left = deadline.saturating_duration_since(asked);
        let answer = api.push(push, longest.min(left.as_secs()), until);
        // repeated attempts could take several times as long
        let status = match tokio::time::timeout(left + GRACE, answer).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => {
                let again = Instant::now() + SILENT_PAUSE;
                if !error.is_transient() || again > deadline.min(heard + LONGEST_SILENCE) {
                    return Err(error);
                }
                progress.doing("waiting for the gateway, which can't be reached");
                tokio::time::sleep_until(again).await;
                continue;
            }
            Err(_) => return Err(ApiError::no_answer(api.base())),
        };
        heard = Instant::now();
        let open = open_paths(&status, until, lost);
        if open == 0 {
            return Ok(Waited { status, timed_out: false });
        }
        // the gateway waits for whole seconds; the rest of the last one is spent here
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Waited { status, timed_out: true });
        }
        progress.doing(format!("waiting for {open} of {} paths", status.paths.len()));
        if asked.elapsed() < LEAST_PAUSE {
            tokio::time::sleep(LEAST_PAUSE.min(left)).await;
        }
    }
}

/// How many paths may still come to something else.
fn open_paths(status: &PushStatus, until: Until, lost: &HashMap<StorePath, String>) -> usize {
    let is_open = |state: PathState| match until {
        Until::Settled => !state.is_settled(),
        Until::Terminal => !state.is_settled() || state == PathState::Held,
    };
    let given_up = |path: &StorePath, state| state == PathState::Wanted && lost.contains_key(path);
    status.paths.iter().filter(|p| is_open(p.state) && !given_up(&p.path, p.state)).count()
}

#[cfg(test)]
mod tests {
    use pushgate_formats::api::PathStatus;

    use super::*;

    fn path(n: u8) -> StorePath {
        StorePath::from_digest(&[n; 20], "x").unwrap()
    }

    #[test]
    fn what_is_waited_for() {
        use PathState::*;
        let states = [Wanted, Wanted, Checking, Held, Published, Upstream, Rejected];
        let paths = states.into_iter().zip(1..).map(|(state, n)| PathStatus {
            path: path(n),
            state,
            code: None,
            message: None,
            waits_for: vec![],
        });
        let status = PushStatus {
            push: "p".into(),
            cache: "main".into(),
            expires: 0,
            paths: paths.collect(),
            wanted: vec![],
            wanted_derivations: vec![],
            realisations: vec![],
            wanted_inputs: vec![],
            builds: vec![],
            notices: vec![],
        };
        let nothing = HashMap::new();
        assert_eq!(open_paths(&status, Until::Settled, &nothing), 3);
        assert_eq!(open_paths(&status, Until::Terminal, &nothing), 4);
        // a lost path is given up while it is wanted; one whose bytes came otherwise is waited for
        let lost: HashMap<_, _> = [(path(1), "gone".into()), (path(3), "gone".into())].into();
        assert_eq!(open_paths(&status, Until::Settled, &lost), 2);
    }
}
