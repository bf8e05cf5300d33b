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
    return re.findall(r"^Excerpt \d+: (.*)$", body["messages"][-1]["content"], flags=re.MULTILINE)


def good(rule: Rule, explanation: str = "cats", *, logprobs: bool = True) -> Behaviour:
    """A model that follows the instructions, judges excerpts by a rule, and gives log-probabilities if asked to."""

    def behave(handler: Handler, body: Body) -> None:
        prompt = "\n".join(message["content"] for message in body["messages"])
        if "EXPLANATION:" in prompt:
            handler.reply(200, completion(f"Let me see.\nEXPLANATION: {explanation}"))
            return
        chances = [rule(excerpt) for excerpt in excerpts(body)] or [0.9]
        tokens = [_token('{"answers":', {}), _token(" [", {})]
        for number, chance in enumerate(chances):
            digit = "1" if chance >= 0.5 else "0"
            tokens.append(_token((" " if number else "") + digit, {"1": chance * 0.9, "0": (1 - chance) * 0.9}))
            tokens.append(_token("," if number + 1 < len(chances) else "]}", {}))
        text = "".join(token["token"] for token in tokens)
        handler.reply(200, completion(text, tokens if logprobs and body.get("logprobs") else None))

    return behave


def _token(text: str, chances: Mapping[str, float]) -> dict[str, Any]:
    space = " " if text.startswith(" ") else ""
    top = {space + digit: math.log(chance) for digit, chance in chances.items()} or {text: -0.01, "The": -5.0}
    alternatives = [{"token": token, "logprob": value} for token, value in top.items()]
    return {"token": text, "logprob": top[text], "top_logprobs": alternatives}
