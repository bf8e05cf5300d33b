"""Which commit a name on the Hub is at."""

import functools
import re
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from transformers.utils import logging

SMALL = ["README.md", "config.json"]
"""Files that are fetched, so that the library remembers the commit for times without a connection."""


@functools.cache
def commit(name: str, kind: Literal["model", "dataset"], revision: str | None) -> str | None:
    """The commit at which a branch or tag of a repository is, or was when the Hub could last be asked.

    Without a revision, that of its main branch. None where it is not known: reading the repository will tell why.
    """
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        folder = snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=SMALL)
    except Exception:  # its HTTP client's, which is another one in every version
        return None
    finally:
        if shown:
            logging.enable_progress_bar()
    return Path(folder).name
