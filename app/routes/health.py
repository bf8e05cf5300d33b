"""/healthz: whether the server answers; /readyz: whether it can do its work. For Docker and proxies."""

import os
from pathlib import Path

from fastapi import APIRouter, Request, Response

router = APIRouter()


@router.get("/healthz", name="health")
def health() -> dict[str, str]:
    """Say that the server is up."""
    return {"status": "ok"}


@router.get("/readyz", name="ready")
def ready(request: Request, response: Response) -> dict[str, object]:
    """Say how many studies the server sees; 503 when it cannot read the places where it looks for them."""
    studies = request.app.state.studies
    unreadable = [path.name for path in studies.paths if not _readable(path)]
    if unreadable:
        response.status_code = 503
        return {"status": "not ready", "unreadable": unreadable}
    return {"status": "ok", "studies": len(studies.entries())}


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)
