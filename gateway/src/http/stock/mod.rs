//! `/CACHE/push/…`: a binary cache as stock Nix writes to it. Each file of such a cache goes to its stage or is refused; what
//! the gateway makes itself (listings, indices) is read, checked for its size, and dropped.

pub(super) mod put;
pub(super) mod read;

use pushgate_formats::{Sha256, StorePath, store_path::is_hash_part};

use crate::push::{intake::Compression, stock::narinfo::parse_file_name};
pub use put::put;
pub use read::read;

/// A file of a binary cache, from its name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum File {
    Info,
    NarInfo(String),
    Listing(String),
    Nar(Sha256, Compression),
    /// A NAR file whose compression isn't taken.
    OtherNar(String),
    Log(StorePath),
    DebugInfo,
    /// `sha256:HEX!OUTPUT`
    Realisation(String),
    /// Derivation and output.
    Trace(StorePath, String),
}

impl File {
    /// `None` for names that no binary cache has.
    fn of(name: &str) -> Option<Self> {
        if name == "nix-cache-info" {
            return Some(Self::Info);
        }
        if let Some((directory, rest)) = name.split_once('/') {
            return match directory {
                "nar" => match parse_file_name(rest) {
                    Some((hash, compression)) => Some(Self::Nar(hash, compression)),
                    None => {
                        let (hash, suffix) = rest.split_once(".nar.")?;
                        Sha256::from_base32(hash)?;
                        let plain = suffix.len() <= 10 && suffix.bytes().all(|b| b.is_ascii_alphanumeric());
                        plain.then(|| Self::OtherNar(suffix.to_owned()))
                    }
                },
                "log" => StorePath::from_base_name(rest).ok().filter(StorePath::is_derivation).map(Self::Log),
                "debuginfo" => {
                    let id = rest.strip_suffix(".debug").unwrap_or(rest);
                    let hex = (2..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit());
                    hex.then_some(Self::DebugInfo)
                }
                "realisations" => rest.strip_suffix(".doi").map(|id| Self::Realisation(id.to_owned())),
                "build-trace-v2" => {
                    let (derivation, output) = rest.strip_suffix(".doi")?.split_once('/')?;
                    let derivation =
                        StorePath::from_base_name(derivation).ok().filter(StorePath::is_derivation)?;
                    pushgate_formats::derivation::OutputName::parse(output).ok()?;
                    Some(Self::Trace(derivation, output.to_owned()))
                }
                _ => None,
            };
        }
        let (hash, suffix) = name.split_once('.')?;
        match suffix {
            _ if !is_hash_part(hash) => None,
            "narinfo" => Some(Self::NarInfo(hash.to_owned())),
            "ls" => Some(Self::Listing(hash.to_owned())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const PART: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr";
    const HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";

    #[test]
    fn files_by_name() {
        let hash = Sha256::from_base32(HASH).unwrap();
        let derivation = StorePath::from_base_name(&format!("{PART}-a.drv")).unwrap();
        for (name, want) in [
            ("nix-cache-info".to_owned(), File::Info),
            (format!("{PART}.narinfo"), File::NarInfo(PART.into())),
            (format!("{PART}.ls"), File::Listing(PART.into())),
            (format!("nar/{HASH}.nar"), File::Nar(hash, Compression::None)),
            (format!("nar/{HASH}.nar.xz"), File::Nar(hash, Compression::Xz)),
            (format!("nar/{HASH}.nar.zst"), File::Nar(hash, Compression::Zstd)),
            (format!("nar/{HASH}.nar.br"), File::OtherNar("br".into())),
            (format!("log/{PART}-a.drv"), File::Log(derivation.clone())),
            ("debuginfo/1234abcd.debug".into(), File::DebugInfo),
            ("debuginfo/1234abcd".into(), File::DebugInfo),
            ("realisations/sha256:00!out.doi".into(), File::Realisation("sha256:00!out".into())),
            (format!("build-trace-v2/{PART}-a.drv/out.doi"), File::Trace(derivation, "out".into())),
        ] {
            assert_eq!(File::of(&name), Some(want), "{name}");
        }
    }

    #[rstest]
    #[case("")]
    #[case("x")]
    #[case("emdqa9w1p6cmli6976v4wi0sw9r4p5pr.narinfo")]
    #[case("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr.exe")]
    #[case("nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar.x/y")]
    #[case("nar/../0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.nar")]
    #[case("nar/0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73.narxz")]
    #[case("log/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a")]
    #[case("log/../a.drv")]
    #[case("debuginfo/../../x")]
    #[case("build-trace-v2/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-a.drv/a/b.doi")]
    #[case("other/x")]
    fn no_files(#[case] name: &str) {
        assert_eq!(File::of(name), None);
    }
}
