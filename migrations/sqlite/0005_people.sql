-- What people decide. Events stay as they were written: who did what, when and why, and the envelope that was signed.

CREATE TABLE events (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    time     INTEGER NOT NULL,
    who      TEXT NOT NULL,              -- an identity's name; `gateway`, or `gateway host` for a command run there
    key      TEXT,                       -- name of the key that signed
    kind     TEXT NOT NULL,
    cache    TEXT,
    path     TEXT,
    nar_hash TEXT,
    subject  TEXT,                       -- the identity or key that it was done to
    detail   TEXT NOT NULL,              -- what exactly, in words
    why      TEXT NOT NULL,              -- the person's reason
    envelope BLOB                        -- JSON of the DSSE envelope, as sent
) STRICT;
CREATE INDEX events_by_cache ON events (cache, id) WHERE cache IS NOT NULL;
CREATE INDEX events_by_path ON events (cache, path) WHERE path IS NOT NULL;

CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN
    SELECT RAISE(ABORT, 'events are never changed');
END;
CREATE TRIGGER events_are_kept BEFORE DELETE ON events BEGIN
    SELECT RAISE(ABORT, 'events are never deleted');
END;

-- Signed acts: the same envelope again is the same act, and a nonce is used once.
CREATE TABLE acts (
    digest  TEXT PRIMARY KEY,            -- of the envelope
    key     TEXT NOT NULL REFERENCES keys (public),
    nonce   TEXT NOT NULL,
    event   INTEGER NOT NULL REFERENCES events (id),
    changed INTEGER NOT NULL,            -- how many rows it changed, for the same answer again
    UNIQUE (key, nonce)
) STRICT;

-- all keys of an identity are shown together
CREATE INDEX keys_by_identity ON keys (identity);
