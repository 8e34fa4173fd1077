//! What a changed policy would have decided: reads recorded decisions, one after another, and makes each again by the pure
//! `decide`. Keeps none of them, so that a long history takes no more memory than a short one.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use pushgate_formats::{Sha256, StorePath, api::Role};
use pushgate_policies::{
    MAX_POLICY, Needs, Policy, PolicyError, decide,
    facts::Decision,
    record::Outcome,
    review::RecordedDecision,
    rule::{Rule, Then},
};
use serde::Serialize;

use crate::{
    api::printable,
    cli::replay::Replay,
    config::{ConfigDir, ConfigError},
    output,
    session::{Session, SessionError},
};

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("`{}` can't be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("`{}` can't be written", .0.display())]
    Write(PathBuf, #[source] std::io::Error),
    #[error("line {line} of `{}` is no recorded decision: {why}", .file.display())]
    Line { file: PathBuf, line: usize, why: String },
    #[error("decision {id} of `{}` is about the cache `{found}`, not `{wanted}`", .file.display())]
    OtherCache { file: PathBuf, id: i64, found: String, wanted: String },
    #[error(transparent)]
    Policy(PolicyError),
}

/// How many decisions were looked at, and how they came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub decisions: u64,
    pub differ: u64,
    /// A fact that the new policy asks for wasn't recorded.
    pub untold: u64,
}

/// A decision that would differ.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference<'a> {
    decision: i64,
    /// Seconds since 1970: when it was decided.
    made: u64,
    path: &'a StorePath,
    nar_hash: Sha256,
    submitter: &'a str,
    was: &'a Outcome,
    would_be: Outcome,
    /// The new policy's words, where it doesn't publish.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// How a decision came out again.
#[derive(Debug, PartialEq)]
enum Verdict {
    Same,
    /// It can't be told.
    Untold,
    Differs(Outcome, Option<String>),
}

/// A new policy, and what has to have been looked up for it.
struct Trial {
    policy: Policy,
    /// Variables of the environment that any rule asks for.
    env: BTreeSet<String>,
    /// By the rule that decides.
    asked: HashMap<Option<String>, Needs>,
}

impl Trial {
    fn new(policy: Policy) -> Self {
        Self { env: policy.needs().env, policy, asked: HashMap::new() }
    }

    fn judge(&mut self, recorded: &RecordedDecision) -> Verdict {
        let facts = &recorded.facts;
        let policy = &self.policy;
        let decision = facts
            .replay(facts.now, &self.env, |claim, evidence, moment| decide(policy, claim, evidence, moment));
        let outcome = Outcome::of(&decision);
        // what comes before all rules asks for nothing
        let before = matches!(outcome.code.as_deref(), Some("nar-too-large" | "refused-by-admin"));
        if !(outcome.rule.is_none() && before) {
            let asked = self
                .asked
                .entry(outcome.rule.clone())
                .or_insert_with_key(|rule| asked(policy, rule.as_deref()));
            if !facts.covers(asked) {
                return Verdict::Untold;
            }
        }
        if outcome == recorded.outcome {
            return Verdict::Same;
        }
        let message = match decision {
            Decision::Publish { .. } => None,
            Decision::Hold { message, .. } | Decision::Reject { message, .. } => Some(message),
        };
        Verdict::Differs(outcome, message)
    }
}

/// What has to be known for a decision by this rule: what it requires, and what tells that it is the first that matches.
/// Without a rule, what tells that none does.
fn asked(policy: &Policy, rule: Option<&str>) -> Needs {
    let requires_nothing =
        |rule: &Rule| Rule { then: Then::Deny(String::new()), sample: None, ..rule.clone() };
    let at = policy.rules.iter().position(|r| Some(r.name.as_str()) == rule);
    let (earlier, deciding) = policy.rules.split_at(at.unwrap_or(policy.rules.len()));
    let rules = earlier.iter().map(requires_nothing).chain(deciding.first().cloned()).collect();
    Policy { rules, ..policy.clone() }.needs()
}

/// Carries the command out. Settings are read where a gateway is asked. `show` gives false where nobody reads on.
pub async fn run(
    dir: impl FnOnce() -> Result<ConfigDir, ConfigError>,
    args: &Replay,
    show: impl FnMut(&str) -> bool,
) -> Result<Counts, ReplayError> {
    let trial = Trial::new(read_policy(&args.file, &args.cache)?);
    let mut report = Report { trial, args, show, counts: Counts::default(), gone: false };
    match &args.decisions {
        Some(file) => from_file(file, &mut report)?,
        None => from_gateway(dir, &mut report).await?,
    }
    Ok(report.end())
}

fn read_policy(file: &Path, cache: &str) -> Result<Policy, ReplayError> {
    use std::io::Read as _;
    let unreadable = |e| ReplayError::Read(file.to_owned(), e);
    // one byte more shows that it is too large
    let mut text = String::new();
    let opened = File::open(file).map_err(unreadable)?;
    opened.take(MAX_POLICY as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
    Policy::parse(&text, &printable(&file.display().to_string()), cache).map_err(ReplayError::Policy)
}

/// How the JSON document begins.
const BEGINNING: &str = "{\n  \"differing\": [";

/// Shows what differs as it is found.
struct Report<'a, S> {
    trial: Trial,
    args: &'a Replay,
    show: S,
    counts: Counts,
    /// Nobody reads on.
    gone: bool,
}

impl<S: FnMut(&str) -> bool> Report<'_, S> {
    fn say(&mut self, text: &str) {
        self.gone = self.gone || !(self.show)(text);
    }

    fn take(&mut self, recorded: &RecordedDecision) {
        if recorded.superseded && !self.args.every {
            return;
        }
        self.counts.decisions += 1;
        let (would_be, message) = match self.trial.judge(recorded) {
            Verdict::Same => return,
            Verdict::Untold => {
                self.counts.untold += 1;
                return;
            }
            Verdict::Differs(outcome, message) => (outcome, message),
        };
        self.counts.differ += 1;
        let difference = Difference {
            decision: recorded.id,
            made: recorded.made,
            path: &recorded.facts.path,
            nar_hash: recorded.facts.nar_hash,
            submitter: &recorded.facts.submitter.name,
            was: &recorded.outcome,
            would_be,
            message,
        };
        let text = if self.args.json {
            let separator =
                if self.counts.differ == 1 { BEGINNING.to_owned() + "\n    " } else { ",\n    ".to_owned() };
            format!("{separator}{}", output::json_line(&difference).trim_end())
        } else {
            line(&difference)
        };
        self.say(&text);
    }

    fn end(mut self) -> Counts {
        let Counts { decisions, differ, untold } = self.counts;
        let text = if self.args.json {
            let end = if differ == 0 { BEGINNING.to_owned() + "]" } else { "\n  ]".to_owned() };
            format!(
                "{end},\n  \"decisions\": {decisions},\n  \"differ\": {differ},\n  \"untold\": {untold}\n}}\n"
            )
        } else {
            let untold = match untold {
                0 => String::new(),
                n => {
                    format!("; {n} can't be told, since facts that the file asks for weren't looked up then")
                }
            };
            format!("{differ} of {decisions} decisions differ{untold}\n")
        };
        self.say(&text);
        self.counts
    }
}

fn line(difference: &Difference<'_>) -> String {
    let Difference { path, submitter, was, would_be, .. } = difference;
    let text = format!("{path}  by {submitter}: {} \u{2192} {}", in_words(was), in_words(would_be));
    format!("{}\n", printable(&text))
}

/// `hold by `everyone else` [needs-rebuild]`.
fn in_words(outcome: &Outcome) -> String {
    let rule = outcome.rule.as_ref().map_or_else(String::new, |rule| format!(" by `{rule}`"));
    let code = outcome.code.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
    format!("{}{rule}{code}", outcome.decision)
}

fn from_file<S: FnMut(&str) -> bool>(file: &Path, report: &mut Report<'_, S>) -> Result<(), ReplayError> {
    let unreadable = |e| ReplayError::Read(file.to_owned(), e);
    for (n, line) in BufReader::new(File::open(file).map_err(unreadable)?).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        if line.trim().is_empty() {
            continue;
        }
        let recorded: RecordedDecision = serde_json::from_str(&line).map_err(|e| ReplayError::Line {
            file: file.to_owned(),
            line: n + 1,
            why: e.to_string(),
        })?;
        let (found, wanted) = (&recorded.facts.cache, &report.args.cache);
        if found != wanted {
            let (file, id) = (file.to_owned(), recorded.id);
            return Err(ReplayError::OtherCache { file, id, found: found.clone(), wanted: wanted.clone() });
        }
        report.take(&recorded);
        if report.gone {
            break;
        }
    }
    Ok(())
}

async fn from_gateway<S: FnMut(&str) -> bool>(
    dir: impl FnOnce() -> Result<ConfigDir, ConfigError>,
    report: &mut Report<'_, S>,
) -> Result<(), ReplayError> {
    let args = report.args;
    let dir = dir().map_err(SessionError::from)?;
    let session = Session::open_as(&dir, args.gateway.url.as_deref(), Role::Admin)?;
    let greeting = session.greet().await?;
    greeting.cache(&session, &args.cache)?;
    let unwritable = |file: &Path| {
        let file = file.to_owned();
        move |e| ReplayError::Write(file, e)
    };
    let mut dump = match &args.dump {
        Some(file) => Some((file, BufWriter::new(File::create(file).map_err(unwritable(file))?))),
        None => None,
    };
    let mut after = 0;
    loop {
        let page = session.api.decisions(&args.cache, after, &session.signer()).await;
        let page = page.map_err(|e| greeting.explain(e))?;
        for recorded in &page.decisions {
            if let Some((file, out)) = &mut dump {
                out.write_all(output::json_line(recorded).as_bytes()).map_err(unwritable(file))?;
            }
            report.take(recorded);
        }
        // numbers only grow, so that an odd gateway can't have the same page shown for ever; a dump is written to its end,
        // whoever reads
        match page.after.filter(|next| *next > after && !(report.gone && dump.is_none())) {
            Some(next) => after = next,
            None => break,
        }
    }
    if let Some((file, mut out)) = dump {
        out.flush().map_err(unwritable(file))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pushgate_policies::{
        facts::{Fact, Provenance},
        record::{Recorded, RecordedBuilt, RecordedIdentity},
    };

    use super::*;

    fn policy(rules: &str) -> Trial {
        let upstream = "[[upstream]]\nname = \"nixos\"\nurl = \"https://cache.nixos.org\"\n\
                        key = \"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=\"\n";
        let text = format!("version = 1\ncache = \"main\"\n{upstream}{rules}");
        Trial::new(Policy::parse(&text, "new.toml", "main").unwrap())
    }

    fn rule(name: &str, says: &str) -> String {
        format!("[[rule]]\nname = \"{name}\"\n{says}\n")
    }

    /// A package that was published by the rule `all`.
    fn published() -> RecordedDecision {
        let facts = Recorded {
            cache: "main".into(),
            path: StorePath::from_digest(&[1; 20], "tool-1.0").unwrap(),
            nar_hash: Sha256::of(b"x"),
            nar_size: 1000,
            submitter: RecordedIdentity { name: "alice".into(), owner: None, groups: vec![] },
            content_addressed: Fact::Known(false),
            built: Fact::Known(RecordedBuilt {
                derivation: StorePath::from_digest(&[2; 20], "tool-1.0.drv").unwrap(),
                output: "out".into(),
                system: "x86_64-linux".into(),
                builder: "/bin/sh".into(),
                env: [("KNOWN".to_owned(), None)].into(),
            }),
            sources: Fact::Unknown,
            provenance: Provenance::Derivation,
            upstreams: vec![],
            rebuilds: vec![],
            submitters: vec![],
            approvals: vec![],
            waivers: vec![],
            refusal: None,
            ci: vec![],
            fetched: vec![],
            drawn: false,
            now: 1000,
            announced: 900,
        };
        let outcome = Outcome { decision: "publish".into(), rule: Some("all".into()), code: None };
        RecordedDecision { id: 1, made: 1000, superseded: false, policy: Sha256::of(b"old"), outcome, facts }
    }

    const ALL: &str = "match = {}\nrequire = \"derivation\"";

    #[test]
    fn only_what_a_decision_rests_on_has_to_be_known() {
        let judge = |rules: &str| policy(rules).judge(&published());
        assert_eq!(judge(&rule("all", ALL)), Verdict::Same);
        // behind the deciding rule, nothing matters
        let behind = rule("later", "match = { env.OTHER = \"1\" }\nrequire = { submitters = 2 }");
        assert_eq!(
            judge(&(rule("all", "match = { pname = \"tool\" }\nrequire = \"derivation\"") + &behind)),
            Verdict::Same
        );
        // what another rule requires doesn't matter either, but what it matches does
        for (says, expected) in [
            ("match = { pname = \"other\" }\nrequire = { submitters = 2 }", Verdict::Same),
            ("match = { env.KNOWN = \"1\" }\ndeny = \"x\"", Verdict::Same),
            ("match = { env.OTHER = \"1\" }\ndeny = \"x\"", Verdict::Untold),
            (
                "match = { pname = \"tool\" }\nrequire = { all = [\"derivation\", { submitters = 2 }] }",
                Verdict::Untold,
            ),
            (
                "match = { pname = \"tool\" }\nrequire = { all = [\"derivation\", \"upstream\"] }",
                Verdict::Untold,
            ),
        ] {
            assert_eq!(judge(&(rule("first", says) + &rule("all", ALL))), expected, "{says}");
        }
    }

    #[test]
    fn what_differs_and_how() {
        let differs = |rules: &str| match policy(rules).judge(&published()) {
            Verdict::Differs(outcome, message) => (in_words(&outcome), message.is_some()),
            other => panic!("{other:?}"),
        };
        let deny = rule("no tools", "match = { pname = \"tool\" }\ndeny = \"x\"");
        assert_eq!(
            differs(&(deny + &rule("all", ALL))),
            ("reject by `no tools` [not-permitted]".into(), true)
        );
        assert_eq!(differs(&rule("everything", ALL)), ("publish by `everything`".into(), false));
        let other = rule("others", "match = { pname = \"other\" }\nrequire = \"derivation\"");
        assert_eq!(differs(&other), ("reject [not-permitted]".into(), true));
        // before all rules, whatever they ask for
        let small = "[limits]\nnar-size = \"10 B\"\n".to_owned();
        let asking = rule("first", "match = { env.OTHER = \"1\" }\ndeny = \"x\"") + &rule("all", ALL);
        assert_eq!(differs(&(small + &asking)), ("reject [nar-too-large]".into(), true));
    }

    #[test]
    fn lines_stay_printable() {
        let recorded = published();
        let was = Outcome { rule: Some("a\u{1b}[31m\nb".into()), ..recorded.outcome.clone() };
        let difference = Difference {
            decision: 1,
            made: 0,
            path: &recorded.facts.path,
            nar_hash: recorded.facts.nar_hash,
            submitter: "al\rice",
            was: &was,
            would_be: recorded.outcome.clone(),
            message: None,
        };
        let path = &recorded.facts.path;
        assert_eq!(line(&difference), format!("{path}  by alice: publish by `a[31m b` → publish by `all`\n"));
    }
}
