"""`python -m app.healthcheck`: exit status 0 when the server on this machine answers; Docker asks so."""

import sys
import urllib.error
import urllib.request

from app.errors import ServeError
from app.settings import read_settings


def main() -> int:
    """Ask the server that these settings start."""
    try:
        settings = read_settings({})
        address = f"http://{settings.reached_at}:{settings.port}{settings.base_path}/healthz"
        with urllib.request.urlopen(address, timeout=4):
            return 0
    except (ServeError, urllib.error.URLError, TimeoutError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
