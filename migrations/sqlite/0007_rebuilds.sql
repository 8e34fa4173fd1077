-- What verifiers are asked to build, what came of it, and what was made of that.

CREATE TABLE jobs (
    number     INTEGER PRIMARY KEY,       -- in the order that they were asked for
    id         TEXT NOT NULL UNIQUE,      -- random
    cache      TEXT NOT NULL REFERENCES caches (name),
    derivation TEXT NOT NULL,
    turn       INTEGER NOT NULL,          -- how many jobs of this derivation there were before: asking twice makes one
    purpose    TEXT NOT NULL CHECK (purpose IN ('build', 'rebuild', 'audit')),
    priority   INTEGER NOT NULL,          -- lower ones first
    system     TEXT NOT NULL,
    features   TEXT NOT NULL,             -- a list: the verifier has to have them all
    identity   INTEGER REFERENCES identities (id), -- whose inputs it may use; null: only what is public
    except_owner TEXT,                    -- whose verifiers would count for nothing
    only_by    INTEGER REFERENCES identities (id), -- of a second build: who made the first
    limits     TEXT NOT NULL,             -- JSON
    state      TEXT NOT NULL CHECK (state IN ('open', 'leased', 'done', 'failed', 'cancelled')),
    attempts   INTEGER NOT NULL DEFAULT 0,
    after      INTEGER NOT NULL DEFAULT 0, -- not given out before
    token      TEXT,                      -- sha256 of the lease's token
    verifier   INTEGER REFERENCES identities (id), -- who has it, or had it last
    key        TEXT REFERENCES keys (public),
    owner      TEXT,                      -- whose verifier that is
    leased     INTEGER,                   -- since when
    expires    INTEGER,                   -- of the lease
    code       TEXT,                      -- of a failure
    message    TEXT,
    exit_code  INTEGER,
    log_length INTEGER NOT NULL DEFAULT 0,
    created    INTEGER NOT NULL,
    ended      INTEGER,
    UNIQUE (cache, derivation, turn)
) STRICT;
CREATE INDEX jobs_open ON jobs (priority, number) WHERE state = 'open';
CREATE INDEX jobs_leased ON jobs (expires) WHERE state = 'leased';

CREATE TABLE job_logs (
    job   TEXT NOT NULL,
    start INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (job, start)
) STRICT, WITHOUT ROWID;

CREATE TABLE attestations (
    job      TEXT PRIMARY KEY,
    envelope BLOB NOT NULL,               -- zstd
    addressed TEXT NOT NULL               -- a list: inputs that were shown to hash to their paths
) STRICT;

-- One row for each output that a verifier built: only ever added to.
CREATE TABLE rebuilds (
    id         INTEGER PRIMARY KEY,
    job        TEXT NOT NULL,
    cache      TEXT NOT NULL,
    derivation TEXT NOT NULL,
    output     TEXT NOT NULL,
    path       TEXT NOT NULL,
    nar_hash   TEXT NOT NULL,             -- what the verifier got
    nar_size   INTEGER NOT NULL,
    refs       TEXT NOT NULL,
    ca         TEXT,
    signature  TEXT NOT NULL,             -- NAME:base64, over the Nix fingerprint
    identity   INTEGER NOT NULL REFERENCES identities (id),
    key        TEXT NOT NULL REFERENCES keys (public), -- with its revocation the rebuild stops to count
    created    INTEGER NOT NULL,
    UNIQUE (job, output)
) STRICT;
CREATE INDEX rebuilds_by_path ON rebuilds (cache, path);
CREATE TRIGGER rebuilds_stay BEFORE DELETE ON rebuilds BEGIN SELECT raise(ABORT, 'rebuilds are never deleted'); END;
CREATE TRIGGER rebuilds_are BEFORE UPDATE ON rebuilds BEGIN SELECT raise(ABORT, 'rebuilds are never changed'); END;

-- Builds that a push asked for.
CREATE TABLE builds (
    push       TEXT NOT NULL REFERENCES pushes (id),
    position   INTEGER NOT NULL,
    cache      TEXT NOT NULL,
    identity   INTEGER NOT NULL,
    derivation TEXT NOT NULL,
    job        TEXT,                      -- null: not yet possible
    code       TEXT,                      -- why it isn't done
    message    TEXT,
    waits      TEXT NOT NULL DEFAULT '[]',
    expires    INTEGER NOT NULL,
    created    INTEGER NOT NULL,
    PRIMARY KEY (push, derivation)
) STRICT, WITHOUT ROWID;
CREATE INDEX builds_waiting ON builds (cache) WHERE job IS NULL AND code IS NULL;
CREATE INDEX builds_by_identity ON builds (identity, created);

-- What differs between what is claimed and what a verifier got.
CREATE TABLE differences (
    cache    TEXT NOT NULL,
    path     TEXT NOT NULL,
    claimed  TEXT NOT NULL,
    rebuilt  TEXT NOT NULL,
    report   BLOB,                        -- JSON, zstd; null where it can't be made
    problem  TEXT,
    found    INTEGER NOT NULL,
    PRIMARY KEY (cache, path, claimed, rebuilt)
) STRICT, WITHOUT ROWID;

-- What followed from a mismatch that was confirmed: once for each claim's contents.
CREATE TABLE mismatches (
    cache    TEXT NOT NULL,
    path     TEXT NOT NULL,
    nar_hash TEXT NOT NULL,               -- as claimed
    identity INTEGER NOT NULL REFERENCES identities (id), -- who claimed it
    key      TEXT NOT NULL REFERENCES keys (public),
    follows  TEXT NOT NULL,               -- reject, hold-key, freeze; of what was published mark, withdraw
    found    INTEGER NOT NULL,
    PRIMARY KEY (cache, path, nar_hash, key)
) STRICT, WITHOUT ROWID;

-- While it isn't null, nothing that the key has sent is published: an admin lets it go again.
ALTER TABLE keys ADD COLUMN held INTEGER;

-- The sample: seeds by epoch, draws, and what weighs in them.
CREATE TABLE epochs (
    cache  TEXT NOT NULL,
    number INTEGER NOT NULL,
    seed   BLOB NOT NULL,                 -- secret until the epoch is over
    opened INTEGER NOT NULL,
    closed INTEGER,
    PRIMARY KEY (cache, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE draws (
    id       INTEGER PRIMARY KEY,
    cache    TEXT NOT NULL,
    path     TEXT NOT NULL,
    nar_hash TEXT NOT NULL,
    identity INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    drawn    INTEGER NOT NULL,
    body     BLOB NOT NULL,               -- its leaf
    UNIQUE (cache, path, nar_hash)
) STRICT;
CREATE INDEX draws_by_epoch ON draws (cache, epoch, id);

CREATE TABLE packages (
    cache      TEXT NOT NULL,
    pname      TEXT NOT NULL,
    dependants INTEGER NOT NULL,          -- published paths that refer to one of it
    PRIMARY KEY (cache, pname)
) STRICT, WITHOUT ROWID;

CREATE TABLE reputations (
    identity   INTEGER PRIMARY KEY,
    claims     INTEGER NOT NULL DEFAULT 0, -- published with a rebuild
    matches    INTEGER NOT NULL DEFAULT 0, -- published with a rebuild, since the last mismatch
    mismatched INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Derivations of published paths that verifiers build again, though nobody waits for it.
CREATE TABLE audits (
    id         INTEGER PRIMARY KEY,
    cache      TEXT NOT NULL,
    derivation TEXT NOT NULL,
    due        INTEGER NOT NULL,          -- 1: since its submitter's key claimed something wrong; 0: drawn at random
    job        TEXT,                      -- the first one; null: not begun
    outcome    TEXT CHECK (outcome IN ('match', 'mismatch', 'inconclusive', 'failed')), -- null: not known yet
    created    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX audits_open ON audits (cache, derivation) WHERE outcome IS NULL;
CREATE INDEX audits_drawn ON audits (cache, created) WHERE due = 0;

-- Published paths of which verifiers agree that their derivations yield something else.
CREATE TABLE incidents (
    cache      TEXT NOT NULL,
    path       TEXT NOT NULL,
    nar_hash   TEXT NOT NULL,             -- as published
    rebuilt    TEXT NOT NULL,             -- what the verifiers got
    verifiers  TEXT NOT NULL,             -- a list of names
    dependants TEXT NOT NULL,             -- a list: what refers to it, directly or not
    found      INTEGER NOT NULL,
    PRIMARY KEY (cache, path)
) STRICT;

-- Since when it is no longer served. The row stays, and with it the pair of path and NAR hash.
ALTER TABLE published ADD COLUMN withdrawn INTEGER;
CREATE INDEX published_withdrawn ON published (cache) WHERE withdrawn IS NOT NULL;
