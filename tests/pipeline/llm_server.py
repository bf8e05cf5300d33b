"""A language model for tests: a real HTTP server that answers by a rule, or misbehaves in the way a test asks for."""

import json
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

Body: TypeAlias = Mapping[str, Any]
Behaviour: TypeAlias = Callable[["Handler", Body], None]
Rule: TypeAlias = Callable[[str], float]
"""From an excerpt to the probability of yes."""


class Model(ThreadingHTTPServer):
    """Takes the next behaviour of `script` for each request, and `usual` when none is left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: deque[Behaviour] = deque()
        self.usual: Behaviour = good(lambda excerpt: 0.9 if "cat" in excerpt else 0.1)
        self.seen: list[dict[str, Any]] = []
        self.let_go = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        behaviour = self.server.script.popleft() if self.server.script else self.server.usual
        behaviour(self, body)

    def reply(self, status: int, text: str, headers: Mapping[str, str] | None = None, promise: int = 0) -> None:
        """Send a body; `promise` adds bytes to its stated length that never come."""
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) + promise))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = self.close_connection or promise > 0

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@contextmanager
def running() -> Iterator[Model]:
    model = Model()
    thread = threading.Thread(target=model.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield model
    finally:
        model.let_go.set()
        model.shutdown()
        thread.join()
        model.server_close()


def completion(text: str | None, tokens: list[Any] | None = None, **choice: Any) -> str:
    """The body of a chat completion: 100 prompt tokens, 10 answer tokens."""
    own = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | choice
    if tokens is not None:
        own["logprobs"] = {"content": tokens}
    return json.dumps({"choices": [own], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})


def says(text: str | None, **choice: Any) -> Behaviour:
    """Answers with this, whatever is asked."""
    return lambda handler, _: handler.reply(200, completion(text, **choice))


def status(code: int, text: str = '{"error": {"message": "no"}}', **headers: str) -> Behaviour:
    """Refuses."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.reply(code, text, named)


def cut_off(handler: Handler, _: Body) -> None:
    """Half of a body, then the connection is closed."""
    handler.reply(200, completion("EXPLANATION: half")[:40], promise=100)


def silent(handler: Handler, _: Body) -> None:
    """Never answers, until the test is over."""
    handler.server.let_go.wait()


def echoes_headers(code: int) -> Behaviour:
    """Tells what it was sent, as careless gateways do."""

    def behave(handler: Handler, _: Body) -> None:
        sent = dict(handler.headers)
        body = json.loads(completion(json.dumps(sent)))
        handler.reply(code, json.dumps(body if code == 200 else {"error": {"message": f"bad request {sent}"}}))

    return behave


def excerpts(body: Body) -> list[str]:
    """Those of a prompt."""
    return re.findall(r"^Excerpt(?: \d+)?: (.*)$", body["messages"][-1]["content"], flags=re.MULTILINE)


def question(body: Body) -> str:
    """The user's part of a prompt."""
    return str(body["messages"][-1]["content"])


def explains(body: Body) -> bool:
    """Whether an explanation is asked for."""
    return question(body).endswith("Explanation:")


def good(rule: Rule, explanation: str = "cats", *, logprobs: bool = True) -> Behaviour:
    """A model that follows the instructions, judges excerpts by a rule, and gives log-probabilities if asked to."""

    def behave(handler: Handler, body: Body) -> None:
        chances = [rule(excerpt) for excerpt in excerpts(body)] or [0.9]
        if explains(body):
            handler.reply(200, completion(explanation))
        elif body["max_tokens"] == 1:
            word = "Yes" if chances[0] >= 0.5 else "No"
            tokens = [_token(word, chances[0])] if logprobs and body.get("logprobs") else None
            handler.reply(200, completion(word, tokens, finish_reason="length"))
        elif "JSON" in str(body):
            handler.reply(200, completion(json.dumps({"answers": [int(chance >= 0.5) for chance in chances]})))
        else:
            handler.reply(200, completion("yes"))

    return behave


def _token(word: str, chance: float) -> dict[str, Any]:
    """The first token of an answer, with its likeliest alternatives: yes and no in two spellings each."""
    shares = {
        "Yes": 0.6 * chance,
        " yes": 0.3 * chance,
        "No": 0.6 * (1 - chance),
        " NO": 0.3 * (1 - chance),
        "The": 0.1,
    }
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items() if share > 0]
    return {"token": word, "logprob": -0.5, "top_logprobs": top}
