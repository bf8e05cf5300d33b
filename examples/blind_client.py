"""A whole rater: join a blind experiment, answer every trial, print the result. Standard library only.

python examples/blind_client.py http://127.0.0.1:8000 INVITE
"""

import json
import sys
import urllib.request
from typing import Any


def call(url: str, token: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST of a body, as JSON."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def judge(trial: dict[str, Any]) -> int:
    """An answer from 1 to 6: your program goes here. This one asks how many different tokens are strongest."""
    shown = trial.get("latent") or trial["right"]
    peaks = {max(texts, key=lambda cell: cell[1])[0].strip().lower() for texts in shown["contexts"]}
    return 2 if len(peaks) <= 2 else 5


def main(server: str, invite: str) -> None:
    """Label until there is nothing left."""
    api = f"{server}/api/blind"
    token = call(f"{api}/sessions", body={"invite": invite, "client": "example"})["token"]
    while not (trial := call(f"{api}/trial", token))["finished"]:
        answer = {"trial": trial["trial"], "revision": trial["revision"], "answer": judge(trial)}
        call(f"{api}/answers", token, answer)
    print(json.dumps(call(f"{api}/result", token), indent=2))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
