use rstest::rstest;

use super::*;

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, bytes);
    out
}

fn numbers(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn strings_round_trip() {
    for len in (0..40).chain([AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 300_000]) {
        let text = vec![b'x'; len];
        let mut bytes = string(&text);
        assert_eq!(bytes.len() % 8, 0);
        put_u64(&mut bytes, 7);
        let mut reader = Reader::new(&bytes[..]);
        assert_eq!(reader.bytes("it", MAX_STRING).unwrap(), text);
        assert_eq!(reader.u64().unwrap(), 7);
        for cut in [0, 8, bytes.len() - 9].map(|c| c.min(bytes.len() - 9)) {
            let got = Reader::new(&bytes[..cut]).bytes("it", MAX_STRING).map(<[u8]>::to_vec);
            assert!(matches!(got, Err(WireError::Closed)), "{len} {cut}");
        }
    }
}

#[test]
fn a_huge_length_allocates_nothing() {
    for len in [MAX_STRING + 1, u64::MAX, u64::MAX - 7, 1 << 63] {
        let bytes = numbers(&[len, 0, 0]);
        let mut reader = Reader::new(&bytes[..]);
        assert!(matches!(reader.bytes("it", u64::MAX), Err(WireError::TooLong { .. })));
        assert_eq!(reader.scratch.capacity(), 0);
    }
    // a length that is allowed but a lie costs no more than what arrives
    let bytes = numbers(&[MAX_STRING, 1, 2, 3]);
    let mut reader = Reader::new(&bytes[..]);
    assert!(matches!(reader.bytes("it", MAX_STRING), Err(WireError::Closed)));
    assert!(reader.scratch.capacity() < 1 << 20);
}

#[test]
fn padding_is_zero() {
    let mut bytes = string(b"abc");
    *bytes.last_mut().unwrap() = 1;
    assert!(matches!(Reader::new(&bytes[..]).bytes("it", 10), Err(WireError::Padding("it"))));
}

#[test]
fn messages_before_an_answer() {
    let mut bytes = Vec::new();
    put_u64(&mut bytes, STDERR_NEXT);
    put_bytes(&mut bytes, b"hello\n");
    bytes.extend(numbers(&[STDERR_START_ACTIVITY, 1, 2, 3]));
    put_bytes(&mut bytes, b"copying");
    bytes.extend(numbers(&[2, 0, 99, 1]));
    put_bytes(&mut bytes, b"field");
    bytes.extend(numbers(&[0, STDERR_RESULT, 1, 105, 1, 0, 8, STDERR_STOP_ACTIVITY, 1, STDERR_LAST, 42]));
    let mut reader = Reader::new(&bytes[..]);
    assert_eq!(reader.until_answer(35).unwrap(), Ok(()));
    assert_eq!(reader.u64().unwrap(), 42);
}

#[test]
fn errors_of_both_shapes() {
    let message = b"\x1b[31;1merror:\x1b[0m no\n  such `\x1b[35;1mthing\x1b[0m'\x07";
    let mut old = numbers(&[STDERR_ERROR]);
    put_bytes(&mut old, message);
    put_u64(&mut old, 1);
    let mut new = numbers(&[STDERR_ERROR]);
    put_bytes(&mut new, b"Error");
    put_u64(&mut new, 0);
    put_bytes(&mut new, b"Error");
    put_bytes(&mut new, message);
    new.extend(numbers(&[0, 1, 0]));
    put_bytes(&mut new, b"while trying");
    for (mut bytes, minor) in [(old, 25), (new, 26)] {
        put_u64(&mut bytes, 42);
        let mut reader = Reader::new(&bytes[..]);
        assert_eq!(reader.until_answer(minor).unwrap(), Err("error: no such `thing'".into()));
        assert_eq!(reader.u64().unwrap(), 42);
    }
}

#[rstest]
#[case(numbers(&[STDERR_READ, 10]))]
#[case([numbers(&[STDERR_WRITE]), string(b"x")].concat())]
#[case(numbers(&[0]))]
#[case(numbers(&[STDERR_RESULT, 1, 1, 1, 2]))]
#[case(numbers(&[STDERR_RESULT, 1, 1, u64::MAX]))]
#[case(numbers(&[STDERR_NEXT, u64::MAX]))]
#[case(numbers(&[STDERR_NEXT]))]
fn bad_messages(#[case] bytes: Vec<u8>) {
    assert!(Reader::new(&bytes[..]).until_answer(35).is_err());
}

struct Endless<'a>(&'a [u8], usize);

impl Read for Endless<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = (&self.0[self.1..]).read(buf)?;
        self.1 = (self.1 + count) % self.0.len();
        Ok(count)
    }
}

#[test]
fn log_without_end_is_given_up() {
    let line = [numbers(&[STDERR_NEXT]), string(&[b'x'; 4096])].concat();
    for line in [line, numbers(&[STDERR_STOP_ACTIVITY, 1])] {
        assert!(matches!(Reader::new(Endless(&line, 0)).until_answer(35), Err(WireError::LogFlood)));
    }
}
