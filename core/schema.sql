-- One study, one file: the contract between the halves. pipeline/database.py fills these tables, app/study/queries.py reads them.
-- Rows are sorted by their keys when written: DuckDB then skips the blocks a latent cannot be in.

-- The study itself: one row.
CREATE TABLE study (
    name         VARCHAR NOT NULL,
    title        VARCHAR NOT NULL,
    config       VARCHAR NOT NULL,   -- the whole study file, as YAML, defaults written out
    seed         BIGINT  NOT NULL,
    complete     BOOLEAN NOT NULL,   -- false while stages are still running
    planned_saes INTEGER NOT NULL    -- SAEs that a complete study has
);

-- What else decides the result: versions, precision, hashes. The same on every run of the same study here.
CREATE TABLE provenance (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);

-- What differs between two runs of the same study, and only that: seconds, machine load, dates.
CREATE TABLE timings (
    stage VARCHAR NOT NULL, model VARCHAR, variant VARCHAR,
    sae INTEGER,                     -- NULL for a stage that serves several SAEs
    seconds DOUBLE NOT NULL, tokens BIGINT, hardware VARCHAR NOT NULL
);

CREATE TABLE models (
    model VARCHAR PRIMARY KEY, source VARCHAR NOT NULL, architecture VARCHAR NOT NULL,
    n_layers INTEGER NOT NULL, d_model INTEGER NOT NULL, vocab_size INTEGER NOT NULL,
    parameters BIGINT NOT NULL,
    note VARCHAR NOT NULL            -- such as 'weights are 4-bit (Q4_1), de-quantised'
);

CREATE TABLE variants (
    variant VARCHAR PRIMARY KEY, position INTEGER NOT NULL, label VARCHAR NOT NULL,
    description VARCHAR NOT NULL, is_trained BOOLEAN NOT NULL, seed BIGINT NOT NULL
);

-- Every weight tensor of every draw of every variant, with the hash of what was really run.
CREATE TABLE tensors (
    model VARCHAR NOT NULL, variant VARCHAR NOT NULL, variant_seed INTEGER NOT NULL, name VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,           -- embedding | norm | weight | bias
    randomised BOOLEAN NOT NULL, shape INTEGER[] NOT NULL,
    mean DOUBLE NOT NULL, std DOUBLE NOT NULL, sha256 VARCHAR NOT NULL
);

-- Models with tokenisers of their own cut the text in ways of their own: text and tokens belong to a model.
CREATE TABLE articles (
    model VARCHAR NOT NULL, article INTEGER NOT NULL, title VARCHAR NOT NULL,
    split VARCHAR NOT NULL,          -- train | held_out
    tokens INTEGER NOT NULL,
    PRIMARY KEY (model, article)
);

-- The one copy of the text: contexts point into it.
CREATE TABLE sequences (
    model VARCHAR NOT NULL, sequence INTEGER NOT NULL, article INTEGER NOT NULL, split VARCHAR NOT NULL,
    tokens INTEGER[] NOT NULL,
    PRIMARY KEY (model, sequence)
);

-- Every token of a vocabulary as text (bytes that are no UTF-8 become U+FFFD).
CREATE TABLE vocabulary (
    model VARCHAR NOT NULL, token INTEGER NOT NULL, text VARCHAR NOT NULL, PRIMARY KEY (model, token)
);

-- What every number means; the pages draw columns, axes and tooltips from here.
CREATE TABLE metrics (
    metric VARCHAR NOT NULL,
    level VARCHAR NOT NULL,          -- sae: a row of sae_metrics | latent: a column of latents
    position INTEGER NOT NULL, label VARCHAR NOT NULL, unit VARCHAR NOT NULL,
    description VARCHAR NOT NULL,    -- with formula and source
    higher_is_better BOOLEAN,        -- NULL: neither
    scale VARCHAR NOT NULL,          -- linear | log
    lower DOUBLE, upper DOUBLE,      -- bounds of the axis, where the metric has them
    scorer VARCHAR, explain_from VARCHAR, score_on VARCHAR  -- of a score, by which protocol; NULL for the rest
);

-- What says which SAE it is: model, hook, name, variant_seed and sae_seed are its setting; within one setting there is
-- one SAE for each variant and layer. Pages show one setting, or all of its seeds.
CREATE TABLE saes (
    sae INTEGER PRIMARY KEY, model VARCHAR NOT NULL,
    hook VARCHAR NOT NULL,           -- resid_post | mlp_out | attn_out
    name VARCHAR NOT NULL,           -- of the study file's section `saes`
    variant_seed INTEGER NOT NULL,   -- which draw of the variant, from 0; always 0 for a variant without randomness
    sae_seed INTEGER NOT NULL,       -- which training of the SAE, from 0
    variant VARCHAR NOT NULL, layer INTEGER NOT NULL,
    hook_name VARCHAR NOT NULL,      -- TransformerLens' name of the hook point
    architecture VARCHAR NOT NULL,
    d_in INTEGER NOT NULL, d_sae INTEGER NOT NULL,
    k INTEGER,                       -- NULL where the architecture has none
    seed BIGINT NOT NULL,
    training_steps INTEGER NOT NULL, training_tokens BIGINT NOT NULL,
    collected_tokens BIGINT NOT NULL,   -- tokens over which the latents' statistics were taken
    normalisation DOUBLE NOT NULL,      -- factor on raw activations: makes their mean norm sqrt(d_in)
    path VARCHAR NOT NULL,              -- folder that SAELens' SAE.load_from_disk reads, relative to this file
    sha256 VARCHAR NOT NULL             -- of its weights
);

CREATE TABLE sae_metrics (
    sae INTEGER NOT NULL, metric VARCHAR NOT NULL,
    value DOUBLE,                    -- NULL unless status is 'ok'
    status VARCHAR NOT NULL,         -- ok | not_applicable
    reason VARCHAR NOT NULL          -- why there is no value; '' when there is
);

-- One row a latent: every statistic a column, so that every list sorts and filters in SQL.
CREATE TABLE latents (
    sae INTEGER NOT NULL, latent INTEGER NOT NULL,
    state VARCHAR NOT NULL,          -- alive | dead (never active on the collected tokens)
    firings BIGINT NOT NULL,         -- tokens on which it is active
    density DOUBLE NOT NULL,         -- share of tokens
    max_activation DOUBLE,           -- NULL for a dead latent, like all that follows
    mean_activation DOUBLE,          -- over the tokens on which it is active
    token_entropy DOUBLE,            -- nats, over a fixed number of activating tokens
    token_entropy_all DOUBLE,        -- nats, over all of them
    top_token INTEGER,               -- the token with the largest share of activation mass
    top_token_share DOUBLE,
    decoder_norm DOUBLE,             -- NULL where it is no finite number
    largest_cosine DOUBLE,           -- of its decoder row to another's
    -- The rest follows from the tables `explanations`, `scores` and `matches`; store.py fills it in.
    score_state VARCHAR NOT NULL DEFAULT 'pending',
        -- pending | scored | failed | dead | too_few_contexts | too_few_non_activating_contexts | sae_failed
    best_match_correlation DOUBLE,   -- largest over the other variants at the same layer
    PRIMARY KEY (sae, latent)
);
-- and a column for the AUROC of every score that the study has, named and described by a row of `metrics` with a scorer;
-- scorers that ask a model have values for a sample of the scored latents only

-- A window of a sequence; positions (within the window) and activations are parallel, ascending, non-zero only.
CREATE TABLE contexts (
    sae INTEGER NOT NULL, latent INTEGER NOT NULL,
    kind VARCHAR NOT NULL,           -- top | quantile | non_activating
    stratum INTEGER NOT NULL,        -- quantile: 0 is the weakest; otherwise 0
    rank INTEGER NOT NULL,           -- within kind and stratum, 0 first
    sequence INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
    positions UTINYINT[] NOT NULL, activations FLOAT[] NOT NULL
);

-- Equal-width bins from 0 (exclusive) to upper, the latent's own maximum, over the tokens on which it is active.
CREATE TABLE histograms (sae INTEGER NOT NULL, latent INTEGER NOT NULL, upper DOUBLE NOT NULL, counts INTEGER[] NOT NULL);

-- Direct effect of the decoder row on the logits (final norm's gain applied, its scale left out), strongest first.
CREATE TABLE logit_effects (
    sae INTEGER NOT NULL, latent INTEGER NOT NULL, sign INTEGER NOT NULL,  -- +1 promoted | -1 suppressed
    tokens INTEGER[] NOT NULL, effects FLOAT[] NOT NULL
);

-- Text for people, rules for programs (JSON). status: ok | failed | not_applicable, the last two with a reason:
-- a failure is never a text.
CREATE TABLE explanations (
    sae INTEGER NOT NULL, latent INTEGER NOT NULL, explainer VARCHAR NOT NULL,
    explain_from VARCHAR NOT NULL,   -- strongest | quantiles | random: which contexts the explainer saw
    text VARCHAR, rules VARCHAR, status VARCHAR NOT NULL, reason VARCHAR NOT NULL
);

-- How well an explanation holds on contexts that the explainer has not seen.
CREATE TABLE scores (
    sae INTEGER NOT NULL, latent INTEGER NOT NULL, explainer VARCHAR NOT NULL, scorer VARCHAR NOT NULL,
    explain_from VARCHAR NOT NULL, score_on VARCHAR NOT NULL,  -- strongest | quantiles | random
    shuffled BOOLEAN NOT NULL DEFAULT false,  -- whether it is another latent's explanation: the floor of a score
    split_by VARCHAR NOT NULL,       -- window | document: what was divided between explaining and scoring
    examples INTEGER NOT NULL,       -- activating contexts drawn, half to explain and half to score
    auroc DOUBLE, balanced_accuracy DOUBLE,
    f1 DOUBLE,                       -- at probability 0.5; NULL where nothing was called active
    auprc DOUBLE,                    -- average precision
    positives INTEGER NOT NULL, negatives INTEGER NOT NULL,
    status VARCHAR NOT NULL, reason VARCHAR NOT NULL
);

-- For a latent, its best matches among the latents of another SAE, by Pearson correlation on the same tokens.
CREATE TABLE matches (
    sae INTEGER NOT NULL, latent INTEGER NOT NULL, other_sae INTEGER NOT NULL,
    rank INTEGER NOT NULL, other_latent INTEGER NOT NULL, correlation DOUBLE NOT NULL
);

-- Could a statistic of latents tell a trained SAE's from a random one's? Below one half: random ones have larger values.
CREATE TABLE tells (
    trained_sae INTEGER NOT NULL, random_sae INTEGER NOT NULL,
    statistic VARCHAR NOT NULL,      -- a column of latents, or 'logistic_regression': all of them together, out of fold
    matched BOOLEAN NOT NULL,        -- whether the latents were matched on firing density
    auroc DOUBLE, low DOUBLE, high DOUBLE,  -- with its 95% interval, over latents; NULL unless status is 'ok'
    trained INTEGER NOT NULL, random INTEGER NOT NULL,  -- latents that have a value
    status VARCHAR NOT NULL, reason VARCHAR NOT NULL
);

-- The specification curve (Simonsohn, Simmons & Nelson 2020): trained against random latents by their scores under every
-- reasonable protocol, on a sample that is matched on firing density. Below one half: random ones score higher.
CREATE TABLE specifications (
    trained_sae INTEGER NOT NULL, random_sae INTEGER NOT NULL,
    scorer VARCHAR NOT NULL, explain_from VARCHAR NOT NULL, score_on VARCHAR NOT NULL, split_by VARCHAR NOT NULL,
    examples INTEGER NOT NULL,       -- activating contexts, half to explain and half to score
    window_tokens INTEGER NOT NULL,  -- tokens of a context
    auroc DOUBLE, low DOUBLE, high DOUBLE,  -- with its 95% interval, over latents; NULL unless status is 'ok'
    trained INTEGER NOT NULL, random INTEGER NOT NULL,  -- latents that qualify under the protocol
    trained_median DOUBLE, random_median DOUBLE,        -- of their scores
    status VARCHAR NOT NULL, reason VARCHAR NOT NULL
);

-- All protocols of a comparison together.
CREATE TABLE specification_curves (
    trained_sae INTEGER NOT NULL, random_sae INTEGER NOT NULL,
    latents INTEGER NOT NULL,        -- sampled of each side
    protocols INTEGER NOT NULL,      -- that have an AUROC
    median DOUBLE,                   -- of these AUROCs
    p_value DOUBLE                   -- of the median, by relabelling latents as trained and random
);

-- A metric of SAEs, random minus trained, with its 95% interval over the seeds of variants and SAEs.
CREATE TABLE differences (
    model VARCHAR NOT NULL, hook VARCHAR NOT NULL, name VARCHAR NOT NULL,
    variant VARCHAR NOT NULL, layer INTEGER NOT NULL, metric VARCHAR NOT NULL,
    trained DOUBLE, random DOUBLE,   -- means over seeds
    difference DOUBLE, low DOUBLE, high DOUBLE,
    trained_saes INTEGER NOT NULL, random_saes INTEGER NOT NULL,  -- SAEs that have a value
    status VARCHAR NOT NULL, reason VARCHAR NOT NULL  -- ok | not_applicable (one seed: no interval)
);
