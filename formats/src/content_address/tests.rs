use super::*;
use proptest::prelude::*;
use rstest::rstest;

const HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr";

fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{HASH}-{name}")).unwrap()
}

#[rstest]
#[case("text:sha256:193s6bfb4ncbr0d3rpb177cac43b2z2h3afxi7grcswgci346hwg", false)]
#[case("fixed:sha256:193s6bfb4ncbr0d3rpb177cac43b2z2h3afxi7grcswgci346hwg", false)]
#[case("fixed:r:sha256:193s6bfb4ncbr0d3rpb177cac43b2z2h3afxi7grcswgci346hwg", false)]
#[case("fixed:r:md5:3y8bwfr609h3lh9ch0izcqq7fl", true)]
#[case("fixed:git:sha1:0mdqa9w1p6cmli6976v4wi0sw9r4p5pr", true)]
fn prints_what_it_parses(#[case] text: &str, #[case] weak: bool) {
    let address = ContentAddress::parse(text).unwrap();
    assert_eq!(address.to_string(), text);
    assert_eq!(address.is_weak(), weak);
}

#[rstest]
#[case::empty("")]
#[case::other_prefix("source:sha256:193s6bfb4ncbr0d3rpb177cac43b2z2h3afxi7grcswgci346hwg")]
#[case::text_sha1("text:sha1:0mdqa9w1p6cmli6976v4wi0sw9r4p5pr")]
#[case::text_as_fixed("fixed:text:sha256:193s6bfb4ncbr0d3rpb177cac43b2z2h3afxi7grcswgci346hwg")]
#[case::text_recursive("text:r:sha256:193s6bfb4ncbr0d3rpb177cac43b2z2h3afxi7grcswgci346hwg")]
#[case::git_md5("fixed:git:md5:3y8bwfr609h3lh9ch0izcqq7fl")]
#[case::sri("fixed:r:sha256-IlLUt4yU6Mes5OMxe3i9/mS8jjlwpk620vfCpEPAw/w=")]
#[case::hex("fixed:sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709")]
#[case::trailing("fixed:sha1:0mdqa9w1p6cmli6976v4wi0sw9r4p5pr\n")]
fn refuses(#[case] text: &str) {
    assert_eq!(ContentAddress::parse(text).unwrap_err().code(), "content-address-malformed");
}

#[rstest]
#[case::flat(Method::Flat, HashAlgo::Sha256)]
#[case::recursive_sha512(Method::Recursive, HashAlgo::Sha512)]
fn no_references(#[case] method: Method, #[case] algo: HashAlgo) {
    let address =
        ContentAddress::new(method, NixHash::new(algo, &vec![1; algo.digest_len()]).unwrap()).unwrap();
    let other = path("other");
    assert!(matches!(
        store_path_for("a", &address, [&other], false),
        Err(ContentAddressError::References(_))
    ));
    assert!(matches!(store_path_for("a", &address, [], true), Err(ContentAddressError::SelfReference(_))));
}

#[test]
fn an_executable_is_no_flat_file() {
    let hash = sha256_hash(Sha256::of(b"x"));
    let address = ContentAddress::new(Method::Flat, hash.clone()).unwrap();
    let path = address.path("a").unwrap();
    let file = |executable| Measured::File { hash: hash.clone(), executable };
    assert_eq!(check_path(&path, &address, [], &file(false)), Ok(Form::Plain));
    let error = check_path(&path, &address, [], &file(true)).unwrap_err();
    assert_eq!(error, ContentAddressError::NotPlainFile(path.clone()));
    assert_eq!(error.code(), "content-address-mismatch");
    let other = Measured::Nar(hash.clone());
    assert_eq!(check_path(&path, &address, [], &other), Err(ContentAddressError::Measure(path)));
}

#[test]
fn weak_form_is_told_apart() {
    let unnamed = path("self");
    let contents = |own: &StorePath| format!("head {} mid {} end", own.hash_part(), own.hash_part());
    let hashes = |own: &StorePath| {
        let mut hasher = SelfReferenceHasher::new(own);
        hasher.feed(contents(own).as_bytes());
        hasher.finish().unwrap()
    };
    let found = hashes(&unnamed);
    assert_eq!(found.hits, 2);
    for (digest, form) in
        [(found.with_positions, Form::WithPositions), (found.without_positions, Form::WithoutPositions)]
    {
        let address = ContentAddress::new(Method::Recursive, sha256_hash(digest)).unwrap();
        let own = store_path_for("self", &address, [], true).unwrap();
        let measured = Measured::NarModuloSelf(hashes(&own));
        assert_eq!(check_path(&own, &address, [&own], &measured), Ok(form));
        assert!(matches!(check_path(&own, &address, [], &measured), Err(ContentAddressError::Path { .. })));
        let mut other = SelfReferenceHasher::new(&own);
        other.feed(format!("{}!", contents(&own)).as_bytes());
        let measured = Measured::NarModuloSelf(other.finish().unwrap());
        assert_eq!(
            check_path(&own, &address, [&own], &measured).unwrap_err().code(),
            "content-address-mismatch"
        );
    }
}

/// The obvious way: the whole text at once.
fn plain_hashes(own: &StorePath, text: &[u8]) -> SelfReferenceHashes {
    let (mut text, mut at, mut trail, mut hits) = (text.to_vec(), 0, String::new(), 0);
    while at + 32 <= text.len() {
        if text[at..at + 32] == *own.hash_part().as_bytes() {
            text[at..at + 32].fill(0);
            trail += &format!("|{at}");
            hits += 1;
        }
        at += 1;
    }
    let without_positions = Sha256::of(&text);
    text.extend_from_slice(trail.as_bytes());
    SelfReferenceHashes { with_positions: Sha256::of(&text), without_positions, hits }
}

#[test]
fn too_many_are_refused() {
    let own = path("self");
    let mut hasher = SelfReferenceHasher::new(&own);
    for _ in 0..=MAX_SELF_REFERENCES / 1024 {
        hasher.feed(HASH.repeat(1024).as_bytes());
    }
    assert_eq!(hasher.finish(), Err(ContentAddressError::TooManySelfReferences));
}

#[rstest]
#[case(HashAlgo::Md5, "md5:900150983cd24fb0d6963f7d28e17f72")]
#[case(HashAlgo::Sha1, "sha1:a9993e364706816aba3e25717850c26c9cd0d89d")]
#[case(HashAlgo::Sha256, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")]
#[case(
    HashAlgo::Sha512,
    "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
)]
fn known_hashes(#[case] algo: HashAlgo, #[case] abc: &str) {
    let mut hasher = ContentHasher::new(algo);
    hasher.feed(b"a");
    hasher.feed(b"bc");
    assert_eq!(hasher.finish(), NixHash::parse(abc).unwrap());
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        parts in prop::collection::vec((0usize..=32, 0usize..70, 0u8..3), 0..12),
        cuts in prop::collection::vec(1usize..60, 1..20),
        repeated: bool,
    ) {
        // a hash part that overlaps itself finds hits that touch
        let hash = if repeated { "a".repeat(32) } else { HASH.to_owned() };
        let own = StorePath::from_base_name(&format!("{hash}-x")).unwrap();
        let mut text = Vec::new();
        for (head, fill, byte) in parts {
            text.extend_from_slice(&hash.as_bytes()[..head]);
            text.extend(std::iter::repeat_n([b'a', 0, b'r'][usize::from(byte)], fill));
        }
        let mut hasher = SelfReferenceHasher::new(&own);
        let mut rest = &text[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            hasher.feed(piece);
            rest = tail;
        }
        prop_assert_eq!(hasher.finish().unwrap(), plain_hashes(&own, &text));
    }
}
