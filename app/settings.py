"""What the server is told: from keywords or from environment variables that begin with LINEUP_."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """How the dashboard runs."""

    model_config = SettingsConfigDict(env_prefix="LINEUP_", frozen=True, use_attribute_docstrings=True)

    paths: Annotated[tuple[Path, ...], NoDecode] = (Path("runs"),)
    """Study files (`X.duckdb`) and folders of them; in the environment, separated as in PATH."""
    labels: Path | None = None
    """The file that blind labels are kept in; by default `labels/labels.duckdb` in the first folder of studies."""
    organiser_key: str = ""
    """What must be given to set up a blind experiment; empty lets everybody who can open the dashboard."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network interface."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one."""
    base_path: str = ""
    """Path under which a proxy publishes the dashboard, such as /lineup."""
    query_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that the queries of one page may take together."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "warning"
    """Least severe message that the server logs."""

    @field_validator("paths", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return value or None

    @field_validator("base_path")
    @classmethod
    def _slashes(cls, value: str) -> str:
        trimmed = value.strip("/")
        return f"/{trimmed}" if trimmed else ""
