-- Stock Nix as a client: its tokens, and what comes before or beside its narinfos.

-- What stands in a submitter's netrc file. Bound to a submitter and a cache; the token itself is stored nowhere.
CREATE TABLE tokens (
    hash     TEXT PRIMARY KEY,           -- sha256 of the token: reading the database doesn't let anyone in
    identity INTEGER NOT NULL REFERENCES identities (id),
    cache    TEXT NOT NULL REFERENCES caches (name),
    created  INTEGER NOT NULL,
    expires  INTEGER,
    revoked  INTEGER
) STRICT;
CREATE INDEX tokens_by_identity ON tokens (identity);

-- What a push was announced by: the envelope of an announcement, or the one narinfo that stock Nix sent.
ALTER TABLE pushes ADD COLUMN kind TEXT NOT NULL DEFAULT 'announcement';

-- Where a claim says that its proof is to be looked for; a hint, as the claim has it.
ALTER TABLE claims ADD COLUMN deriver TEXT;
CREATE INDEX claims_by_deriver ON claims (cache, deriver) WHERE deriver IS NOT NULL;

-- NAR files that came before the narinfo that names them, or lately did: they keep quarantined bytes from being swept.
CREATE TABLE stock_nars (
    identity INTEGER NOT NULL,
    cache    TEXT NOT NULL,
    file     TEXT NOT NULL,              -- as in the URL, without nar/
    nar_hash TEXT NOT NULL,
    expires  INTEGER NOT NULL,
    PRIMARY KEY (identity, cache, file)
) STRICT, WITHOUT ROWID;
CREATE INDEX stock_nars_by_nar ON stock_nars (identity, nar_hash);

-- Build logs that wait for an output of their derivation to be published.
CREATE TABLE build_logs (
    cache      TEXT NOT NULL,
    derivation TEXT NOT NULL,
    identity   INTEGER NOT NULL,
    text       BLOB NOT NULL,            -- zstd
    size       INTEGER NOT NULL,         -- of the text itself
    expires    INTEGER NOT NULL,
    PRIMARY KEY (cache, derivation, identity)
) STRICT, WITHOUT ROWID;
CREATE INDEX build_logs_by_identity ON build_logs (identity);
