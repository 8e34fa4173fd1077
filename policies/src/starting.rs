//! The policy that a new cache starts with.

/// The text of the policy that a new cache starts with.
pub fn starting_policy(cache: &str) -> String {
    format!(
        r#"# The policy of the cache `{cache}`: what is published, what waits, what is refused. docs/policy.md describes every field;
# `pushgate policy check` finds mistakes before the gateway does. A file with mistakes changes nothing.
version = 1
cache   = "{cache}"

# What a path refers to has to be published here or at one of the upstreams below.
# "self-contained" wants everything published here.
closure = "upstreams"

[limits]
nar-size        = "4 GiB"    # largest NAR
quarantine-ttl  = "7d"       # how long a push may wait
quarantine-size = "64 GiB"   # per submitter, compressed

# Paths that are here aren't sent, and count as served.
[[upstream]]
url = "https://cache.nixos.org"
key = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

# Rules are tried in order, and the first that matches decides. What none matches is refused.

# Sources, fixed outputs and the like: the path is a hash of the contents, so nobody can put others there.
[[rule]]
name    = "contents speak for themselves"
match   = {{ content-addressed = true }}
require = "content-address"

# All else: a derivation has to be shown that yields exactly this path. It says what should be built, not that it was: add
# `{{ rebuilds = 1 }}`, `{{ submitters = 2 }}` or `{{ approvals = 1, from = "GROUP" }}` where that matters, as in
# `require = {{ all = ["derivation", {{ rebuilds = 1 }}] }}`.
[[rule]]
name    = "everything else"
match   = {{}}
require = "derivation"
"#
    )
}
