//! Waits until a push is as far as it gets. Doesn't know how long is reasonable: the caller says until when.

use std::{collections::HashMap, time::Duration};

use pushgate_formats::{
    StorePath,
    api::{PathState, PathStatus, PushStatus},
};
use tokio::time::Instant;

use super::inputs::{Inputs, is_kept};
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

/// Once everything is decided, the gateway is asked a few times more what verifiers need: it finds that out last.
const LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(400);

/// How waiting ended.
pub(super) struct Waited {
    pub(super) status: PushStatus,
    pub(super) timed_out: bool,
    /// Verifiers need something that wasn't asked for before: waiting goes on when it was looked for.
    pub(super) wants_inputs: bool,
}

/// Asks for a push's state until every path is as `until` says, or `deadline`, or until the gateway wants something for
/// verifiers that isn't among `inputs`. Paths in `lost` aren't waited for while their bytes are wanted.
pub(super) async fn wait(
    api: &Api,
    push: &PushHandle,
    until: Until,
    deadline: Instant,
    lost: &HashMap<StorePath, String>,
    inputs: Option<&Inputs>,
    progress: &Progress,
) -> Result<Waited, ApiError> {
    let most = if lost.is_empty() { LONGEST } else { LONGEST_WITH_LOSSES };
    // what verifiers need turns up soon if at all, and the gateway doesn't end a question for it
    let (mut longest, mut looks) = (1, inputs.map_or(0, |_| LOOKS));
    let mut heard = Instant::now();
    loop {
        let asked = Instant::now();
        let left = deadline.saturating_duration_since(asked);
        let answer = api.push(push, longest.min(most).min(left.as_secs()), until);
        longest = (longest * 2).min(LONGEST);
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
        if inputs.is_some_and(|inputs| inputs.are_new(&status.wanted_inputs)) {
            return Ok(Waited { status, timed_out: false, wants_inputs: true });
        }
        let open = open_paths(&status, until, lost);
        if open == 0 {
            if looks == 0 || !status.paths.iter().any(awaits_rebuild) || deadline < Instant::now() + LOOK {
                return Ok(Waited { status, timed_out: false, wants_inputs: false });
            }
            looks -= 1;
            tokio::time::sleep(LOOK).await;
            continue;
        }
        // the gateway waits for whole seconds; the rest of the last one is spent here
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Waited { status, timed_out: true, wants_inputs: false });
        }
        progress.doing(format!("waiting for {open} of {} paths", status.paths.len()));
        if asked.elapsed() < LEAST_PAUSE {
            tokio::time::sleep(LEAST_PAUSE.min(left)).await;
        }
    }
}

/// How many paths may still come to something else.
fn open_paths(status: &PushStatus, until: Until, lost: &HashMap<StorePath, String>) -> usize {
    let is_open = |path: &PathStatus| match until {
        Until::Settled => !path.state.is_settled(),
        Until::Terminal => !path.state.is_settled() || path.state == PathState::Held && !is_kept(path),
    };
    let given_up = |path: &StorePath, state| state == PathState::Wanted && lost.contains_key(path);
    status.paths.iter().filter(|p| is_open(p) && !given_up(&p.path, p.state)).count()
}

/// Whether a verifier will have to do with it, so that the gateway may say in a moment what that needs.
fn awaits_rebuild(path: &PathStatus) -> bool {
    path.state == PathState::Held && path.waits_for.iter().any(|what| what.contains("rebuild"))
}

#[cfg(test)]
mod tests {
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
        // what is kept for verifiers is as it should be
        let mut kept = status;
        kept.paths[3].code = Some("kept-as-input".into());
        assert_eq!(open_paths(&kept, Until::Terminal, &nothing), 3);
    }

    #[test]
    fn only_rebuilds_may_need_something() {
        let held = |waits: &[&str], state| PathStatus {
            path: path(1),
            state,
            code: None,
            message: None,
            waits_for: waits.iter().map(|wait| (*wait).to_owned()).collect(),
        };
        assert!(awaits_rebuild(&held(&["1 approval", "2 rebuilds (0 of 2)"], PathState::Held)));
        assert!(!awaits_rebuild(&held(&["1 approval"], PathState::Held)));
        assert!(!awaits_rebuild(&held(&["1 rebuild"], PathState::Rejected)));
    }
}
