-- Evidence about claims, the decisions made upon it, and the policies that made them: each is only ever added to.

CREATE TABLE evidence (
    id       INTEGER PRIMARY KEY,
    cache    TEXT NOT NULL REFERENCES caches (name),
    path     TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('submitter', 'approval', 'waiver', 'refusal', 'settlement')),
    identity INTEGER NOT NULL REFERENCES identities (id),
    key      TEXT NOT NULL REFERENCES keys (public), -- with its revocation the evidence stops to count
    until    INTEGER,                    -- seconds since 1970; null: for good
    word     TEXT,                       -- of a waiver: which requirement
    reason   TEXT NOT NULL,              -- the person's words
    envelope BLOB,                       -- the signed act; null where the claim's own push is what shows it
    created  INTEGER NOT NULL
) STRICT;
CREATE INDEX evidence_by_path ON evidence (cache, path);
CREATE UNIQUE INDEX evidence_once ON evidence (cache, path, nar_hash, identity) WHERE kind = 'submitter';
CREATE TRIGGER evidence_stays BEFORE DELETE ON evidence BEGIN SELECT raise(ABORT, 'evidence is never deleted'); END;
CREATE TRIGGER evidence_is BEFORE UPDATE ON evidence BEGIN SELECT raise(ABORT, 'evidence is never changed'); END;

CREATE TABLE policies (
    digest TEXT NOT NULL,                -- sha256 of the file's text
    cache  TEXT NOT NULL REFERENCES caches (name),
    text   BLOB NOT NULL,                -- zstd
    since  INTEGER NOT NULL,             -- first in force
    PRIMARY KEY (cache, digest)
) STRICT;

CREATE TABLE decisions (
    id       INTEGER PRIMARY KEY,
    claim    INTEGER NOT NULL,
    cache    TEXT NOT NULL,
    policy   TEXT NOT NULL,              -- digest of the policy that made it
    decision TEXT NOT NULL CHECK (decision IN ('publish', 'hold', 'reject')),
    rule     TEXT,
    code     TEXT,
    facts    BLOB NOT NULL,              -- JSON: what it rested on
    digest   TEXT NOT NULL,              -- of the facts, but for the time
    made     INTEGER NOT NULL
) STRICT;
CREATE INDEX decisions_by_claim ON decisions (claim, id);
CREATE INDEX decisions_by_cache ON decisions (cache, id);

ALTER TABLE claims ADD COLUMN decision INTEGER; -- the last one
ALTER TABLE claims ADD COLUMN again INTEGER;    -- seconds since 1970: when time alone may change it
CREATE INDEX claims_due ON claims (again) WHERE again IS NOT NULL AND state = 'held';
CREATE INDEX claims_held ON claims (cache, id) WHERE state = 'held';

-- Bytes of NARs that came from an identity, by the hour, for as long as a limit by the day looks back.
CREATE TABLE sent (
    identity INTEGER NOT NULL,
    hour     INTEGER NOT NULL,           -- since 1970
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (identity, hour)
) STRICT, WITHOUT ROWID;
