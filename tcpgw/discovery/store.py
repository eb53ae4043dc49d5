"""The last good snapshots on disk, for a start while the source is down.

One file per service, `{state_dir}/snapshots/{service}.json`, in a form that a person can read and that a
`file` discovery reads as well. The files are a safety net and never a condition: one that cannot be read or
written is reported, and the gateway goes on without it.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import structlog
from pydantic import AwareDatetime, BaseModel, PositiveInt, ValidationError

from tcpgw import durable
from tcpgw.config.values import StaticMember
from tcpgw.endpoints import Snapshot

log = structlog.get_logger()


class _File(BaseModel):
    # Goes up when an older tcpgw would misread the file. Another number is refused, not guessed at.
    format: Literal[1] = 1
    service: str
    source: str = ""
    version: PositiveInt
    taken_at: AwareDatetime
    endpoints: tuple[StaticMember, ...]


class Store:
    """The state directory's snapshots. Methods block on the disk. One process writes a service's file.

    `source` says in words where the snapshots come from. One that came from elsewhere is not loaded: a
    service that was given another service_id must not start with the old one's instances.
    """

    def __init__(self, state_dir: Path, source: str = "") -> None:
        self._directory = state_dir / "snapshots"
        self._source = source

    def load(self, service: str) -> Snapshot | None:
        """Return the stored snapshot, None where there is none. A damaged file is logged, and is none."""
        path = self._path(service)
        try:
            return self._decode(service, path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("snapshot_file_ignored", service=service, path=str(path), error=_reason(error))
            return None

    def save(self, snapshot: Snapshot) -> None:
        """Replace the service's file as `durable.replace` does. Never raises OSError: it is logged."""
        path = self._path(snapshot.service)
        try:
            durable.replace(path, self._encode(snapshot))
        except OSError as error:
            hint = "make gateway.state_dir writable; without this file a start needs the source to be up"
            log.warning(
                "snapshot_not_saved", service=snapshot.service, path=str(path), error=str(error), hint=hint
            )

    def _path(self, service: str) -> Path:
        # A service's name has no "/" (config.values.Name). Finished files end with ".json", unfinished ones
        # with ".tmp", so no service's name makes the one out of the other.
        return self._directory / f"{service}.json"

    def _encode(self, snapshot: Snapshot) -> bytes:
        file = _File(
            service=snapshot.service,
            source=self._source,
            version=snapshot.version,
            taken_at=datetime.fromtimestamp(snapshot.taken_at, UTC),
            endpoints=snapshot.members,
        )
        return file.model_dump_json(indent=1).encode() + b"\n"

    def _decode(self, service: str, data: bytes) -> Snapshot:
        file = _File.model_validate_json(data)
        if (file.service, file.source) != (service, self._source):
            raise ValueError(f"it is of service {file.service!r} from {file.source!r}, not {self._source!r}")
        return Snapshot.of(service, file.endpoints, taken_at=file.taken_at.timestamp(), version=file.version)


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")
