-- Blind experiments and their labels: one file, owned by one server. app/blind/tables.py alone reads and writes it.
-- Times are UTC. Tokens that give rights are kept as SHA-256 only, but for invitations, which are handed round.

CREATE TABLE meta (
    schema_version INTEGER NOT NULL,
    cookie_secret BLOB NOT NULL,         -- 32 random bytes, made once
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE experiments (
    experiment VARCHAR PRIMARY KEY,      -- random
    title VARCHAR NOT NULL,
    design VARCHAR NOT NULL,             -- JSON, defaults written out; never changes
    study VARCHAR NOT NULL,              -- JSON: name, hashes of settings, tokens and SAEs
    organiser_sha256 VARCHAR NOT NULL, invite VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL,
    frozen_at TIMESTAMP,                 -- first answer to a trial that counts
    closed_at TIMESTAMP                  -- no sessions and no answers any more
);

-- A latent with what raters see of it, as it was when the experiment was made: a study built anew changes nothing here.
CREATE TABLE items (
    experiment VARCHAR NOT NULL, item INTEGER NOT NULL,
    sae INTEGER NOT NULL, variant VARCHAR NOT NULL, layer INTEGER NOT NULL, latent INTEGER NOT NULL,
    density DOUBLE NOT NULL,             -- share of tokens
    statistics VARCHAR NOT NULL,         -- JSON: statistic to number or null
    evidence VARCHAR NOT NULL,           -- JSON: app.blind.evidence.Evidence
    gold_evidence VARCHAR,               -- the same, shuffled; NULL for latents that are never gold
    PRIMARY KEY (experiment, item)
);

CREATE TABLE pairs (
    experiment VARCHAR NOT NULL, pair INTEGER NOT NULL,
    role VARCHAR NOT NULL,               -- main | practice
    trained_item INTEGER NOT NULL, random_item INTEGER NOT NULL,
    PRIMARY KEY (experiment, pair)
);

-- One rater's run through an experiment.
CREATE TABLE sessions (
    session VARCHAR PRIMARY KEY,         -- random
    experiment VARCHAR NOT NULL,
    pseudonym VARCHAR NOT NULL,          -- unique in its experiment; no personal data
    kind VARCHAR NOT NULL,               -- person | program
    seed BIGINT NOT NULL,                -- with the experiment's pairs, gives the trials
    token_sha256 VARCHAR,                -- of a program's bearer token
    started_at TIMESTAMP NOT NULL, finished_at TIMESTAMP,
    left_early BOOLEAN NOT NULL,
    client VARCHAR,                      -- the same for all sessions of one browser, or of one program; not in the cookie
    practice VARCHAR                     -- why it does not count: again | known; NULL: it does
);

CREATE TABLE trials (
    trial VARCHAR PRIMARY KEY,           -- random
    session VARCHAR NOT NULL, position INTEGER NOT NULL,
    kind VARCHAR NOT NULL,               -- practice | main | repeat | gold
    left_item INTEGER NOT NULL,
    right_item INTEGER,                  -- NULL: one latent alone
    truth VARCHAR NOT NULL,              -- trained | random, or left | right: the side of the trained one
    repeats INTEGER                      -- position of the trial that this one shows again
);

-- Append-only: of a trial, the row of the highest revision stands, or nothing if that is an 'undo'.
CREATE TABLE labels (
    trial VARCHAR NOT NULL, revision INTEGER NOT NULL, session VARCHAR NOT NULL,
    event VARCHAR NOT NULL,              -- label | skip | undo
    answer INTEGER,                      -- 1 surely random .. 6 surely trained; 1 surely left .. 6 surely right
    reason VARCHAR,                      -- of a skip
    seconds DOUBLE,                      -- from first paint to answer
    hidden_seconds DOUBLE,               -- of these, with the tab hidden
    written_at TIMESTAMP NOT NULL,
    PRIMARY KEY (trial, revision),
    CHECK (event IN ('label', 'skip', 'undo')),
    CHECK ((answer IS NOT NULL) = (event = 'label') AND coalesce(answer, 1) BETWEEN 1 AND 6)
);
