"""The command line, `lineup`: the one module that knows both halves. Errors are one sentence and exit status 2."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from core.errors import BrokenError, UserError
from core.files import writing

if TYPE_CHECKING:
    from app.blind.program import Judge

STUDIES = Path(__file__).resolve().parent / "studies"
EVIDENCE_TOKENS = 8192
"""Of what a local language model is shown of a blind trial."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    try:
        with _terminable():
            return commands.main(arguments, prog_name="lineup", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UserError as error:
        click.echo(f"lineup: {error}", err=True)
        return 2
    except BrokenError as error:
        click.echo(f"lineup: {error}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nlineup: stopped. Run the same command again to resume.", err=True)
        return 130


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


@click.group()
def commands() -> None:
    """SAE latents of trained and randomised transformers, side by side."""


def study_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """STUDY.yaml, or the name of a study that comes along, and `--set`."""
    help_ = "change a key of the study file, as in sae.k=16"
    changes = click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help=help_)
    return click.argument("study", type=Path, metavar="STUDY.yaml")(changes(command))


def address_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where a server listens."""
    command = click.option("--port", type=int, help="port to listen on (8000)")(command)
    return click.option("--host", help="address to listen on (127.0.0.1)")(command)


runs_option = click.option(
    "--runs", type=Path, default=Path("runs"), help="folder for databases and artefacts (runs)", metavar="FOLDER"
)


@commands.command()
@study_arguments
@runs_option
def run(study: Path, changes: tuple[str, ...], runs: Path) -> None:
    """Run a study, or what is missing of it."""
    from pipeline.config import load_study

    loaded = load_study(_study_file(study), changes)
    _need_pipeline()
    from pipeline.study import run_study

    database = run_study(loaded, runs)
    click.echo(f"complete: {database}   (lineup serve {database})")


@commands.command()
@study_arguments
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="also for this GPU, as in 'H100'")
def plan(study: Path, changes: tuple[str, ...], gpus: tuple[str, ...]) -> None:
    """Estimate time, memory, disk and cost of a study, without running it."""
    from pipeline.config import load_study

    loaded = load_study(_study_file(study), changes)
    _need_pipeline()
    from pipeline.plan.forecast import describe

    click.echo(describe(loaded, gpus))


def _study_file(given: Path) -> Path:
    """The file as given; or, for a bare name such as `demo`, the study of that name that comes with the program."""
    own = STUDIES / f"{given}.yaml"
    return own if len(given.parts) == 1 and not given.exists() and own.is_file() else given


def _need_pipeline() -> None:
    """Refuse where the extra is missing; and keep libraries still that report to someone else's dashboards."""
    missing = [name for name in ("torch", "sae_lens", "transformer_lens") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"Running a study needs {', '.join(missing)}, not installed here: pip install 'latent-lineup[pipeline]'."
        )
    os.environ.setdefault("WANDB_MODE", "disabled")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@commands.command()
@click.argument("study", type=Path, metavar="STUDY.duckdb")
@click.option("--out", type=Path, metavar="FILE", help="the file to write (STUDY.html beside the study)")
def report(study: Path, out: Path | None) -> None:
    """Write a study's results as one HTML file that needs nothing else."""
    from app.pages.report import write_report

    out = out or study.with_suffix(".html")
    write_report(study, out)
    click.echo(f"written: {out}")


@commands.command()
@click.argument("paths", type=Path, nargs=-1, metavar="[PATH]...")
@address_options
def serve(paths: tuple[Path, ...], host: str | None, port: int | None) -> None:
    """Show studies in the browser: files, or folders of them (runs)."""
    _dashboard({"host": host, "port": port, "paths": paths or None}, nullcontext())


@commands.command()
@runs_option
@address_options
def demo(runs: Path, host: str | None, port: int | None) -> None:
    """Run the demo study and show it while it is being built."""
    _need_pipeline()
    with writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lineup", "run", str(STUDIES / "demo.yaml"), "--runs", str(runs)]
    _dashboard({"host": host, "port": port, "paths": (runs,)}, _running(command))


def _dashboard(given: dict[str, Any], beside: AbstractContextManager[None]) -> None:
    from app.main import serve
    from app.settings import read_settings

    settings = read_settings({name: value for name, value in given.items() if value is not None})
    with beside:
        serve(settings)


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


@commands.command(hidden=True)
def healthcheck() -> None:
    """Ask the server that these settings start whether it answers, as Docker does."""
    from app.settings import read_settings

    try:
        settings = read_settings({})
        address = f"http://{settings.reached_at}:{settings.port}{settings.base_path}/healthz"
        urllib.request.urlopen(address, timeout=4).close()
    except (UserError, urllib.error.URLError, TimeoutError) as error:
        raise BrokenError(str(error)) from error  # 2, which bad settings end with, Docker keeps for itself


@commands.group()
def blind() -> None:
    """Set up a blind experiment, or label in one as a program."""


@blind.command("new")
@click.argument("study")
@click.option("--server", default="http://127.0.0.1:8000", help="address of the server (http://127.0.0.1:8000)")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="a field of the design, as in layers=[1,12]")
def new(study: str, server: str, changes: tuple[str, ...]) -> None:
    """Set up an experiment on STUDY, one that a running server shows; prints its links."""
    from app.blind.program import new_experiment
    from pipeline.config import changed

    key = {"organiser_key": os.environ["LINEUP_ORGANISER_KEY"]} if os.environ.get("LINEUP_ORGANISER_KEY") else {}
    made = new_experiment(server, changed({"study": study}, changes) | key)
    server = server.rstrip("/")
    click.echo(f"for raters:        {server}{made['invitation']}")
    click.echo(f"for the organiser: {server}{made['organiser']}   (keep it: it is shown once)")
    if made.get("note"):
        click.echo(made["note"])


@blind.command("judge")
@click.argument("invitation")
@click.option(
    "--endpoint", help="OpenAI-compatible, as http://127.0.0.1:8080/v1, or `local`; without it a rule answers"
)
@click.option("--model", help="its name there, its key in LINEUP_LLM_KEY; wheel:PACKAGE or gguf:PATH if local")
@click.option("--pseudonym", help="what to be called; else one is made up")
@click.option("--client", help="which program this is, as one session of each counts (its model)")
def judge(invitation: str, endpoint: str | None, model: str | None, pseudonym: str | None, client: str | None) -> None:
    """Label as a program: a rule, or a language model. INVITATION is the link that raters get."""
    from app.blind.program import label_all

    with judge_of(endpoint, model) as judge:
        result = label_all(invitation, judge, pseudonym, click.echo, client or model or "rule")
    click.echo(json.dumps(result, indent=2, ensure_ascii=False))


@contextmanager
def judge_of(endpoint: str | None, model: str | None) -> Iterator["Judge"]:
    """A rule, or a language model; one on this machine runs as long as the context lasts."""
    from app.blind.program import LanguageModel, most_single_token
    from pipeline.llama import LOCAL, Llama

    if not endpoint:
        yield most_single_token
        return
    if not model:
        raise UserError("--endpoint needs --model, the name that the endpoint gives its model.")
    if endpoint != LOCAL:
        yield LanguageModel(endpoint, model, os.environ.get("LINEUP_LLM_KEY", ""))
        return
    with TemporaryDirectory() as folder, Llama(model, Path(folder), 1, EVIDENCE_TOKENS, "--model") as llama:
        address = llama.address()
        yield LanguageModel(address.url, model, address.key, by_probability=True)


def _variants() -> list[tuple[str, str]]:
    from pipeline.variants.table import VARIANTS

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
        f" {', '.join(map(str, study.curve_examples))} contexts"
        f" of {', '.join(map(str, study.curve_windows))} tokens, on {tried.latents} latents of either side"
    )
    splits = [
        ("split_by window", "no context is both explained and scored"),
        ("split_by document", "no document is: windows of one document resemble each other"),
    ]
    pools = [(f"explain_from, score_on {name}", f"of a latent, {what}") for name, what in POOL_DESCRIPTIONS.items()]
    return [*pools, *splits, ("specifications", words)]


def _architectures() -> list[tuple[str, str]]:
    from pipeline.saes.architectures import ARCHITECTURES

    return [(row.name, row.description) for row in ARCHITECTURES.values()]


LISTS = {"architectures": _architectures, "variants": _variants, "metrics": _metrics, "scorers": _scorers,
         "protocols": _protocols}  # fmt: skip


@commands.command()
@click.argument("what", type=click.Choice(sorted(LISTS)))
def show(what: str) -> None:
    """List what there is."""
    _need_pipeline()
    for name, description in LISTS[what]():
        click.echo(f"{name}\n    {description}")


if __name__ == "__main__":
    sys.exit(main())
