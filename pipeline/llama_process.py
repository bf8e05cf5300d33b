"""The process in which llama.cpp's own server runs.

`llama.py` runs it by its path. It ends when its standard input does, so when whoever started it ends, in whatever way;
and an abort in llama.cpp does not take the study with it.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

PACKAGE = "xllamacpp"


def main(model: str, slots: str, context: str, threads: str) -> None:
    """Serve the model until standard input ends; its first line of output is JSON, with an address or an error."""
    try:
        xllamacpp = _llama()
    except (ImportError, OSError) as error:
        _say({"error": f"cannot be loaded: {error}"})
        return
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_parallel = int(slots)
    parameters.n_ctx = int(slots) * int(context)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(threads)
    parameters.swa_full = True  # or models with a sliding window forget what prompts have in common
    parameters.port = 0  # a free one
    parameters.verbosity = 0
    parameters.ui = parameters.endpoint_slots = parameters.endpoint_props = False
    key = secrets.token_hex(16)
    parameters.api_keys = [key]  # web pages can reach the loopback too
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError:
        _say({"error": f"cannot load '{Path(model).name}': it is damaged, too large, or of an unknown architecture"})
        return
    _say({"address": f"{server.listening_address}/v1", "key": key})
    sys.stdin.buffer.read()
    os._exit(0)  # without waiting for what is being answered


def _llama() -> Any:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError:  # it takes libgomp from the system, which may have none; torch brings one
        torch = importlib.util.find_spec("torch")
        if torch is None or torch.origin is None:
            raise
        ctypes.CDLL(str(Path(torch.origin).with_name("lib") / "libgomp.so.1"))
        return importlib.import_module(PACKAGE)


def _say(facts: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
