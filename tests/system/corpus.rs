//! The formats against real Nix.

#[test]
fn every_path_and_hash_of_the_corpus_agrees_with_nix() {
    pushgate_tests::formats_corpus::run().unwrap();
}
