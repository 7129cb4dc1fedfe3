"""The oldest Python that runs this project, said in one line instead of a traceback."""

from __future__ import annotations

import sys

OLDEST = (3, 11)


def require_python() -> None:
    """End the process with code 2 if this Python is too old. Called where each package begins."""
    if sys.version_info < OLDEST:
        wanted, found = (".".join(map(str, version)) for version in (OLDEST, sys.version_info[:3]))
        print(
            f"dpsgd: error: Python must be {wanted} or newer, got {found} ({sys.executable}); "
            f"make install PYTHON=python{wanted} makes an environment, then start .venv/bin/python",
            file=sys.stderr,
        )
        raise SystemExit(2)
