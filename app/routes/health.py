"""/healthz: whether the server answers, for Docker and proxies."""

from fastapi import APIRouter, Request

router = APIRouter()


@router.get("/healthz", name="health")
def health(request: Request) -> dict[str, object]:
    """Say that the server is up, and how many studies it sees."""
    return {"status": "ok", "studies": len(request.app.state.studies.entries())}
