//! Names as Nix parses them, and the patterns that policy files compare names, hosts and addresses with.
//!
//! Patterns are exact unless they say `glob:`. In a glob `*` is any run of characters without `/` (in an address without
//! any character that ends a part of it), `**` any run at all, `?` one character. There is nothing else, so that what a
//! pattern takes can be seen by looking at it.

use std::fmt;

/// What marks a pattern as one.
pub const GLOB: &str = "glob:";
/// Longest pattern or name in a policy file, in bytes.
pub const MAX_PATTERN: usize = 1024;

/// Splits a store path's name into package name and version, as Nix's `parseDrvName` does: the version starts after the
/// first dash that isn't followed by a letter. `glibc-evil` is a package of that name; `glibc-2.40-evil` is glibc.
pub fn package(name: &str) -> (&str, &str) {
    let bytes = name.as_bytes();
    let dash = (0..bytes.len())
        .find(|i| bytes[*i] == b'-' && bytes.get(i + 1).is_some_and(|next| !next.is_ascii_alphabetic()));
    // a dash is one byte, so both sides are whole characters
    dash.map_or((name, ""), |at| (&name[..at], &name[at + 1..]))
}

/// What the wildcards of a glob stop at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Name,
    /// `*` stays within the host or one part of the path: `https://*.example.org/**` is no way to `https://evil/?.example.org/`.
    Url,
}

impl Kind {
    fn stops(self, c: char) -> bool {
        match self {
            Self::Name => c == '/',
            Self::Url => matches!(c, '/' | '?' | '#' | '@' | ':' | '\\' | '%'),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// `?`
    One,
    /// `*`
    Run,
    /// `**`
    Anything,
}

/// What is wrong with a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("an empty text matches nothing")]
    Empty,
    #[error("the pattern has {0} bytes; {MAX_PATTERN} are allowed")]
    Long(usize),
    #[error("`{0}` has a `*` or `?`, which stand for themselves unless the text starts with `glob:`")]
    Unmarked(String),
    #[error("`{0}` has no `*` or `?`: write it without `glob:`")]
    NoWildcard(String),
    #[error(
        "`{0}` leaves the host open: up to the first `/` after `https://` or `http://`, an address has to be written out, \
         but for `*.` at the host's beginning"
    )]
    OpenHost(String),
    #[error("`{0}` contains `***`; `*` is any run without `/`, `**` any run")]
    Stars(String),
}

/// A pattern with wildcards.
#[derive(Clone, PartialEq, Eq)]
pub struct Glob {
    text: String,
    kind: Kind,
    pieces: Vec<Piece>,
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{GLOB}{}", self.text)
    }
}

impl Glob {
    /// Parses what stands after `glob:`.
    pub fn parse(text: &str, kind: Kind) -> Result<Self, PatternError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if rest.starts_with("***") {
                return Err(PatternError::Stars(text.to_owned()));
            }
            let (piece, length) = match c {
                '*' if rest.starts_with("**") => (Piece::Anything, 2),
                '*' => (Piece::Run, 1),
                '?' => (Piece::One, 1),
                _ => {
                    let end = rest.find(['*', '?']).unwrap_or(rest.len());
                    (Piece::Literal(rest[..end].to_owned()), end)
                }
            };
            pieces.push(piece);
            rest = &rest[length..];
        }
        if pieces.iter().all(|piece| matches!(piece, Piece::Literal(_))) {
            return Err(PatternError::NoWildcard(text.to_owned()));
        }
        if kind == Kind::Url && !closed_host(text) {
            return Err(PatternError::OpenHost(text.to_owned()));
        }
        Ok(Self { text: text.to_owned(), kind, pieces })
    }

    /// What stands after `glob:`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `text` fits. Takes at most length of the pattern times length of the text steps.
    pub fn matches(&self, text: &str) -> bool {
        let mut rest = text;
        let mut pieces = &self.pieces[..];
        // nearly everything fails here
        if let Some((Piece::Literal(literal), others)) = pieces.split_first() {
            let Some(after) = rest.strip_prefix(literal.as_str()) else { return false };
            (rest, pieces) = (after, others);
        }
        // the positions in `rest` that the pieces so far can end at
        let mut ends = vec![false; rest.len() + 1];
        ends[0] = true;
        for piece in pieces {
            ends = self.step(piece, rest, &ends);
            if !ends.contains(&true) {
                return false;
            }
        }
        ends[rest.len()]
    }

    fn step(&self, piece: &Piece, text: &str, from: &[bool]) -> Vec<bool> {
        let mut to = vec![false; from.len()];
        match piece {
            Piece::Literal(literal) => {
                for (at, _) in from.iter().enumerate().filter(|(_, on)| **on) {
                    if text.as_bytes()[at..].starts_with(literal.as_bytes()) {
                        to[at + literal.len()] = true;
                    }
                }
            }
            Piece::One => {
                for (at, c) in text.char_indices() {
                    if from[at] && !self.kind.stops(c) {
                        to[at + c.len_utf8()] = true;
                    }
                }
            }
            Piece::Run | Piece::Anything => {
                let mut on = false;
                for (at, c) in text.char_indices() {
                    on |= from[at];
                    to[at] = on;
                    if *piece == Piece::Run && self.kind.stops(c) {
                        on = false;
                    }
                }
                to[text.len()] = on || from[text.len()];
            }
        }
        to
    }
}

/// Whether scheme and host of an address pattern are written out, but for `*.` at the host's beginning.
fn closed_host(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        // other addresses, such as `mirror://gnu/hello.tar.gz`, have no host: up to the wildcard they have to name a scheme
        let literal = text.split(['*', '?']).next().unwrap_or_default();
        return literal
            .split_once("://")
            .is_some_and(|(scheme, rest)| !scheme.is_empty() && rest.contains('/'));
    };
    let Some((host, _)) = rest.split_once('/') else { return false };
    let host = host.strip_prefix("*.").unwrap_or(host);
    !host.is_empty() && !host.contains(['*', '?', '@'])
}

/// A set of texts: exact ones and globs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts {
    /// Sorted, each once.
    exact: Vec<String>,
    globs: Vec<Glob>,
}

impl Texts {
    /// Adds a text as a policy file has it.
    pub fn add(&mut self, text: &str, kind: Kind) -> Result<(), PatternError> {
        if text.len() > MAX_PATTERN {
            return Err(PatternError::Long(text.len()));
        }
        if let Some(glob) = text.strip_prefix(GLOB) {
            let glob = Glob::parse(glob, kind)?;
            if !self.globs.contains(&glob) {
                self.globs.push(glob);
            }
            return Ok(());
        }
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        // an address may have a `?` of its own
        if text.contains('*') || (kind == Kind::Name && text.contains('?')) {
            return Err(PatternError::Unmarked(text.to_owned()));
        }
        if let Err(at) = self.exact.binary_search_by(|have| have.as_str().cmp(text)) {
            self.exact.insert(at, text.to_owned());
        }
        Ok(())
    }

    pub fn matches(&self, text: &str) -> bool {
        self.exact.binary_search_by(|have| have.as_str().cmp(text)).is_ok()
            || self.globs.iter().any(|glob| glob.matches(text))
    }

    pub const fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.globs.is_empty()
    }

    /// Whether everything that `other` takes is surely taken by this too.
    pub fn covers(&self, other: &Self) -> bool {
        other.exact.iter().all(|text| self.matches(text))
            && other.globs.iter().all(|glob| self.globs.contains(glob))
    }

    /// The exact texts.
    pub fn exact(&self) -> &[String] {
        &self.exact
    }
}

/// `a`, `b` or `glob:c*`.
impl fmt::Display for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.exact.iter().map(|text| format!("`{text}`"));
        or(f, all.chain(self.globs.iter().map(|glob| format!("`{GLOB}{}`", glob.text))))
    }
}

/// Writes `a, b or c`; of many the first few.
pub(crate) fn or(f: &mut fmt::Formatter<'_>, texts: impl IntoIterator<Item = String>) -> fmt::Result {
    const MOST: usize = 8;
    let mut texts: Vec<String> = texts.into_iter().collect();
    if texts.len() > MOST {
        let more = texts.len() - MOST;
        texts.truncate(MOST);
        texts.push(format!("{more} more"));
    }
    match texts.split_last() {
        None => f.write_str("nothing"),
        Some((last, [])) => f.write_str(last),
        Some((last, others)) => write!(f, "{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("glibc-2.40-66", "glibc", "2.40-66")]
    #[case("glibc-evil", "glibc-evil", "")]
    #[case("glibc-2.40-evil", "glibc", "2.40-evil")]
    #[case("Glibc-2.40", "Glibc", "2.40")]
    #[case("python3.12-requests-2.32", "python3.12-requests", "2.32")]
    #[case("stdenv-linux", "stdenv-linux", "")]
    #[case("a-", "a-", "")]
    #[case("a--b", "a", "-b")]
    #[case("-1", "", "1")]
    #[case("", "", "")]
    fn names_are_split_as_nix_does(#[case] name: &str, #[case] pname: &str, #[case] version: &str) {
        assert_eq!(package(name), (pname, version));
    }

    #[rstest]
    #[case("linux-*", "linux-headers", true)]
    #[case("linux-*", "linux", false)]
    #[case("linux*", "linux", true)]
    #[case("*-unwrapped", "x-unwrapped", true)]
    #[case("*-unwrapped", "x-unwrapped-y", false)]
    #[case("a*c*e", "abcde", true)]
    #[case("a*c*e", "abcd", false)]
    #[case("a?c", "abc", true)]
    #[case("a?c", "ac", false)]
    #[case("a?c", "aéc", true)]
    #[case("refs/heads/*", "refs/heads/main", true)]
    #[case("refs/heads/*", "refs/heads/a/b", false)]
    #[case("refs/heads/**", "refs/heads/a/b", true)]
    #[case("*", "", true)]
    fn names(#[case] glob: &str, #[case] text: &str, #[case] matches: bool) {
        assert_eq!(Glob::parse(glob, Kind::Name).unwrap().matches(text), matches);
    }

    #[rstest]
    #[case("https://github.com/nixos/**", "https://github.com/nixos/x/y.tar.gz?a=b", true)]
    #[case("https://github.com/nixos/*", "https://github.com/nixos/x/y", false)]
    #[case("https://*.gnu.org/**", "https://ftp.gnu.org/hello", true)]
    #[case("https://*.gnu.org/**", "https://evil.example/.gnu.org/hello", false)]
    #[case("https://*.gnu.org/**", "https://evil.example?.gnu.org/hello", false)]
    #[case("https://*.gnu.org/**", "https://evil.example#.gnu.org/hello", false)]
    #[case("https://*.gnu.org/**", "https://evil.example:80@.gnu.org/hello", false)]
    #[case("https://*.gnu.org/**", "https://evil.example\\.gnu.org/hello", false)]
    #[case("mirror://gnu/**", "mirror://gnu/hello/hello-2.12.tar.gz", true)]
    fn addresses(#[case] glob: &str, #[case] text: &str, #[case] matches: bool) {
        assert_eq!(Glob::parse(glob, Kind::Url).unwrap().matches(text), matches);
    }

    #[rstest]
    #[case("https://**.gnu.org/x")]
    #[case("https://*/x")]
    #[case("https://gnu.*/x")]
    #[case("https://gnu.org*")]
    #[case("https://user@*.gnu.org/*")]
    #[case("*://gnu.org/*")]
    #[case("**")]
    #[case("mirror://*")]
    fn open_hosts_are_refused(#[case] glob: &str) {
        assert_eq!(Glob::parse(glob, Kind::Url), Err(PatternError::OpenHost(glob.into())));
    }

    #[test]
    fn wildcards_are_said_aloud() {
        let mut texts = Texts::default();
        assert_eq!(texts.add("a*", Kind::Name), Err(PatternError::Unmarked("a*".into())));
        assert_eq!(texts.add("glob:a", Kind::Name), Err(PatternError::NoWildcard("a".into())));
        assert_eq!(texts.add("", Kind::Name), Err(PatternError::Empty));
        assert_eq!(texts.add("glob:a***", Kind::Name), Err(PatternError::Stars("a***".into())));
        texts.add("glob:a*", Kind::Name).unwrap();
        texts.add("b", Kind::Name).unwrap();
        assert_eq!(texts.to_string(), "`b` or `glob:a*`");
        assert!(texts.matches("a1") && texts.matches("b") && !texts.matches("b1"));
    }

    /// The same by trying everything.
    fn slow(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', '*', rest @ ..] => (0..=text.len()).any(|n| slow(rest, &text[n..])),
            ['*', rest @ ..] => {
                let run = text.iter().take_while(|c| **c != '/').count();
                (0..=run).any(|n| slow(rest, &text[n..]))
            }
            ['?', rest @ ..] => text.split_first().is_some_and(|(c, text)| *c != '/' && slow(rest, text)),
            [c, rest @ ..] => text.split_first().is_some_and(|(d, text)| c == d && slow(rest, text)),
        }
    }

    proptest! {
        #[test]
        fn globs_match_what_trying_everything_matches(pattern in "[ab/*?é]{1,8}", text in "[ab/é]{0,9}") {
            if let Ok(glob) = Glob::parse(&pattern, Kind::Name) {
                let chars = |text: &str| text.chars().collect::<Vec<_>>();
                prop_assert_eq!(glob.matches(&text), slow(&chars(&pattern), &chars(&text)));
            }
        }

        #[test]
        fn what_a_set_covers_it_matches(a in proptest::collection::vec("(glob:[ab]?\\*)?[ab]{1,2}", 1..4), b in proptest::collection::vec("(glob:[ab]?\\*)?[ab]{1,2}", 1..4), text in "[ab]{0,4}") {
            let set = |texts: &[String]| {
                let mut set = Texts::default();
                texts.iter().for_each(|text| { let _ = set.add(text, Kind::Name); });
                set
            };
            let (a, b) = (set(&a), set(&b));
            if a.covers(&b) && b.matches(&text) {
                prop_assert!(a.matches(&text));
            }
        }
    }
}
