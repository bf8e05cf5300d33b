-- Blind experiments and their labels: one SQLite file, owned by one server. app/blind/labelfile.py alone reads and writes
-- it. Times are UTC, as text; truths are 0 or 1. Tokens that give rights are kept as SHA-256 only, but for invitations,
-- which are handed round. `checksum` is CRC-32 of the row's other values: SQLite would not see that a bit of them is wrong.

CREATE TABLE meta (
    schema_version INTEGER NOT NULL,
    schema_checksum INTEGER NOT NULL,    -- CRC-32 of the statements that made the tables
    cookie_secret TEXT NOT NULL,         -- 32 random bytes in hexadecimal, made once
    created_at TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE experiments (
    experiment TEXT PRIMARY KEY,         -- random
    title TEXT NOT NULL,
    design TEXT NOT NULL,                -- JSON, defaults written out; never changes
    study TEXT NOT NULL,                 -- JSON: name, hashes of settings, tokens and SAEs
    organiser_sha256 TEXT NOT NULL UNIQUE,
    invite TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    frozen_at TEXT,                      -- first answer to a trial that counts
    closed_at TEXT,                      -- no sessions and no answers any more
    checksum INTEGER NOT NULL
) STRICT;

-- A latent with what raters see of it, as it was when the experiment was made: a study built anew changes nothing here.
CREATE TABLE items (
    experiment TEXT NOT NULL REFERENCES experiments,
    item INTEGER NOT NULL,
    pair INTEGER NOT NULL,               -- a trained latent and a random one
    role TEXT NOT NULL,                  -- main | practice
    trained INTEGER NOT NULL,
    sae INTEGER NOT NULL,
    variant TEXT NOT NULL,
    layer INTEGER NOT NULL,
    latent INTEGER NOT NULL,
    density REAL NOT NULL,               -- share of tokens
    statistics TEXT NOT NULL,            -- JSON: statistic to number or null
    evidence TEXT NOT NULL,              -- JSON: app.blind.evidence.Evidence
    gold_evidence TEXT,                  -- the same, shuffled; NULL for latents that are never gold
    checksum INTEGER NOT NULL,
    PRIMARY KEY (experiment, item),
    UNIQUE (experiment, pair, trained)
) STRICT;

-- One rater's run through an experiment.
CREATE TABLE sessions (
    session TEXT PRIMARY KEY,            -- random
    experiment TEXT NOT NULL REFERENCES experiments,
    pseudonym TEXT NOT NULL,             -- unique in its experiment; no personal data
    kind TEXT NOT NULL,                  -- person | program
    seed INTEGER NOT NULL,               -- with the experiment's pairs, gives the trials
    token_sha256 TEXT UNIQUE,            -- of a program's bearer token
    started_at TEXT NOT NULL,
    finished_at TEXT,
    left_early INTEGER NOT NULL,
    client TEXT NOT NULL,                -- the same for all sessions of one browser, or of one program; not in the cookie
    practice TEXT,                       -- why it does not count: again | known; NULL: it does
    checksum INTEGER NOT NULL,
    UNIQUE (experiment, pseudonym)
) STRICT;

CREATE INDEX sessions_of_a_client ON sessions (client);

CREATE TABLE trials (
    trial TEXT PRIMARY KEY,              -- random
    session TEXT NOT NULL REFERENCES sessions,
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,                  -- practice | main | repeat | gold
    left_item INTEGER NOT NULL,
    right_item INTEGER,                  -- NULL: one latent alone
    truth TEXT NOT NULL,                 -- trained | random, or left | right: the side of the trained one
    repeats INTEGER,                     -- position of the trial that this one shows again
    checksum INTEGER NOT NULL,
    UNIQUE (session, position)
) STRICT;

-- Append-only: of a trial, the row of the highest revision stands, or nothing if that is an 'undo'.
CREATE TABLE labels (
    trial TEXT NOT NULL REFERENCES trials,
    revision INTEGER NOT NULL,
    event TEXT NOT NULL,                 -- label | skip | undo
    answer INTEGER,                      -- 1 surely random .. 6 surely trained; 1 surely left .. 6 surely right
    reason TEXT,                         -- of a skip
    seconds REAL,                        -- from first paint to answer
    hidden_seconds REAL,                 -- of these, with the tab hidden
    written_at TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (trial, revision),
    CHECK (event IN ('label', 'skip', 'undo')),
    CHECK ((answer IS NOT NULL) = (event = 'label') AND coalesce(answer, 1) BETWEEN 1 AND 6)
) STRICT, WITHOUT ROWID;
