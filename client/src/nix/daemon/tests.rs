use std::net::Shutdown;

use rstest::rstest;

use super::{
    super::{
        connection::{MAGIC_THEIRS, NEWEST, OLDEST},
        testing::Store,
        wire::put_bytes,
    },
    *,
};

const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const NEXT: u64 = 0x6f6c_6d67;

fn some_path() -> StorePath {
    StorePath::parse("/nix/store/0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x").unwrap()
}

fn numbers(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, text.as_bytes());
    out
}

/// A good greeting by protocol 1.35.
fn greeting() -> Vec<u8> {
    [numbers(&[MAGIC_THEIRS, 1 << 8 | 35]), string("2.99"), numbers(&[1, LAST])].concat()
}

/// Talks over a connected socket.
fn over(socket: UnixStream) -> Result<Daemon, StoreError> {
    Daemon::over(socket, &StoreLocation::from_uri("daemon").unwrap())
}

/// A daemon that says `says` and hangs up, whatever it is asked.
fn fake(says: Vec<u8>) -> Result<Daemon, StoreError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut deaf = theirs.try_clone().unwrap();
    std::thread::spawn(move || {
        let _ = theirs.write_all(&says);
        let _ = theirs.shutdown(Shutdown::Write);
    });
    // so that the client's requests are never in the way
    std::thread::spawn(move || io::copy(&mut deaf, &mut io::sink()));
    over(ours)
}

fn fake_answers(says: &[u8]) -> Daemon {
    fake([&greeting()[..], says].concat()).unwrap()
}

fn info(size: u64) -> PathInfo {
    PathInfo {
        path: some_path(),
        deriver: None,
        nar_hash: Sha256([0; 32]),
        references: BTreeSet::new(),
        registration_time: 0,
        nar_size: size,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    }
}

#[test]
fn asks_the_real_daemon() {
    let Some(store) = Store::new() else { return };
    let a = store.eval("builtins.toFile \"a\" \"contents\"");
    let b = store.eval("builtins.toFile \"b\" \"${builtins.toFile \"a\" \"contents\"}\"");
    let drv = store.instantiate(
        r#"derivation { name = "n"; system = "none"; builder = "/bin/sh"; outputs = [ "out" "dev" ]; }"#,
    );
    let mut daemon = store.daemon();
    assert!((OLDEST..=NEWEST).contains(&daemon.protocol_minor()));
    assert!(daemon.is_valid(&a).unwrap());
    assert!(!daemon.is_valid(&some_path()).unwrap());
    daemon.add_temp_roots(std::slice::from_ref(&a)).unwrap();
    daemon.add_temp_roots(&vec![a.clone(); 100]).unwrap();
    let valid = daemon.valid_paths([&a, &some_path(), &b, &a]).unwrap();
    assert_eq!(valid, BTreeSet::from([a.clone(), b.clone()]));

    let infos = daemon.path_infos(&[b.clone(), some_path(), a.clone(), b.clone()]).unwrap();
    assert_eq!((&infos[1], &infos[0]), (&None, &infos[3]));
    let info = infos[0].as_ref().unwrap();
    assert_eq!(info.references, BTreeSet::from([a.clone()]));
    assert_eq!(info.path, b);
    assert!(info.registration_time > 1_600_000_000);

    let mut nar = Vec::new();
    daemon.nar_from_path(info, &mut nar).unwrap();
    assert_eq!((nar.len() as u64, Sha256::of(&nar)), (info.nar_size, info.nar_hash));
    // a wrong idea of the size leaves the connection in order, or ends it, but never hangs
    let longer = PathInfo { nar_size: info.nar_size + 8, ..info.clone() };
    let got = daemon.nar_from_path(&longer, &mut io::sink());
    assert!(matches!(got, Err(StoreError::NarSize { .. })), "{got:?}");

    let outputs = daemon.output_map(&drv).unwrap();
    assert_eq!(outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
    assert_eq!(outputs["out"].as_ref().unwrap().name(), "n");
    // a refusal is the daemon's own words, and the next question is answered
    let error = daemon.output_map(&some_path()).unwrap_err();
    assert!(
        matches!(&error, StoreError::Refused { message, .. } if message.contains("0mdqa9w1p6")),
        "{error}"
    );
    assert!(daemon.is_valid(&a).unwrap());
    let shorter = PathInfo { nar_size: info.nar_size - 8, ..info.clone() };
    assert!(daemon.nar_from_path(&shorter, &mut io::sink()).is_err());
    assert!(matches!(daemon.is_valid(&a), Err(StoreError::Broken)));
}

#[test]
fn a_path_whose_files_are_gone() {
    let Some(store) = Store::new() else { return };
    let path = store.add_text("text", "text");
    let mut daemon = store.daemon();
    let info = daemon.path_info(&path).unwrap().unwrap();
    std::fs::remove_file(daemon.physical(&path)).unwrap();
    let error = daemon.nar_from_path(&info, &mut io::sink()).unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
}

#[test]
fn many_questions_at_once() {
    let Some(store) = Store::new() else { return };
    let path = store.add_text("text", "text");
    // far more than two pipes hold
    let mut paths = vec![some_path(); 20_000];
    (0..paths.len()).step_by(7).for_each(|i| paths[i] = path.clone());
    let mut daemon = store.daemon();
    for _ in 0..2 {
        let infos = daemon.path_infos(&paths).unwrap();
        assert_eq!(infos.len(), paths.len());
        for (i, info) in infos.iter().enumerate() {
            assert_eq!(info.as_ref().map(|i| &i.path), (i % 7 == 0).then_some(&path));
        }
    }
}

#[test]
fn a_daemon_that_cannot_open_its_store_says_why() {
    let Some(store) = Store::new() else { return };
    std::fs::write(store.root(), "a file in the way").unwrap();
    let error = Daemon::connect(&store.location()).err().unwrap();
    assert!(matches!(&error, StoreError::Closed { said, .. } if said.contains("error:")), "{error}");
}

#[test]
fn sockets_where_nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("unix://{}", dir.path().join("socket").display());
    let error = Daemon::connect(&StoreLocation::from_uri(&uri).unwrap()).err().unwrap();
    assert!(matches!(error, StoreError::NoDaemon { .. }), "{error}");
}

#[test]
fn reads_the_greeting_of_each_version() {
    for (minor, more, version, trusts) in [
        (21, numbers(&[]), None, None),
        (32, numbers(&[]), None, None),
        (34, string("2.8.0"), Some("2.8.0"), None),
        (35, [string("2.20"), numbers(&[2])].concat(), Some("2.20"), Some(false)),
        (38, [string("2.30"), numbers(&[1])].concat(), Some("2.30"), Some(true)),
    ] {
        let says = [numbers(&[MAGIC_THEIRS, 1 << 8 | minor]), more, numbers(&[LAST, LAST, 1])].concat();
        let mut daemon = fake(says).unwrap();
        assert_eq!(daemon.protocol_minor(), minor.min(35));
        assert_eq!((daemon.nix_version(), daemon.trusts_us()), (version, trusts));
        assert!(daemon.is_valid(&some_path()).unwrap());
    }
}

#[rstest]
#[case(vec![], "went away")]
#[case(vec![1, 2, 3], "went away")]
#[case(numbers(&[0x1234]), "isn't a Nix daemon: it greets with `0x1234`")]
#[case(numbers(&[MAGIC_THEIRS]), "went away")]
#[case(numbers(&[MAGIC_THEIRS, 1 << 8 | 20]), "protocol `1.20`; at least 1.21")]
#[case(numbers(&[MAGIC_THEIRS, 2 << 8 | 35]), "protocol `2.35`")]
#[case(numbers(&[MAGIC_THEIRS, u64::MAX]), "protocol")]
#[case(numbers(&[MAGIC_THEIRS, 1 << 8 | 35, u64::MAX]), "can't be used")]
#[case([numbers(&[MAGIC_THEIRS, 1 << 8 | 35]), string("2"), numbers(&[3])].concat(), "can't be used")]
#[case([numbers(&[MAGIC_THEIRS, 1 << 8 | 33, 1]), vec![b'2', 0, 0, 0, 0, 0, 0, 1]].concat(), "can't be used")]
#[case([numbers(&[MAGIC_THEIRS, 1 << 8 | 25, ERROR]), string("go away"), numbers(&[1])].concat(), "go away")]
fn bad_greetings(#[case] says: Vec<u8>, #[case] expected: &str) {
    let error = fake(says).err().unwrap();
    assert!(error.to_string().contains(expected), "{error}");
}

/// A good answer to QueryPathInfo, in pieces, so that each can be spoilt.
fn good_info() -> Vec<Vec<u8>> {
    vec![
        numbers(&[LAST]),
        numbers(&[1]),
        string(""),
        string(&"0f".repeat(32)),
        numbers(&[1]),
        string("/nix/store/1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y"),
        numbers(&[7]),
        numbers(&[120]),
        numbers(&[1]),
        numbers(&[1]),
        string("k:sig"),
        string("fixed:sha256:x"),
    ]
}

#[test]
fn reads_a_path_info() {
    let got = fake_answers(&good_info().concat()).path_info(&some_path()).unwrap().unwrap();
    let expected = PathInfo {
        nar_hash: Sha256([15; 32]),
        references: BTreeSet::from([
            StorePath::parse("/nix/store/1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y").unwrap()
        ]),
        registration_time: 7,
        ultimate: true,
        signatures: vec!["k:sig".into()],
        ca: Some("fixed:sha256:x".into()),
        ..info(120)
    };
    assert_eq!(got, expected);
}

#[rstest]
#[case(0, numbers(&[5]))]
#[case(1, numbers(&[2]))]
#[case(2, string("/nix/store/nonsense"))]
#[case(2, numbers(&[u64::MAX]))]
#[case(3, string("sha256:abc"))]
#[case(3, string(&"zz".repeat(32)))]
#[case(4, numbers(&[u64::MAX]))]
#[case(4, numbers(&[1 << 20]))]
#[case(5, string(""))]
#[case(5, string("/nix/store/../../etc/passwd"))]
#[case(8, numbers(&[9]))]
#[case(9, numbers(&[1 << 40]))]
#[case(10, [numbers(&[1]), vec![0xff, 0, 0, 0, 0, 0, 0, 0]].concat())]
#[case(11, [numbers(&[1]), vec![b'x', 0, 0, 9, 0, 0, 0, 0]].concat())]
fn bad_path_infos(#[case] spoilt: usize, #[case] by: Vec<u8>) {
    let mut pieces = good_info();
    pieces[spoilt] = by;
    let mut daemon = fake_answers(&pieces.concat());
    let error = daemon.path_info(&some_path()).unwrap_err();
    assert!(matches!(error, StoreError::Answer { .. } | StoreError::Closed { .. }), "{error}");
    // what comes next may be anything: it isn't read as an answer
    assert!(matches!(daemon.path_info(&some_path()), Err(StoreError::Broken)));
}

#[test]
fn a_truncated_answer_at_every_byte() {
    let good = good_info().concat();
    for cut in 0..good.len() {
        let error = fake_answers(&good[..cut]).path_info(&some_path()).unwrap_err();
        assert!(matches!(error, StoreError::Closed { operation: "QueryPathInfo", .. }), "{cut}: {error}");
    }
}

#[test]
fn a_refusal_among_many_answers_costs_no_order() {
    let refusal = [
        numbers(&[ERROR]),
        string("Error"),
        numbers(&[0]),
        string("Error"),
        string("busy"),
        numbers(&[0, 0]),
    ];
    let good = good_info().concat();
    let says = [&good[..], &refusal.concat(), &good, &numbers(&[LAST, 1])].concat();
    let mut daemon = fake_answers(&says);
    let error = daemon.path_infos(&[some_path(), some_path(), some_path()]).unwrap_err();
    assert_eq!(error.to_string(), "the Nix daemon refuses QueryPathInfo: busy");
    assert!(daemon.is_valid(&some_path()).unwrap());
}

#[test]
fn valid_paths_are_among_those_asked_for() {
    let other = "/nix/store/1mdqa9w1p6cmli6976v4wi0sw9r4p5pr-y";
    let says = [numbers(&[LAST, 1]), string(other)].concat();
    assert!(fake_answers(&says).valid_paths([&some_path()]).is_err());
    assert!(fake_answers(&numbers(&[LAST, 2])).valid_paths([&some_path()]).is_err());
}

#[test]
fn endless_log() {
    let line = [numbers(&[NEXT]), string(&"x".repeat(1 << 20))].concat();
    let error = fake_answers(&line.repeat(70)).is_valid(&some_path()).unwrap_err();
    assert!(matches!(error, StoreError::Answer { source: WireError::LogFlood, .. }), "{error}");
}

/// A daemon that doesn't read and answers nonsense: the thread that writes the questions must not wait for ever.
#[test]
fn a_deaf_daemon() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[greeting(), numbers(&[LAST, 77])].concat()).unwrap();
    let mut daemon = over(ours).unwrap();
    let error = daemon.path_infos(&vec![some_path(); 100_000]).unwrap_err();
    assert!(matches!(error, StoreError::Answer { .. }), "{error}");
}

#[test]
fn a_nar_longer_than_announced_or_refused_midway() {
    let nar: Vec<u8> = ["nix-archive-1", "(", "type", "regular", "contents", "x", ")"]
        .iter()
        .flat_map(|t| string(t))
        .collect();
    let says = [numbers(&[LAST]), nar.clone()].concat();
    let mut out = Vec::new();
    fake_answers(&says).nar_from_path(&info(nar.len() as u64), &mut out).unwrap();
    assert_eq!(out, nar);
    let got = fake_answers(&says).nar_from_path(&info(nar.len() as u64 - 1), &mut io::sink());
    assert!(matches!(got, Err(StoreError::Answer { source: WireError::NarTooLong { .. }, .. })), "{got:?}");
    let refusal = [
        numbers(&[ERROR]),
        string("Error"),
        numbers(&[0]),
        string("Error"),
        string("gone"),
        numbers(&[0, 0]),
    ];
    let says = [&numbers(&[LAST]), &nar[..56], &refusal.concat()].concat();
    let error = fake_answers(&says).nar_from_path(&info(1000), &mut io::sink()).unwrap_err();
    assert_eq!(error.to_string(), "the Nix daemon refuses NarFromPath: gone");
}
