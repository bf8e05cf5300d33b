"""What the pages say when something is missing, wrong, slow, or not there yet."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest
from small_study import SCRIPT, write_small_study
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app.errors import PageError
from app.main import create_app, serve
from app.settings import Settings
from app.study import files
from app.study.files import Database
from core.errors import UserError, without_folders
from core.progress import read_progress

HTMX = {"HX-Request": "true"}


def write_progress(folder: Path, **changes: object) -> None:
    report = {
        "study": "small", "title": "A small study", "state": "running", "stage": "forward",
        "label": f"trained · layer 1 · training {SCRIPT}", "done": 12000, "total": 150016, "unit": "tokens",
        "rate": 1234.5, "stage_seconds_left": 30.0, "seconds_elapsed": 61.2, "seconds_left": 240.0,
        "updated": time.time(), "pid": 1, "error": None, "finished_saes": 2, "planned_saes": 9,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "progress.json").write_text(json.dumps(report | changes))


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("/s/none", 404, ["“none”", "small"]),
        ("/s/small/latent/none/1/0", 404, ["“none”", "trained, rerandomized_incl_embeddings, control"]),
        ("/s/small/latent/trained/7/0", 404, ["“7”", "0, 1, 3"]),
        ("/s/small/latent/trained/1/60", 404, ["no latent 60", "0 to 59"]),
        ("/s/small/latents?variant=none", 404, ["“none”", "control"]),
        ("/s/small/compare?left_latent=99", 404, ["no latent 99"]),
        ("/s/small/latents?sort=sae", 400, ["sort", "“sae”", "detection_auroc"]),
        ("/s/small/latents?order=up", 400, ["order", "“up”", "asc"]),
        ("/s/small/latents?page=0", 400, ["page", "“0”"]),
        ("/s/small/latents?where=density~3", 400, ["where", "density~3", "density&gt;0.001"]),
        ("/s/small/latents?where=state>3", 400, ["where", "state", "token_entropy"]),
        ("/s/small/latents?where=density>many", 400, ["where", "density&gt;many"]),
        ("/s/small/latents?layer=99999999999999", 400, ["layer"]),
        ("/s/small/plots?metric=fvu", 400, ["metric", "“fvu”"]),
        ("/s/small/compare?pair=love", 400, ["pair", "rank"]),
        ("/s/small/latents?sort=density%22;drop", 400, ["density&#34;;drop"]),
        ("/nothing", 404, ["/nothing"]),
    ],
)  # fmt: skip
def test_an_address_that_asks_for_what_is_not_there_says_what_is(
    client: TestClient, url: str, status: int, words: list[str]
) -> None:
    response = client.get(url)
    assert response.status_code == status
    assert response.template.name == "pages/error.html"
    for word in words:
        assert word in response.text
    assert client.get(url, headers=HTMX).template.name == "partials/error.html"


def test_an_empty_folder_says_how_to_get_a_study(folder_client: TestClient) -> None:
    assert "lineup demo" in folder_client.get("/").text


def test_a_replaced_file_is_noticed_between_requests(folder_client: TestClient, tmp_path: Path) -> None:
    file = tmp_path / "small.duckdb"
    write_small_study(file, layers=(0,), complete=False)
    assert len(folder_client.get("/s/small").context["study"].saes) == 3
    write_small_study(file, layers=(0, 1))
    assert len(folder_client.get("/s/small").context["study"].saes) == 6
    write_small_study(file)
    assert len(folder_client.get("/s/small").context["study"].saes) == 9


def test_a_request_under_way_goes_on_reading_the_old_file(tmp_path: Path) -> None:
    file, database = tmp_path / "small.duckdb", Database(10)
    write_small_study(file, layers=(0,), latents=10)
    with database.reading(file) as before:
        write_small_study(file, latents=10)
        with database.reading(file) as after:
            assert after.rows("SELECT count(*) AS n FROM saes") == [{"n": 9}]
        assert before.rows("SELECT count(*) AS n FROM saes") == [{"n": 3}]
    database.close()


def test_a_query_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    file, database = tmp_path / "small.duckdb", Database(0.05)
    write_small_study(file, layers=(0,), latents=10)
    with pytest.raises(PageError, match=r"after 0\.05 seconds") as caught, database.reading(file) as reader:
        reader.rows("SELECT count(*) FROM range(100000000000) a, range(100000) b")
    assert caught.value.status == 503
    database.close()


def test_a_server_that_is_told_to_stop_waits_for_no_query(tmp_path: Path) -> None:
    file, database = tmp_path / "small.duckdb", Database(60)
    write_small_study(file, layers=(0,), latents=10)
    threading.Timer(1.0, database.interrupt).start()
    with pytest.raises(PageError) as caught, database.reading(file) as reader:
        reader.rows("SELECT count(*) FROM range(100000000000) a, range(100000) b")
    assert caught.value.status == 503
    database.close()


def test_a_page_that_takes_too_long_is_an_error_page(tmp_path: Path) -> None:
    write_small_study(tmp_path / "small.duckdb", layers=(0,), latents=10)
    settings = Settings(paths=(tmp_path,), query_seconds=1e-9)
    with TestClient(create_app(settings)) as client:
        response = client.get("/s/small")
    assert response.status_code == 503
    assert "stopped after 1e-09 seconds" in response.text


def test_a_cursor_is_closed_before_the_answer_is_sent_and_after_an_error(study_folder: Path) -> None:
    app = create_app(Settings(paths=(study_folder,)))
    held: list[int] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            held.append(len(app.state.studies.database._cursors))
            await send(message)

        await app(scope, receive, sending)

    client = TestClient(watched)
    for page in ("", "/latents", "/latent/trained/7/0", "/latents?where=x", "/plots?metric=none", "/blind"):
        client.get(f"/s/small{page}")
    client.post("/s/small/blind", data={"title": ""})
    assert set(held) == {0}


def test_a_study_file_cannot_be_written_and_reaches_no_other_file(tmp_path: Path) -> None:
    file, database = tmp_path / "small.duckdb", Database(10)
    write_small_study(file, layers=(0,), latents=10)
    with database.reading(file) as reader:
        for sql in ("DELETE FROM latents", f"SELECT * FROM read_text('{__file__}')"):
            with pytest.raises((duckdb.Error, PageError)):
                reader.rows(sql)
    database.close()


@pytest.mark.parametrize("content", [b"this is no database" * 500, b""])
def test_a_damaged_file_is_one_sentence_and_the_others_work(
    folder_client: TestClient, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "broken.duckdb").write_bytes(content)
    write_small_study(tmp_path / "small.duckdb", layers=(0,), latents=10)
    assert folder_client.get("/s/small").status_code == 200
    listed = folder_client.get("/")
    assert "A small study" in listed.text
    assert "broken.duckdb is damaged" in listed.text
    response = folder_client.get("/s/broken")
    assert response.status_code == 503
    assert "Run the study again" in response.text
    assert str(tmp_path) not in response.text


def test_a_database_without_the_tables_is_damaged(folder_client: TestClient, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "other.duckdb")) as connection:
        connection.execute("CREATE TABLE study AS SELECT 1 AS name")
    assert "other.duckdb is damaged, from an older version, or no study file" in folder_client.get("/s/other").text


def test_a_connection_that_is_of_no_more_use_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DuckDB calls fatal ends every later query on the connection, though the file may be whole."""
    monkeypatch.setattr(files, "FATAL", (duckdb.CatalogException,))
    file, database = tmp_path / "small.duckdb", Database(10)
    write_small_study(file, layers=(0,), latents=10)
    with database.reading(file):
        first = database._open[file].connection
    with pytest.raises(PageError), database.reading(file) as reader:
        reader.rows("SELECT * FROM nothing")
    with database.reading(file):
        assert database._open[file].connection is not first
    database.close()


def test_a_study_without_a_file_waits_and_then_moves_on(folder_client: TestClient, tmp_path: Path) -> None:
    write_progress(tmp_path / "small")
    assert folder_client.get("/").context["cards"][0].title == "A small study"
    for url in ("/s/small", "/s/small/compare", "/s/small/plots"):
        response = folder_client.get(url)
        assert response.template.name == "pages/waiting.html"
        assert 'hx-trigger="every 2s"' in response.text
    assert "HX-Refresh" not in folder_client.get("/s/small/progress?seen=0", headers=HTMX).headers
    write_small_study(tmp_path / "small.duckdb", layers=(0,), complete=False, latents=10)
    assert folder_client.get("/s/small/progress?seen=0", headers=HTMX).headers["HX-Refresh"] == "true"


def test_a_study_being_built_shows_how_far_it_is_on_every_page(folder_client: TestClient, tmp_path: Path) -> None:
    write_progress(tmp_path / "small")
    write_small_study(tmp_path / "small.duckdb", layers=(0,), complete=False, latents=10, scored=False)
    for page in ("", "/latents", "/latent/trained/0/1", "/compare", "/plots"):
        text = folder_client.get(f"/s/small{page}").text
        for words in ("12,000 of 150,016", "1,234", "about 4.0 min left", "2 of 9 SAEs"):
            assert words in text, page
        assert "<script>window" not in text
    grown = folder_client.get("/s/small/progress?seen=1", headers=HTMX)
    assert grown.headers["HX-Trigger"] == "study-grew"
    assert "Show 2 new SAEs" in grown.text
    assert "HX-Trigger" not in folder_client.get("/s/small/progress?seen=3", headers=HTMX).headers


def test_before_anything_is_scored_pairs_are_ordered_by_density(folder_client: TestClient, tmp_path: Path) -> None:
    write_small_study(tmp_path / "small.duckdb", layers=(0,), complete=False, scored=False)
    context = folder_client.get("/s/small/compare").context
    assert context["order"].column == "density"
    assert context["left"].place["rank"] == 1
    asked = folder_client.get("/s/small/compare?sort=detection_auroc")
    assert asked.status_code == 200
    assert "No alive latent of this SAE has a value" in asked.text


@pytest.mark.parametrize("saes", [0, 1])
def test_a_study_with_almost_nothing_in_it_has_pages(folder_client: TestClient, tmp_path: Path, saes: int) -> None:
    write_small_study(tmp_path / "small.duckdb", layers=(0,)[:saes], complete=False, latents=1)
    for page in ("", "/latents", "/compare", "/plots", "/tensors"):
        assert folder_client.get(f"/s/small{page}").status_code == 200


def test_a_study_that_stopped_or_failed_says_so(folder_client: TestClient, tmp_path: Path) -> None:
    write_small_study(tmp_path / "small.duckdb", layers=(0,), complete=False, latents=10)
    write_progress(tmp_path / "small", updated=time.time() - 3600)
    assert "Run the same command again" in folder_client.get("/s/small").text
    write_progress(tmp_path / "small", state="failed", error="The disk is full.")
    failed = folder_client.get("/s/small").text
    assert "The disk is full." in failed
    assert 'hx-trigger="every' not in failed
    write_progress(tmp_path / "small", state="done")
    assert 'id="progress"' not in folder_client.get("/s/small").text


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Cannot read '/home/me/my model/x.json': no.", "Cannot read 'x.json': no."),
        ("model.source 'folder:/home/me/model/' has no weights", "model.source 'folder:model/' has no weights"),
        ('IO Error: Cannot open file "/srv/runs/x.duckdb": denied', 'IO Error: Cannot open file "x.duckdb": denied'),
        ("see /tmp/a-b.c/traceback.txt, and /data.", "see traceback.txt, and data."),
        ("folder:/home/me/model is no model", "folder:model is no model"),
        ("12 tokens/s at http://127.0.0.1:8080/v1/x, n/a, runs/demo/x", None),
        ("1 / 2 </b> ~/x ../y // z", None),
        ("", None),
    ],
)
def test_messages_for_pages_have_no_folders_of_this_machine(message: str, shown: str | None) -> None:
    assert without_folders(message) == (message if shown is None else shown)


def test_no_page_says_where_the_server_keeps_things(folder_client: TestClient, tmp_path: Path) -> None:
    write_progress(tmp_path / "small", state="failed", error=f"Cannot read '{tmp_path}/some model/x.json': it is gone.")
    write_progress(tmp_path / "run", label=f"reading {tmp_path}/text.txt")
    (tmp_path / "broken.duckdb").mkdir()
    (tmp_path / "damaged.duckdb").write_bytes(b"no database" * 1000)
    (tmp_path / "labels").write_text("a file where a folder should be")
    pages = ["/", "/readyz", "/healthz", "/nothing", "/blind/join/x", "/api/blind/trial"]
    pages += [
        f"/s/{name}{rest}" for name in ("small", "run", "broken", "damaged") for rest in ("", "/progress", "/plots")
    ]
    for page in pages:
        assert str(tmp_path) not in folder_client.get(page).text, page
    assert "Cannot read &#39;x.json&#39;: it is gone." in folder_client.get("/s/small").text
    assert "labels.sqlite" in folder_client.get("/blind/join/x").text


def test_progress_is_stale_after_a_minute_of_silence(tmp_path: Path) -> None:
    write_progress(tmp_path, updated=1000.0)
    file = tmp_path / "progress.json"
    phases = [progress.phase for now in (1059.0, 1061.0) if (progress := read_progress(file, now))]
    assert phases == ["running", "stopped"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"state": "odd", "updated": 1}'])
def test_a_progress_file_that_is_none_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content)
    assert read_progress(tmp_path / "progress.json") is None


def test_two_studies_of_the_same_name_both_have_an_address(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_small_study(tmp_path / folder / "small.duckdb", layers=(0,), latents=10)
    with TestClient(create_app(Settings(paths=(tmp_path / "a", tmp_path / "b" / "small.duckdb")))) as client:
        assert client.get("/readyz").json()["studies"] == 2
        assert client.get("/s/small-2").status_code == 200


def test_a_base_path_is_in_front_of_every_address(study_folder: Path) -> None:
    with TestClient(create_app(Settings(paths=(study_folder,), base_path="lineup/"))) as client:
        text = client.get("/s/small/latents").text
        assert 'href="/lineup/s/small/compare"' in text
        assert 'src="/lineup/static/app.js' in text
        assert 'href="/s/' not in text
        assert client.get("/lineup/s/small/compare").status_code == 200
        assert client.get("/lineup/static/app.js").status_code == 200


def test_serve_refuses_a_port_in_use_and_a_path_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="in use by another program"):
            serve(Settings(paths=(tmp_path,), port=taken.getsockname()[1]))
    with pytest.raises(UserError, match="There is nothing at"):
        serve(Settings(paths=(tmp_path / "none",)))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEUP_PATHS", "one:two.duckdb")
    monkeypatch.setenv("LINEUP_PORT", "9000")
    settings = Settings()
    assert settings.paths == (Path("one"), Path("two.duckdb"))
    assert settings.port == 9000


def test_the_dashboard_needs_no_torch_and_no_pipeline() -> None:
    heavy = ("torch", "pipeline", "pandas", "pyarrow", "plotly", "transformers", "sae_lens")
    code = f"import sys, app.main; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
