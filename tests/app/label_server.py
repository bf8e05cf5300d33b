"""A server of labels without web pages, for tests that kill it: requests are JSON lines, so are acknowledgements.

`label_server.py FILE CHECKPOINT_BYTES`: first says what the file has, then answers `["label", session, trial, revision,
answer]` and `["join", experiment, pseudonym]` from many threads.
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.blind.store import LabelStore
from app.errors import PageError

PRINTING = threading.Lock()


def say(*values: Any) -> None:
    with PRINTING:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()


def serve(store: LabelStore, request: list[Any]) -> None:
    kind, *values = request
    try:
        if kind == "label":
            ack = store.label(*values, seconds=1.0)
            say("label", values[0], values[1], ack.revision, ack.answer)
        else:
            say("join", store.join(*values).pseudonym)
    except PageError as error:
        say("join" if error.status == 409 and kind == "join" else "error", values[1], str(error))


def main() -> None:
    store = LabelStore(Path(sys.argv[1]), checkpoint_bytes=int(sys.argv[2]))
    with store._file.reading() as connection:
        say("file", connection.execute("SELECT trial, revision, answer FROM labels").fetchall())
    with ThreadPoolExecutor(8) as pool:
        for line in sys.stdin:
            pool.submit(serve, store, json.loads(line))
    store.close()


if __name__ == "__main__":
    main()
