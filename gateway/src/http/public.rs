//! The public cache: the published files, with ranges, validators and cache headers. Knows only the names that a binary
//! cache has; everything else is not there.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use pushgate_formats::{Sha256, StorePath, store_path::is_hash_part};

use super::files::{Outbox, Pieces};
use crate::{app::App, blobs::PublicBody, error::ApiError};

/// What a public file is, from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Info,
    NarInfo,
    Listing,
    Nar,
    Log,
    Attestations,
}

impl Kind {
    /// `None` for names that no binary cache has: they never reach the blob store.
    fn of(name: &str) -> Option<Self> {
        if name == "nix-cache-info" {
            return Some(Self::Info);
        }
        if let Some(nar) = name.strip_prefix("nar/") {
            let (hash, rest) = nar.split_once('.')?;
            let known = matches!(rest, "nar" | "nar.zst" | "nar.xz");
            return (Sha256::from_base32(hash).is_some() && known).then_some(Self::Nar);
        }
        if let Some(derivation) = name.strip_prefix("log/") {
            return StorePath::from_base_name(derivation)
                .is_ok_and(|path| path.is_derivation())
                .then_some(Self::Log);
        }
        if let Some(rest) = name.strip_prefix("attestations/") {
            let hash = rest.strip_suffix(".jsonl")?;
            return is_hash_part(hash).then_some(Self::Attestations);
        }
        let (hash, suffix) = name.split_once('.')?;
        match suffix {
            _ if !is_hash_part(hash) => None,
            "narinfo" => Some(Self::NarInfo),
            "ls" => Some(Self::Listing),
            _ => None,
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Info => "text/x-nix-cache-info",
            Self::NarInfo => "text/x-nix-narinfo",
            Self::Listing => "application/json",
            Self::Attestations => "application/jsonl",
            Self::Nar => "application/x-nix-nar",
            // whatever it holds, it is shown as text
            Self::Log => "text/plain; charset=utf-8",
        }
    }

    /// NARs are named by their contents; the rest may be withdrawn.
    const fn cache_control(self) -> &'static str {
        match self {
            Self::Nar => "public, max-age=31536000, immutable",
            Self::Info | Self::NarInfo | Self::Listing | Self::Log | Self::Attestations => {
                "public, max-age=300"
            }
        }
    }
}

/// `GET` and `HEAD /CACHE/FILE`
pub(super) async fn file(
    State(app): State<Arc<App>>,
    Path((cache, name)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let (headers, outbox) = (request.headers(), request.extensions().get::<Outbox>());
    let absent = || ApiError::not_found("public file", &format!("{cache}/{name}"));
    let kind = Kind::of(&name).ok_or_else(absent)?;
    match app.caches.get(app.db.as_ref(), &cache).await {
        Ok(Some(_)) => {}
        Ok(None) => return Err(absent()),
        Err(e) => return Err(ApiError::unavailable(&e)),
    }
    let file = app.blobs.open(&cache, &name).await?.ok_or_else(absent)?;
    let etag = match (&file.body, kind) {
        // the name is the hash of the contents
        (_, Kind::Nar) => format!("\"{}\"", &name[4..4 + 52]),
        (PublicBody::Whole(bytes), _) => format!("\"{}\"", &Sha256::of(bytes).base32()[..32]),
        (PublicBody::File(_), _) => format!("\"{:x}-{:x}\"", file.modified, file.size),
    };
    let mut out = HeaderMap::with_capacity(8);
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind.content_type()));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static(kind.cache_control()));
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if kind == Kind::Log {
        out.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    }
    if let Ok(value) = HeaderValue::from_str(&etag) {
        out.insert(header::ETAG, value);
    }
    if matches(headers, &header::IF_NONE_MATCH, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, out).into_response());
    }
    let range = match headers.get(header::RANGE).and_then(|r| r.to_str().ok()) {
        // a range of another version of the file is no use
        Some(_) if headers.contains_key(header::IF_RANGE) && !matches(headers, &header::IF_RANGE, &etag) => {
            Range::All
        }
        Some(text) => Range::parse(text, file.size),
        None => Range::All,
    };
    let (status, start, length) = match range {
        Range::All => (StatusCode::OK, 0, file.size),
        Range::Part { start, length } => {
            let text = format!("bytes {start}-{}/{}", start + length - 1, file.size);
            if let Ok(value) = HeaderValue::from_str(&text) {
                out.insert(header::CONTENT_RANGE, value);
            }
            (StatusCode::PARTIAL_CONTENT, start, length)
        }
        Range::Outside => {
            if let Ok(value) = HeaderValue::from_str(&format!("bytes */{}", file.size)) {
                out.insert(header::CONTENT_RANGE, value);
            }
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, out).into_response());
        }
    };
    out.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let body = if request.method() == Method::HEAD {
        Body::empty()
    } else {
        match file.body {
            // both ends lie inside the file, as the range was parsed
            PublicBody::Whole(bytes) => Body::from(bytes.slice(start as usize..(start + length) as usize)),
            PublicBody::File(file) => match outbox {
                Some(outbox) => Body::new(outbox.body(file, start, length)),
                None => Body::new(Pieces::new(file, start, length)),
            },
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = out;
    Ok(response)
}

/// Whether a header lists the validator.
fn matches(headers: &HeaderMap, name: &header::HeaderName, etag: &str) -> bool {
    headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(|list| {
        list.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == etag)
    })
}

/// What of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    All,
    Part { start: u64, length: u64 },
    Outside,
}

impl Range {
    /// One range; several, or another unit, are answered with the whole file, as RFC 9110 allows.
    fn parse(text: &str, size: u64) -> Self {
        let Some((first, last)) =
            text.strip_prefix("bytes=").filter(|r| !r.contains(',')).and_then(|r| r.split_once('-'))
        else {
            return Self::All;
        };
        let part = |start: u64, end: u64| Self::Part { start, length: end - start };
        match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
            (Ok(start), _) if start >= size => Self::Outside,
            (Ok(start), Ok(end)) if end >= start => part(start, end.saturating_add(1).min(size)),
            (Ok(start), Err(_)) if last.trim().is_empty() => part(start, size),
            (Err(_), Ok(0)) if first.trim().is_empty() => Self::Outside,
            (Err(_), Ok(_)) if first.trim().is_empty() && size == 0 => Self::Outside,
            (Err(_), Ok(n)) if first.trim().is_empty() => part(size.saturating_sub(n), size),
            _ => Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("bytes=0-9", Range::Part { start: 0, length: 10 })]
    #[case("bytes=90-", Range::Part { start: 90, length: 10 })]
    #[case("bytes=90-1000", Range::Part { start: 90, length: 10 })]
    #[case("bytes=-5", Range::Part { start: 95, length: 5 })]
    #[case("bytes=-500", Range::Part { start: 0, length: 100 })]
    #[case("bytes=0-18446744073709551615", Range::Part { start: 0, length: 100 })]
    #[case("bytes=100-", Range::Outside)]
    #[case("bytes=-0", Range::Outside)]
    #[case("bytes=5-4", Range::All)]
    #[case("bytes=0-1,5-6", Range::All)]
    #[case("lines=0-1", Range::All)]
    #[case("bytes=x-y", Range::All)]
    fn ranges(#[case] text: &str, #[case] want: Range) {
        assert_eq!(Range::parse(text, 100), want);
    }

    #[rstest]
    #[case("nix-cache-info", Some(Kind::Info))]
    #[case("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr.narinfo", Some(Kind::NarInfo))]
    #[case("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr.ls", Some(Kind::Listing))]
    #[case("nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.zst", Some(Kind::Nar))]
    #[case("nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.exe", None)]
    #[case("nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.xz", Some(Kind::Nar))]
    #[case("log/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a.drv", Some(Kind::Log))]
    #[case("log/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a", None)]
    #[case("attestations/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr.jsonl", Some(Kind::Attestations))]
    #[case("attestations/../../keys/main.jsonl", None)]
    #[case("log/../../keys/main.drv", None)]
    #[case("nar/../../keys/main.secret", None)]
    #[case("../keys/main.secret", None)]
    #[case("nar/x.nar", None)]
    #[case("push/nix-cache-info", None)]
    #[case("emdqa9w1p6cmli6976v4wi0sw9r4p5pr.narinfo", None)]
    fn names(#[case] name: &str, #[case] want: Option<Kind>) {
        assert_eq!(Kind::of(name), want);
    }
}
