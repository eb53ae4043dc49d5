"""How further processes of the gateway are executed: by the same interpreter, with no more than they need."""

import sys
from collections.abc import Mapping
from pathlib import Path

# Of the environment: what an interpreter, its locale and a log need. Secrets may be in all the rest.
_KEPT = frozenset(
    {"HOME", "LANG", "LD_LIBRARY_PATH", "NO_COLOR", "PATH", "TERM", "TMPDIR", "TZ", "VIRTUAL_ENV"}
)
_KEPT_PREFIXES = ("LC_", "PYTHON")


def interpreter() -> list[str]:
    """Return what executes Python as this process was: modules are found where they were found for it.

    That is not in the working folder, whoever may write there, unless this process was started in it by -m.
    """
    here = bool(sys.path) and sys.path[0] in {"", str(Path.cwd())}
    return [sys.executable] if here else [sys.executable, "-P"]


def bare(environment: Mapping[str, str]) -> dict[str, str]:
    """Return of an environment what a process that has no business with secrets may see."""
    return {
        name: value for name, value in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
