-- Tables whose rows are long, by row number: without one, the part of a row beyond a quarter of a page takes pages of its
-- own, and each publication wrote three times what it had to.

CREATE TABLE quarantine_rows (
    identity  INTEGER NOT NULL,
    nar_hash  TEXT NOT NULL,
    pack      TEXT NOT NULL,             -- the stored object that holds the compressed NAR …
    start     INTEGER NOT NULL,          -- … from this byte on …
    length    INTEGER NOT NULL,          -- … for so many
    compression TEXT NOT NULL,
    examined  TEXT NOT NULL,             -- JSON: what the one pass over the bytes found
    expires   INTEGER NOT NULL,
    PRIMARY KEY (identity, nar_hash)
) STRICT;
INSERT INTO quarantine_rows SELECT * FROM quarantine;
DROP TABLE quarantine;
ALTER TABLE quarantine_rows RENAME TO quarantine;
CREATE INDEX quarantine_by_pack ON quarantine (pack);

CREATE TABLE published_rows (
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
) STRICT;
INSERT INTO published_rows SELECT * FROM published ORDER BY cache, seq;
DROP TABLE published;
ALTER TABLE published_rows RENAME TO published;
CREATE INDEX published_unseen ON published (cache, seq) WHERE visible = 0;

CREATE TABLE leaf_rows (
    cache TEXT NOT NULL,
    seq   INTEGER NOT NULL,
    body  BLOB NOT NULL,                 -- canonical JSON
    hash  TEXT NOT NULL,                 -- of the chain up to here
    PRIMARY KEY (cache, seq)
) STRICT;
INSERT INTO leaf_rows SELECT * FROM leaves ORDER BY cache, seq;
DROP TABLE leaves;
ALTER TABLE leaf_rows RENAME TO leaves;
