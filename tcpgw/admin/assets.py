"""The files of the status page, as they come with the package."""

from importlib.resources import files
from typing import NamedTuple

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """A file's bytes and its Content-Type."""

    body: bytes
    kind: str


def load() -> dict[str, Asset]:
    """Read the page's files, by the paths that browsers ask for. Blocks on files."""
    found = {
        f"/{one.name}": Asset(one.read_bytes(), _TYPES[one.name.rpartition(".")[2]])
        for one in (files("tcpgw.admin") / "page").iterdir()
        if one.name.rpartition(".")[2] in _TYPES
    }
    return {**found, "/": found["/index.html"]}
