-- Hashes are 52 base 32 digits, times are seconds since 1970 (UTC), store paths are base names, lists are JSON arrays.

CREATE TABLE gateway (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    id      TEXT NOT NULL,               -- random, pinned by clients as the audience of what they sign
    secret  BLOB NOT NULL,               -- makes push tokens
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE caches (
    name       TEXT PRIMARY KEY,
    public_key TEXT NOT NULL,            -- NAME:base64; the secret one is a file
    created    INTEGER NOT NULL
) STRICT;

CREATE TABLE identities (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    role    TEXT NOT NULL CHECK (role IN ('submitter', 'verifier', 'admin')),
    owner   TEXT,                        -- set by the admin only; without one the identity vouches for nobody
    groups  TEXT NOT NULL,
    frozen  INTEGER NOT NULL DEFAULT 0,
    derivation_bytes INTEGER NOT NULL DEFAULT 0, -- of derivations it was the first to send; they stay as evidence
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE keys (
    public   TEXT PRIMARY KEY,           -- 32 bytes in base 64: keys are known by their bytes
    name     TEXT NOT NULL UNIQUE,
    identity INTEGER NOT NULL REFERENCES identities (id),
    caches   TEXT,                       -- null: every cache
    created  INTEGER NOT NULL,
    expires  INTEGER,
    revoked  INTEGER
) STRICT;

CREATE TABLE invites (
    code    TEXT PRIMARY KEY,            -- sha256 of the code: reading the database doesn't let anyone in
    name    TEXT NOT NULL,
    role    TEXT NOT NULL,
    owner   TEXT,
    groups  TEXT NOT NULL,
    caches  TEXT,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    key_expires INTEGER,
    used    INTEGER,
    used_by TEXT                         -- the key: its own second try, after a lost answer, succeeds
) STRICT;

CREATE TABLE pushes (
    id       TEXT PRIMARY KEY,
    digest   TEXT NOT NULL UNIQUE,       -- of the announcement's envelope: the same one is the same push
    identity INTEGER NOT NULL REFERENCES identities (id),
    key      TEXT NOT NULL REFERENCES keys (public),
    cache    TEXT NOT NULL REFERENCES caches (name),
    nonce    TEXT NOT NULL,
    envelope BLOB NOT NULL,              -- zstd; the evidence from which proofs are made again
    created  INTEGER NOT NULL,
    expires  INTEGER NOT NULL,
    UNIQUE (key, nonce)
) STRICT;
CREATE INDEX pushes_by_identity ON pushes (identity, created);

CREATE TABLE claims (
    id       INTEGER PRIMARY KEY,
    push     TEXT NOT NULL REFERENCES pushes (id),
    cache    TEXT NOT NULL,
    path     TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    identity INTEGER NOT NULL,
    state    TEXT NOT NULL,
    code     TEXT,
    message  TEXT,
    waits    TEXT NOT NULL DEFAULT '[]',
    decided  INTEGER
) STRICT;
CREATE INDEX claims_by_push ON claims (push);
CREATE INDEX claims_by_path ON claims (cache, path);
CREATE INDEX claims_by_nar ON claims (identity, nar_hash);
CREATE INDEX claims_open ON claims (push) WHERE state IN ('wanted', 'checking', 'held');

-- Held claims by what they wait for, so that a publication finds those that it lets go on.
CREATE TABLE claim_waits (
    cache TEXT NOT NULL,
    path  TEXT NOT NULL,
    claim INTEGER NOT NULL REFERENCES claims (id),
    push  TEXT NOT NULL,
    PRIMARY KEY (cache, path, claim)
) STRICT, WITHOUT ROWID;
CREATE INDEX claim_waits_by_claim ON claim_waits (claim);

CREATE TABLE quarantine (
    identity  INTEGER NOT NULL,
    nar_hash  TEXT NOT NULL,
    pack      TEXT NOT NULL,             -- the stored object that holds the compressed NAR …
    start     INTEGER NOT NULL,          -- … from this byte on …
    length    INTEGER NOT NULL,          -- … for so many
    compression TEXT NOT NULL,
    examined  TEXT NOT NULL,             -- JSON: what the one pass over the bytes found
    expires   INTEGER NOT NULL,
    PRIMARY KEY (identity, nar_hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX quarantine_by_pack ON quarantine (pack);

CREATE TABLE derivations (
    path  TEXT PRIMARY KEY,
    text  BLOB NOT NULL,                 -- zstd
    facts TEXT                           -- JSON; null while an input is missing
) STRICT;

CREATE TABLE derivation_senders (
    identity INTEGER NOT NULL,
    path     TEXT NOT NULL,
    PRIMARY KEY (identity, path)
) STRICT, WITHOUT ROWID;

-- The pair (cache, path) keeps its NAR hash for ever: rows are never deleted.
CREATE TABLE published (
    cache     TEXT NOT NULL,
    hash_part TEXT NOT NULL,             -- narinfos are found by it alone, so no two names may share it
    path      TEXT NOT NULL,
    nar_hash  TEXT NOT NULL,
    refs      TEXT NOT NULL,
    narinfo   TEXT NOT NULL,
    seq       INTEGER NOT NULL,          -- of its leaf
    visible   INTEGER NOT NULL DEFAULT 0,
    created   INTEGER NOT NULL,
    PRIMARY KEY (cache, hash_part)
) STRICT, WITHOUT ROWID;
CREATE INDEX published_unseen ON published (cache, seq) WHERE visible = 0;

CREATE TABLE leaves (
    cache TEXT NOT NULL,
    seq   INTEGER NOT NULL,
    body  BLOB NOT NULL,                 -- canonical JSON
    hash  TEXT NOT NULL,                 -- of the chain up to here
    PRIMARY KEY (cache, seq)
) STRICT, WITHOUT ROWID;

-- Claims that differ from another claim or from what is published. Never overwritten, settled by an admin.
CREATE TABLE conflicts (
    cache    TEXT NOT NULL,
    path     TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    claim    INTEGER NOT NULL REFERENCES claims (id),
    found    INTEGER NOT NULL,
    PRIMARY KEY (cache, path, nar_hash, claim)
) STRICT, WITHOUT ROWID;

-- What an upstream was found to have, its signature checked.
CREATE TABLE upstream_paths (
    url       TEXT NOT NULL,
    public_key TEXT NOT NULL,            -- a fact holds only for the key that it was checked with
    path      TEXT NOT NULL,
    nar_hash  TEXT NOT NULL,
    refs      TEXT NOT NULL,
    found     INTEGER NOT NULL,
    PRIMARY KEY (path, url, public_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE realisations (
    cache    TEXT NOT NULL,
    id       TEXT NOT NULL,              -- sha256:HEX!OUTPUT
    path     TEXT NOT NULL,
    push     TEXT NOT NULL REFERENCES pushes (id),
    state    TEXT NOT NULL,
    code     TEXT NOT NULL,
    PRIMARY KEY (cache, id, path, push)
) STRICT, WITHOUT ROWID;
