"""The command line, `lineup`: words come in, studies are run and served; errors are one sentence and exit status 2."""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TextIO

from pipeline.disk import writing
from pipeline.errors import BrokenError, LineupError

if TYPE_CHECKING:
    from pipeline.rater import Judge

STUDIES = Path(__file__).resolve().parent.parent / "studies"
EVIDENCE_TOKENS = 8192
"""Of what a local language model is shown of a blind trial."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _terminable():
            options.command(options)
    except LineupError as error:
        _say(f"lineup: {error}", sys.stderr)
        return 2
    except BrokenError as error:
        _say(f"lineup: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("\nlineup: stopped; the same command goes on from here.", sys.stderr)
        return 130
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the program in an orderly way, also where nothing else would: as process 1 of a container."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lineup", description="SAE latents of trained and randomised transformers, side by side."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a study, or what is missing of it")
    _study_arguments(run)
    run.add_argument("--runs", type=Path, default=Path("runs"), help="folder for databases and artefacts (runs)")
    run.set_defaults(command=_run)
    plan = commands.add_parser("plan", help="estimate time, memory, disk and cost of a study, without running it")
    _study_arguments(plan)
    plan.add_argument("--gpu", action="append", default=[], metavar="NAME", help="also for this GPU, as in 'H100'")
    plan.set_defaults(command=_plan)
    report = commands.add_parser("report", help="write a study's results as one HTML file that needs nothing else")
    report.add_argument("study", type=Path, metavar="STUDY.duckdb")
    report.add_argument("--out", type=Path, metavar="FILE", help="the file to write (STUDY.html beside the study)")
    report.set_defaults(command=_report)
    serve = commands.add_parser("serve", help="show studies in the browser")
    serve.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="study files or folders of them (runs)")
    _address(serve)
    serve.set_defaults(command=_serve)
    demo = commands.add_parser("demo", help="run the demo study and show it while it is being built")
    demo.add_argument("--runs", type=Path, default=Path("runs"), help="folder for databases and artefacts (runs)")
    _address(demo)
    demo.set_defaults(command=_demo)
    _blind(commands.add_parser("blind", help="set up a blind experiment, or label in one as a program"))
    show = commands.add_parser("show", help="list what there is")
    show.add_argument("what", choices=sorted(LISTS))
    show.set_defaults(command=_show)
    return parser


def _blind(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="set up an experiment on a running server; prints its links")
    new.add_argument("study", help="name of a study that the server shows")
    new.add_argument("--server", default="http://127.0.0.1:8000", help="address of the server (http://127.0.0.1:8000)")
    new.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the design, as in layers=[1,12]"
    )
    new.set_defaults(command=_blind_new)
    judge = commands.add_parser("judge", help="label as a program: a rule, or a language model")
    judge.add_argument("invitation", help="the link that raters get")
    judge.add_argument(
        "--endpoint", help="OpenAI-compatible, as http://127.0.0.1:8080/v1, or `local`; without it a rule answers"
    )
    judge.add_argument("--model", help="its name there, its key in LINEUP_LLM_KEY; wheel:PACKAGE or gguf:PATH if local")
    judge.add_argument("--pseudonym", help="what to be called; else one is made up")
    judge.add_argument("--client", help="which program this is, as one session of each counts (its model)")
    judge.set_defaults(command=_blind_judge)


def _study_arguments(parser: argparse.ArgumentParser) -> None:
    help_ = "a study file, or the name of one that comes along"
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help=help_)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the study file, as in sae.k=16"
    )


def _address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (8000)")


def _run(options: argparse.Namespace) -> None:
    from pipeline.study_file import load_study

    study = load_study(_study_file(options.study), tuple(options.set))
    _need_pipeline()
    _quieten()
    from pipeline.study import run_study

    database = run_study(study, options.runs)
    _say(f"complete: {database}   (lineup serve {database})")


def _plan(options: argparse.Namespace) -> None:
    from pipeline.study_file import load_study

    study = load_study(_study_file(options.study), tuple(options.set))
    _need_pipeline()
    _quieten()
    from pipeline.plan.describe import describe

    _say(describe(study, tuple(options.gpu)))


def _report(options: argparse.Namespace) -> None:
    from app.errors import ReportError
    from app.report import write_report

    out = options.out or options.study.with_suffix(".html")
    try:
        write_report(options.study, out)
    except ReportError as error:
        raise LineupError(str(error)) from error
    _say(f"written: {out}")


def _study_file(given: Path) -> Path:
    """The file as given; or, for a bare name such as `demo`, the study of that name that comes with the program."""
    own = STUDIES / f"{given}.yaml"
    return own if len(given.parts) == 1 and not given.exists() and own.is_file() else given


def _need_pipeline() -> None:
    missing = [name for name in ("torch", "sae_lens", "transformer_lens") if importlib.util.find_spec(name) is None]
    if missing:
        raise LineupError(
            f"Running a study needs {', '.join(missing)}, not installed here: pip install 'latent-lineup[pipeline]'."
        )


def _quieten() -> None:
    """Libraries that report to someone else's dashboards, or draw bars of their own, keep still."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def _serve(options: argparse.Namespace) -> None:
    _dashboard(options, tuple(options.paths) or None, nullcontext())


def _dashboard(
    options: argparse.Namespace, paths: tuple[Path, ...] | None, beside: AbstractContextManager[None]
) -> None:
    from app.errors import ServeError
    from app.main import serve
    from app.settings import read_settings

    given = {"host": options.host, "port": options.port, "paths": paths}
    try:
        settings = read_settings({name: value for name, value in given.items() if value is not None})
        with beside:
            serve(settings)
    except ServeError as error:
        raise LineupError(str(error)) from error


def _demo(options: argparse.Namespace) -> None:
    _need_pipeline()
    with writing(options.runs):
        options.runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline", "run", str(STUDIES / "demo.yaml"), "--runs", str(options.runs)]
    _dashboard(options, (options.runs,), _running(command))


@contextmanager
def _running(command: Sequence[str]) -> Iterator[None]:
    """A process beside this one, ended with it."""
    process = subprocess.Popen(command)
    # Waited for as soon as it ends, or it would be a zombie for as long as the server runs.
    threading.Thread(target=process.wait, daemon=True).start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _blind_new(options: argparse.Namespace) -> None:
    from pipeline.rater import new_experiment
    from pipeline.study_file import changed

    key = {"organiser_key": os.environ["LINEUP_ORGANISER_KEY"]} if os.environ.get("LINEUP_ORGANISER_KEY") else {}
    made = new_experiment(options.server, changed({"study": options.study}, tuple(options.set)) | key)
    server = options.server.rstrip("/")
    _say(f"for raters:        {server}{made['invitation']}")
    _say(f"for the organiser: {server}{made['organiser']}   (keep it: it is shown once)")
    if made.get("note"):
        _say(made["note"])


def _blind_judge(options: argparse.Namespace) -> None:
    from pipeline.rater import label_all

    client = options.client or options.model or "rule"
    with _judge(options.endpoint, options.model) as judge:
        result = label_all(options.invitation, judge, options.pseudonym, _say, client)
    _say(json.dumps(result, indent=2, ensure_ascii=False))


@contextmanager
def _judge(endpoint: str | None, model: str | None) -> Iterator["Judge"]:
    """A rule, or a language model; one on this machine runs as long as the context lasts."""
    from pipeline.llama import LOCAL, Llama
    from pipeline.rater import LanguageModel, most_single_token

    if not endpoint:
        yield most_single_token
        return
    if not model:
        raise LineupError("--endpoint needs --model, the name that the endpoint gives its model.")
    if endpoint != LOCAL:
        yield LanguageModel(endpoint, model, os.environ.get("LINEUP_LLM_KEY", ""))
        return
    with TemporaryDirectory() as folder, Llama(model, Path(folder), 1, EVIDENCE_TOKENS, "--model") as llama:
        address = llama.address()
        yield LanguageModel(address.url, model, address.key, by_probability=True)


def _show(options: argparse.Namespace) -> None:
    _need_pipeline()
    for name, description in LISTS[options.what]():
        _say(f"{name}\n    {description}")


def _variants() -> list[tuple[str, str]]:
    from pipeline.variants.make import VARIANTS

    return [(row.name, row.description) for row in VARIANTS.values()]


def _metrics() -> list[tuple[str, str]]:
    from pipeline.autointerp import score_metrics
    from pipeline.config import AutointerpConfig
    from pipeline.measures.metrics import METRICS

    rows = [*METRICS, *score_metrics(AutointerpConfig())]
    return [(row.name, f"{row.label}, of the {row.level}. {row.description}") for row in rows]


def _scorers() -> list[tuple[str, str]]:
    from pipeline.autointerp import EXPLAINERS, SCORERS

    explainers = [(f"explainer {row.name}", row.description) for row in EXPLAINERS.values()]
    return explainers + [(f"scorer {row.name}", row.description) for row in SCORERS.values()]


def _protocols() -> list[tuple[str, str]]:
    from pipeline.autointerp.tables import POOL_DESCRIPTIONS
    from pipeline.config import Study

    study = Study(name="any")
    tried = study.autointerp.specifications
    number = len(study.autointerp.scorers) * len(tried.explain_from) * len(tried.score_on) * len(tried.split_by)
    number *= len(study.curve_examples) * len(study.curve_windows)
    words = (
        f"{number} protocols unless the study says otherwise: every lexical scorer, {len(tried.explain_from)} pools to"
        f" explain from and {len(tried.score_on)} to score on, {len(tried.split_by)} splits,"
        f" {_joined(study.curve_examples)} contexts of {_joined(study.curve_windows)} tokens, on"
        f" {tried.latents} latents of either side"
    )
    splits = [
        ("split_by window", "no context is both explained and scored"),
        ("split_by document", "no document is: windows of one document resemble each other"),
    ]
    pools = [(f"explain_from, score_on {name}", f"of a latent, {what}") for name, what in POOL_DESCRIPTIONS.items()]
    return [*pools, *splits, ("specifications", words)]


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _architectures() -> list[tuple[str, str]]:
    from pipeline.saes.architectures import ARCHITECTURES

    return [(row.name, row.description) for row in ARCHITECTURES.values()]


LISTS = {"architectures": _architectures, "variants": _variants, "metrics": _metrics, "scorers": _scorers,
         "protocols": _protocols}  # fmt: skip


def _say(text: str, stream: TextIO | None = None) -> None:
    print(text, file=stream or sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
