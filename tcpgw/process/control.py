"""Where the commands find a running gateway: a Unix socket, named after the configuration that it runs."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path


def places(config: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield where the control socket of the gateway with this configuration may be, the best place first.

    The file's path is its identity: so `tcpgw reload -c FILE` needs to be told nothing else, and several
    gateways of a host do not meet. As it is written, because what a symbolic link leads to may be replaced,
    as Kubernetes does it.
    """
    path = Path(os.path.abspath(config))  # noqa: PTH100 - unlike absolute(), without "..", and unlike resolve()
    name = f"{path.stem[:32]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}.sock"
    for folder in _folders(environment):
        yield folder / name


def others(config: Path) -> Iterator[Path]:
    """Yield where the control sockets of other users' gateways with this configuration are, for root."""
    if os.getuid() != 0:
        return
    name = next(places(config, {})).name
    yield from Path("/run/user").glob(f"*/tcpgw/{name}")
    for place in Path(tempfile.gettempdir()).glob(f"tcpgw-*/{name}"):
        if place.parent.name == f"tcpgw-{place.parent.stat().st_uid}":  # nobody else's trap
            yield place


def _folders(environment: Mapping[str, str]) -> Iterator[Path]:
    # systemd.exec(5), RuntimeDirectory=: more than one folder would be joined by colons.
    if given := environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        yield Path(given)
    yield Path("/run/tcpgw")
    if own := environment.get("XDG_RUNTIME_DIR", ""):
        yield Path(own) / "tcpgw"
    yield Path(tempfile.gettempdir()) / f"tcpgw-{os.getuid()}"


def usable(place: Path) -> bool:
    """Whether a socket can be made there, in a folder that is made where it is missing, and is ours.

    A folder of somebody else's in /tmp would let them answer in the gateway's stead.
    """
    folder = place.parent
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    ours = found.st_uid in (0, os.getuid())
    return ours and not found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK)
