"""Explanations and scores by models: prompts, how answers are read, and scores that come out as predicted."""

import math
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from pipeline.autointerp import Client, Sentences, explain_and_score, explain_and_score_sample, part_seed
from pipeline.autointerp import prompts as words
from pipeline.autointerp.examples import Examples, Protocol, ask_fuzzing, ask_fuzzing_hard, draw
from pipeline.autointerp.run import ONE_POINT, Tools, exchanged, sample_latents, split_again
from pipeline.config import AutointerpConfig, CollectConfig, LlmConfig
from pipeline.latents import collect
from pipeline.plan.work import llm_work
from tests.pipeline.llm_server import Behaviour, Model, excerpts, explains, good, question, running, says, status

WINDOW, VOCABULARY, SEED = 16, 50, 11
LATENTS = 30
COLLECT = CollectConfig(window=WINDOW, quantiles=5)
WORDS = [f" w{token}" for token in range(VOCABULARY)]
CORPUS = np.random.default_rng(0).integers(0, VOCABULARY, 1_500 * WINDOW).astype(np.int32)
LLM = ("llm_detection", "llm_fuzzing", "llm_fuzzing_hard")


def firings() -> collect.Firings:
    """Latent n fires on token n, at random strengths; the last but one on too little, the last everywhere."""
    generator = np.random.default_rng(1)
    fires = CORPUS[:, None] == np.arange(LATENTS)
    fires[:, -2] &= np.cumsum(fires[:, -2]) < 5
    fires[:, -1] = True
    return collect.firings(sparse.csr_array(np.where(fires, generator.random(fires.shape) + 0.5, 0).astype(np.float32)))


FIRED = firings()


def config(**settings: Any) -> AutointerpConfig:
    llm = LlmConfig(**({"model": "m", "explain_examples": 10} | settings.pop("llm", {})))
    given = {"min_contexts": 20, "examples": 20, "latents": 4, "explainers": ("lexical", "llm"), "scorers": LLM}
    given["floor"] = False
    return AutointerpConfig(**(given | settings), llm=llm)


def protocol(settings: AutointerpConfig) -> Protocol:
    return Protocol.of(settings, COLLECT, lambda window: np.arange(len(CORPUS) // window) % 2 == 1)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the sample comes from several."""
    monkeypatch.setattr(collect, "LATENTS_IN_PART", 8)
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def explained(settings: AutointerpConfig) -> pa.Table:
    """The first stage, as a study runs it."""

    def work(part: collect.Firings, first: int) -> dict[str, pa.Table]:
        where = collect.windows(part, len(CORPUS), WINDOW)
        texts, scores = explain_and_score(
            part, where, CORPUS, WORDS, protocol(settings), settings, part_seed(SEED, first)
        )
        return {"explanations": texts, "scores": scores}

    return collect.by_parts(FIRED, work, lambda _done, _total: None)["explanations"]


@pytest.fixture
def model() -> Iterator[Model]:
    with running() as server:
        yield server


Run = Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]


@pytest.fixture
def run(model: Model, tmp_path: Path) -> Run:
    """Runs the second stage against the server."""

    def go(behaviour: Behaviour, corpus: np.ndarray = CORPUS, vocabulary: list[str] = WORDS, **settings: Any) -> Any:
        model.usual = behaviour
        own = config(**settings)
        llm = own.llm.model_copy(update={"endpoint": model.address, "concurrency": 2})
        client = Client(llm, tmp_path, "", sleep=lambda _: None)
        tools = Tools(vocabulary, Sentences(), client)
        progress = lambda _done, _total: None  # noqa: E731
        tables = explain_and_score_sample(
            FIRED, explained(own), corpus, tools, WINDOW, protocol(own), own, SEED, progress
        )
        client.close()
        return tuple(table.to_pylist() for table in tables)

    return go


# ---- drawing ----


def test_the_sample_comes_from_those_that_qualify_and_is_the_same_every_time() -> None:
    table = explained(config())
    chosen = sample_latents(table, 10, SEED)
    assert len(set(chosen.tolist())) == 10
    assert max(chosen) < LATENTS - 2
    assert (chosen == sample_latents(table, 10, SEED)).all()
    assert (chosen != sample_latents(table, 10, SEED + 1)).any()
    assert sample_latents(table, 1000, SEED).tolist() == list(range(LATENTS - 2))


def test_the_sample_is_split_as_its_lexical_explanations_were_and_nothing_explained_is_scored() -> None:
    places = np.arange(len(CORPUS), dtype=np.int32)
    chosen = np.array([3, 9, 10, 25])
    again = split_again(chosen, FIRED, places, WINDOW, protocol(config()), SEED)
    assert again.excluded.tolist() == [""] * 4
    for place, latent in enumerate(chosen.tolist()):
        first = latent // 8 * 8
        part = FIRED.part(first, min(first + 8, LATENTS))
        where = collect.windows(part, len(CORPUS), WINDOW)
        whole = draw(part, where, places, protocol(config()), part_seed(SEED, first))
        shown, known = again.explain["quantiles"], whole.explain["quantiles"]
        seen = shown.tokens[shown.latent == place]
        assert (seen == known.tokens[known.latent == latent - first]).all()
        scored = again.score["quantiles"]
        scored = scored.part((scored.latent == place) & scored.active)
        assert len(scored.tokens) >= 5
        assert not set(seen[:, 0].tolist()) & set(scored.tokens[:, 0].tolist())
        assert (scored.tokens[scored.marked] == np.flatnonzero(latent == CORPUS)[:, None]).any(axis=0).all()


def test_activations_are_those_of_the_tokens() -> None:
    split = split_again(np.array([9]), FIRED, np.arange(len(CORPUS), dtype=np.int32), WINDOW, protocol(config()), SEED)
    whole = np.zeros(len(CORPUS), np.float32)
    whole[FIRED.part(9, 10).token] = FIRED.part(9, 10).value
    for half in (split.explain["quantiles"], split.score["quantiles"]):
        assert (half.activation == whole[half.tokens]).all()
        assert ((half.activation > 0).any(axis=1) == half.active).all()


# ---- questions ----


@pytest.fixture(scope="module")
def examples() -> Examples:
    split = split_again(np.array([3, 9]), FIRED, CORPUS, WINDOW, protocol(config()), SEED)
    return split.score["quantiles"]


def test_silent_contexts_bear_as_many_marks_as_active_ones(examples: Examples) -> None:
    asked = ask_fuzzing(examples, 0)
    for latent in (0, 1):
        own = asked.rows_of(latent)
        counts = asked.marked[own].sum(axis=1)
        assert (counts > 0).all()
        assert set(counts[~asked.truth[own]].tolist()) <= set(counts[asked.truth[own]].tolist())


def test_the_hard_question_marks_silent_tokens_of_active_contexts_and_never_shows_a_context_twice_in_a_turn(
    examples: Examples,
) -> None:
    asked = ask_fuzzing_hard(examples, 0)
    active = examples.part(examples.active)
    assert asked.truth.sum() == (~asked.truth).sum() == len(active.latent)
    wrong = asked.marked[~asked.truth]
    assert not (wrong & (active.activation > 0)).any()
    assert (wrong.sum(axis=1) == active.marked.sum(axis=1)).all()
    assert (asked.tokens[~asked.truth] == active.tokens).all()
    assert (asked.turn[asked.truth] + asked.turn[~asked.truth] == 1).all()
    assert 0 < asked.truth[asked.turn == 0].sum() < (asked.turn == 0).sum()


def test_a_context_without_a_silent_token_has_no_wrong_version() -> None:
    everywhere = np.ones((1, 3), np.float32)
    full = Examples(np.zeros(1, int), np.zeros((1, 3), np.int32), np.array([True]), everywhere > 0, everywhere)
    assert ask_fuzzing_hard(full, 0).truth.tolist() == [True]


# ---- words ----


def test_marks_are_ours_alone_and_a_context_stays_on_its_line() -> None:
    vocabulary = [" a", "b", "«x»", "\n"]
    marked = np.array([[True, True, False, False]])
    assert words.excerpt(np.arange(4), marked[0], vocabulary) == "« ab»‹x›\\n"
    activation = np.array([[2.0, 0.5, 0, 0]], np.float32)
    user = words.explain(np.arange(4)[None], marked, activation, vocabulary).user
    assert user == "Excerpt 1: « ab»‹x›\\n\nLevels: a 10, b 3\n\nExplanation:"


SENTENCES = "Names of cats. They are on “Tom.” And he"


@pytest.mark.parametrize(
    ("answer", "cut", "found"),
    [
        ("names of cats", False, ("names of cats", "")),
        ("\n \n**Explanation:** names of cats \nLet me know!", False, ("names of cats", "")),
        ("<think>Is it dogs?\nNo.</think>\n\nExplanation: names of cats", False, ("names of cats", "")),
        ("names of cats\nand so", True, ("names of cats", "")),
        (SENTENCES, True, ("Names of cats. They are on “Tom.”", "cut off at the end of a sentence")),
        ("Names of cats.", True, ("Names of cats.", "cut off at the end of a sentence")),
        ("names of cats, names of 1.5 cats, na", True, (None, words.TOO_LONG)),
        ("x" * 999 + ". y", False, ("x" * 999 + ".", "cut off at the end of a sentence")),
        ("x" * 2000, False, (None, words.TOO_LONG)),
        ("", True, (None, words.TOO_LONG)),
        ("I'm sorry, but no", False, (None, "refused")),
        ("Explanation:\n…", False, (None, "unparsed: 'Explanation: …'")),
        ("The explanation is:", False, (None, "unparsed: 'The explanation is:'")),
        ("Here it is:\nnames of cats", False, ("names of cats", "")),
        ("<|im_end|>", False, (None, "unparsed: '<|im_end|>'")),
        ("<start_of_turn>names of cats<end_of_turn>", False, ("names of cats", "")),
    ],
)
def test_an_explanation_is_the_first_line_and_a_cut_one_ends_with_a_sentence(
    answer: str, cut: bool, found: tuple[str | None, str]
) -> None:
    assert words.read_explanation(answer, cut) == found


@pytest.mark.parametrize(
    ("answer", "digits"),
    [
        ('{"answers": [1, 0, 1]}', [1, 0, 1]),
        ("First [0,0,0], no: ```[1,\n0 , 1]```", [1, 0, 1]),
        ("[1, 0]", None),
        ("[1, 0, 2]", None),
        ("[0.1, 1, 0]", None),
        ("1 0 1", None),
        ("", None),
    ],
)
def test_answers_are_a_list_of_the_right_length_or_nothing(answer: str, digits: list[int] | None) -> None:
    assert words.read_answers(answer, 3) == digits


def test_yes_and_no_are_added_up_over_case_and_spaces() -> None:
    shares = {"Yes": 0.3, " yes": 0.1, "YES\n": 0.1, " No": 0.2, "Not": 0.1, "yesterday": 0.1, "1": 0.1}
    likeliest = {token: math.log(share) for token, share in shares.items()}
    assert words.yes_and_no(likeliest) == pytest.approx((0.5, 0.2))
    assert words.yes_and_no({"The": -0.1}) == (0, 0)


def test_prompts_about_one_latent_begin_alike_up_to_the_excerpt() -> None:
    one, other = (words.judge_one(words.FUZZING, "cats", text) for text in ("a «b»", "c «d»"))
    assert one.system == other.system
    assert one.user.split("Excerpt: ")[0] == other.user.split("Excerpt: ")[0] == "Description: cats\n\n"
    assert one.user.split("Excerpt: ")[1] == "a «b»\n\nAnswer (yes or no):"


# ---- scores ----


def number_of(excerpt: str) -> int:
    """The first token of an excerpt: something that has nothing to do with the latent."""
    return int(re.findall(r"w(\d+)", excerpt)[0])


def pairs(yes: list[float], no: list[float]) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a, b in product(yes, no)]))


def chance(excerpt: str) -> float:
    """Neither always right nor always wrong."""
    return 0.05 + number_of(excerpt) / 60


def test_the_scores_are_those_of_the_probabilities_that_the_model_gave(run: Run, model: Model) -> None:
    _, scores = run(good(chance), explainers=("llm",), scorers=("llm_detection",), latents=1)
    (row,) = scores
    shown = [excerpt for body in model.seen if not explains(body) for excerpt in excerpts(body)]
    truth = [f" w{row['latent']} " in excerpt + " " for excerpt in shown]
    yes = [chance(excerpt) for excerpt, right in zip(shown, truth, strict=True) if right]
    no = [chance(excerpt) for excerpt, right in zip(shown, truth, strict=True) if not right]
    assert (row["positives"], row["negatives"]) == (len(yes), len(no))
    assert row["auroc"] == pytest.approx(pairs(yes, no))
    assert row["balanced_accuracy"] == pytest.approx((np.mean(np.array(yes) >= 0.5) + np.mean(np.array(no) < 0.5)) / 2)
    assert (row["status"], row["reason"]) == ("ok", "")
    assert row["f1"] is not None
    assert row["auprc"] is not None


def test_a_model_that_knows_the_token_scores_one_and_one_that_guesses_does_not(run: Run) -> None:
    def knows(handler: Any, body: Any) -> None:
        described = re.findall(r"Description: .*? w(\d+)\b", question(body))

        def rule(excerpt: str) -> float:
            marked = " ".join(re.findall(r"«([^»]*)»", excerpt))
            return 0.9 if f" w{described[0]} " in (marked or excerpt) + " " else 0.2

        good(rule)(handler, body)

    explanations, scores = run(knows, explainers=("lexical",))
    assert explanations == []
    assert len(scores) == 3 * 4
    for row in scores:
        assert (row["auroc"], row["balanced_accuracy"], row["f1"], row["auprc"]) == (1, 1, 1, 1), row
    _, scores = run(good(lambda _: 0.3), explainers=("lexical",), llm={"model": "guesses"})
    assert {(row["auroc"], row["balanced_accuracy"], row["f1"]) for row in scores} == {(0.5, 0.5, None)}


def test_without_log_probabilities_there_is_one_operating_point_and_it_says_so(run: Run) -> None:
    _, scores = run(good(chance, logprobs=False), explainers=("llm",))
    assert len(scores) == 3 * 4
    for row in scores:
        assert (row["status"], row["reason"]) == ("ok", ONE_POINT)
        assert row["auroc"] == pytest.approx(row["balanced_accuracy"])


def test_both_explainers_are_scored_and_explanations_are_what_was_said(run: Run, model: Model) -> None:
    explanations, scores = run(good(chance, "tokens that begin with w"))
    chosen = sample_latents(explained(config()), 4, SEED).tolist()
    assert [row["latent"] for row in explanations] == chosen
    assert {(row["explainer"], row["text"], row["rules"], row["status"]) for row in explanations} == {
        ("llm", "tokens that begin with w", None, "ok")
    }
    expected = set(product(("lexical", "llm"), LLM, chosen))
    assert {(row["explainer"], row["scorer"], row["latent"]) for row in scores} == expected
    described = {found for body in model.seen for found in re.findall("Description: (.*)", question(body))}
    assert "tokens that begin with w" in described
    assert any(text.startswith("fires on “ w") for text in described)


def test_the_explainer_sees_its_half_with_marks_and_the_scorer_the_other(run: Run, model: Model) -> None:
    run(good(chance), explainers=("llm",), scorers=("llm_detection",), latents=2)
    seen, scored = set(), set()
    for body in model.seen:
        told = {re.sub("[«»]", "", excerpt) for excerpt in excerpts(body)}
        if explains(body):
            seen |= told
            assert all("«" in excerpt for excerpt in excerpts(body))
            assert len(told) == 10
        else:
            scored |= told
            assert not any("«" in excerpt for excerpt in excerpts(body))
    assert len(seen) == 20
    assert scored
    assert not seen & scored


def test_no_prompt_shows_a_context_twice(run: Run, model: Model) -> None:
    listed = good(chance, logprobs=False)
    _, scores = run(listed, explainers=("lexical",), scorers=("llm_fuzzing_hard",))
    sheets = [excerpts(body) for body in model.seen if "Description" in str(body)]
    assert all(row["positives"] == row["negatives"] > 5 for row in scores)
    assert sum(map(len, sheets)) == sum(row["positives"] + row["negatives"] for row in scores)
    for sheet in sheets:
        assert len({re.sub("[«»]", "", excerpt) for excerpt in sheet}) == len(sheet)


@pytest.mark.parametrize("logprobs", [True, False])
def test_rubbish_and_refusals_are_failures_by_reason_and_never_numbers(run: Run, logprobs: bool) -> None:
    usual, rare = good(chance, logprobs=logprobs), "w7 w3 " if logprobs else "w7"
    neither = {"token": "The", "logprob": -0.1, "top_logprobs": [{"token": token, "logprob": -1} for token in "abcd"]}

    def sometimes(answer: str, **choice: Any) -> Behaviour:
        said = says(answer, **choice)
        return lambda handler, body: (said if not explains(body) and rare in str(excerpts(body)[:1]) else usual)(
            handler, body
        )

    cases = [("I'm sorry, but no", {}, "prompts: refused"), ("perhaps?", {}, "prompts: unparsed: 'perhaps?'")]
    cases.append(("[1, 0, 1, 1, 0", {"finish_reason": "length"}, f"prompts: {words.TOO_LONG}"))
    if logprobs:
        reason = "neither yes nor no among the 4 likeliest tokens: 'a', 'b', 'c', …"
        cases = [("The", {"logprobs": {"content": [neither]}}, reason), ("Yes", {}, "unparsed: no log-probs")]
    for number, (answer, choice, reason) in enumerate(cases):
        llm = {"model": f"m{number}"}
        _, scores = run(sometimes(answer, **choice), explainers=("lexical",), latents=12, llm=llm)
        assert len(scores) == 3 * 12
        failed = [row for row in scores if row["status"] == "failed"]
        assert 0 < len(failed) < len(scores)
        for row in failed:
            assert reason in row["reason"]
            assert re.match(r"[1-9]\d* of \d+ prompts: ", row["reason"])
            assert {row[name] for name in ("auroc", "balanced_accuracy", "f1", "auprc")} == {None}
        for row in scores:
            assert (row["auroc"] is None) == (row["status"] == "failed")


def test_an_explanation_that_was_cut_off_counts_with_that_noted(run: Run) -> None:
    cut = says("Cats. Cats. Ca", finish_reason="length")
    explanations, _ = run(
        lambda handler, body: (cut if explains(body) else good(chance))(handler, body), explainers=("llm",)
    )
    assert {(row["text"], row["status"], row["reason"]) for row in explanations} == {
        ("Cats. Cats.", "ok", "cut off at the end of a sentence")
    }


def test_a_failed_explanation_is_no_text_and_its_scores_do_not_apply(run: Run) -> None:
    explanations, scores = run(
        lambda handler, body: (says("I cannot help") if explains(body) else good(chance))(handler, body),
        scorers=("llm_fuzzing", "embedding"), explainers=("llm",),
    )  # fmt: skip
    assert {(row["text"], row["status"], row["reason"]) for row in explanations} == {(None, "failed", "refused")}
    assert {(row["auroc"], row["status"], row["reason"]) for row in scores} == {
        (None, "not_applicable", "no explanation")
    }
    assert len(scores) == 2 * 4


def test_http_failures_are_counted_with_their_status(run: Run) -> None:
    refuses = status(400, "too many tokens")
    behaviour = good(chance)
    _, scores = run(
        lambda handler, body: (refuses if "Description" in question(body) else behaviour)(handler, body),
        explainers=("lexical",),
    )
    assert {row["status"] for row in scores} == {"failed"}
    assert all("HTTP 400: too many tokens" in row["reason"] for row in scores)


def test_the_same_again_is_the_same_and_asks_nothing(run: Run, model: Model) -> None:
    first = run(good(chance))
    asked = len(model.seen)
    assert run(status(500)) == first
    assert run(status(500), llm={"offline": True}) == first
    assert len(model.seen) == asked


def test_where_no_latent_qualifies_nothing_is_asked(run: Run, model: Model) -> None:
    assert run(good(chance), min_contexts=100_000) == ([], [])
    assert model.seen == []


def test_the_estimate_counts_the_prompts_that_are_sent(run: Run, model: Model) -> None:
    own = config(llm={"price_in": 2, "price_out": 8}, floor=True)
    answers = good(chance)

    def explains_each_its_own_way(handler: Any, body: Any) -> None:
        (says(f"text {hash(question(body))}") if explains(body) else answers)(handler, body)

    run(explains_each_its_own_way, floor=True)
    asked = [body for body in model.seen if excerpts(body)]
    found = llm_work(own, COLLECT)
    assert len(asked) <= found.prompts <= 1.5 * len(asked)
    characters = sum(len(message["content"]) for body in asked for message in body["messages"])
    assert characters / 4 / 2 < found.prompt_tokens < characters / 4 * 2
    pieces = [question(body).split("Excerpt: ")[-1] if not explains(body) else question(body) for body in asked]
    assert sum(map(len, pieces)) / 4 / 2 < found.new_tokens < sum(map(len, pieces)) / 4 * 2
    assert found.cost == pytest.approx((found.prompt_tokens * 2 + found.answer_tokens * 8) / 1e6)
    assert llm_work(AutointerpConfig(), COLLECT) == (0, 0, 0, 0, 0)


# ---- the floor ----


def test_explanations_are_exchanged_between_latents_that_fire_as_often() -> None:
    firings = np.array([50, 1, 40, 2, 3, 60])
    texts = {place: f"text {place}" for place in range(6)}
    assert exchanged(texts, firings) == {
        0: "text 5", 1: "text 3", 2: "text 4", 3: "text 1", 4: "text 2", 5: "text 0"
    }  # fmt: skip
    del texts[3]
    assert exchanged(texts, firings) == {0: "text 5", 1: "text 4", 2: "text 0", 4: "text 1", 5: "text 2"}
    for number in range(40):
        own = {place: f"text {place}" for place in range(number)}
        found = exchanged(own, np.zeros(number, int))
        assert list(found) == ([] if number == 1 else list(own))
        assert sorted(found.values()) == ([] if number == 1 else sorted(own.values()))
        assert not found.items() & own.items()


def test_every_score_has_the_floor_of_another_latents_explanation_beside_it(run: Run) -> None:
    def knows(handler: Any, body: Any) -> None:
        described = re.findall(r"Description: .*? w(\d+)\b", question(body))
        good(lambda excerpt: 0.9 if f" w{described[0]} " in excerpt + " " else 0.2)(handler, body)

    _, scores = run(knows, explainers=("lexical",), scorers=("llm_detection", "embedding"), floor=True, latents=5)
    detection = [row for row in scores if row["scorer"] == "llm_detection"]
    assert [row["auroc"] for row in detection if not row["shuffled"]] == [1] * 5
    floor = [row["auroc"] for row in detection if row["shuffled"]]
    assert len(floor) == 5
    assert 0.3 < np.mean(floor) < 0.7
    assert {(row["scorer"], row["shuffled"]) for row in scores} == set(
        product(("llm_detection", "embedding"), (False, True))
    )


def test_one_explanation_alone_has_no_floor_and_that_is_a_state(run: Run) -> None:
    _, scores = run(good(chance), explainers=("lexical",), scorers=("llm_detection",), floor=True, latents=1)
    assert {(row["shuffled"], row["status"], row["reason"]) for row in scores} == {
        (False, "ok", ""),
        (True, "not_applicable", "no explanation of another latent"),
    }
