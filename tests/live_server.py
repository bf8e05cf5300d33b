"""A dashboard in a thread, for tests that need a real address."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from app.main import create_app
from app.settings import Settings


class Server(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A dashboard over a folder, on a free port; gives its address."""
    server = Server(uvicorn.Config(create_app(Settings(paths=(folder,))), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.listening.wait(30), "The server did not start."
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
