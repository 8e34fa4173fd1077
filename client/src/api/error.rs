//! What can go wrong between client and gateway, each with what to do about it.

use std::error::Error;

use pushgate_formats::api::ErrorBody;

/// Longest text of a server that is shown.
const MAX_SHOWN: usize = 2000;
const NO_ANSWER: &str = "no answer in time";

/// Whether a terminal would act on the character instead of showing it: control characters, those that turn the
/// direction of writing, and those without width.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text of a server, fit for a terminal: without hidden characters, so that it can't pretend to be something else;
/// bounded.
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= MAX_SHOWN {
            out.push('…');
            break;
        }
        match c {
            '\n' | '\t' => out.push(' '),
            c if is_hidden(c) => {}
            c => out.push(c),
        }
    }
    out
}

/// A refusal by the gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: String,
    /// In the gateway's words.
    pub message: String,
    /// The store path that it is about.
    pub path: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: u16, body: ErrorBody) -> Self {
        Self {
            status,
            code: printable(&body.code),
            message: printable(&body.message),
            path: body.path.as_deref().map(printable),
        }
    }

    /// What the person at the keyboard can do about it.
    fn advice(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "key-unknown" => "ask the gateway's admin for an invite, and join with it and `--again`",
            "key-revoked" => "ask the gateway's admin why; with a new invite, join with `--again`",
            "key-expired" => "ask the gateway's admin for a new invite, and join with it and `--again`",
            "key-not-for-cache" | "not-permitted" => {
                "ask the gateway's admin for access, or choose another cache with `--cache`"
            }
            "identity-frozen" => "ask an admin of the gateway why",
            "last-admin" => {
                "invite another, or a further key of your own (`pushgate admin submitter invite`)"
            }
            "key-name-reserved" | "key-enrolled" => "choose another name with `--name`",
            "audience-mismatch" => {
                "the gateway was set up anew, or answers at the wrong address; ask its admin"
            }
            "quota-exceeded" => {
                "the gateway's quarantine has no room for this; wait until held paths are decided \
                 (`pushgate status`), or ask its admin for more"
            }
            "too-many-open" => {
                "wait until held paths are decided (`pushgate status`), or ask the gateway's admin for more"
            }
            "disk-full" | "gateway-full" => {
                "tell the gateway's admin; the same push goes on when there is room again"
            }
            "upload-too-long" | "upload-too-slow" => {
                "what came whole is kept; over a slow line push fewer paths at once, with `--jobs 1`"
            }
            _ => return None,
        })
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the gateway refuses: {} [{}]", self.message, self.code)?;
        if let Some(path) = self.path.as_ref().filter(|path| !self.message.contains(path.as_str())) {
            write!(f, ", about `{path}`")?;
        }
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("the gateway `{url}` can't be reached: {why}; is it running, and is the address right?")]
    Unreachable { url: String, why: String },
    #[error("the gateway `{url}` is too busy (status {status}); try again later")]
    Busy { url: String, status: u16 },
    #[error("{0}")]
    Refused(Refusal),
    #[error("`{url}` is not a gateway that this client understands: {why}")]
    NotAGateway { url: String, why: String },
    #[error(
        "`{url}` sends this client to another address; join the gateway by its final address (https instead of http?)"
    )]
    Redirected { url: String },
    #[error("the gateway `{url}` took nothing for {seconds} s; is the line up?")]
    Stalled { url: String, seconds: u64 },
}

impl ApiError {
    pub(super) fn unreachable(base: &str, error: &reqwest::Error) -> Self {
        let why = if error.is_timeout() {
            NO_ANSWER.to_owned()
        } else {
            // the outer errors only say that sending failed
            let mut cause: &dyn Error = error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            let why = printable(&cause.to_string());
            // the TLS library's words for an answer in plain HTTP
            if why.contains("InvalidContentType") {
                "it doesn't speak TLS (http instead of https?)".into()
            } else {
                why
            }
        };
        Self::Unreachable { url: base.to_owned(), why }
    }

    /// For an answer that didn't come in time.
    pub(crate) fn no_answer(base: &str) -> Self {
        Self::Unreachable { url: base.to_owned(), why: NO_ANSWER.to_owned() }
    }

    pub(crate) fn not_a_gateway(url: &str, why: &str) -> Self {
        Self::NotAGateway { url: url.to_owned(), why: why.to_owned() }
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } | Self::Stalled { .. } => true,
            // a body that came too slowly or broke off can be sent again, and an admin may make room on a disk; what a submitter
            // has waiting isn't decided in seconds
            Self::Refused(refusal) => {
                let code = refusal.code.as_str();
                let own = matches!(code, "quota-exceeded" | "too-many-open");
                (matches!(refusal.status, 408 | 429 | 503)
                    || matches!(code, "upload-cut-off" | "disk-full" | "gateway-full"))
                    && !own
            }
            Self::NotAGateway { .. } | Self::Redirected { .. } => false,
        }
    }

    /// Whether the gateway only asks to wait for one's turn, so that asking again isn't a failure.
    pub fn is_turn(&self) -> bool {
        const CODES: [&str; 4] =
            ["too-many-uploads", "too-many-announcements", "too-many-questions", "gateway-busy"];
        matches!(self, Self::Refused(refusal) if CODES.contains(&refusal.code.as_str()))
    }

    /// The stable code, where the gateway itself refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.code),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: &str) -> ApiError {
        let message = format!("\u{1b}[31mwords about {code}\r\n");
        ApiError::Refused(Refusal::new(
            status,
            ErrorBody { code: code.into(), message, path: Some("/nix/store/x".into()) },
        ))
    }

    #[test]
    fn servers_cannot_write_on_the_terminal() {
        assert_eq!(printable("a\u{1b}]0;title\u{7}b\rc\nd\u{9b}2J\u{202e}e"), "a]0;titlebc d2Je");
        assert_eq!(printable("a\u{200b}\u{61c}\u{2067}\u{feff}b"), "ab");
        assert!(printable(&"é".repeat(100_000)).len() < 2100);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        assert_eq!(
            refusal(403, "key-revoked").to_string(),
            "the gateway refuses: [31mwords about key-revoked  [key-revoked], about `/nix/store/x`; \
             ask the gateway's admin why; with a new invite, join with `--again`"
        );
        assert!(refusal(507, "quota-exceeded").to_string().contains("pushgate status"));
    }

    #[test]
    fn what_is_tried_again() {
        assert!(refusal(503, "shutting-down").is_transient());
        assert!(!refusal(429, "quota-exceeded").is_transient());
        assert!(refusal(408, "upload-too-slow").is_transient());
        assert!(refusal(429, "too-many-uploads").is_turn());
        assert!(refusal(503, "gateway-busy").is_turn() && refusal(503, "gateway-busy").is_transient());
        for full in ["disk-full", "gateway-full"] {
            assert!(refusal(507, full).is_transient() && !refusal(507, full).is_turn());
            assert!(refusal(507, full).to_string().contains("tell the gateway's admin"));
        }
        for own in [refusal(507, "quota-exceeded"), refusal(429, "too-many-open")] {
            assert!(!own.is_transient() && !own.is_turn() && own.to_string().contains("pushgate status"));
        }
        assert!(!refusal(403, "key-revoked").is_transient());
        assert!(ApiError::Unreachable { url: "u".into(), why: "w".into() }.is_transient());
        assert!(!ApiError::Redirected { url: "u".into() }.is_transient());
    }
}
