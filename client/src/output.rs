//! What people and programs see: lines, JSON and exit codes. Doesn't know where the facts come from; whatever a server
//! said is made printable here once more, so that no way around that leads to the terminal.

pub mod build;

use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

use indicatif::{BinaryBytes, HumanCount};
use pushgate_formats::{
    api::{PathState, PathStatus, PushStatus, PushSummary},
    jobs::BuildState,
};

use crate::{
    api::{is_hidden, printable},
    join::Joined,
    push::{Report, is_kept},
    status::Answer,
};

/// Closures of more paths than this are shown without the paths that need no attention.
const FEW: usize = 30;
/// Most things named that a path waits for.
const MOST_WAITS: usize = 5;

/// How the command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything was accepted: published or held.
    Accepted = 0,
    Error = 1,
    Usage = 2,
    /// Something was rejected.
    Rejected = 3,
    /// Time ran out while waiting.
    TimedOut = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// For a push: what needs a person's attention most comes first.
    pub fn of_push(report: &Report) -> Self {
        if report.paths.iter().any(|path| path.state == PathState::Rejected) {
            Self::Rejected
        } else if !report.failed.is_empty() {
            Self::Error
        } else if report.timed_out {
            Self::TimedOut
        } else {
            Self::Accepted
        }
    }

    /// For builds at the cache, likewise.
    pub fn of_build(report: &crate::build::Report) -> Self {
        let is = |state| report.builds.iter().any(|build| build.state == state);
        if report.paths.iter().any(|path| path.state == PathState::Rejected) || is(BuildState::Refused) {
            Self::Rejected
        } else if is(BuildState::Failed)
            || !report.failed.is_empty()
            || report.fetch_failed
            || report.interrupted
        {
            Self::Error
        } else if report.timed_out {
            Self::TimedOut
        } else {
            Self::Accepted
        }
    }

    pub fn of_status(answer: &Answer) -> Self {
        if answer.has_rejections() { Self::Rejected } else { Self::Accepted }
    }
}

/// One path on one line.
fn line(out: &mut String, status: &PathStatus) {
    // writing to a String can't fail
    let _ = write!(out, "{:<9} {}", state_word(status), status.path);
    if !status.waits_for.is_empty() {
        let named: Vec<_> = status.waits_for.iter().take(MOST_WAITS).map(|what| printable(what)).collect();
        let _ = write!(out, "  waits for {}", named.join(", "));
        if status.waits_for.len() > MOST_WAITS {
            let _ = write!(out, " and {} more", status.waits_for.len() - MOST_WAITS);
        }
    }
    match (&status.message, &status.code) {
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

/// The state, and for what only verifiers get, which waits for nothing, a word of its own.
fn state_word(status: &PathStatus) -> &'static str {
    if is_kept(status) { "kept" } else { status.state.as_str() }
}

fn needs_attention(status: &PathStatus) -> bool {
    !matches!(status.state, PathState::Published | PathState::Upstream) && !is_kept(status)
}

/// `998 published, 1 held`.
fn counts_in_words<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let words: Vec<_> = counts
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{} {}", HumanCount(count), printable(state)))
        .collect();
    if words.is_empty() { "no paths".into() } else { words.join(", ") }
}

fn paths_in_words(count: usize) -> String {
    format!("{} path{}", HumanCount(count as u64), if count == 1 { "" } else { "s" })
}

/// `1 rule`, `2 rules`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count as u64), if count == 1 { "" } else { "s" })
}

/// Fit for a terminal, line by line.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// What came of a push.
pub fn push(report: &Report, verbose: bool) -> String {
    let mut out = String::new();
    let all = verbose || report.paths.len() <= FEW;
    let failed = |status: &&PathStatus| !report.failed.iter().any(|failed| failed.path == status.path);
    for status in report.paths.iter().filter(failed) {
        if all || needs_attention(status) {
            line(&mut out, status);
        }
    }
    for failed in &report.failed {
        let _ = writeln!(out, "{:<9} {}  {}", "failed", failed.path, printable(&failed.message));
    }
    let counts = report.counts();
    // what failed is `wanted` for the gateway, but nobody will send it
    let counts = counts.iter().map(|(state, count)| {
        let failed = if *state == PathState::Wanted { report.failed.len() } else { 0 };
        (state.as_str(), count.saturating_sub(failed) as u64)
    });
    let counts = counts_in_words(counts.chain([("failed", report.failed.len() as u64)]));
    let _ = write!(out, "{}: {counts}", paths_in_words(report.paths.len()));
    if report.pushes.is_empty() {
        out.push_str("; nothing to send\n");
    } else {
        let sent = &report.traffic;
        let _ = writeln!(
            out,
            "; sent {} of {}, {} compressed",
            paths_in_words(sent.nars as usize),
            BinaryBytes(sent.nar_bytes),
            BinaryBytes(sent.body_bytes)
        );
    }
    out
}

/// What to tell a person beside the result, on standard error.
pub fn remarks(report: &Report) -> String {
    let mut out = String::new();
    for notice in &report.notices {
        let _ = writeln!(out, "note: {}", printable(notice));
    }
    let ask: Vec<_> = report.pushes.iter().map(|id| format!("pushgate status {}", printable(id))).collect();
    let ask = ask.join("; ");
    if report.timed_out {
        let _ = writeln!(out, "note: not everything was decided in time; ask later: {}", ask);
    } else if report.paths.iter().any(|path| path.state == PathState::Held) {
        let _ = writeln!(out, "note: held paths are accepted and wait; ask later: {}", ask);
    }
    out
}

/// The answer to a question about pushes or paths.
pub fn status(answer: &Answer, verbose: bool, now: u64) -> String {
    match answer {
        Answer::Recent(pushes) if pushes.is_empty() => "no pushes yet\n".into(),
        Answer::Recent(pushes) => pushes.iter().map(|push| summary(push, now)).collect(),
        Answer::Push(push) => one_push(push, verbose),
        Answer::Path(path) => {
            let mut out = String::new();
            line(&mut out, path);
            out
        }
    }
}

fn summary(push: &PushSummary, now: u64) -> String {
    let counts = counts_in_words(push.counts.iter().map(|(state, count)| (state.as_str(), *count)));
    let since = ago(now.saturating_sub(push.created));
    let by = if push.kind == "narinfo" { "  (by stock Nix)" } else { "" };
    format!("{}  {}  {since}  {counts}{by}\n", printable(&push.push), printable(&push.cache))
}

fn one_push(push: &PushStatus, verbose: bool) -> String {
    let mut out = String::new();
    let all = verbose || push.paths.len() <= FEW;
    let mut counts: BTreeMap<(PathState, &str), u64> = BTreeMap::new();
    for path in &push.paths {
        *counts.entry((path.state, state_word(path))).or_default() += 1;
        if all || needs_attention(path) {
            line(&mut out, path);
        }
    }
    for build in &push.builds {
        build::line(&mut out, build);
    }
    for notice in &push.notices {
        let _ = writeln!(out, "note: {}", printable(notice));
    }
    for path in push.wanted_inputs.iter().take(MOST_WAITS) {
        let _ = writeln!(out, "note: a rebuild needs `{path}`; push again from a machine that has it");
    }
    if push.wanted_inputs.len() > MOST_WAITS {
        let _ = writeln!(out, "note: and {} more", paths_in_words(push.wanted_inputs.len() - MOST_WAITS));
    }
    if !push.builds.is_empty() {
        let _ = writeln!(out, "{}: {}", counted(push.builds.len(), "build"), build::counts(&push.builds));
    }
    // a push that asks for builds has no paths
    if push.paths.is_empty() && !push.builds.is_empty() {
        return out;
    }
    let counts = counts_in_words(counts.into_iter().map(|((_, word), count)| (word, count)));
    let _ = writeln!(out, "{}: {counts}", paths_in_words(push.paths.len()));
    out
}

/// `3 min ago`.
pub(crate) fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// What to do after joining.
pub fn joined(joined: &Joined) -> String {
    let gateway = &joined.gateway;
    let mut out = String::new();
    let _ = writeln!(out, "joined {} as {} ({})", gateway.url, gateway.submitter, joined.role);
    let _ = writeln!(out, "key: {}", joined.key);
    if let Some(offset) = &joined.clock {
        let _ = writeln!(
            out,
            "warning: this machine's clock is {offset} the gateway's; pushes will be refused until it is right"
        );
    }
    if let Some(warning) = unencrypted(&gateway.url) {
        let _ = writeln!(out, "warning: {warning}");
    }
    let other = if joined.is_default { String::new() } else { format!(" --gateway {}", gateway.url) };
    match joined.role.as_str() {
        "admin" => {
            let _ = writeln!(
                out,
                "\nTo see who is there, and what was done:\n  pushgate admin submitter list{other}\n  \
                 pushgate admin events{other}"
            );
        }
        "verifier" => {}
        _ => {
            let _ = writeln!(
                out,
                "\nTo push what Nix has built, with all that it needs:\n  pushgate push{other} ./result"
            );
        }
    }
    if !gateway.caches.is_empty() {
        let (urls, keys): (Vec<_>, Vec<_>) = gateway
            .caches
            .iter()
            .map(|cache| (format!("{}/{}", gateway.url, cache.name), cache.public_key.as_str()))
            .unzip();
        let _ = writeln!(
            out,
            "To fetch what was published, add to nix.conf:\n  extra-substituters = {}\n  extra-trusted-public-keys = {}",
            urls.join(" "),
            keys.join(" ")
        );
    }
    out
}

/// One JSON document. What a terminal would act on is escaped, also where JSON doesn't ask for it: the texts in it are a
/// server's.
pub fn json(value: &impl serde::Serialize) -> String {
    // reports have string keys and no serialiser that fails
    escaped(&serde_json::to_string_pretty(value).expect("reports have a JSON form"))
}

/// One JSON document on a line, as [`json`] otherwise.
pub fn json_line(value: &impl serde::Serialize) -> String {
    escaped(&serde_json::to_string(value).expect("reports have a JSON form"))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        // line breaks stand between values only, anything else that is hidden in strings only
        if is_hidden(c) && c != '\n' {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out.push('\n');
    out
}

/// The warning about an address over which anybody can listen.
fn unencrypted(url: &str) -> Option<String> {
    let host = url.strip_prefix("http://")?.split(['/', '?']).next()?;
    let host = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |x| x.0);
    let is_local = host == "localhost" || host == "[::1]" || host.starts_with("127.");
    (!is_local).then(|| {
        format!(
            "the line to {url} isn't encrypted: others on it can read what you push and change what you are told; ask \
             the gateway's admin for an https address"
        )
    })
}

#[cfg(test)]
mod tests {
    use pushgate_formats::StorePath;

    use super::*;
    use crate::push::{Failed, Traffic};

    fn path(n: u8) -> StorePath {
        StorePath::from_digest(&[n; 20], "x").unwrap()
    }

    fn status_of(n: u8, state: PathState) -> PathStatus {
        PathStatus { path: path(n), state, code: None, message: None, waits_for: vec![] }
    }

    fn report(paths: Vec<PathStatus>) -> Report {
        Report {
            gateway: "http://h".into(),
            cache: "main".into(),
            pushes: vec!["p1".into()],
            paths,
            failed: vec![],
            notices: vec![],
            traffic: Traffic { nars: 2, nar_bytes: 5 << 20, body_bytes: 1 << 20 },
            timed_out: false,
        }
    }

    #[test]
    fn lines_of_a_push() {
        let mut held = status_of(2, PathState::Held);
        held.waits_for = (0..7).map(|n| format!("thing-{n}")).collect();
        let mut rejected = status_of(3, PathState::Rejected);
        rejected.code = Some("reference-undeclared".into());
        rejected.message = Some("it refers to \u{1b}[31mmore".into());
        let mut report =
            report(vec![status_of(1, PathState::Published), held, rejected, status_of(4, PathState::Wanted)]);
        report.failed.push(Failed { path: path(4), message: "`x` is gone".into() });
        let [one, two, three, four] = [1, 2, 3, 4].map(path);
        assert_eq!(
            push(&report, false),
            format!(
                "published {one}\n\
                 held      {two}  waits for thing-0, thing-1, thing-2, thing-3, thing-4 and 2 more\n\
                 rejected  {three}  it refers to [31mmore [reference-undeclared]\n\
                 failed    {four}  `x` is gone\n\
                 4 paths: 1 held, 1 published, 1 rejected, 1 failed; sent 2 paths of 5.00 MiB, 1.00 MiB compressed\n"
            )
        );
    }

    #[test]
    fn large_closures_show_what_needs_attention() {
        let mut paths: Vec<_> = (0..200).map(|n| status_of(n, PathState::Published)).collect();
        paths.push(status_of(200, PathState::Held));
        let mut report = report(paths);
        assert_eq!(push(&report, false).lines().count(), 2);
        assert_eq!(push(&report, true).lines().count(), 202);
        report.paths.pop();
        report.pushes.clear();
        assert_eq!(push(&report, false), "200 paths: 200 published; nothing to send\n");
    }

    #[test]
    fn what_is_kept_for_verifiers_waits_for_nothing() {
        let mut kept = status_of(1, PathState::Held);
        kept.code = Some("kept-as-input".into());
        let push = PushStatus {
            push: "p1".into(),
            cache: "main".into(),
            expires: 0,
            paths: vec![kept, status_of(2, PathState::Held)],
            wanted: vec![],
            wanted_derivations: vec![],
            wanted_inputs: vec![],
            builds: vec![],
            realisations: vec![],
            notices: vec![],
        };
        let text = status(&Answer::Push(push), false, 0);
        assert!(text.starts_with(&format!("kept      {}", path(1))), "{text}");
        assert!(text.ends_with("2 paths: 1 held, 1 kept\n"), "{text}");
    }

    #[test]
    fn exit_codes() {
        let mut report = report(vec![status_of(1, PathState::Published), status_of(2, PathState::Held)]);
        assert_eq!(Exit::of_push(&report), Exit::Accepted);
        report.timed_out = true;
        assert_eq!(Exit::of_push(&report), Exit::TimedOut);
        report.failed.push(Failed { path: path(1), message: String::new() });
        assert_eq!(Exit::of_push(&report), Exit::Error);
        report.paths.push(status_of(3, PathState::Rejected));
        assert_eq!(Exit::of_push(&report), Exit::Rejected);
        assert_eq!([Exit::Accepted as u8, Exit::Error as u8, Exit::Usage as u8], [0, 1, 2]);
        assert_eq!([Exit::Rejected as u8, Exit::TimedOut as u8], [3, 4]);
    }

    #[test]
    fn what_to_ask_later_is_a_command_for_each_push() {
        let mut report = report(vec![status_of(1, PathState::Held)]);
        report.pushes.push("p2".into());
        let remarks = remarks(&report);
        assert!(remarks.ends_with("ask later: pushgate status p1; pushgate status p2\n"), "{remarks}");
    }

    #[test]
    fn json_has_nothing_that_a_terminal_acts_on() {
        let texts = ["\u{1b}[31m\n", "\u{9b}2J\u{7f}", "\u{202e}é"];
        let text = json(&texts);
        assert!(text.chars().all(|c| c == '\n' || !is_hidden(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), texts);
    }

    #[test]
    fn addresses_that_anybody_can_listen_to() {
        for local in ["https://h", "http://127.0.0.1:8080", "http://localhost", "http://[::1]:80/x"] {
            assert_eq!(unencrypted(local), None, "{local}");
        }
        for open in
            ["http://h", "http://10.0.0.1:8080", "http://[2001:db8::1]", "http://localhost.example.org/x"]
        {
            assert!(unencrypted(open).is_some_and(|warning| warning.contains(open)), "{open}");
        }
    }

    #[test]
    fn recent_pushes() {
        let push = PushSummary {
            push: "p1".into(),
            kind: "announcement".into(),
            cache: "main".into(),
            created: 1000,
            counts: [("held".to_owned(), 1), ("published".to_owned(), 1234)].into(),
        };
        assert_eq!(
            status(&Answer::Recent(vec![push.clone()]), false, 1200),
            "p1  main  3 min ago  1 held, 1,234 published\n"
        );
        let stock = PushSummary { kind: "narinfo".into(), ..push };
        assert!(status(&Answer::Recent(vec![stock]), false, 1200).ends_with("published  (by stock Nix)\n"));
        assert_eq!(status(&Answer::Recent(vec![]), false, 0), "no pushes yet\n");
    }
}
