"""Operations, bytes and prompts of every stage of a study.

Only what grows with the study is counted, in the large terms. `EFFICIENCY` and the seconds below were measured on the
demo: two cores of an AMD EPYC (Zen 3) in float32, undisturbed (see docs/results.md), at 150 GFLOP a second.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipeline import stages
from pipeline.activations import PIECE_TOKENS
from pipeline.autointerp import prompts
from pipeline.autointerp.endpoint import CHARACTERS_PER_TOKEN, Budget
from pipeline.autointerp.tables import SCORERS, LlmScorer, has_curve
from pipeline.config import AutointerpConfig, CollectConfig, ModelConfig, SaeConfig, Study, layers_of
from pipeline.models.load import check_layers
from pipeline.models.shapes import Shape
from pipeline.saes.architectures import seeds_of
from pipeline.text.documents import find_source
from pipeline.variants.table import find_variant

FLOAT = 4
"""Bytes of a float32."""

# Seconds of one core.
TOKENISE = 3e-6  # a token
DRAW = 25e-9  # a parameter: redrawn and hashed
TABLE = 0.7e-6  # an activation: sorted into statistics and contexts
LEARN = 0.35e-3  # a latent: explained from 40 contexts of 32 tokens (with as many silent ones, half of all shown)
SCORE = 0.15e-3  # such an explanation: scored on the other half
EMBED = 0.1  # a latent: its contexts run through the sentence model
PRODUCT = 50e-9  # two latents active on the same token
CELL = 60e-9  # a pair of latents whose correlation is ranked
ASSIGN = 140e-9  # a pair of latents in the matching of two seeds
TELL = 20e-6  # a latent in one of the AUROCs with their intervals
STATISTICS = 9  # columns of `latents` beside two for each scorer
WRITE = 100e-9  # a byte of the database

DENSE = {"gated": 26, "matryoshka_batchtopk": 15}
"""Operations of a training step with dense products, for each token, dimension and latent; 12 where not listed.

Encoder, decoder and their gradients make 12; gated SAEs have a second decoder pass, Matryoshka ones one for each level.
"""

READY = ("untrained", "neurons", "pretrained")
"""Architectures that are not trained."""

LATENT_BYTES = 2_300  # the tables of a latent as Parquet files and again in the database: 1.0 and 1.3 KB in the demo


# Prompts are counted as in a real run, built from made-up contexts; a token is taken to be four characters.
WORD = " the"
MARKS = 3
"""Marked tokens of a context."""
EXPLANATION_TOKENS = 50


class LlmWork(NamedTuple):
    """At most, for one SAE: fewer if fewer latents qualify; cost in the currency of the prices."""

    prompts: int
    prompt_tokens: int
    new_tokens: int
    """Those among them that a prompt does not share with the one before it: what a server works on that keeps these."""
    answer_tokens: int
    cost: float


class _Sent(NamedTuple):
    """So many prompts about a latent, with the tokens of each."""

    number: int
    tokens: int
    new: int
    answer: int


def llm_work(config: AutointerpConfig, collect: CollectConfig) -> LlmWork:
    """Count what a language model would be asked about one SAE, if it gives log-probs: each context is a question."""
    tokens = np.zeros((config.llm.explain_examples, collect.window), dtype=np.int32)
    marked = np.tile(np.arange(collect.window) < MARKS, (len(tokens), 1))
    sent = []
    if "llm" in config.explainers:
        long = _tokens(prompts.explain(tokens, marked, marked.astype(np.float32), [WORD]))
        sent.append(_Sent(len(config.explain_from), long, long, EXPLANATION_TOKENS))
    explanations = len(config.explainers) * len(config.explain_from) * (1 + config.floor)
    for scorer in (SCORERS[name] for name in config.scorers):
        if isinstance(scorer, LlmScorer):
            excerpt = prompts.excerpt(tokens[0], marked[0], [WORD])
            long = _tokens(prompts.judge_one(scorer.question, WORD * EXPLANATION_TOKENS, excerpt))
            new = math.ceil(len(excerpt + prompts.ANSWER) / CHARACTERS_PER_TOKEN)
            sets = explanations * len(config.score_on)
            sent += [_Sent(sets, long, long, 1), _Sent(sets * (config.examples - 1), long, new, 1)]

    asked = config.latents * sum(each.number * each.tokens for each in sent)
    said = config.latents * sum(each.number * each.answer for each in sent)
    return LlmWork(
        prompts=config.latents * sum(each.number for each in sent),
        prompt_tokens=asked,
        new_tokens=config.latents * sum(each.number * each.new for each in sent),
        answer_tokens=said,
        cost=Budget(config.llm).price(asked, said),
    )


def _tokens(prompt: prompts.Prompt) -> int:
    return math.ceil((len(prompt.system) + len(prompt.user)) / CHARACTERS_PER_TOKEN)


class Amount(NamedTuple):
    """What a stage asks of a machine."""

    flops: float = 0.0
    """Operations of matrix products: a multiplication and an addition count two."""
    core_seconds: float = 0.0
    """Other work that all cores share."""
    serial_seconds: float = 0.0
    """Other work that one core does."""
    bytes_moved: float = 0.0
    """Written to or read from files."""

    def __add__(self, other: object) -> "Amount":
        assert isinstance(other, Amount)
        return Amount(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Work:
    """One model of a study: what is counted before anything is multiplied."""

    study: Study
    config: ModelConfig
    shape: Shape

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Raises UserError when the model has no such layer."""
        layers = layers_of(self.study, self.config, self.shape.info.n_layers)
        check_layers(self.shape.info, layers)
        return layers

    @cached_property
    def random(self) -> int:
        """Variants that are drawn `variant_seeds` times; the others are there once."""
        return sum(find_variant(name).random for name in self.study.variants)

    @property
    def draws(self) -> int:
        """Variants, each as often as it is drawn."""
        return len(self.study.variants) + self.random * (self.study.variant_seeds - 1)

    @property
    def pairs(self) -> int:
        """Variants that are matched: random ones with each other where they are of the same draw."""
        fixed, seeds = len(self.study.variants) - self.random, self.study.variant_seeds
        if self.study.collect.match == "trained":
            return self.draws - 1
        return fixed * (fixed - 1) // 2 + (fixed * self.random + self.random * (self.random - 1) // 2) * seeds

    @property
    def points(self) -> int:
        """Hook points of a variant."""
        return len(self.layers) * len(self.study.hooks)

    def each(self, sae: SaeConfig) -> int:
        """How many SAEs one section of `saes` makes."""
        return self.draws * self.points * seeds_of(self.study, sae)

    @property
    def saes(self) -> int:
        """SAEs of this model."""
        return sum(self.each(sae) for sae in self.study.saes)

    @property
    def d_in(self) -> int:
        """Dimensions of a hook point: all of them write to the residual stream."""
        return self.shape.info.d_model

    @property
    def tokens(self) -> int:
        """Tokens of the corpus."""
        return self.study.corpus.tokens // self.study.corpus.context_length * self.study.corpus.context_length

    @property
    def kept(self) -> float:
        """Tokens that SAEs see, training and held-out together."""
        corpus = self.study.corpus
        return self.tokens * (1 - corpus.drop_positions / corpus.context_length)

    @property
    def trained_on(self) -> float:
        """Tokens of a training epoch."""
        corpus = self.study.corpus
        if corpus.training_tokens:
            return corpus.training_tokens * (1 - corpus.drop_positions / corpus.context_length)
        return self.kept * (1 - corpus.held_out)

    @property
    def activations(self) -> float:
        """Bytes of one hook point's activations."""
        return self.kept * self.d_in * FLOAT

    def d_sae(self, sae: SaeConfig) -> int:
        """Latents: PCA and neurons have two for each dimension, whatever the file says."""
        return 2 * self.d_in if sae.architecture in ("pca", "neurons") else sae.latents(self.d_in)

    def firings(self, sae: SaeConfig) -> float:
        """Activations that are not zero; an SAE without k is taken to have that many as well."""
        return self.kept * min(sae.k, self.d_sae(sae))

    def forward_flops(self, layers: int, unembedding: bool) -> float:
        """Of one token: two for each parameter of the blocks, and attention's products of queries, keys and values."""
        attention = 4 * self.study.corpus.context_length * self.d_in if self.shape.attends else 0
        blocks = 2 * self.shape.block_parameters / self.shape.info.n_layers + attention
        return layers * blocks + (2 * self.d_in * self.shape.info.vocab_size if unembedding else 0)

    def trained_flops(self, sae: SaeConfig) -> float:
        """Of one token in training, all epochs counted.

        The encoder is dense, 2·d_in·d_sae. TopK's sparse step does the rest for k latents only: the decoder, and the
        gradients of decoder, activations and encoder, 2·d_in·k each. SAELens' own steps do all of that, and more, for
        all latents: `DENSE`.
        """
        size = self.d_in * self.d_sae(sae)
        if sae.architecture in READY:
            return 0.0
        if sae.architecture == "pca":
            return 2.0 * self.d_in**2  # the covariance
        if sae.architecture in ("topk", "frozen_decoder") and not (sae.aux_loss_coefficient or sae.options):
            return sae.epochs * (2.0 * size + 8 * self.d_in * sae.k)
        return float(sae.epochs * DENSE.get(sae.architecture, 12) * size)

    def asked(self) -> LlmWork:
        """What a language model is asked about one SAE."""
        return llm_work(self.study.autointerp, self.study.collect)


def _corpus(work: Work) -> Amount:
    config = work.study.corpus
    margin = 2 if find_source(config)[0].streamed or config.training_tokens else 1
    return Amount(core_seconds=TOKENISE * (margin * work.tokens + config.training_tokens))


def _variants(work: Work) -> Amount:
    return Amount(core_seconds=DRAW * work.draws * work.shape.info.parameters)


def _forward(work: Work) -> Amount:
    each = work.tokens * work.forward_flops(max(work.layers) + 1, unembedding=False)
    return Amount(flops=work.draws * each, bytes_moved=work.draws * work.points * work.activations)


def _train(work: Work) -> Amount:
    flops = sum(work.each(sae) * work.trained_on * work.trained_flops(sae) for sae in work.study.saes)
    return Amount(flops=flops, bytes_moved=work.saes * work.activations)


def _stream(work: Work) -> Amount:
    """The model on the training tokens, up to the SAE's own layer, for every SAE by itself and in every epoch."""
    layers = sum(layer + 1 for layer in work.layers) * len(work.study.hooks) * work.draws
    trained = [sae for sae in work.study.saes if sae.architecture not in (*READY, "pca")]
    tokens = sum(sae.epochs * seeds_of(work.study, sae) for sae in trained) * work.study.corpus.training_tokens
    return Amount(flops=tokens * layers * work.forward_flops(1, unembedding=False))


def _encode(work: Work) -> Amount:
    """Encoder over all tokens, reconstruction of the held-out ones, cosines of all pairs of decoder rows."""
    found = Amount(bytes_moved=work.saes * work.activations)
    for sae in work.study.saes:
        d_sae = work.d_sae(sae)
        products = work.kept * d_sae + d_sae**2 + work.study.corpus.held_out * work.firings(sae)
        found += Amount(flops=work.each(sae) * 2 * work.d_in * products)
    return found


def _tables(work: Work) -> Amount:
    found = Amount()
    for sae in work.study.saes:
        effects = 2 * work.d_in * work.d_sae(sae) * work.shape.info.vocab_size
        found += Amount(flops=work.each(sae) * effects, core_seconds=work.each(sae) * TABLE * work.firings(sae))
    return found


def _losses(work: Work) -> Amount:
    saes = work.points * sum(seeds_of(work.study, sae) for sae in work.study.saes)
    passes = work.draws * (1 + work.points + saes)
    each = work.study.evaluate_ce_tokens * work.forward_flops(work.shape.info.n_layers, unembedding=True)
    return Amount(flops=passes * each)


def _score(work: Work) -> Amount:
    settings = work.study.autointerp
    pools = len(settings.explain_from) * len(settings.score_on)
    embedded = EMBED * settings.latents * len(settings.explainers) * pools * ("embedding" in settings.scorers)
    size = settings.examples * work.study.collect.window
    lexical = _lexical(len(settings.explain_from), len(settings.score_on), size)
    return Amount(core_seconds=sum(work.each(sae) * (lexical * work.d_sae(sae) + embedded) for sae in work.study.saes))


def _lexical(explain_from: int, score_on: int, tokens: int) -> float:
    """Core seconds a latent with so many pools, and tokens in its activating examples."""
    return explain_from * (LEARN + score_on * SCORE) * tokens / (40 * 32)


def _curves(work: Work) -> Amount:
    """Every random SAE against the trained one in its place, a sample of both under every protocol."""
    study, config = work.study, work.study.autointerp.specifications
    if not has_curve(study.autointerp):
        return Amount()
    size = len(config.split_by) * sum(study.curve_windows) * sum(study.curve_examples)
    each = 2 * config.latents * _lexical(len(config.explain_from), len(config.score_on), size)
    pairs = (work.draws - 1) * work.points * sum(seeds_of(study, sae) for sae in study.saes)
    return Amount(core_seconds=pairs * each)


def _match(work: Work) -> Amount:
    """Correlations between variants in the same place, and matched decoders of the same SAE's seeds."""
    found = Amount()
    for sae in work.study.saes:
        seeds = seeds_of(work.study, sae)
        twins = work.draws * work.points * seeds * (seeds - 1) // 2
        cells = work.d_sae(sae) ** 2
        each = PRODUCT * work.firings(sae) * sae.k + CELL * cells
        found += Amount(core_seconds=work.pairs * work.points * seeds * each, serial_seconds=twins * ASSIGN * cells)
    return found


def _tell(work: Work) -> Amount:
    config = work.study.autointerp
    numbers = 2 * (STATISTICS + len(config.scorers) * len(config.explain_from) * len(config.score_on))
    latents = sum(work.points * seeds_of(work.study, sae) * work.d_sae(sae) for sae in work.study.saes)
    return Amount(serial_seconds=(work.draws - 1) * latents * numbers * 2 * TELL)


def _write(work: Work) -> Amount:
    size = sum(work.each(sae) * work.d_sae(sae) for sae in work.study.saes) * LATENT_BYTES / 2
    return Amount(serial_seconds=WRITE * (size + FLOAT * work.tokens))


class Stage(NamedTuple):
    """A row of `STAGES`."""

    name: str
    """That of the pipeline's table."""
    amount: Callable[[Work], Amount]
    efficiency: float = 1.0
    """Share of the speed of large matrix products that the stage reached in the demo, all its other work included."""
    part: str = ""
    """What it is of the stage, where that has two rows."""

    @property
    def label(self) -> str:
        """For people."""
        return self.part or stages.STAGES[self.name].label


STAGES = (
    Stage("corpus", _corpus),
    Stage("variant", _variants),
    Stage("activations", _forward, 0.72),
    Stage("sae", _stream, 0.72, "running the model to train on"),
    Stage("sae", _train, 0.36),
    Stage("codes", _encode, 0.40),
    Stage("latents", _tables, 0.72),
    Stage("losses", _losses, 0.72),
    Stage("scores", _score),
    Stage("matches", _match),
    Stage("specifications", _curves),
    Stage("database", _tell, part="which numbers can tell"),
    Stage("database", _write),
)
"""The stages of a study in their order. A new one is a function from work to amount and a row."""


def disk(work: Work) -> Iterator[tuple[str, float]]:
    """What lies on the disk, in bytes: the first is there while a variant runs, the others stay."""
    yield "activations of one variant, deleted after it", work.points * work.activations
    weights = sum(work.each(sae) * 2 * work.d_in * work.d_sae(sae) * FLOAT for sae in work.study.saes)
    yield "weights of the SAEs", weights
    codes = sum(work.each(sae) * (8 * work.firings(sae) + 8 * work.tokens) for sae in work.study.saes)
    yield "sparse activations of the SAEs", codes
    latents = sum(work.each(sae) * work.d_sae(sae) for sae in work.study.saes)
    ids = FLOAT * (2 * work.tokens + work.study.corpus.training_tokens)
    yield "tables, token ids and database", latents * LATENT_BYTES + ids


def memory(work: Work) -> Iterator[tuple[str, float, bool]]:
    """What is held at once, in bytes, and whether a GPU would hold it.

    Two models, the trained one and a variant. Then, one after the other: training reads a hook point's activations
    whole and copies what is trained on, or makes pieces of them, of which it holds two and what becomes a third;
    encoding ends with 48 bytes an activation that is not zero, when the firings are sorted by latent; matching has a
    number for each pair of latents, twice. An SAE's weights come with gradients and two moments, its batch with
    pre-activations and what TopK makes of them.
    """
    yield "trained model and variant", 2 * FLOAT * work.shape.info.parameters, False
    in_turn = {
        "activations of a hook point, twice": 2 * work.activations,
        "activations of training tokens": 4 * FLOAT * work.d_in * min(work.study.corpus.training_tokens, PIECE_TOKENS),
        "sparse activations of an SAE, sorted": max(48 * work.firings(sae) for sae in work.study.saes),
        "correlations of all pairs of latents": max(2 * FLOAT * work.d_sae(sae) ** 2 for sae in work.study.saes),
    }
    yield max(in_turn, key=lambda what: in_turn[what]), max(in_turn.values()), False
    yield "the variant that runs, with logits", FLOAT * work.shape.info.parameters + 3 * FLOAT * 2**25, True
    steps = [16 * 2 * work.d_in * work.d_sae(s) + 2 * FLOAT * s.batch_tokens * work.d_sae(s) for s in work.study.saes]
    yield "an SAE in training", max(steps), True
