//! Builds at the cache, in lines. All of it but the paths that were asked for belongs on standard error.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering},
};

use pushgate_formats::{
    StorePath,
    api::PathState,
    jobs::{BuildState, BuildStatus},
};

use super::{MOST_WAITS, counted, counts_in_words};
use crate::{
    api::printable,
    build::{News, Report, name},
};

/// The word for a state.
const fn word(state: BuildState) -> &'static str {
    match state {
        BuildState::Waiting => "waiting",
        BuildState::Queued => "queued",
        BuildState::Building => "building",
        BuildState::Built => "built",
        BuildState::Failed => "failed",
        BuildState::Refused => "refused",
    }
}

/// `2 built, 1 failed`.
pub(super) fn counts(builds: &[BuildStatus]) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for build in builds {
        *counts.entry(word(build.state)).or_default() += 1;
    }
    counts_in_words(counts)
}

/// One build on one line.
pub(super) fn line(out: &mut String, build: &BuildStatus) {
    // writing to a String can't fail
    let _ = write!(out, "{:<9} {}", word(build.state), build.derivation);
    if let Some(verifier) = &build.verifier {
        let _ = write!(out, "  by {}", printable(verifier));
    }
    if !build.waits_for.is_empty() {
        let _ = write!(out, "  waits for {}", listed(build.waits_for.iter().map(ToString::to_string)));
    }
    if let Some(code) = build.exit_code {
        let _ = write!(out, "  the builder ended with exit code {code}");
    }
    match (&build.message, &build.code) {
        (Some(message), Some(code)) => {
            let _ = write!(out, "  {} [{}]", printable(message), printable(code));
        }
        (Some(text), None) | (None, Some(text)) => {
            let _ = write!(out, "  {}", printable(text));
        }
        (None, None) => {}
    }
    out.push('\n');
}

/// Some of many.
fn listed(all: impl ExactSizeIterator<Item = String>) -> String {
    let count = all.len();
    let named: Vec<_> = all.take(MOST_WAITS).collect();
    let rest = count - named.len();
    let named = named.join(", ");
    if rest > 0 { format!("{named} and {rest} more") } else { named }
}

fn blocks(out: &mut String, blocked: &[StorePath]) {
    if !blocked.is_empty() {
        let names = listed(blocked.iter().map(|path| name(path).to_owned()));
        let _ = writeln!(out, "          not built before that: {names}");
    }
}

/// Tells news as lines. Remembers whether several builds go on: then each line of a log says whose it is.
#[derive(Debug, Default)]
pub struct Prefixes {
    several: AtomicBool,
}

impl Prefixes {
    /// News, with its line ends.
    pub fn line(&self, news: &News) -> String {
        let mut out = String::new();
        match news {
            News::Asked { derivations, total } => {
                self.several.store(*total > 1, Ordering::Relaxed);
                for derivation in derivations {
                    let _ = writeln!(out, "asked for {derivation}");
                }
            }
            News::Build { status, blocks: blocked } => {
                line(&mut out, status);
                blocks(&mut out, blocked);
            }
            News::Output { status, blocks: blocked } => {
                super::line(&mut out, status);
                blocks(&mut out, blocked);
            }
            // already fit for a terminal, and with its colours
            News::Log { name, line } if self.several.load(Ordering::Relaxed) => {
                let _ = writeln!(out, "{name}> {line}");
            }
            News::Log { line, .. } => {
                let _ = writeln!(out, "{line}");
            }
            News::Note(text) => {
                let _ = writeln!(out, "note: {}", printable(text));
            }
        }
        out
    }
}

/// The paths of the outputs, each on a line, and nothing else.
pub fn outputs(report: &Report) -> String {
    report.outputs.iter().map(|path| format!("{path}\n")).collect()
}

/// What to tell a person at the end, on standard error.
pub fn remarks(report: &Report) -> String {
    let mut out = String::new();
    let failed = report.builds.iter().filter(|build| build.state == BuildState::Failed);
    for build in failed {
        let why = match (build.exit_code, &build.message) {
            (Some(code), _) => format!("its builder ended with exit code {code}"),
            (None, Some(message)) => printable(message),
            (None, None) => "nobody says why".into(),
        };
        let _ = writeln!(out, "error: the build of `{}` failed: {why}", name(&build.derivation));
    }
    for build in report.builds.iter().filter(|build| build.state == BuildState::Refused) {
        let why = build.message.as_deref().unwrap_or("the cache's policy doesn't let you ask for it");
        let _ = writeln!(out, "error: `{}` isn't built for you: {}", name(&build.derivation), printable(why));
    }
    for failed in &report.failed {
        let _ = writeln!(out, "error: `{}`: {}", failed.path, printable(&failed.message));
    }
    let ask: Vec<_> = report.pushes.iter().map(|id| format!("pushgate status {}", printable(id))).collect();
    let ask = ask.join("; ");
    let again = "the same command again follows it, and goes on with what is built";
    if report.interrupted && !report.pushes.is_empty() {
        let _ = writeln!(out, "note: what is under way goes on at the cache: {ask}; {again}");
    } else if report.timed_out {
        let _ = writeln!(out, "note: not everything was built and decided in time: {ask}; {again}");
    } else if report.paths.iter().any(|path| path.state == PathState::Held) {
        let _ = writeln!(
            out,
            "note: held outputs are accepted and wait (`pushgate why PATH` tells for what); what is built from them \
             begins when they are published: {ask}"
        );
    }
    if report.fetch_failed {
        out.push_str("error: what was built is at the cache, but Nix didn't fetch it into this store\n");
    }
    if let Some(fetch) = &report.fetch {
        let _ = writeln!(out, "note: to fetch it into this store, as somebody whom Nix trusts:\n  {fetch}");
    }
    if !report.builds.is_empty() {
        let _ = writeln!(out, "{}: {}", counted(report.builds.len(), "build"), counts(&report.builds));
    }
    out
}

#[cfg(test)]
mod tests {
    use pushgate_formats::api::{PathStatus, PushStatus};

    use super::*;
    use crate::output::{Exit, status};

    fn path(n: u8, name: &str) -> StorePath {
        StorePath::from_digest(&[n; 20], name).unwrap()
    }

    fn build(n: u8, state: BuildState) -> BuildStatus {
        BuildStatus {
            derivation: path(n, "hello-2.12.drv"),
            state,
            verifier: Some("v\u{1b}1".into()),
            code: None,
            message: None,
            exit_code: None,
            waits_for: vec![],
            outputs: vec![],
        }
    }

    fn report(builds: Vec<BuildStatus>) -> Report {
        Report {
            gateway: "http://h".into(),
            cache: "main".into(),
            derivations: vec![path(1, "hello-2.12.drv")],
            pushes: vec!["p1".into()],
            builds,
            paths: vec![],
            failed: vec![],
            outputs: vec![],
            substituted: false,
            fetch_failed: false,
            fetch: None,
            notices: vec![],
            timed_out: false,
            interrupted: false,
        }
    }

    fn failed() -> BuildStatus {
        BuildStatus {
            code: Some("build-failed".into()),
            message: Some("the builder \u{1b}[2Jfailed".into()),
            exit_code: Some(2),
            ..build(1, BuildState::Failed)
        }
    }

    #[test]
    fn news_of_a_failure() {
        let drv = path(1, "hello-2.12.drv");
        let blocked = (2..9).map(|n| path(n, &format!("b{n}.drv"))).collect();
        let text = Prefixes::default().line(&News::Build { status: failed(), blocks: blocked });
        assert_eq!(
            text,
            format!(
                "failed    {drv}  by v1  the builder ended with exit code 2  the builder [2Jfailed [build-failed]\n          \
                 not built before that: b2, b3, b4, b5, b6 and 2 more\n"
            )
        );
    }

    #[test]
    fn lines_of_logs_say_whose_they_are_where_there_are_several() {
        let lines = Prefixes::default();
        let log = News::Log { name: "hello-2.12".into(), line: "\u{1b}[1mmaking\u{1b}[0m".into() };
        let asked = |total| News::Asked { derivations: vec![path(1, "hello-2.12.drv")], total };
        assert_eq!(lines.line(&asked(1)), format!("asked for {}\n", path(1, "hello-2.12.drv")));
        assert_eq!(lines.line(&log), "\u{1b}[1mmaking\u{1b}[0m\n");
        lines.line(&asked(2));
        assert_eq!(lines.line(&log), "hello-2.12> \u{1b}[1mmaking\u{1b}[0m\n");
    }

    #[test]
    fn how_it_ends() {
        let mut report = report(vec![build(1, BuildState::Built)]);
        report.outputs = vec![path(3, "hello-2.12")];
        assert_eq!(outputs(&report), format!("{}\n", path(3, "hello-2.12")));
        assert_eq!(remarks(&report), "1 build: 1 built\n");
        assert_eq!(Exit::of_build(&report), Exit::Accepted);
        let held = PathStatus {
            path: path(3, "x"),
            state: PathState::Held,
            code: None,
            message: None,
            waits_for: vec![],
        };
        report.paths.push(held);
        assert!(remarks(&report).contains("when they are published: pushgate status p1\n"));
        assert_eq!(Exit::of_build(&report), Exit::Accepted);
        report.timed_out = true;
        assert_eq!(Exit::of_build(&report), Exit::TimedOut);
        report.builds.push(failed());
        assert!(
            remarks(&report)
                .starts_with("error: the build of `hello-2.12` failed: its builder ended with exit code 2\n")
        );
        assert_eq!(Exit::of_build(&report), Exit::Error);
        report.builds.push(build(2, BuildState::Refused));
        assert_eq!(Exit::of_build(&report), Exit::Rejected);
    }

    #[test]
    fn a_script_can_rely_on_the_paths() {
        let mut report = report(vec![build(1, BuildState::Built)]);
        report.outputs = vec![path(3, "hello-2.12")];
        report.fetch = Some("nix-store --realise x".into());
        // not asked to fetch
        assert_eq!(Exit::of_build(&report), Exit::Accepted);
        report.fetch_failed = true;
        assert!(remarks(&report).starts_with("error: what was built is at the cache, but Nix didn't"));
        assert_eq!(Exit::of_build(&report), Exit::Error);
    }

    #[test]
    fn an_interruption_says_how_to_go_on() {
        let mut report = report(vec![build(1, BuildState::Building)]);
        report.interrupted = true;
        let text = remarks(&report);
        assert!(
            text.starts_with("note: what is under way goes on at the cache: pushgate status p1; "),
            "{text}"
        );
        assert_eq!(Exit::of_build(&report), Exit::Error);
        report.fetch = Some("nix-store --realise x".into());
        assert!(remarks(&report).contains("\n  nix-store --realise x\n"));
    }

    #[test]
    fn the_builds_of_a_push() {
        let mut waiting = build(2, BuildState::Waiting);
        waiting.verifier = None;
        waiting.waits_for = vec![path(5, "lib")];
        let push = PushStatus {
            push: "p1".into(),
            cache: "main".into(),
            expires: 0,
            paths: vec![],
            wanted: vec![],
            wanted_derivations: vec![],
            wanted_inputs: vec![path(6, "source")],
            builds: vec![build(1, BuildState::Building), waiting],
            realisations: vec![],
            notices: vec![],
        };
        let [one, two] = [1, 2].map(|n| path(n, "hello-2.12.drv"));
        assert_eq!(
            status(&crate::status::Answer::Push(push), false, 0),
            format!(
                "building  {one}  by v1\nwaiting   {two}  waits for {}\nnote: a rebuild needs `{}`; push again from a machine \
                 that has it\n2 builds: 1 building, 1 waiting\n",
                path(5, "lib"),
                path(6, "source")
            )
        );
    }
}
