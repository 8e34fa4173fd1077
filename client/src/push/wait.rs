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
    loop {
        let asked = Instant::now();
        let left = deadline.saturating_duration_since(asked);
        let status = api.push(push, longest.min(left.as_secs()), until).await?;
        let open = open_paths(&status, until, lost);
        if open == 0 {
            return Ok(Waited { status, timed_out: false });
        }
        if Instant::now() >= deadline || left.as_secs() == 0 {
            return Ok(Waited { status, timed_out: true });
        }
        progress.doing(format!("waiting for {open} of {} paths", status.paths.len()));
        if asked.elapsed() < LEAST_PAUSE {
            tokio::time::sleep(LEAST_PAUSE).await;
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
