//! Narinfo: parse, print and the fingerprint that signatures are made over (`src/libstore/nar-info.cc` and
//! `path-info.cc` of Nix). What is parsed is [`UnverifiedNarInfo`]: nothing in it is known to be true.

use std::{collections::BTreeSet, fmt::Write};

use crate::{
    hash::Sha256,
    keys::{PublicKey, Signature},
    store_path::{StorePath, shown},
};

/// Longest narinfo read. The largest on the public cache have some thousand references of about 70 bytes.
pub const MAX_NARINFO: usize = 1 << 20;
/// Most signatures read from one narinfo.
pub const MAX_SIGNATURES: usize = 64;

/// Who wrote the text, which says how strictly it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Sent by a submitter: only what Nix itself prints, byte for byte, but for the order of `Sig` lines.
    Push,
    /// Served by some binary cache: fields in any order, unknown ones ignored, file hash and size may be absent.
    Upstream,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    #[error("the narinfo has {0} bytes; {MAX_NARINFO} are allowed")]
    TooLarge(usize),
    #[error("line {line}: {why}: `{text}`")]
    Line { line: usize, why: &'static str, text: String },
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    #[error("the narinfo is not printed as Nix prints it, from byte {0} on")]
    NotCanonical(usize),
}

impl NarInfoError {
    /// The stable code of every error here.
    pub const fn code(&self) -> &'static str {
        "narinfo-malformed"
    }
}

/// A narinfo as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnverifiedNarInfo {
    pub path: StorePath,
    /// As written: relative or absolute.
    pub url: String,
    /// As written; `bzip2` where the field is absent, as Nix has it.
    pub compression: String,
    pub file_hash: Option<Sha256>,
    /// Bytes of the compressed file.
    pub file_size: Option<u64>,
    pub nar_hash: Sha256,
    /// Bytes of the NAR.
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    pub deriver: Option<StorePath>,
    pub signatures: Vec<Signature>,
    pub ca: Option<String>,
}

/// What a signature is made over: `1;PATH;sha256:BASE32;SIZE;REFERENCE,…` with the references sorted. No other field
/// of a narinfo is signed.
pub fn fingerprint(
    path: &StorePath,
    nar_hash: &Sha256,
    nar_size: u64,
    references: &BTreeSet<StorePath>,
) -> String {
    let mut out = String::with_capacity(160 + references.len() * 72);
    // writing to a String can't fail
    let _ = write!(out, "1;{path};{nar_hash};{nar_size};");
    for (i, reference) in references.iter().enumerate() {
        let _ = write!(out, "{}{reference}", if i == 0 { "" } else { "," });
    }
    out
}

impl UnverifiedNarInfo {
    /// Parses the text of a narinfo; see [`Dialect`].
    pub fn parse(raw: &[u8], dialect: Dialect) -> Result<Self, NarInfoError> {
        if raw.len() > MAX_NARINFO {
            return Err(NarInfoError::TooLarge(raw.len()));
        }
        let mut fields = Fields::default();
        let text = raw.strip_suffix(b"\n").unwrap_or(raw);
        for (n, line) in text.split(|b| *b == b'\n').enumerate() {
            fields.take(line, dialect).map_err(|why| NarInfoError::Line {
                line: n + 1,
                why,
                text: shown(line),
            })?;
        }
        let parsed = fields.finish()?;
        if dialect == Dialect::Push {
            let printed = parsed.print();
            if printed.as_bytes() != raw {
                let same = printed.bytes().zip(raw).take_while(|(a, b)| a == *b).count();
                return Err(NarInfoError::NotCanonical(same));
            }
        }
        Ok(parsed)
    }

    /// Prints as Nix does, with a line end after each field.
    pub fn print(&self) -> String {
        let mut out = String::with_capacity(512 + self.references.len() * 48);
        // writing to a String can't fail
        let _ =
            write!(out, "StorePath: {}\nURL: {}\nCompression: {}\n", self.path, self.url, self.compression);
        if let Some(hash) = &self.file_hash {
            let _ = writeln!(out, "FileHash: {hash}");
        }
        if let Some(size) = self.file_size {
            let _ = writeln!(out, "FileSize: {size}");
        }
        let _ = write!(out, "NarHash: {}\nNarSize: {}\nReferences: ", self.nar_hash, self.nar_size);
        for (i, reference) in self.references.iter().enumerate() {
            let _ = write!(out, "{}{}", if i == 0 { "" } else { " " }, reference.base_name());
        }
        out.push('\n');
        if let Some(deriver) = &self.deriver {
            let _ = writeln!(out, "Deriver: {}", deriver.base_name());
        }
        for signature in &self.signatures {
            let _ = writeln!(out, "Sig: {signature}");
        }
        if let Some(ca) = &self.ca {
            let _ = writeln!(out, "CA: {ca}");
        }
        out
    }

    pub fn fingerprint(&self) -> String {
        fingerprint(&self.path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// Whether one of the signatures is a good one by `key`. Signatures are picked by name, then checked by bytes.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let message = self.fingerprint();
        self.signatures.iter().any(|s| s.name == *key.name() && key.verify(message.as_bytes(), s).is_ok())
    }
}

#[derive(Default)]
struct Fields {
    path: Option<StorePath>,
    url: Option<String>,
    compression: Option<String>,
    file_hash: Option<Sha256>,
    file_size: Option<u64>,
    nar_hash: Option<Sha256>,
    nar_size: Option<u64>,
    references: Option<BTreeSet<StorePath>>,
    deriver: Option<StorePath>,
    deriver_seen: bool,
    signatures: Vec<Signature>,
    ca: Option<String>,
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("the field stands here for the second time"),
    }
}

/// A decimal number as Nix prints it: no sign, no leading zero.
fn number(text: &str) -> Result<u64, &'static str> {
    let plain = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten().ok_or("not a plain number")
}

fn sha256(text: &str) -> Result<Sha256, &'static str> {
    text.strip_prefix("sha256:").and_then(Sha256::from_base32).ok_or("not `sha256:` and 52 base 32 digits")
}

impl Fields {
    fn take(&mut self, line: &[u8], dialect: Dialect) -> Result<(), &'static str> {
        let line = std::str::from_utf8(line).map_err(|_| "not UTF-8")?;
        if line.chars().any(char::is_control) {
            return Err("a control character");
        }
        // "References:" without a value is printed with a trailing space by Nix, without one by others
        let (name, value) = match line.split_once(": ") {
            Some(pair) => pair,
            None => (line.strip_suffix(':').ok_or("no `: ` between field and value")?, ""),
        };
        let path = |text: &str| StorePath::from_base_name(text).map_err(|_| "not a store path's base name");
        match name {
            "StorePath" => once(&mut self.path, StorePath::parse(value).map_err(|_| "not a store path")?),
            "URL" if value.is_empty() => Err("the URL is empty"),
            "URL" => once(&mut self.url, value.to_owned()),
            "Compression" if value.is_empty() => Err("the compression is empty"),
            "Compression" => once(&mut self.compression, value.to_owned()),
            "FileHash" => once(&mut self.file_hash, sha256(value)?),
            "FileSize" => once(&mut self.file_size, number(value)?),
            "NarHash" => once(&mut self.nar_hash, sha256(value)?),
            "NarSize" => match number(value)? {
                0 => Err("a NAR is never empty"),
                size => once(&mut self.nar_size, size),
            },
            "References" => {
                let mut set = BTreeSet::new();
                for reference in value.split(' ').filter(|r| !r.is_empty() || dialect == Dialect::Push) {
                    if value.is_empty() {
                        break;
                    }
                    if !set.insert(path(reference)?) {
                        return Err("a reference stands there twice");
                    }
                }
                once(&mut self.references, set)
            }
            "Deriver" if self.deriver_seen => Err("the field stands here for the second time"),
            "Deriver" => {
                self.deriver_seen = true;
                // what Nix before 2.0 wrote for "none"
                if !(value == "unknown-deriver" && dialect == Dialect::Upstream) {
                    self.deriver = Some(path(value)?);
                }
                Ok(())
            }
            "Sig" if self.signatures.len() >= MAX_SIGNATURES => Err("more than 64 signatures"),
            "Sig" => match (Signature::parse(value), dialect) {
                (Ok(signature), _) => {
                    self.signatures.push(signature);
                    Ok(())
                }
                // keys of foreign caches may have names that we don't take; such a signature is none for us
                (Err(_), Dialect::Upstream) => Ok(()),
                (Err(_), Dialect::Push) => Err("not a signature"),
            },
            "CA" => once(&mut self.ca, value.to_owned()),
            _ if dialect == Dialect::Upstream => Ok(()),
            _ => Err("an unknown field"),
        }
    }

    fn finish(self) -> Result<UnverifiedNarInfo, NarInfoError> {
        let need = NarInfoError::Missing;
        Ok(UnverifiedNarInfo {
            path: self.path.ok_or(need("StorePath"))?,
            url: self.url.ok_or(need("URL"))?,
            compression: self.compression.unwrap_or_else(|| "bzip2".into()),
            file_hash: self.file_hash,
            file_size: self.file_size,
            nar_hash: self.nar_hash.ok_or(need("NarHash"))?,
            nar_size: self.nar_size.ok_or(need("NarSize"))?,
            references: self.references.unwrap_or_default(),
            deriver: self.deriver,
            signatures: self.signatures,
            ca: self.ca,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyName, SecretKey};
    use proptest::prelude::*;
    use rstest::rstest;

    const GOOD: &str = "StorePath: /nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12\n\
        URL: nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.zst\n\
        Compression: zstd\n\
        FileHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n\
        FileSize: 12\n\
        NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n\
        NarSize: 120\n\
        References: 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12 1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-glibc\n\
        Deriver: 2mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12.drv\n\
        CA: fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n";

    fn parse(text: &str) -> Result<UnverifiedNarInfo, NarInfoError> {
        UnverifiedNarInfo::parse(text.as_bytes(), Dialect::Push)
    }

    #[test]
    fn print_is_parse_backwards() {
        assert_eq!(parse(GOOD).unwrap().print(), GOOD);
        let none = GOOD.replace(
            " 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12 1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-glibc\n",
            " \n",
        );
        assert_eq!(parse(&none).unwrap().print(), none);
        assert!(parse(&none).unwrap().references.is_empty());
    }

    #[rstest]
    #[case::crlf(GOOD.replace('\n', "\r\n"))]
    #[case::nul(GOOD.replace("nar/", "nar/\0"))]
    #[case::unknown_field(format!("{GOOD}Extra: 1\n"))]
    #[case::duplicate_field(format!("{GOOD}NarSize: 120\n"))]
    #[case::duplicate_deriver(GOOD.replace("Deriver: 2", "Deriver: 1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a.drv\nDeriver: 2"))]
    #[case::plus(GOOD.replace("NarSize: 120", "NarSize: +120"))]
    #[case::leading_zero(GOOD.replace("NarSize: 120", "NarSize: 0120"))]
    #[case::empty_nar(GOOD.replace("NarSize: 120", "NarSize: 0"))]
    #[case::overflow(GOOD.replace("NarSize: 120", "NarSize: 18446744073709551616"))]
    #[case::hex_hash(GOOD.replace("NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73", "NarHash: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"))]
    #[case::md5(GOOD.replace("NarHash: sha256:", "NarHash: md5:"))]
    #[case::unsorted(GOOD.replace("References: 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12 1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-glibc", "References: 1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-glibc 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12"))]
    #[case::twice(GOOD.replace(" 1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-glibc", " 0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-hello-2.12"))]
    #[case::two_spaces(GOOD.replace(" 1mdq", "  1mdq"))]
    #[case::absolute_reference(GOOD.replace(" 1mdq", " /nix/store/1mdq"))]
    #[case::no_end(GOOD.trim_end().to_owned())]
    #[case::blank_line(format!("{GOOD}\n"))]
    #[case::order(GOOD.replace("FileSize: 12\n", "").replace("NarSize: 120\n", "NarSize: 120\nFileSize: 12\n"))]
    #[case::no_path(GOOD.lines().skip(1).map(|l| format!("{l}\n")).collect::<String>())]
    #[case::bad_signature(GOOD.replace("CA:", "Sig: x:AAAA\nCA:"))]
    #[case::empty(String::new())]
    fn refused_in_a_push(#[case] text: String) {
        assert_eq!(parse(&text).unwrap_err().code(), "narinfo-malformed");
    }

    #[test]
    fn bounded() {
        let long = format!("{GOOD}Sig: {}\n", "a".repeat(MAX_NARINFO));
        assert!(matches!(parse(&long), Err(NarInfoError::TooLarge(_))));
    }

    #[test]
    fn upstreams_may_differ_in_form_but_not_in_substance() {
        let up = |text: &str| UnverifiedNarInfo::parse(text.as_bytes(), Dialect::Upstream);
        let short = "NarSize: 120\nStorePath: /nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a\nURL: x.nar\n\
            NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nSystem: x86_64-linux\n\
            Deriver: unknown-deriver\nReferences:\nSig: odd name:xx";
        let info = up(short).unwrap();
        assert_eq!((info.compression.as_str(), info.deriver), ("bzip2", None));
        assert!(up(&format!("{short}\nNarSize: 121")).is_err());
        assert!(up(&short.replace("URL", "URL\r")).is_err());
    }

    #[test]
    fn signatures_are_checked_over_the_fingerprint() {
        let secret = SecretKey::from_seed(KeyName::new("cache-1").unwrap(), &[1; 32]);
        let mut info = parse(GOOD).unwrap();
        info.signatures.push(secret.sign(info.fingerprint().as_bytes()));
        assert!(info.is_signed_by(&secret.public()));
        info.nar_size += 1;
        assert!(!info.is_signed_by(&secret.public()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = UnverifiedNarInfo::parse(&raw, Dialect::Push);
            let _ = UnverifiedNarInfo::parse(&raw, Dialect::Upstream);
        }

        #[test]
        fn one_changed_byte_is_refused_or_reprints(at in 0..GOOD.len(), byte: u8) {
            let mut raw = GOOD.as_bytes().to_vec();
            raw[at] = byte;
            if let Ok(info) = UnverifiedNarInfo::parse(&raw, Dialect::Push) {
                prop_assert_eq!(info.print().into_bytes(), raw);
            }
        }
    }
}
