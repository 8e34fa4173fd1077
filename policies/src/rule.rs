//! What a policy file says, as values: rules, what they match and what they require. Knows nothing of files.

use std::{collections::BTreeSet, fmt, sync::Arc};

use pushgate_formats::NixHash;

use crate::names::{self, Texts};

/// A rule. Rules are tried in order, and the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique within the file; decisions and log leaves name it.
    pub name: String,
    /// All of these have to hold; none is a rule for everything.
    pub conditions: Vec<Condition>,
    pub then: Then,
    /// How many of the claims are drawn for a rebuild. Default: none.
    pub sample: Option<Sample>,
    /// What follows from a rebuild that is confirmed to differ. Default: `hold-key`.
    pub on_mismatch: OnMismatch,
    /// Seconds that the rule holds a claim before it is rejected (`hold-expired`). Default: no limit of its own.
    pub hold: Option<u64>,
    /// Largest NAR, in bytes, where that is less than the submitter's own limit.
    pub nar_size: Option<u64>,
}

/// What a rule does with a claim that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    Require(Requirement),
    /// Reject, for this reason.
    Deny(String),
}

/// Something about a claim that holds, doesn't, or can't be told yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Text {
        field: Field,
        /// Whether the value must be none of `values`.
        not: bool,
        values: Texts,
    },
    /// The submitter, by name or group.
    Submitter {
        not: bool,
        names: Texts,
        groups: Vec<Group>,
    },
    ContentAddressed(bool),
    /// Bytes of the NAR, both bounds included.
    Size {
        min: Option<u64>,
        max: Option<u64>,
    },
    Sources(SourceMatch),
    /// The conditions don't all hold.
    Not(Vec<Condition>),
}

/// What a text condition looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    Pname,
    Version,
    Output,
    System,
    Owner,
    Cache,
    Builder,
    /// A variable of the derivation's environment.
    Env(String),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pname => "pname",
            Self::Version => "version",
            Self::Output => "output",
            Self::System => "system",
            Self::Owner => "owner",
            Self::Cache => "cache",
            Self::Builder => "builder",
            Self::Env(name) => return write!(f, "env.{name}"),
        })
    }
}

/// A group of the policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub members: Members,
}

/// Who belongs to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// Exactly these, whatever was said at enrolment.
    Listed(Arc<BTreeSet<String>>),
    /// Those to whom the group was given at enrolment.
    Enrolled,
}

impl Group {
    /// Whether somebody with this name and these groups from enrolment belongs to it.
    pub fn has(&self, name: &str, enrolled: &[String]) -> bool {
        match &self.members {
            Members::Listed(names) => names.contains(name),
            Members::Enrolled => enrolled.contains(&self.name),
        }
    }
}

/// A condition on the fixed-output leaves of the derivation closure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceMatch {
    /// Whether each leaf has to fit (and there has to be one), or any one.
    pub every: bool,
    /// Where the submitter says that they come from.
    pub urls: Option<Texts>,
    pub hashes: Option<Vec<NixHash>>,
}

impl SourceMatch {
    /// Whether a submitter can't bring it about or avoid it as he likes: URLs are his words, and a leaf more is easily added.
    pub const fn is_sound(&self) -> bool {
        self.every && self.urls.is_none() && self.hashes.is_some()
    }
}

/// What a claim needs in order to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    Nothing,
    Derivation,
    ContentAddress,
    /// By md5 or sha1 at least.
    ContentAddressWeak,
    /// The same NAR hash at this upstream (by URL), or at any.
    Upstream(Option<String>),
    Rebuilds {
        n: u32,
        /// Whether every input, down to upstream paths, has to have been rebuilt too.
        inputs_rebuilt: bool,
    },
    Submitters {
        n: u32,
    },
    Approvals {
        n: u32,
        from: Group,
    },
    Sigstore(Sigstore),
    Sources(Vec<SourceEntry>),
    All(Vec<Requirement>),
    Any(Vec<Requirement>),
    AtLeast {
        n: u32,
        of: Vec<Requirement>,
    },
}

impl Requirement {
    /// Calls `f` with this and every part of it.
    pub fn walk<'a>(&'a self, f: &mut impl FnMut(&'a Self)) {
        f(self);
        match self {
            Self::All(parts) | Self::Any(parts) | Self::AtLeast { of: parts, .. } => {
                parts.iter().for_each(|part| part.walk(f));
            }
            _ => {}
        }
    }

    /// Whether it can't be met without `part`.
    pub fn surely(&self, part: &impl Fn(&Self) -> bool) -> bool {
        part(self)
            || match self {
                Self::All(parts) => parts.iter().any(|p| p.surely(part)),
                Self::Any(parts) => parts.iter().all(|p| p.surely(part)),
                // of those without `part` there are too few
                Self::AtLeast { n, of } => {
                    (of.iter().filter(|p| !p.surely(part)).count() as u64) < u64::from(*n)
                }
                _ => false,
            }
    }
}

/// A CI identity, by what its certificate says; each text given has to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sigstore {
    pub issuer: Texts,
    pub subject: Option<Texts>,
    /// `repository`, `ref` and so on.
    pub claims: Vec<(String, Texts)>,
}

/// A source that a rule accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceEntry {
    pub urls: Option<Texts>,
    /// With a hash the admin vouches for the source; without one, a verifier has to have fetched it.
    pub hash: Option<NixHash>,
}

/// How many claims are drawn for a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub rate: Rate,
    /// The first so many claims of a new submitter are all rebuilt. Default: 0.
    pub probation: u32,
}

/// A probability, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u32);

impl Rate {
    /// From 0 to 1, with at most six decimals.
    pub fn new(share: f64) -> Option<Self> {
        let millionths = (share * 1e6).round();
        let fits = (0.0..=1e6).contains(&millionths) && (share * 1e6 - millionths).abs() < 1e-3;
        // within 0 to 1,000,000, so nothing is cut off
        fits.then_some(Self(millionths as u32))
    }

    /// At most a million.
    pub const fn of_millionths(millionths: u32) -> Option<Self> {
        if millionths <= 1_000_000 { Some(Self(millionths)) } else { None }
    }

    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    pub const fn millionths(self) -> u32 {
        self.0
    }
}

/// What follows from a rebuild that two more verifiers confirm to differ from the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnMismatch {
    /// The claim is rejected.
    Reject,
    /// All that the key has sent and that isn't published is held: also an honest unsandboxed build differs.
    #[default]
    HoldKey,
    /// The submitter is frozen.
    Freeze,
}

impl OnMismatch {
    /// As policy files have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::HoldKey => "hold-key",
            Self::Freeze => "freeze",
        }
    }
}

impl fmt::Display for Condition {
    /// `pname is `glibc` or `gcc``.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = |not: bool| if not { "is not" } else { "is" };
        match self {
            Self::Text { field, not, values } => write!(f, "{field} {} {values}", is(*not)),
            Self::Submitter { not, names, groups } => {
                write!(f, "submitter {} ", is(*not))?;
                let names = (!names.is_empty()).then(|| names.to_string());
                names::or(f, names.into_iter().chain(groups.iter().map(|group| format!("`@{}`", group.name))))
            }
            Self::ContentAddressed(true) => f.write_str("content-addressed"),
            Self::ContentAddressed(false) => f.write_str("not content-addressed"),
            Self::Size { min, max } => match (min, max) {
                (Some(min), Some(max)) => write!(f, "size is from {min} to {max} bytes"),
                (Some(min), None) => write!(f, "size is at least {min} bytes"),
                (None, Some(max)) => write!(f, "size is at most {max} bytes"),
                (None, None) => f.write_str("size is anything"),
            },
            Self::Sources(sources) => {
                f.write_str(if sources.every { "every source has " } else { "any source has " })?;
                if let Some(urls) = &sources.urls {
                    write!(f, "the url {urls}")?;
                }
                if let Some(hashes) = &sources.hashes {
                    f.write_str(if sources.urls.is_some() { " and the hash " } else { "the hash " })?;
                    names::or(f, hashes.iter().map(|hash| format!("`{}`", hash.sri())))?;
                }
                Ok(())
            }
            Self::Not(conditions) => {
                let texts: Vec<String> = conditions.iter().map(ToString::to_string).collect();
                write!(f, "not ({})", texts.join(" and "))
            }
        }
    }
}

/// `1 rebuild`, `2 rebuilds`.
pub(crate) fn count(n: u32, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |parts: &[Self], word: &str| {
            let texts: Vec<String> = parts
                .iter()
                .map(|part| match part {
                    Self::All(_) | Self::Any(_) => format!("({part})"),
                    _ => part.to_string(),
                })
                .collect();
            texts.join(word)
        };
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Derivation => f.write_str("derivation"),
            Self::ContentAddress => f.write_str("content-address"),
            Self::ContentAddressWeak => f.write_str("content-address-weak"),
            Self::Upstream(None) => f.write_str("upstream"),
            Self::Upstream(Some(url)) => write!(f, "upstream `{url}`"),
            Self::Rebuilds { n, inputs_rebuilt: false } => f.write_str(&count(*n, "rebuild")),
            Self::Rebuilds { n, inputs_rebuilt: true } => {
                write!(f, "{} with rebuilt inputs", count(*n, "rebuild"))
            }
            Self::Submitters { n } => f.write_str(&count(*n, "submitter")),
            Self::Approvals { n, from } => write!(f, "{} from `{}`", count(*n, "approval"), from.name),
            Self::Sigstore(sigstore) => write!(f, "{sigstore}"),
            Self::Sources(entries) => match entries.len() {
                1 => f.write_str("every source as the list's one entry"),
                n => write!(f, "every source among the list's {n} entries"),
            },
            Self::All(parts) => f.write_str(&list(parts, " and ")),
            Self::Any(parts) => f.write_str(&list(parts, " or ")),
            Self::AtLeast { n, of } => write!(f, "at least {n} of ({})", list(of, ", ")),
        }
    }
}

impl fmt::Display for Sigstore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a CI identity with issuer {}", self.issuer)?;
        if let Some(subject) = &self.subject {
            write!(f, ", subject {subject}")?;
        }
        for (name, texts) in &self.claims {
            write!(f, ", {name} {texts}")?;
        }
        Ok(())
    }
}
