//! How far builds are: what the gateway last said of each, and of the claims of what they made. Pure; says what is to be
//! done next and when nothing more will happen, and does none of it.

use std::collections::{BTreeMap, BTreeSet};

use pushgate_formats::{
    StorePath,
    api::{PathState, PathStatus},
    jobs::{BuildState, BuildStatus},
};

use super::plan::Plan;

/// A claim that is held is given so many rounds before it counts as decided: it may only wait for a moment.
const HELD_ROUNDS: u32 = 10;
/// What a build waits for is given so many rounds before it counts as lacking: the gateway may still be asking upstreams.
const LACKING_ROUNDS: u32 = 2;

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Going,
    /// Its outputs are published.
    Done,
    /// Its outputs are held.
    Held,
    /// It failed, or its outputs can't be published.
    Stuck,
}

#[derive(Debug, Default)]
struct Build {
    status: Option<BuildStatus>,
    /// Its outputs, once they are claimed.
    claimed: Option<Vec<StorePath>>,
    /// Why its outputs aren't claimed.
    unclaimable: Option<String>,
}

#[derive(Debug)]
struct Claim {
    status: PathStatus,
    /// Why its bytes aren't at the gateway.
    lost: Option<String>,
    held_rounds: u32,
}

/// All builds that were asked for.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// In the order in which they were asked for.
    order: Vec<StorePath>,
    builds: BTreeMap<StorePath, Build>,
    claims: BTreeMap<StorePath, Claim>,
    waited_for: BTreeMap<StorePath, u32>,
}

impl Board {
    pub(super) fn asked(&mut self, derivations: &[StorePath]) {
        for derivation in derivations {
            self.builds.entry(derivation.clone()).or_insert_with(|| {
                self.order.push(derivation.clone());
                Build::default()
            });
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Takes what the gateway says of a build; says whether that is news to a person.
    pub(super) fn learn_build(&mut self, status: BuildStatus) -> bool {
        let Some(build) = self.builds.get_mut(&status.derivation) else { return false };
        let shown = |status: &BuildStatus| (status.state, status.verifier.clone(), status.code.clone());
        let news = build.status.as_ref().map(shown) != Some(shown(&status));
        build.status = Some(status);
        news
    }

    pub(super) fn statuses(&self) -> impl Iterator<Item = &BuildStatus> {
        self.order.iter().filter_map(|path| self.builds[path].status.as_ref())
    }

    /// Whether nothing more will happen to a build itself.
    pub(super) fn is_build_over(&self, derivation: &StorePath) -> bool {
        let status = self.builds.get(derivation).and_then(|build| build.status.as_ref());
        status.is_some_and(|status| status.state.is_over())
    }

    /// What is built and whose outputs aren't claimed.
    pub(super) fn to_claim(&self) -> Vec<BuildStatus> {
        let open = |build: &&Build| build.claimed.is_none() && build.unclaimable.is_none();
        let builds = self.order.iter().map(|path| &self.builds[path]).filter(open);
        let statuses = builds.filter_map(|build| build.status.as_ref());
        statuses.filter(|status| status.state == BuildState::Built).cloned().collect()
    }

    pub(super) fn claimed(&mut self, derivation: &StorePath, outputs: Vec<StorePath>) {
        if let Some(build) = self.builds.get_mut(derivation) {
            build.claimed = Some(outputs);
        }
    }

    pub(super) fn unclaimable(&mut self, derivation: &StorePath, why: String) {
        if let Some(build) = self.builds.get_mut(derivation) {
            build.unclaimable = Some(why);
        }
    }

    /// Takes what the gateway says of a claim; says whether that is news to a person.
    pub(super) fn learn_claim(&mut self, status: PathStatus, lost: Option<&String>) -> bool {
        let before = self.claims.get(&status.path);
        let shown = |status: &PathStatus| (status.state, status.code.clone());
        let news = before.map(|claim| shown(&claim.status)) != Some(shown(&status));
        let held_rounds = match status.state {
            PathState::Held => before.map_or(0, |claim| claim.held_rounds) + 1,
            _ => 0,
        };
        let lost = lost.filter(|_| status.state == PathState::Wanted).cloned();
        self.claims.insert(status.path.clone(), Claim { status, lost, held_rounds });
        news
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = &PathStatus> {
        self.claims.values().map(|claim| &claim.status)
    }

    /// Paths that weren't claimed or whose bytes are gone, and why.
    pub(super) fn failures(&self) -> Vec<(StorePath, String)> {
        let unclaimable =
            self.builds.iter().filter_map(|(path, build)| Some((path, build.unclaimable.as_ref()?)));
        let lost = self.claims.iter().filter_map(|(path, claim)| Some((path, claim.lost.as_ref()?)));
        unclaimable.chain(lost).map(|(path, why)| (path.clone(), why.clone())).collect()
    }

    /// A round of questions is over: what builds have been waiting for, for some rounds now.
    pub(super) fn waited_for(&mut self) -> BTreeSet<StorePath> {
        let waiting = self.statuses().filter(|status| status.state == BuildState::Waiting);
        let now: BTreeSet<StorePath> = waiting.flat_map(|status| status.waits_for.iter().cloned()).collect();
        self.waited_for = now
            .into_iter()
            .map(|path| (path.clone(), self.waited_for.get(&path).unwrap_or(&0) + 1))
            .collect();
        let long = self.waited_for.iter().filter(|(_, rounds)| **rounds >= LACKING_ROUNDS);
        long.map(|(path, _)| path.clone()).collect()
    }

    /// How far a build is; what is held counts as going on for those who wait for it.
    pub(super) fn outcome(&self, plan: &Plan, derivation: &StorePath, wait: bool) -> Outcome {
        let own = self.own_outcome(derivation, wait);
        let is_waiting =
            |build: &Build| build.status.as_ref().is_some_and(|status| status.state == BuildState::Waiting);
        if own == Outcome::Going && self.builds.get(derivation).is_some_and(is_waiting) {
            let below = plan.asked_below(derivation);
            let below: Vec<_> = below.iter().map(|input| self.own_outcome(input, wait)).collect();
            return [Outcome::Stuck, Outcome::Held].into_iter().find(|o| below.contains(o)).unwrap_or(own);
        }
        own
    }

    fn own_outcome(&self, derivation: &StorePath, wait: bool) -> Outcome {
        let Some(build) = self.builds.get(derivation) else { return Outcome::Going };
        if build.unclaimable.is_some() {
            return Outcome::Stuck;
        }
        match build.status.as_ref().map(|status| status.state) {
            Some(BuildState::Failed | BuildState::Refused) => return Outcome::Stuck,
            Some(BuildState::Built) => {}
            _ => return Outcome::Going,
        }
        let Some(outputs) = &build.claimed else { return Outcome::Going };
        let of_claim = |path| {
            let Some(claim) = self.claims.get(path) else { return Outcome::Going };
            match claim.status.state {
                PathState::Published | PathState::Upstream => Outcome::Done,
                PathState::Rejected => Outcome::Stuck,
                PathState::Wanted if claim.lost.is_some() => Outcome::Stuck,
                PathState::Held if !wait && claim.held_rounds >= HELD_ROUNDS => Outcome::Held,
                PathState::Held | PathState::Wanted | PathState::Checking => Outcome::Going,
            }
        };
        let outcomes: Vec<_> = outputs.iter().map(of_claim).collect();
        let worst = [Outcome::Stuck, Outcome::Going, Outcome::Held];
        worst.into_iter().find(|outcome| outcomes.contains(outcome)).unwrap_or(Outcome::Done)
    }

    /// Whether nothing more will happen to any build.
    pub(super) fn is_over(&self, plan: &Plan, wait: bool) -> bool {
        self.order.iter().all(|path| self.outcome(plan, path, wait) != Outcome::Going)
    }

    /// The builds that can't begin before this one is published.
    pub(super) fn blocked_by(&self, plan: &Plan, derivation: &StorePath) -> Vec<StorePath> {
        let above = |path: &&StorePath| plan.asked_below(path).contains(derivation);
        self.order.iter().filter(above).cloned().collect()
    }

    /// Which build made a path.
    pub(super) fn maker(&self, output: &StorePath) -> Option<&StorePath> {
        let made = |build: &Build| build.claimed.as_ref().is_some_and(|outputs| outputs.contains(output));
        self.order.iter().find(|path| made(&self.builds[*path]))
    }

    /// The outputs that a build made, if they were claimed.
    pub(super) fn outputs(&self, derivation: &StorePath) -> Option<&[StorePath]> {
        self.builds.get(derivation)?.claimed.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::plan::testing::{drv, path, plan},
        *,
    };

    fn status(name: &str, state: BuildState) -> BuildStatus {
        BuildStatus {
            derivation: drv(name),
            state,
            verifier: None,
            code: None,
            message: None,
            exit_code: None,
            waits_for: vec![],
            outputs: vec![],
        }
    }

    fn claim(name: &str, state: PathState) -> PathStatus {
        PathStatus { path: path(name), state, code: None, message: None, waits_for: vec![] }
    }

    /// `app` waits for `lib`, which is as said.
    fn board(lib: BuildState) -> (Plan, Board) {
        let mut plan = plan();
        let mut board = Board::default();
        let first = plan.first(&Default::default());
        board.asked(&first);
        board.asked(&plan.further(&[path("lib")].into()));
        let mut waiting = status("app", BuildState::Waiting);
        waiting.waits_for = vec![path("lib")];
        assert!(board.learn_build(waiting));
        assert!(board.learn_build(status("lib", lib)));
        (plan, board)
    }

    #[test]
    fn only_changes_are_news() {
        let (_, mut board) = board(BuildState::Queued);
        assert!(!board.learn_build(status("lib", BuildState::Queued)));
        let mut building = status("lib", BuildState::Building);
        building.verifier = Some("v1".into());
        assert!(board.learn_build(building.clone()));
        assert!(!board.learn_build(building.clone()));
        building.verifier = Some("v2".into());
        assert!(board.learn_build(building));
        // nobody asked for it
        assert!(!board.learn_build(status("cc", BuildState::Failed)));
    }

    #[test]
    fn a_failure_ends_what_waits_for_it() {
        for (state, over) in [
            (BuildState::Failed, true),
            (BuildState::Refused, true),
            (BuildState::Queued, false),
            (BuildState::Building, false),
            (BuildState::Built, false),
        ] {
            let (plan, board) = board(state);
            assert_eq!(board.is_over(&plan, false), over, "{state:?}");
            assert_eq!(board.is_build_over(&drv("lib")), state.is_over());
            assert!(!board.is_build_over(&drv("app")));
            assert_eq!(board.blocked_by(&plan, &drv("lib")), [drv("app")]);
        }
    }

    #[test]
    fn what_is_built_is_claimed_once_and_decided() {
        let (plan, mut board) = board(BuildState::Built);
        let open: Vec<_> = board.to_claim().into_iter().map(|status| status.derivation).collect();
        assert_eq!(open, [drv("lib")]);
        board.claimed(&drv("lib"), vec![path("lib")]);
        assert!(board.to_claim().is_empty());
        assert_eq!(board.maker(&path("lib")), Some(&drv("lib")));

        let outcome = |board: &Board, wait| board.outcome(&plan, &drv("lib"), wait);
        assert!(board.learn_claim(claim("lib", PathState::Checking), None));
        assert_eq!(outcome(&board, false), Outcome::Going);
        // held for a moment, as it often is
        assert!(board.learn_claim(claim("lib", PathState::Held), None));
        assert_eq!(outcome(&board, false), Outcome::Going);
        for _ in 1..HELD_ROUNDS {
            assert!(!board.learn_claim(claim("lib", PathState::Held), None));
        }
        assert_eq!((outcome(&board, false), outcome(&board, true)), (Outcome::Held, Outcome::Going));
        assert_eq!(board.outcome(&plan, &drv("app"), false), Outcome::Held);
        assert!(board.is_over(&plan, false) && !board.is_over(&plan, true));
        // its dependant goes on by itself
        assert!(board.learn_claim(claim("lib", PathState::Published), None));
        assert_eq!(outcome(&board, false), Outcome::Done);
        assert!(!board.is_over(&plan, false));
        board.learn_claim(claim("lib", PathState::Rejected), None);
        assert!(board.is_over(&plan, true));
    }

    #[test]
    fn bytes_that_aren_t_there_and_foreign_outputs_are_failures() {
        let (plan, mut board) = board(BuildState::Built);
        board.claimed(&drv("lib"), vec![path("lib")]);
        let why = "gone".to_owned();
        board.learn_claim(claim("lib", PathState::Wanted), Some(&why));
        assert!(board.is_over(&plan, true));
        assert_eq!(board.failures(), [(path("lib"), why.clone())]);
        board.learn_claim(claim("lib", PathState::Checking), Some(&why));
        assert!(board.failures().is_empty() && !board.is_over(&plan, true));
        board.unclaimable(&drv("lib"), "strange".into());
        assert!(board.is_over(&plan, true));
        assert_eq!(board.failures(), [(drv("lib"), "strange".into())]);
    }

    #[test]
    fn what_is_waited_for_counts_after_some_rounds() {
        let (_, mut board) = board(BuildState::Queued);
        for _ in 1..LACKING_ROUNDS {
            assert!(board.waited_for().is_empty());
        }
        assert_eq!(board.waited_for(), [path("lib")].into());
        // found at an upstream after all
        board.learn_build(status("app", BuildState::Queued));
        assert!(board.waited_for().is_empty());
        let mut waiting = status("app", BuildState::Waiting);
        waiting.waits_for = vec![path("lib")];
        board.learn_build(waiting);
        assert!(board.waited_for().is_empty(), "the count begins anew");
    }
}
