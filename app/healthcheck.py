"""`python -m app.healthcheck`: exit status 0 when the server on this machine answers; Docker asks so."""

import sys
import urllib.error
import urllib.request

from app.settings import Settings


def main() -> int:
    """Ask the server that these settings start."""
    settings = Settings()
    host = "127.0.0.1" if settings.host in ("", "0.0.0.0") else settings.host
    try:
        with urllib.request.urlopen(f"http://{host}:{settings.port}{settings.base_path}/healthz", timeout=4):
            return 0
    except (urllib.error.URLError, TimeoutError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
