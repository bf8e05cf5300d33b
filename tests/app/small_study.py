# ruff: noqa: E501
"""A small study for tests: three variants, hostile texts, every state a latent can be in. No model is run."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.database import metrics_of, statistics_of, write_study
from pipeline.measures.comparisons import difference_table, tell_table

Rows: TypeAlias = list[dict[str, Any]]

SCRIPT = "<script>window.hacked=1;alert(1)</script>"
"""A token of the vocabulary; also in an explanation, an article's title and a variant's label."""
FORMULA = '=cmd()|"/C calc"!A0 \'quoted\' & <b onmouseover="window.hacked=1">bold</b>'
FAILURE = "the endpoint answered 500 five times"
POOL = "quantiles"
VARIANTS = ("trained", "rerandomized_incl_embeddings", "control")
LAYERS = (0, 1, 3)
WINDOW = 32
SEQUENCE = 128

_WORDS = [
    *(" the", " of", " and", " in", " to", " was", " is", " for", " as", " on", " with", " by", " he", " at", " from"),
    *(" his", " an", " were", " are", " which", " court", " river", " music", " king", " war", " Alan", " Turing"),
    *(" machine", " algebra", " Albania", " anarch", "ism", "ist", "ing", "ed", "s", " state", " city", " award"),
    *(" film", " season", " theory", " number", " 1912", " 1945", ",", ".", "(", ")", ' "', ";", "'s", "-"),
    *(" language", " island", " battle", " empire", " church", " university"),
]
VOCABULARY = [*_WORDS, "\n", "\n\n", "\t", SCRIPT, "\u202egnirts", "\u2066", "�", "   ", "", " 東京", " naïve", "👩‍🔬"]

METRICS: tuple[tuple[Any, ...], ...] = (
    ("explained_variance", "sae", "explained variance", "", "1 - sum|x-x̂|²/sum|x-μ|², held-out.", True, "linear", 0, 1),
    ("fvu", "sae", "FVU", "", "Fraction of variance unexplained: 1 - EV.", False, "linear", 0, 1),
    ("cosine_similarity", "sae", "cosine similarity", "", "Mean cosine of x and x̂.", True, "linear", 0, 1),
    ("l0", "sae", "L0", "latents", "Mean number of active latents on a token.", None, "linear", 0, None),
    ("l1", "sae", "L1", "", "Mean sum of activations on a token.", None, "linear", 0, None),
    ("ce_clean", "sae", "CE, untouched", "nats", "Cross-entropy of the model itself.", False, "linear", 0, None),
    ("ce_sae", "sae", "CE, spliced", "nats", "Cross-entropy with x̂ in place of x.", False, "linear", 0, None),
    ("ce_loss_recovered", "sae", "CE loss recovered", "", "(CE₀-CE_sae)/(CE₀-CE).", True, "linear", None, 1),
    ("dead", "sae", "dead", "share of latents", "Latents of density 0.", False, "linear", 0, 1),
    ("dense_10", "sae", "dense (10%)", "share of latents", "Latents of density above 10%.", False, "linear", 0, 1),
    ("density", "latent", "density", "share of tokens", "Tokens on which it is active.", None, "log", 0, 1),
    ("max_activation", "latent", "max activation", "", "Largest activation.", None, "linear", 0, None),
    ("mean_activation", "latent", "mean activation", "", "Mean where active.", None, "linear", 0, None),
    ("token_entropy", "latent", "token entropy", "nats", "H = -sum p ln p, fixed number.", None, "linear", 0, None),
    ("token_entropy_all", "latent", "token entropy, all", "nats", "The same, all firings.", None, "linear", 0, None),
    ("top_token_share", "latent", "top token share", "", "Mass on one token.", None, "linear", 0, 1),
    ("decoder_norm", "latent", "decoder norm", "", "Norm of the decoder row.", None, "linear", 0, None),
    (
        "detection_auroc",
        "latent",
        "detection AUROC",
        "",
        "Does the window activate it?",
        True,
        "linear",
        0,
        1,
        "detection",
    ),
    ("fuzzing_auroc", "latent", "fuzzing AUROC", "", "Are these the tokens?", True, "linear", 0, 1, "fuzzing"),
    ("best_match_correlation", "latent", "best match", "", "Largest Pearson r.", None, "linear", -1, 1),
)


@dataclass(frozen=True)
class Shape:
    """How many SAEs a small study has along each axis; a model has its layers, out of `DEPTH` each."""

    models: Mapping[str, tuple[int, ...]]
    variants: tuple[str, ...] = VARIANTS
    hooks: tuple[str, ...] = ("resid_post",)
    saes: tuple[str, ...] = ("topk",)
    variant_seeds: int = 1
    sae_seeds: int = 1

    def settings(self) -> Iterator[tuple[str, str, str, int]]:
        """Model, hook, SAE and seed of the SAE."""
        return product(self.models, self.hooks, self.saes, range(self.sae_seeds))

    def places(self) -> Iterator[dict[str, Any]]:
        """Where the SAEs stand; in the first setting an SAE's number is ten times its variant's position and its layer."""
        for at, (model, hook, name, seed) in enumerate(self.settings()):
            for position, variant in enumerate(self.variants):
                for draw in range(self.variant_seeds if position else 1):
                    for layer in self.models[model]:
                        number = at * 10_000 + draw * 1000 + position * 10 + layer
                        yield {"sae": number, "model": model, "hook": hook, "name": name, "variant_seed": draw,
                               "sae_seed": seed, "variant": variant, "layer": layer}  # fmt: skip


DEPTH = 4
SECOND = "org/toy b"
"""A second model, whose name needs care in an address; its tokens end in MARK."""
MARK = "ᵇ"
WIDE = Shape({"toy": (0, 1), SECOND: (0, 3)}, hooks=("resid_post", "mlp_out"), saes=("topk", "pca"), variant_seeds=2,
             sae_seeds=2)  # fmt: skip
"""Two of everything."""


def write_small_study(
    path: Path,
    layers: Iterable[int] = LAYERS,
    complete: bool = True,
    latents: int = 60,
    scored: bool = True,
    seed: int = 0,
    top_contexts: int = 6,
    tell: bool = False,
    shape: Shape | None = None,
) -> None:
    """Write the study to `path`; fewer `layers` and `complete=False` make a study that is being built.

    `shape` gives it more than one setting, in place of `layers`.
    """
    shape = shape or Shape({"toy": tuple(layers)})
    write_rows(path, small_study(shape, complete, latents, scored, seed, top_contexts), tell, seed)


def write_rows(path: Path, tables: Mapping[str, Rows], tell: bool = False, seed: int = 0) -> None:
    """Write the rows of every table, and what follows from them."""
    statistics = [name for name, level, *_ in METRICS if level == "latent"]
    derived = {"differences": lambda database: difference_table(*metrics_of(database))}
    if tell:
        derived["tells"] = lambda database: tell_table(*statistics_of(database), statistics, seed)
    write_study(path, {name: pa.Table.from_pylist(rows) for name, rows in tables.items() if rows}, derived)


def small_study(
    shape: Shape, complete: bool, latents: int, scored: bool, seed: int, top_contexts: int = 6
) -> dict[str, Rows]:
    """The rows of every table."""
    rng = random.Random(seed)
    tables = _head(shape, complete, rng)
    filled = ("saes", "sae_metrics", "latents", "contexts", "histograms", "logit_effects")
    tables |= {name: [] for name in (*filled, "explanations", "scores", "matches")}
    for place in shape.places():
        position = shape.variants.index(place["variant"])
        _sae(tables, place, position, latents, rng)
        for number in range(latents):
            _latent(tables, place["sae"], number, position, scored, top_contexts, rng)
    _matches(tables, latents, rng)
    tables |= _specifications(shape)
    return tables


def _specifications(shape: Shape) -> dict[str, Rows]:
    """Curves of random SAEs against the trained one in their place: at layer 1 the pool decides, elsewhere trained wins."""
    saes = list(shape.places())
    rows: Rows = []
    whole: Rows = []
    rng = random.Random(5)
    for sae in saes:
        ours = next(
            o["sae"]
            for o in saes
            if o | {"sae": 0, "variant": "", "variant_seed": 0} == sae | {"sae": 0, "variant": "", "variant_seed": 0}
            and o["variant"] == shape.variants[0]
        )
        if ours == sae["sae"]:
            continue
        for explain_from, score_on, split_by, examples in product(
            ("strongest", "quantiles"), ("strongest", "quantiles"), ("window", "document"), (20, 40, 400)
        ):
            middle = 0.3 if sae["layer"] == 1 and score_on == "strongest" else 0.8
            auroc = middle + rng.uniform(-0.02, 0.02)
            ok = examples < 400
            known = {
                "auroc": auroc,
                "low": auroc - 0.05,
                "high": auroc + 0.05,
                "trained_median": 0.9,
                "random_median": 0.8,
            }
            rows.append(
                {
                    "trained_sae": ours,
                    "random_sae": sae["sae"],
                    "scorer": "detection",
                    "explain_from": explain_from,
                    "score_on": score_on,
                    "split_by": split_by,
                    "examples": examples,
                    "window_tokens": 32,
                    **(known if ok else dict.fromkeys(known)),
                    "trained": 200,
                    "random": 200 if ok else 3,
                    "status": "ok" if ok else "not_applicable",
                    "reason": "" if ok else "fewer than 20",
                }
            )
        whole.append(
            {
                "trained_sae": ours,
                "random_sae": sae["sae"],
                "latents": 200,
                "protocols": 16,
                "median": 0.6,
                "p_value": 0.001,
            }
        )
    return {"specifications": rows, "specification_curves": whole}  # fmt: skip


def _head(shape: Shape, complete: bool, rng: random.Random) -> dict[str, Rows]:
    config = "name: small\ntitle: A small study\nsae: {d_sae: 60, k: 4}\n"
    planned = len(list(shape.places())) if len(shape.models) > 1 else len(shape.variants) * len(LAYERS)
    return {
        "study": [{"name": "small", "title": "A small study", "config": config, "seed": 0, "complete": complete,
                   "planned_saes": planned}],
        "provenance": [{"key": "duckdb", "value": "1.4"}, {"key": "git", "value": SCRIPT}],
        "timings": [
            {"stage": "train", "model": "toy", "variant": "trained", "sae": 1, "seconds": 18.2, "tokens": 150016, "hardware": "2 cores"},
            {"stage": "variant", "model": "toy", "variant": "control", "sae": None, "seconds": 0.5, "tokens": None, "hardware": "2 cores"},
        ],
        "models": [
            {"model": model, "source": "code", "architecture": "Llama", "n_layers": DEPTH, "d_model": 16,
             "vocab_size": len(VOCABULARY), "parameters": 12345 + at, "note": "weights are random"}
            for at, model in enumerate(shape.models)
        ],
        "variants": [
            {"variant": name, "position": at, "label": name.replace("_", " "), "description": f"What {name} is. {SCRIPT}",
             "is_trained": at == 0, "seed": at}
            for at, name in enumerate(shape.variants)
        ],
        "tensors": [
            {"model": m, "variant": v, "variant_seed": draw, "name": f"layers.{i}.weight", "kind": "weight",
             "randomised": v != "trained", "shape": [16, 16], "mean": 0.0, "std": 0.02, "sha256": f"{rng.getrandbits(256):064x}"}
            for m in shape.models for v in shape.variants
            for draw in range(1 if v == "trained" else shape.variant_seeds) for i in range(3)
        ],
        **_texts(shape, rng),
        "metrics": [
            dict(zip(("metric", "level", "label", "unit", "description", "higher_is_better", "scale", "lower", "upper"), row, strict=False))
            | ({"scorer": row[9], "explain_from": POOL, "score_on": POOL} if len(row) > 9 else dict.fromkeys(("scorer", "explain_from", "score_on")))
            | {"position": at}
            for at, row in enumerate(METRICS)
        ],
    }  # fmt: skip


def _texts(shape: Shape, rng: random.Random) -> dict[str, Rows]:
    """Each model's own text: the same ids mean other tokens there."""
    tables: dict[str, Rows] = {"articles": [], "sequences": [], "vocabulary": []}
    for model in shape.models:
        mark = MARK if model == SECOND else ""
        tables["articles"] += [
            {
                "model": model,
                "article": i,
                "title": ("Anarchism" if i else SCRIPT) + mark,
                "split": "train",
                "tokens": 4 * SEQUENCE,
            }
            for i in range(5)
        ]
        tables["sequences"] += [
            {
                "model": model,
                "sequence": i,
                "article": i % 5,
                "split": "train",
                "tokens": rng.choices(range(len(VOCABULARY)), k=SEQUENCE),
            }
            for i in range(20)
        ]
        tables["vocabulary"] += [{"model": model, "token": i, "text": text + mark} for i, text in enumerate(VOCABULARY)]
    return tables  # fmt: skip


def _sae(tables: Mapping[str, Rows], place: dict[str, Any], position: int, latents: int, rng: random.Random) -> None:
    pca = place["name"] == "pca"
    tables["saes"].append(
        place | {"hook_name": f"blocks.{place['layer']}.hook_{place['hook']}", "architecture": place["name"], "d_in": 16,
         "d_sae": latents, "k": None if pca else 4, "seed": 0, "training_steps": 100, "training_tokens": 127514,
         "collected_tokens": 150016, "normalisation": 0.31, "path": f"{place['variant']}/{place['layer']}",
         "sha256": f"{rng.getrandbits(256):064x}"}
    )  # fmt: skip
    for name, level, *_ in METRICS:
        if level == "sae":
            refused = name == "ce_loss_recovered" and position > 0
            reason = f"CE with zeros is not clearly above the model's own. {SCRIPT}" if refused else ""
            value = None if refused else rng.uniform(0.2, 0.95) * (32 if name[0] == "l" else 1)
            status = "not_applicable" if refused else "ok"
            tables["sae_metrics"].append(
                {"sae": place["sae"], "metric": name, "value": value, "status": status, "reason": reason}
            )


def _latent(
    tables: Mapping[str, Rows],
    sae: int,
    number: int,
    position: int,
    scored: bool,
    top_contexts: int,
    rng: random.Random,
) -> None:
    dead = number % 10 == 9
    top_token = VOCABULARY.index(SCRIPT) if number == 0 else rng.randrange(len(VOCABULARY))
    largest = rng.uniform(1, 20) / (1 + position)
    state = "dead" if dead else "too_few_contexts" if number % 10 == 8 else "scored" if scored else "pending"
    state = {3: "too_few_non_activating_contexts", 13: "failed"}.get(number, state)
    auroc = min(1.0, max(0.0, rng.gauss(0.9 - 0.13 * position, 0.08)))
    firings = 0 if dead else int(10 ** rng.uniform(1, 4.5))
    live: dict[str, Any] = {
        "max_activation": largest,
        "mean_activation": largest * 0.4,
        "token_entropy": rng.uniform(0, 4),
        "token_entropy_all": rng.uniform(0, 5),
        "top_token": top_token,
        "top_token_share": rng.random(),
    }
    # What follows from the other tables (score_state, scores, best match) is filled in by pipeline.database.
    tables["latents"].append(
        {"sae": sae, "latent": number, "state": "dead" if dead else "alive", "firings": firings, "density": firings / 150016,
         **{key: None if dead else value for key, value in live.items()}, "decoder_norm": 1.0}
    )  # fmt: skip
    if state != "pending":
        _explanation(tables, sae, number, state, auroc, rng)
    if dead:
        return
    _contexts(tables["contexts"], sae, number, largest, top_contexts, silent=number != 3, rng=rng)
    counts = [int(200 / (1 + bin) * rng.uniform(0.6, 1.4)) for bin in range(40)]
    tables["histograms"].append({"sae": sae, "latent": number, "upper": largest, "counts": counts})
    for sign in (1, -1):
        ids = rng.sample(range(len(VOCABULARY)), 5)
        tables["logit_effects"].append(
            {"sae": sae, "latent": number, "sign": sign, "tokens": ids, "effects": [sign * 0.5] * 5}
        )


def _explanation(
    tables: Mapping[str, Rows], sae: int, number: int, state: str, auroc: float, rng: random.Random
) -> None:
    keys = {"sae": sae, "latent": number, "explainer": "lexical", "explain_from": POOL}
    words = [rng.choice(_WORDS).strip() for _ in range(3)]
    text = (
        FORMULA
        if number == 1
        else SCRIPT
        if number == 2
        else f"the tokens “{words[0]}” and “{words[1]}”, after “{words[2]}”"
    )
    good = state == "scored"
    status = "ok" if good else "failed" if state == "failed" else "not_applicable"
    outcome = {"status": status, "reason": "" if good else FAILURE if state == "failed" else state}
    rules = json.dumps({"tokens": dict.fromkeys(words, 1.0), "note": SCRIPT}) if good else None
    tables["explanations"].append(keys | outcome | {"text": text if good else None, "rules": rules})
    for scorer, loss in (("detection", 0.0), ("fuzzing", 0.05)) if good else ():
        score = {
            "scorer": scorer,
            "auroc": auroc - loss,
            "balanced_accuracy": auroc - loss - 0.02,
            "f1": auroc,
            "auprc": auroc,
        }
        tables["scores"].append(
            keys
            | outcome
            | score
            | {"score_on": POOL, "split_by": "window", "examples": 40, "positives": 20, "negatives": 20}
        )


def _contexts(rows: Rows, sae: int, number: int, largest: float, top: int, silent: bool, rng: random.Random) -> None:
    wanted = [("top", 0, rank) for rank in range(top)]
    wanted += [("quantile", stratum, rank) for stratum in range(3) for rank in range(2)]
    wanted += [("non_activating", 0, rank) for rank in range(4)] if silent else []
    for kind, stratum, rank in wanted:
        active = [] if kind == "non_activating" else sorted(rng.sample(range(WINDOW), rng.randint(1, 5)))
        scale = largest * (0.9**rank if kind == "top" else 0.25 * (stratum + 1))
        values = [scale * rng.uniform(0.2, 0.95) for _ in active]
        if values:
            values[rng.randrange(len(values))] = scale
        # The first two top contexts are the same window of text, so that pages have something to fold.
        place = (0, 0) if kind == "top" and rank < 2 else (rng.randrange(20), WINDOW * rng.randrange(4))
        rows.append(
            {"sae": sae, "latent": number, "kind": kind, "stratum": stratum, "rank": rank, "sequence": place[0],
             "start": place[1], "length": WINDOW, "positions": active, "activations": values}
        )  # fmt: skip


def _matches(tables: Mapping[str, Rows], latents: int, rng: random.Random) -> None:
    alive = [number for number in range(latents) if number % 10 != 9]
    for here, there in permutations(tables["saes"], 2):
        if any(here[key] != there[key] for key in ("model", "hook", "name", "sae_seed", "layer")):
            continue
        if here["variant"] == there["variant"]:
            continue
        for number in alive:
            if number == 4:
                continue
            for rank, other in enumerate(rng.sample(alive, min(3, len(alive)))):
                tables["matches"].append(
                    {"sae": here["sae"], "latent": number, "other_sae": there["sae"], "rank": rank,
                     "other_latent": other, "correlation": 0.9 - 0.2 * rank}
                )  # fmt: skip
