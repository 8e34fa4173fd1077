//! Nix's base 32: the digits `0-9a-z` without `e`, `o`, `t`, `u`, most significant digit first, over the bytes read
//! backwards (`src/libutil/hash.cc` of Nix). Knows nothing of what the bytes mean.

/// The digits in the order of their values.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

const INVALID: u8 = 0xff;

/// Value of each byte as a digit, or `0xff`.
const VALUES: [u8; 256] = {
    let mut table = [INVALID; 256];
    let mut i = 0;
    while i < 32 {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Whether the byte is a digit of Nix's base 32.
#[inline]
pub const fn is_digit(byte: u8) -> bool {
    VALUES[byte as usize] != INVALID
}

/// Number of digits for `bytes` bytes: 32 for 20, 52 for 32.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Encodes bytes; the result has [`encoded_len`] characters.
pub fn encode(bytes: &[u8]) -> String {
    let len = encoded_len(bytes.len());
    let mut out = String::with_capacity(len);
    for n in (0..len).rev() {
        let bit = n * 5;
        let (i, j) = (bit / 8, bit % 8);
        let low = bytes[i] >> j;
        let high = if i + 1 < bytes.len() && j > 3 { bytes[i + 1] << (8 - j) } else { 0 };
        out.push(ALPHABET[usize::from((low | high) & 0x1f)] as char);
    }
    out
}

/// Decodes exactly `N` bytes. `None` when the length is not [`encoded_len`] of `N`, a character is not a digit, or
/// bits beyond the last byte are set (so that every value has one spelling).
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != encoded_len(N) {
        return None;
    }
    let mut out = [0u8; N];
    for (n, byte) in text.iter().rev().enumerate() {
        let digit = VALUES[usize::from(*byte)];
        if digit == INVALID {
            return None;
        }
        let bit = n * 5;
        let (i, j) = (bit / 8, bit % 8);
        out[i] |= digit << j;
        let carry = if j > 3 { digit >> (8 - j) } else { 0 };
        if i + 1 < N {
            out[i + 1] |= carry;
        } else if carry != 0 {
            return None;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_value_from_nix() {
        // nix-hash --type sha256 --to-base32 of the hash of the empty string
        let empty: [u8; 32] = sha2::Sha256::digest(b"").into();
        assert_eq!(encode(&empty), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
        use sha2::Digest;
    }

    #[test]
    fn spare_bits_must_be_zero() {
        // 52 digits hold 260 bits: the first digit of a sha256 may only be 0 or 1
        let mut text = encode(&[0xff; 32]).into_bytes();
        assert_eq!(text[0], b'1');
        assert!(decode::<32>(&text).is_some());
        text[0] = b'2';
        assert_eq!(decode::<32>(&text), None);
    }

    #[test]
    fn letters_left_out_are_refused() {
        for bad in [b'e', b'o', b't', b'u', b'A', 0, 0xff] {
            let mut text = encode(&[7; 20]).into_bytes();
            text[3] = bad;
            assert_eq!(decode::<20>(&text), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(bytes: [u8; 20], long: [u8; 32]) {
            prop_assert_eq!(decode::<20>(encode(&bytes).as_bytes()), Some(bytes));
            prop_assert_eq!(decode::<32>(encode(&long).as_bytes()), Some(long));
        }
    }
}
