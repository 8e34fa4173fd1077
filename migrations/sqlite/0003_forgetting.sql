-- What is forgotten after a time, and what has to stay: a derivation is evidence for the published paths that it, or what
-- is built with it, made.

ALTER TABLE derivations ADD COLUMN payer INTEGER;        -- the identity in whose quota it counts, if any
ALTER TABLE derivations ADD COLUMN evidence INTEGER NOT NULL DEFAULT 0; -- 1: stays; 2: its inputs are marked as well
ALTER TABLE derivation_senders ADD COLUMN used INTEGER NOT NULL DEFAULT 0; -- when a push last announced it
ALTER TABLE pushes ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;     -- 1: only what is evidence is left of it

-- of those that are here already nobody wrote down what they are evidence for
UPDATE derivations SET evidence = 1;
UPDATE derivations SET payer = (SELECT min(identity) FROM derivation_senders s WHERE s.path = derivations.path);
UPDATE identities SET derivation_bytes =
    coalesce((SELECT sum(length(text)) FROM derivations d WHERE d.payer = identities.id), 0);
UPDATE derivation_senders SET used = unixepoch();

CREATE INDEX derivations_unmarked ON derivations (path) WHERE evidence = 1;
CREATE INDEX derivation_senders_by_path ON derivation_senders (path);
CREATE INDEX claims_open_by_identity ON claims (identity, push) WHERE state IN ('wanted', 'checking', 'held');
CREATE INDEX conflicts_by_claim ON conflicts (claim);
CREATE INDEX realisations_by_push ON realisations (push);
CREATE INDEX pushes_to_forget ON pushes (expires) WHERE forgotten = 0;
