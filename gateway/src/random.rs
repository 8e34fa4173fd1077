//! Random bytes from the system: the one place that asks for them.

/// `N` random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    // without the system's generator nothing here can be done safely: tokens and keys would be guessable
    getrandom::fill(&mut out).expect("the system's random generator works");
    out
}

/// `n` random bytes (at most 32) as hexadecimal digits.
pub fn hex(n: usize) -> String {
    pushgate_formats::hash::hex_encode(&bytes::<32>()[..n.min(32)])
}
