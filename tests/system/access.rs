//! Invariant 10: who may use which route. Walks the gateway's own table over HTTP with every kind of caller; a route that is
//! new in the table has to be written down here too. And which crate may depend on what.

use std::process::Command;

use base64::{Engine, engine::general_purpose::STANDARD};
use pushgate_formats::{
    Sha256, StorePath,
    acts::Deed,
    api::{
        Announced, AnnouncedPath, Announcement, Audience, Enrolment, GatewayInfo, MissingPath, MissingQuery,
        PathState, PushStatus, SignedRequest,
    },
    dsse::{self, Envelope},
    jobs::LeaseQuery,
    keys::{KeyName, SecretKey},
    narinfo::fingerprint,
};
use pushgate_gateway::http::{Access, table};
use pushgate_tests::{
    forge::{act, sealed_act},
    process::{Answer, Gateway, Web, names, workspace},
};
use reqwest::Method;

/// A gateway and everybody who may come along.
struct Stage {
    gateway: Gateway,
    web: Web,
    id: String,
    now: u64,
    owner: SecretKey,
    other: SecretKey,
    verifier: SecretKey,
    admin: SecretKey,
    revoked: SecretKey,
    frozen: SecretKey,
    frozen_admin: SecretKey,
    stranger: SecretKey,
    /// The owner's, which waits for bytes.
    push: Announced,
    /// Another submitter's.
    other_push: Announced,
    /// By a key that was revoked since.
    revoked_push: Announced,
    /// By a submitter who was frozen since.
    frozen_push: Announced,
    /// For stock Nix: the owner's, the owner's for another cache, one that was revoked, and a frozen submitter's.
    stock: [String; 4],
    counter: std::cell::Cell<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Anonymous,
    Owner,
    Other,
    Verifier,
    Admin,
    Revoked,
    /// A submitter whom an admin has frozen.
    Frozen,
    FrozenAdmin,
    /// Signs well, with a key that nobody enrolled.
    Stranger,
    /// Says that it is the owner and signs with another key.
    Impostor,
    /// The owner's request for another path.
    ForAnotherPath,
    /// The owner's request by another method.
    ForAnotherMethod,
    /// The owner's request for another gateway.
    ForAnotherGateway,
    /// The owner's request of an hour ago.
    Outdated,
    /// The token of the push that is asked for.
    Token,
    /// The token of somebody else's push.
    OtherToken,
    /// Something that no gateway made.
    WrongToken,
    /// A name and a password.
    Basic,
    /// The owner's token for stock Nix, as netrc has it.
    StockToken,
    /// The same as somebody else.
    StockTokenUnderAnotherName,
    /// The owner's token for another cache.
    StockTokenForAnotherCache,
    /// One that was revoked.
    RevokedStockToken,
    /// A frozen submitter's.
    FrozenStockToken,
}

const CALLERS: [Caller; 23] = [
    Caller::Anonymous,
    Caller::Owner,
    Caller::Other,
    Caller::Verifier,
    Caller::Admin,
    Caller::Revoked,
    Caller::Frozen,
    Caller::FrozenAdmin,
    Caller::Stranger,
    Caller::Impostor,
    Caller::ForAnotherPath,
    Caller::ForAnotherMethod,
    Caller::ForAnotherGateway,
    Caller::Outdated,
    Caller::Token,
    Caller::OtherToken,
    Caller::WrongToken,
    Caller::Basic,
    Caller::StockToken,
    Caller::StockTokenUnderAnotherName,
    Caller::StockTokenForAnotherCache,
    Caller::RevokedStockToken,
    Caller::FrozenStockToken,
];

/// The status that each caller has to get, apart from what a handler finds wrong with a request that it was given.
fn expected(access: Access, path: &str, caller: Caller) -> u16 {
    use Caller::*;
    match (access, caller) {
        // no credentials are looked at, so bad ones do no harm
        (Access::Anybody | Access::Signed, _) => 200,
        // the push asks for no builds: whose log is read is for the tests of builds
        (Access::PushOrOwner, Owner | Token) if path.ends_with("/log") => 404,
        (Access::Submitter | Access::PushOrOwner, Owner) => 200,
        // what isn't his own isn't there
        (Access::PushOrOwner, Other | Frozen) => 404,
        (Access::Submitter, Other | Frozen) if path.ends_with("/paths/{path}") => 404,
        // whoever is frozen may look at what became of his pushes, and do nothing
        (Access::Submitter, Frozen) if path.ends_with("/tokens") => 403,
        (Access::Submitter, Other | Frozen) => 200,
        (
            Access::Submitter | Access::PushOrOwner,
            Verifier | Admin | Revoked | FrozenAdmin | ForAnotherGateway,
        ) => 403,
        // no claim of theirs; an admin sees everybody's
        (Access::Member, Other | Frozen | FrozenAdmin) => 404,
        (Access::Member, Owner | Admin) => 200,
        (Access::Member, Verifier | Revoked | ForAnotherGateway) => 403,
        // nothing was drawn for
        (Access::Reviewer, Admin) if path.ends_with("/{epoch}") => 404,
        (Access::Admin | Access::Reviewer, Admin) => 200,
        (
            Access::Admin | Access::Reviewer,
            Owner | Other | Verifier | Revoked | Frozen | FrozenAdmin | ForAnotherGateway,
        ) => 403,
        (Access::Verifier, Verifier) => 200,
        (Access::Verifier, Owner | Other | Admin | Revoked | Frozen | FrozenAdmin | ForAnotherGateway) => 403,
        // tokens are for pushes
        (
            Access::Admin | Access::Reviewer | Access::Verifier,
            Token
            | OtherToken
            | WrongToken
            | Basic
            | StockToken
            | StockTokenUnderAnotherName
            | StockTokenForAnotherCache
            | RevokedStockToken
            | FrozenStockToken,
        ) => 403,
        // none of these is the token of the job's lease
        (
            Access::Job,
            Token
            | OtherToken
            | WrongToken
            | Basic
            | StockToken
            | StockTokenUnderAnotherName
            | StockTokenForAnotherCache
            | RevokedStockToken
            | FrozenStockToken,
        ) => 403,
        (Access::Job, _) => 401,
        (Access::Push | Access::PushOrOwner, Token) => 200,
        (Access::Push | Access::PushOrOwner, OtherToken | WrongToken) => 403,
        // a signed request is short-lived, but it could be repeated: good for reading only
        (Access::Push, _) => 403,
        // anything but 401 would mean "not there" to stock Nix
        (Access::Token, StockToken) => 200,
        (Access::Token, _) => 401,
        (
            Access::Submitter
            | Access::PushOrOwner
            | Access::Admin
            | Access::Member
            | Access::Reviewer
            | Access::Verifier,
            _,
        ) => 401,
    }
}

fn path(n: u8) -> StorePath {
    StorePath::from_digest(&[n; 20], "some-path").unwrap()
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn dsse_header(key: &SecretKey, request: &SignedRequest) -> Option<String> {
    let envelope = Envelope::seal(dsse::REQUEST, &json(request), key);
    Some(format!("DSSE {}", STANDARD.encode(json(&envelope))))
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

impl Stage {
    fn set() -> Self {
        let gateway = Gateway::start();
        let web = Web::new();
        let info: GatewayInfo = web.get(&gateway.url("/api/v1/gateway")).json();
        let enrol = |name: &str, more: &[&str]| gateway.enrol(name, more).key();
        let (owner, other) = (enrol("alice", &[]), enrol("bob", &[]));
        let (verifier, admin) = (
            enrol("victor", &["--role", "verifier", "--owner", "victor"]),
            enrol("ada", &["--role", "admin"]),
        );
        let revoked = enrol("carol", &[]);
        let frozen = enrol("fred", &[]);
        let frozen_admin = enrol("fay", &["--role", "admin"]);
        let stranger = SecretKey::from_seed(KeyName::new("mallory-1").unwrap(), &[7; 32]);
        let announce = |key: &SecretKey, n: u8| -> Announced {
            let body = announcement(&info.gateway, info.time, key, n);
            let url = gateway.url("/api/v1/caches/main/pushes");
            let answer = web.ask(&Method::POST, &url, &[], body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()
        };
        let (push, other_push, revoked_push) =
            (announce(&owner, 1), announce(&other, 2), announce(&revoked, 3));
        let frozen_push = announce(&frozen, 4);
        gateway.admin(&["key", "revoke", "carol-1"]).ended_with(0);
        gateway.add_cache("second");
        let revoked_token = gateway.admin(&["token", "alice"]).line();
        gateway.admin(&["token", "alice", "--revoke"]).ended_with(0);
        let token = |cache: &str| gateway.admin(&["token", "alice", "--cache", cache]).line();
        let frozen_token = gateway.admin(&["token", "fred"]).line();
        let stock = [token("main"), token("second"), revoked_token, frozen_token];
        for name in ["fred", "fay"] {
            let freeze = act(&info.gateway, info.time, Deed::Freeze { name: name.to_owned() });
            let answer =
                web.ask(&Method::POST, &gateway.url("/api/v1/acts"), &[], sealed_act(&freeze, &admin));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let (id, now) = (info.gateway, info.time);
        Self {
            gateway,
            web,
            id,
            now,
            owner,
            other,
            verifier,
            admin,
            revoked,
            frozen,
            frozen_admin,
            stranger,
            push,
            other_push,
            revoked_push,
            frozen_push,
            stock,
            counter: std::cell::Cell::new(20),
        }
    }

    /// What a caller puts into `Authorization`.
    fn authorization(&self, caller: Caller, method: &Method, target: &str) -> Option<String> {
        let good = SignedRequest {
            gateway: self.id.clone(),
            method: method.to_string(),
            path: target.to_owned(),
            issued: self.now,
            expires: self.now + 120,
        };
        match caller {
            Caller::Anonymous => None,
            Caller::Owner => dsse_header(&self.owner, &good),
            Caller::Other => dsse_header(&self.other, &good),
            Caller::Verifier => dsse_header(&self.verifier, &good),
            Caller::Admin => dsse_header(&self.admin, &good),
            Caller::Revoked => dsse_header(&self.revoked, &good),
            Caller::Frozen => dsse_header(&self.frozen, &good),
            Caller::FrozenAdmin => dsse_header(&self.frozen_admin, &good),
            Caller::Stranger => dsse_header(&self.stranger, &good),
            Caller::Impostor => {
                dsse_header(&SecretKey::from_seed(self.owner.name().clone(), &[9; 32]), &good)
            }
            Caller::ForAnotherPath => {
                dsse_header(&self.owner, &SignedRequest { path: format!("{target}x"), ..good })
            }
            Caller::ForAnotherMethod => {
                dsse_header(&self.owner, &SignedRequest { method: "DELETE".into(), ..good })
            }
            Caller::ForAnotherGateway => {
                dsse_header(&self.owner, &SignedRequest { gateway: "00".repeat(16), ..good })
            }
            Caller::Outdated => {
                let issued = self.now - 3600;
                dsse_header(&self.owner, &SignedRequest { issued, expires: issued + 120, ..good })
            }
            Caller::Token => Some(format!("Bearer {}", self.push.token)),
            Caller::OtherToken => Some(format!("Bearer {}", self.other_push.token)),
            Caller::WrongToken => Some(format!("Bearer {}", "A".repeat(self.push.token.len()))),
            Caller::Basic => Some(basic("alice", "secret")),
            Caller::StockToken => Some(basic("alice", &self.stock[0])),
            Caller::StockTokenUnderAnotherName => Some(basic("bob", &self.stock[0])),
            Caller::StockTokenForAnotherCache => Some(basic("alice", &self.stock[1])),
            Caller::RevokedStockToken => Some(basic("alice", &self.stock[2])),
            Caller::FrozenStockToken => Some(basic("fred", &self.stock[3])),
        }
    }

    fn ask(&self, method: &Method, target: &str, caller: Caller, body: Vec<u8>) -> Answer {
        let authorization = self.authorization(caller, method, target);
        let headers: Vec<(&str, &str)> =
            authorization.iter().map(|value| ("authorization", value.as_str())).collect();
        self.web.ask(method, &self.gateway.url(target), &headers, body)
    }

    /// The address of a route, with the owner's push and claim in it.
    fn target(&self, method: &Method, path: &str) -> String {
        // the gateway's own file to read, and one that may be put there
        let file = if method == Method::PUT { "debuginfo/0123abcd.debug" } else { "nix-cache-info" };
        path.replace("{cache}", "main")
            .replace("{push}", &self.push.status.push)
            .replace("{path}", self.push.status.paths[0].path.base_name())
            .replace("{epoch}", "1")
            .replace("{job}", "0123456789abcdef01234567")
            .replace("{hash}", &"0".repeat(52))
            .replace("{derivation}", &format!("{}-x.drv", "0".repeat(32)))
            .replace("{*file}", file)
    }

    /// A body with which the request is good, if its caller may make it.
    fn body(&self, method: &Method, path: &str) -> Vec<u8> {
        match (method.as_str(), path) {
            ("GET", _) => vec![],
            ("POST", "/api/v1/enrol") => {
                // each caller enrols another key
                let n = self.counter.get();
                self.counter.set(n + 1);
                let name = KeyName::new(&format!("newcomer-{n}")).unwrap();
                let key = SecretKey::from_seed(name, &[n; 32]);
                let code = self.gateway.admin(&["invite", "newcomer"]).line();
                let enrolment = Enrolment { code, key: key.public().to_string() };
                json(&Envelope::seal(dsse::ENROLMENT, &json(&enrolment), &key))
            }
            ("POST", "/api/v1/caches/{cache}/missing") => json(&MissingQuery {
                paths: vec![MissingPath { path: self::path(200), nar_hash: Sha256::of(b"") }],
            }),
            ("POST", "/api/v1/caches/{cache}/pushes") => announcement(&self.id, self.now, &self.owner, 1),
            ("POST", "/api/v1/acts") => {
                let groups = Deed::Groups { name: "alice".to_owned(), groups: vec![] };
                sealed_act(&act(&self.id, self.now, groups), &self.admin)
            }
            ("POST", "/api/v1/pushes/{push}/derivations") => zstd::encode_all(&[][..], 1).unwrap(),
            ("POST", "/api/v1/pushes/{push}/nars" | "/api/v1/caches/{cache}/tokens") => vec![],
            ("POST", "/api/v1/jobs/lease") => json(&LeaseQuery {
                systems: Default::default(),
                features: Default::default(),
                skills: Default::default(),
            }),
            // nobody comes so far with what isn't the job's token: `rebuild::leases` does
            ("POST" | "PUT", path) if path.starts_with("/api/v1/jobs/{job}/") => vec![],
            ("PUT", "/{cache}/push/{*file}") => b"{}".to_vec(),
            other => panic!("the route {other:?} is new: say here what a good request to it is"),
        }
    }
}

/// A good announcement of one path, each time with another nonce.
fn announcement(gateway: &str, now: u64, key: &SecretKey, n: u8) -> Vec<u8> {
    let (path, nar_hash) = (path(n), Sha256::of(&[n]));
    let print = fingerprint(&path, &nar_hash, 120, &Default::default());
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).unwrap();
    let announcement = Announcement {
        version: 1,
        audience: Audience { gateway: gateway.to_owned(), cache: "main".into() },
        nonce: pushgate_formats::hash::hex_encode(&nonce),
        issued: now,
        expires: now + 600,
        paths: vec![AnnouncedPath {
            path,
            nar_hash,
            nar_size: 120,
            references: vec![],
            deriver: None,
            ca: None,
            signature: key.sign(print.as_bytes()),
        }],
        derivations: vec![],
        realisations: vec![],
        inputs: false,
        builds: vec![],
    };
    json(&Envelope::seal(dsse::ANNOUNCEMENT, &json(&announcement), key))
}

#[test]
fn every_route_lets_in_whom_the_table_says_and_nobody_else() {
    let stage = Stage::set();
    let mut asked = 0;
    for (method, path, access) in table() {
        let target = stage.target(&method, path);
        assert!(!target.contains('{'), "the route `{path}` has a new parameter: say what stands for it");
        for caller in CALLERS {
            let answer = stage.ask(&method, &target, caller, stage.body(&method, path));
            let wanted = expected(access, path, caller);
            assert_eq!(
                answer.status.as_u16(),
                wanted,
                "{method} {path} ({access:?}) by {caller:?}: {}",
                answer.text()
            );
            if wanted >= 400 {
                let code = answer.code();
                assert!(code.is_some(), "{method} {path} by {caller:?}: {}", answer.text());
                assert_eq!(answer.header("cache-control"), "no-store");
            }
            if method == Method::GET {
                // HEAD comes with each GET and must tell nobody more
                let head = stage.ask(&Method::HEAD, &target, caller, vec![]);
                assert_eq!(head.status.as_u16(), wanted, "HEAD {path} by {caller:?}");
                assert!(head.body.is_empty());
            }
            asked += 1;
        }
    }
    assert_eq!(asked, table().len() * CALLERS.len());

    // all of it changed nothing: the push waits, nothing was taken or published
    let status: PushStatus = stage
        .ask(&Method::GET, &stage.target(&Method::GET, "/api/v1/pushes/{push}"), Caller::Token, vec![])
        .json();
    assert_eq!((status.paths[0].state, status.wanted.len()), (PathState::Wanted, 1));
    assert_eq!(stage.gateway.metric("pushgate_nars_taken_total"), 0);
    assert_eq!(names(&stage.gateway.public("main")), ["nix-cache-info"]);
}

#[test]
fn what_is_not_in_the_table_does_not_exist() {
    let stage = Stage::set();
    let all = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];
    for (_, path, _) in table() {
        let target = stage.target(&Method::GET, path);
        let known: Vec<Method> =
            table().into_iter().filter(|(_, other, _)| *other == path).map(|(method, _, _)| method).collect();
        for method in all.iter().filter(|method| !known.contains(method)) {
            for caller in [Caller::Anonymous, Caller::Owner, Caller::Admin, Caller::Token] {
                let answer = stage.ask(method, &target, caller, vec![]);
                let code = answer.code();
                let said = (answer.status.as_u16(), code.as_deref());
                assert_eq!(said, (405, Some("method-not-allowed")), "{method} {path} by {caller:?}");
            }
        }
    }
    for target in ["/", "/api", "/api/v1", "/api/v1/keys", "/api/v1/invites", "/api/v1/pushes/", "/debug"] {
        for caller in [Caller::Anonymous, Caller::Owner, Caller::Admin] {
            let answer = stage.ask(&Method::GET, target, caller, vec![]);
            assert_eq!(answer.status.as_u16(), 404, "{target} by {caller:?}");
        }
    }
}

#[test]
fn what_is_signed_counts_by_who_signed_it() {
    let stage = Stage::set();
    let announce = |key: &SecretKey| {
        let body = announcement(&stage.id, stage.now, key, 1);
        let url = stage.gateway.url("/api/v1/caches/main/pushes");
        let answer = stage.web.ask(&Method::POST, &url, &[], body);
        (answer.status.as_u16(), answer.code())
    };
    let forbidden = |code: &str| (403, Some(code.to_owned()));
    assert_eq!(announce(&stage.owner), (200, None));
    assert_eq!(announce(&stage.other), (200, None));
    assert_eq!(announce(&stage.verifier), forbidden("forbidden"));
    assert_eq!(announce(&stage.admin), forbidden("forbidden"));
    assert_eq!(announce(&stage.revoked), forbidden("key-revoked"));
    assert_eq!(announce(&stage.stranger), forbidden("key-unknown"));
    let impostor = SecretKey::from_seed(stage.owner.name().clone(), &[9; 32]);
    assert_eq!(announce(&impostor).0, 403);

    let enrol = |code: &str, signer: &SecretKey, enrolled: &SecretKey| {
        let enrolment = Enrolment { code: code.to_owned(), key: enrolled.public().to_string() };
        let body = json(&Envelope::seal(dsse::ENROLMENT, &json(&enrolment), signer));
        let answer = stage.web.ask(&Method::POST, &stage.gateway.url("/api/v1/enrol"), &[], body);
        (answer.status.as_u16(), answer.code())
    };
    let code = stage.gateway.admin(&["invite", "newcomer"]).line();
    let fresh = SecretKey::from_seed(KeyName::new("newcomer-1").unwrap(), &[11; 32]);
    // nobody enrols a key that isn't his, and the attempt doesn't use up the invite
    assert_eq!(enrol(&code, &stage.stranger, &fresh), forbidden("signature-invalid"));
    assert_eq!(enrol(&"0".repeat(32), &fresh, &fresh), forbidden("invite-invalid"));
    assert_eq!(enrol(&code, &fresh, &fresh), (200, None));
    assert_eq!(enrol(&code, &stage.stranger, &stage.stranger), forbidden("invite-invalid"));
}

/// Acts are by whoever signed them, too.
#[test]
fn only_admins_act_on_identities() {
    let stage = Stage::set();
    let send = |key: &SecretKey| {
        let freeze = Deed::Freeze { name: "bob".to_owned() };
        let body = sealed_act(&act(&stage.id, stage.now, freeze), key);
        let answer = stage.web.ask(&Method::POST, &stage.gateway.url("/api/v1/acts"), &[], body);
        (answer.status.as_u16(), answer.code())
    };
    let forbidden = |code: &str| (403, Some(code.to_owned()));
    for key in [&stage.owner, &stage.other, &stage.verifier] {
        assert_eq!(send(key), forbidden("forbidden"), "{}", key.name());
    }
    assert_eq!(send(&stage.revoked), forbidden("key-revoked"));
    assert_eq!(send(&stage.frozen), forbidden("identity-frozen"));
    assert_eq!(send(&stage.frozen_admin), forbidden("identity-frozen"));
    assert_eq!(send(&stage.stranger), forbidden("key-unknown"));
    let impostor = SecretKey::from_seed(stage.admin.name().clone(), &[9; 32]);
    assert_eq!(send(&impostor), forbidden("signature-invalid"));
    let announce = |key: &SecretKey| {
        let body = announcement(&stage.id, stage.now, key, 9);
        stage.web.ask(&Method::POST, &stage.gateway.url("/api/v1/caches/main/pushes"), &[], body).status
    };
    assert_eq!(announce(&stage.other), 200, "nobody was frozen");
    assert_eq!(announce(&stage.frozen), 403);
    assert_eq!(send(&stage.admin), (200, None));
    assert_eq!(announce(&stage.other), 403);
}

#[test]
fn a_frozen_submitter_stops_at_once() {
    let stage = Stage::set();
    let push = &stage.frozen_push;
    let bearer = format!("Bearer {}", push.token);
    for what in ["derivations", "nars"] {
        let url = stage.gateway.url(&format!("/api/v1/pushes/{}/{what}", push.status.push));
        let answer = stage.web.ask(&Method::POST, &url, &[("authorization", &bearer)], vec![]);
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_deref()),
            (403, Some("identity-frozen")),
            "{what}"
        );
    }
    assert_eq!(stage.gateway.metric("pushgate_nars_taken_total"), 0);
}

#[test]
fn a_revoked_key_stops_its_pushes_at_once() {
    let stage = Stage::set();
    let push = &stage.revoked_push;
    let bearer = format!("Bearer {}", push.token);
    for what in ["derivations", "nars"] {
        let url = stage.gateway.url(&format!("/api/v1/pushes/{}/{what}", push.status.push));
        let answer = stage.web.ask(&Method::POST, &url, &[("authorization", &bearer)], vec![]);
        assert_eq!((answer.status.as_u16(), answer.code().as_deref()), (403, Some("key-revoked")), "{what}");
    }
    assert_eq!(stage.gateway.metric("pushgate_nars_taken_total"), 0);
}

/// What a crate links, all the way down.
fn dependencies(package: &str) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tree = Command::new(cargo);
    tree.args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--offline", "--locked"]);
    let output = tree.args(["--package", package]).current_dir(workspace()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Whether a crate is this one or a part of it.
fn is_of(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

#[test]
fn pure_crates_stay_pure_and_the_client_does_not_link_the_server() {
    // the test can tell: the server has them all
    let server = dependencies("pushgate-gateway");
    for family in ["tokio", "axum", "sqlx", "reqwest", "hyper"] {
        assert!(server.iter().any(|name| is_of(name, family)), "{family}");
    }
    for package in ["pushgate-formats", "pushgate-policies"] {
        for name in dependencies(package) {
            for family in ["tokio", "axum", "sqlx", "reqwest", "hyper", "async-std", "getrandom"] {
                assert!(!is_of(&name, family), "{package} depends on {name}");
            }
        }
    }
    let client = dependencies("pushgate-client");
    assert!(client.iter().any(|name| name == "tokio"));
    // the policies, being pure, it does: that is how policy files are tried without a gateway
    for family in ["pushgate-gateway", "axum", "sqlx"] {
        assert!(!client.iter().any(|name| is_of(name, family)), "the client depends on {family}");
    }
}
