"""What the server is told: from keywords or from environment variables that begin with LINEUP_."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from core.errors import UserError

_OWN = ("api", "blind", "healthz", "readyz", "s", "static")
"""What the dashboard's own paths begin with: of such a base path nobody could tell whether a proxy took it off."""


class Settings(BaseSettings):
    """How the dashboard runs."""

    model_config = SettingsConfigDict(env_prefix="LINEUP_", frozen=True, use_attribute_docstrings=True)

    paths: Annotated[tuple[Path, ...], NoDecode] = (Path("runs"),)
    """Study files (`X.duckdb`) and folders of them; in the environment, separated as in PATH."""
    labels: Path | None = None
    """The file that blind labels are kept in; by default `labels/labels.sqlite` in the first folder of studies."""
    organiser_key: str = ""
    """What must be given to set up a blind experiment; empty lets everybody who can open the dashboard."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network interface."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one."""
    hosts: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Names by which browsers may ask for the dashboard, beside localhost and IP addresses; `*` stands for anything.

    In the environment, separated by commas. None: no other names if `host` is this machine's alone, else all.
    """
    base_path: str = ""
    """Path under which a proxy publishes the dashboard, such as /lineup, whether it takes that off requests or not."""
    query_seconds: Annotated[float, Field(gt=0, le=86400)] = 10.0
    """Seconds that the queries of one page may take together."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "warning"
    """Least severe message that the server logs."""

    @property
    def reached_at(self) -> str:
        """The host in the address that this machine reaches the server at."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    @field_validator("paths", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        paths = tuple(Path(part) for part in value.split(os.pathsep) if part)
        if not paths:
            raise ValueError("it should name a study file or a folder of them; without it, that is runs")
        return paths

    @field_validator("labels", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return value or None

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.:%-]+", value, re.ASCII):
            raise ValueError("it should be an address, as in 127.0.0.1 or ::1; 0.0.0.0 is every network interface")
        return value

    @field_validator("hosts", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = [name.rstrip(".") for name in re.split(r"[\s,]+", value.lower()) if name]
        if not all(re.fullmatch(r"[\w.*-]+", name) for name in names):
            raise ValueError("it should have names without scheme, port or path, as in lineup.example, *.lab.example")
        return tuple(names) or None

    @field_validator("base_path")
    @classmethod
    def _slashes(cls, value: str) -> str:
        trimmed = value.strip("/")
        if not re.fullmatch(r"[\w.~/-]*", trimmed, re.ASCII) or trimmed.split("/")[0] in _OWN:
            raise ValueError(
                "it should be a path of letters, digits, . _ ~ and -, as in /lineup, and not begin with one of"
                f" {', '.join(_OWN)}"
            )
        return f"/{trimmed}" if trimmed else ""


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from the environment and from what options of the command line give; raises UserError."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = f"--{field}" if field in given else f"LINEUP_{field.upper()}"
        said = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        raise UserError(f"{name} is {str(first['input'])[:80]!r}: {said}.") from error
