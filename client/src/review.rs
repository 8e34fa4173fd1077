//! Words about claims and what speaks for them, as `why` shows them and the commands of those who decide. What servers
//! said is made printable here.

use std::fmt::Write;

use indicatif::BinaryBytes;
use pushgate_formats::{
    StorePath,
    api::PathState,
    review::{ClaimInfo, Conflict, DecisionInfo, EvidenceInfo, Incident, PublishedInfo},
};
use pushgate_policies::review::{Why, WhyClaim};

use crate::{api::printable, clock, output::ago};

/// Most things named that a claim waits for.
const MOST_WAITS: usize = 10;
/// Most paths named that refer to one that proved wrong.
const MOST_DEPENDANTS: usize = 20;

/// A line below what it is about: what it says, and that.
fn line(out: &mut String, label: &str, text: &str) {
    // writing to a String can't fail
    let text = format!("  {label:<9} {}", printable(text));
    let _ = writeln!(out, "{}", text.trim_end());
}

/// `3 min ago`, by this machine's clock.
pub(crate) fn since(then: u64, now: u64) -> String {
    ago(now.saturating_sub(then))
}

/// `alice (owner alice@example.org)`.
pub(crate) fn whose(name: &str, owner: Option<&str>) -> String {
    owner.map_or_else(|| format!("{name} (no owner)"), |owner| format!("{name} (owner {owner})"))
}

/// `sha256:…, 1.20 MiB`.
pub(crate) fn contents(claim: &ClaimInfo) -> String {
    let size = claim.nar_size.map_or_else(String::new, |bytes| format!(", {}", BinaryBytes(bytes)));
    format!("{}{size}", claim.nar_hash)
}

/// `1 approval from `core` (0 of 1)`, and what else.
pub(crate) fn waits(claim: &ClaimInfo) -> String {
    // what stands for no name by itself
    let word = |what: &String| match what.as_str() {
        "person" => "a person".to_owned(),
        "derivation" => "its derivation".to_owned(),
        "bytes" => "its bytes".to_owned(),
        other => other.to_owned(),
    };
    let named: Vec<String> = claim.waits_for.iter().take(MOST_WAITS).map(word).collect();
    let more = claim.waits_for.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// What somebody said, or showed, of a claim.
pub(crate) fn evidence(evidence: &EvidenceInfo, now: u64) -> String {
    let mut text = match evidence.kind.as_str() {
        "submitter" => "sent with the same contents".to_owned(),
        other => other.to_owned(),
    };
    let _ = write!(text, " by {}", whose(&evidence.by, evidence.owner.as_deref()));
    let _ = write!(text, " {}", since(evidence.at, now));
    match evidence.until {
        Some(until) if until <= now => text += &format!(", which ran out {}", clock::utc(until)),
        Some(until) => text += &format!(", until {}", clock::utc(until)),
        None => {}
    }
    if !evidence.reason.is_empty() {
        let _ = write!(text, ": \u{201c}{}\u{201d}", evidence.reason);
    }
    text
}

fn rule(decided: &DecisionInfo) -> String {
    let by = decided.rule.as_ref().map_or_else(|| "none".to_owned(), Clone::clone);
    format!("{by}, in the policy {}", decided.policy)
}

const fn in_words(state: PathState) -> &'static str {
    match state {
        PathState::Wanted => "its bytes are awaited",
        PathState::Checking => "being checked",
        PathState::Held => "held",
        PathState::Published => "published",
        PathState::Upstream => "at an upstream",
        PathState::Rejected => "rejected",
    }
}

/// A claim with everything that is known of it.
pub(crate) fn claim(out: &mut String, claim: &ClaimInfo, now: u64) {
    let (state, by) = (in_words(claim.state), whose(&claim.submitter, claim.owner.as_deref()));
    let head = format!("claim {} by {by}, {}: {state}", claim.claim, since(claim.announced, now));
    let _ = writeln!(out, "{}", printable(&head));
    line(out, "NAR", &contents(claim));
    match (&claim.message, &claim.code) {
        (Some(message), Some(code)) => line(out, "because", &format!("{message} [{code}]")),
        (Some(text), None) | (None, Some(text)) => line(out, "because", text),
        (None, None) => {}
    }
    if !claim.waits_for.is_empty() {
        line(out, "waits for", &waits(claim));
    }
    if matches!(claim.state, PathState::Wanted | PathState::Checking | PathState::Held) {
        line(out, "until", &format!("{}, and is given up then", clock::utc(claim.expires)));
    }
    if let Some(decided) = &claim.decided {
        line(out, "rule", &rule(decided));
    }
    for one in &claim.evidence {
        line(out, "evidence", &evidence(one, now));
    }
}

fn published(out: &mut String, published: &PublishedInfo, why: &Why, now: u64) {
    line(out, "NAR", &published.nar_hash.to_string());
    line(out, "rule", &published.rule);
    line(out, "evidence", &published.evidence.join(", "));
    line(out, "claimed", &format!("with the key {}", published.submitter_key));
    let when = format!("{} ({})", clock::utc(published.time), since(published.time, now));
    line(out, "when", &format!("{when}, as leaf {} of the log", published.leaf));
    let force = if published.policy == why.policy { "in force" } else { "replaced since" };
    line(out, "policy", &format!("{}, {force}", published.policy));
}

/// What verifiers found against a published path.
fn incident(out: &mut String, incident: &Incident, now: u64) {
    line(out, "rebuilt", &format!("{} by {}", incident.rebuilt, incident.verifiers.join(", ")));
    let follows = match incident.withdrawn {
        true => "it is no longer served",
        false => "it is still served",
    };
    let when = format!("{} ({})", clock::utc(incident.at), since(incident.at, now));
    line(out, "incident", &format!("{when}: verifiers agree on other contents than these; {follows}"));
    if incident.dependants.is_empty() {
        line(out, "used by", "nothing that is published");
        return;
    }
    line(out, "used by", &format!("{} published paths, directly or not:", incident.dependants.len()));
    for path in incident.dependants.iter().take(MOST_DEPENDANTS) {
        line(out, "", &path.absolute());
    }
    let more = incident.dependants.len().saturating_sub(MOST_DEPENDANTS);
    if more > 0 {
        line(out, "", &format!("and {more} more, which --json lists"));
    }
}

/// The answer to `why`: how it was published, each claim, and what one can do next.
pub fn why(why: &Why, now: u64) -> String {
    let mut out = String::new();
    let state = match &why.published {
        Some(PublishedInfo { incident: Some(Incident { withdrawn: true, .. }), .. }) => "withdrawn",
        Some(PublishedInfo { incident: Some(_), .. }) => "published, and rebuilt otherwise",
        Some(_) => "published",
        None => "not published",
    };
    let _ = writeln!(out, "{} in {}: {state}", why.path, printable(&why.cache));
    if let Some(info) = &why.published {
        published(&mut out, info, why, now);
        if let Some(found) = &info.incident {
            incident(&mut out, found, now);
        }
    }
    for one in &why.claims {
        // what became of a claim that was published stands above
        let WhyClaim { claim: one, explanation } = one;
        if why.published.as_ref().is_some_and(|p| {
            one.state == PathState::Published && one.nar_hash == p.nar_hash && one.evidence.is_empty()
        }) {
            continue;
        }
        out.push('\n');
        claim(&mut out, one, now);
        if let (Some(explanation), true) = (explanation, one.state == PathState::Held) {
            line(&mut out, "rules", "");
            // each line by itself: its places are what it is read by
            let rules = explanation.rules.iter().map(ToString::to_string);
            for text in rules.flat_map(|rule| rule.lines().map(str::to_owned).collect::<Vec<_>>()) {
                let _ = writeln!(out, "  {}", printable(&text));
            }
        }
        if let Some(next) = next(one, why) {
            line(&mut out, "next", &next);
        }
    }
    out
}

/// What can be done about a claim.
fn next(claim: &ClaimInfo, why: &Why) -> Option<String> {
    let (path, cache) = (&why.path, other_cache(&why.cache));
    let decide = |what: &str| {
        format!("pushgate admin {what} {path}{cache} --nar-hash {} --reason WHY", claim.nar_hash)
    };
    let text = match (claim.state, claim.code.as_deref().unwrap_or_default()) {
        (PathState::Wanted, _) => format!("send its bytes, with pushgate push{cache} {path}"),
        (PathState::Published | PathState::Upstream | PathState::Checking, _) => return None,
        (PathState::Rejected, "hold-expired" | "closure-open" | "push-forgotten") => {
            format!("push it again: pushgate push{cache} {path}")
        }
        (PathState::Rejected, "refused-by-admin" | "conflict-settled") => {
            "ask the admin who said so, or build it anew".to_owned()
        }
        (PathState::Rejected, "not-permitted") => {
            "ask the cache's admin for a rule that is for it".to_owned()
        }
        (PathState::Rejected, _) => return None,
        (PathState::Held, "needs-derivation") => {
            format!("push it where it was built, which sends its derivations: pushgate push{cache} {path}")
        }
        (PathState::Held, "needs-approval") => {
            format!("somebody who is asked for approvals says yes: {}", decide("held approve"))
        }
        (PathState::Held, "needs-rebuild") => {
            format!("a verifier rebuilds it, or an admin does without: {}", decide("held waive"))
        }
        (PathState::Held, "rebuild-mismatch" | "rebuild-inconclusive") => {
            format!("an admin looks at the rebuilds: {}, or {}", decide("held waive"), decide("held reject"))
        }
        (PathState::Held, "needs-submitters") => {
            format!("somebody else pushes the same contents: pushgate push{cache} {path}")
        }
        (PathState::Held, "closure-open" | "references-unknown") => {
            "push what it waits for, or wait until that is published".to_owned()
        }
        (PathState::Held, "conflicts-with-claim") => {
            format!("an admin says which contents stand: {}", decide("conflict settle"))
        }
        (PathState::Held, "conflicts-with-published") => match &why.published {
            Some(published) => format!(
                "what is published stays; an admin says that it is right: pushgate admin conflict settle {path}{cache} \
                 --nar-hash {} --reason WHY",
                published.nar_hash
            ),
            None => return None,
        },
        (PathState::Held, "withdrawn") => {
            format!(
                "an admin looks at the incident; what nobody should push again: {}",
                decide("held reject")
            )
        }
        (PathState::Held, "identity-frozen") => "ask an admin of the gateway why".to_owned(),
        (PathState::Held, _) => "ask the cache's admin".to_owned(),
    };
    Some(text)
}

/// As it has to be written in a command.
fn other_cache(name: &str) -> String {
    if name == "main" { String::new() } else { format!(" --cache {name}") }
}

/// Claims of one path that differ, side by side.
pub(crate) fn conflict(out: &mut String, conflict: &Conflict, now: u64) {
    let Conflict { path, published, claims } = conflict;
    let _ = writeln!(out, "{path}");
    match published {
        Some(hash) => line(out, "published", &format!("{hash}, which stays")),
        None => line(out, "published", "nothing"),
    }
    for one in claims {
        let code = one.code.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
        let by = whose(&one.submitter, one.owner.as_deref());
        let said = format!(
            "{} by {by}, {}: {}{code}",
            contents(one),
            since(one.announced, now),
            in_words(one.state)
        );
        line(out, "claimed", &said);
        for said in &one.evidence {
            line(out, "", &format!("- {}", evidence(said, now)));
        }
    }
}

/// Whether a path isn't published and its newest claim was rejected.
pub fn is_rejected(why: &Why) -> bool {
    why.published.is_none() && why.claims.first().is_some_and(|one| one.claim.state == PathState::Rejected)
}

/// How a person names a path: by its base name, its store path, or a link to it.
pub fn path(text: &str) -> Result<StorePath, crate::nix::LocationError> {
    match StorePath::from_base_name(text) {
        Ok(path) => Ok(path),
        Err(_) => crate::nix::StoreLocation::from_env()?.resolve_root(text),
    }
}

#[cfg(test)]
mod tests {
    use pushgate_formats::Sha256;
    use rstest::rstest;

    use super::*;

    fn a_claim(state: PathState, code: &str) -> ClaimInfo {
        ClaimInfo {
            claim: 7,
            push: "p1".into(),
            path: StorePath::from_digest(&[1; 20], "tool").unwrap(),
            nar_hash: Sha256::of(b"x"),
            nar_size: None,
            submitter: "alice".into(),
            owner: None,
            announced: 0,
            expires: 1000,
            state,
            code: Some(code.into()),
            message: Some("words".into()),
            waits_for: vec![],
            decided: None,
            evidence: vec![],
        }
    }

    fn of(claims: Vec<ClaimInfo>) -> Why {
        Why {
            path: StorePath::from_digest(&[1; 20], "tool").unwrap(),
            cache: "second".into(),
            policy: Sha256::of(b"policy"),
            published: None,
            claims: claims.into_iter().map(|claim| WhyClaim { claim, explanation: None }).collect(),
        }
    }

    #[test]
    fn servers_cannot_write_on_the_terminal() {
        let mut claim = a_claim(PathState::Held, "\u{1b}[31mcode");
        claim.message = Some("two\nlines\u{7}".into());
        claim.waits_for = (0..12).map(|n| format!("\u{9b}thing-{n}")).collect();
        claim.submitter = "al\u{202e}ice".into();
        claim.decided = Some(DecisionInfo {
            policy: Sha256::of(b"policy"),
            decision: "hold".into(),
            rule: Some("a\nrule".into()),
            code: None,
        });
        claim.evidence = vec![EvidenceInfo {
            kind: "appr\u{1b}oval".into(),
            nar_hash: claim.nar_hash,
            by: "b\rob".into(),
            owner: Some("o".into()),
            at: 10,
            until: Some(50),
            reason: "line\nline".into(),
        }];
        let text = why(&of(vec![claim.clone()]), 60);
        assert!(text.chars().all(|c| c == '\n' || !crate::api::is_hidden(c)), "{text:?}");
        assert!(text.contains("two lines [[31mcode]") && text.contains("thing-9 and 2 more"), "{text}");
        assert!(
            text.contains(
                "approval by bob (owner o) 50 s ago, which ran out 1970-01-01 00:00:50Z: “line line”"
            )
        );
        let mut out = String::new();
        conflict(&mut out, &Conflict { path: claim.path.clone(), published: None, claims: vec![claim] }, 60);
        assert!(out.chars().all(|c| c == '\n' || !crate::api::is_hidden(c)), "{out:?}");
    }

    #[rstest]
    #[case(PathState::Wanted, "", "pushgate push --cache second")]
    #[case(PathState::Held, "needs-derivation", "pushgate push --cache second")]
    #[case(PathState::Held, "needs-approval", "pushgate admin held approve")]
    #[case(PathState::Held, "needs-rebuild", "pushgate admin held waive")]
    #[case(PathState::Held, "rebuild-mismatch", "pushgate admin held reject")]
    #[case(PathState::Held, "conflicts-with-claim", "pushgate admin conflict settle")]
    #[case(PathState::Held, "withdrawn", "pushgate admin held reject")]
    #[case(PathState::Held, "a-code-that-is-new", "ask the cache's admin")]
    #[case(PathState::Rejected, "hold-expired", "push it again")]
    #[case(PathState::Rejected, "not-permitted", "ask the cache's admin for a rule")]
    fn what_can_be_done(#[case] state: PathState, #[case] code: &str, #[case] expected: &str) {
        let text = why(&of(vec![a_claim(state, code)]), 60);
        let next = text.lines().find(|line| line.starts_with("  next")).unwrap();
        assert!(next.contains(expected), "{next}");
        assert_eq!(is_rejected(&of(vec![a_claim(state, code)])), state == PathState::Rejected);
    }

    #[rstest]
    #[case::withdrawn(true, "withdrawn", "it is no longer served")]
    #[case::marked(false, "published, and rebuilt otherwise", "it is still served")]
    fn an_incident_is_told(#[case] withdrawn: bool, #[case] state: &str, #[case] follows: &str) {
        let path = |n| StorePath::from_digest(&[n; 20], "user").unwrap();
        let mut all = of(vec![]);
        all.published = Some(PublishedInfo {
            nar_hash: Sha256::of(b"published"),
            rule: "rest".into(),
            evidence: vec!["derivation".into()],
            policy: all.policy,
            submitter_key: "alice-1".into(),
            time: 0,
            leaf: 3,
            incident: Some(Incident {
                at: 20,
                rebuilt: Sha256::of(b"rebuilt"),
                verifiers: vec!["kiln".into(), "ov\u{1b}en".into()],
                withdrawn,
                dependants: (0..22).map(path).collect(),
            }),
        });
        let text = why(&all, 60);
        assert!(text.lines().next().unwrap().ends_with(&format!(": {state}")), "{text}");
        let rebuilt = format!("{} by kiln, oven", Sha256::of(b"rebuilt"));
        for words in [rebuilt.as_str(), follows, "40 s ago", "22 published paths", "and 2 more"] {
            assert!(text.contains(words), "`{words}` is missing: {text}");
        }
        assert!(text.contains(&path(19).absolute()) && !text.contains(&path(20).absolute()), "{text}");
    }

    #[test]
    fn nothing_can_be_done_about_what_proved_wrong() {
        let text = why(&of(vec![a_claim(PathState::Rejected, "output-path-mismatch")]), 60);
        assert!(!text.contains("  next"), "{text}");
    }
}
