"""What a configuration names and does not hold: API keys, certificates, sets of keys.

Read once per host, by whoever reads the configuration, and handed on as it is: so all workers have the same,
and none needs to be allowed to read it. Files are looked at every few seconds and read anew when they change,
as certificates are renewed without anybody telling the gateway; a set of keys behind a URL is asked for. What
cannot be used does not take the place of what is in force.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tcpgw.app.background import Background
from tcpgw.config import schema
from tcpgw.config.material import Material, material
from tcpgw.errors import ConfigError, Fault

if TYPE_CHECKING:  # 0.1 s and 8 MiB of each worker's, which asks nobody
    from tcpgw.access.jwks import JwksUrl

log = structlog.get_logger()

Contents = Mapping[str, bytes]
"""By the key path that names it."""

# Seconds between looks at the files.
_LOOK = 5.0
# Seconds that a start or a reload waits for a set of keys; then it goes on, and denies the tokens.
_PATIENCE = 5.0
# Bytes of a file: far above what any of them has, so a wrong path does not take the memory.
_LARGEST = 16 << 20
_NO_KEYS = b""  # of a URL that has not answered yet

_Stamp = tuple[int, int, int, int] | None


def read_files(config: schema.Config) -> Contents:
    """Read what a configuration names, but ask for nothing: sets of keys behind URLs are empty.

    Raises ConfigError, naming all that cannot be read.
    """
    return _read(material(config), lambda _: _NO_KEYS)


class Materials:
    """Reads for one gateway. `changed` hears of contents that differ from those in force, with all of them.

    They are of the configuration that was followed last when it is called; it must drop them where another
    one comes into force before they do. It raises ConfigError for what it cannot use, and the contents in
    force stay. `close` must be called. Used in one running event loop.
    """

    def __init__(self, changed: Callable[[Contents], Awaitable[None]], background: Background) -> None:
        self._changed = changed
        self._background = background
        self._urls: dict[str, tuple[JwksUrl, asyncio.Task[None]]] = {}
        self._wanted: tuple[Material, ...] = ()
        self._contents: Contents = {}
        self._stamps: dict[Path, _Stamp] = {}
        self._before: dict[Path, _Stamp] = {}  # of what was read last
        self._looking: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()

    async def read(self, config: schema.Config) -> Contents:
        """Read what a configuration names. Raises ConfigError, naming all that cannot be read."""
        wanted = material(config)
        await self._ask(wanted)
        # Before the files are read, and not when that comes into force, which can take long: what is written
        # between the two is then found by the next look.
        self._before = {path: _stamp(path) for path in _paths(wanted)}
        return await asyncio.to_thread(_read, wanted, self._keys)

    def follow(self, config: schema.Config, contents: Contents) -> None:
        """Take these, which `read` gave, for the ones in force, and look at whether they change."""
        self._wanted, self._contents = material(config), contents
        self._stamps = {path: self._before.get(path) for path in _paths(self._wanted)}
        urls = {one.source for one in self._wanted if isinstance(one.source, str)}
        for url in self._urls.keys() - urls:
            _, task = self._urls.pop(url)
            task.cancel()
        if self._looking is None and self._wanted:
            self._looking = self._background.start(self._look(), "files that the configuration names")

    async def refresh(self) -> None:
        """Ask for the sets of keys anew, at their limited rate, and return when what is new is in force."""
        await asyncio.gather(*(url.refresh() for url, _ in self._urls.values()))
        await self._take(set())

    async def close(self) -> None:
        """Idempotent."""
        for url, task in self._urls.values():
            await self._background.stop(task)
            await url.close()
        if self._looking is not None:
            await self._background.stop(self._looking)

    # ---- sets of keys ----

    async def _ask(self, wanted: tuple[Material, ...]) -> None:
        new = []
        for one in wanted:
            if isinstance(one.source, str) and one.source not in self._urls:
                from tcpgw.access.jwks import JwksUrl  # noqa: PLC0415 - see above

                url = JwksUrl(one.source)
                task = self._background.start(self._keep(url), f"keys of {one.source}")
                self._urls[one.source] = url, task
                new.append(url)
        if new:
            await asyncio.wait([asyncio.ensure_future(url.refresh()) for url in new], timeout=_PATIENCE)

    async def _keep(self, url: "JwksUrl") -> None:
        try:
            await url.run()
        finally:
            await url.close()

    # ---- files ----

    def _keys(self, url: str) -> bytes:
        return self._urls[url][0].text or _NO_KEYS

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            stamps = {path: _stamp(path) for path in _paths(self._wanted)}
            changed = {path for path, stamp in stamps.items() if stamp != self._stamps.get(path)}
            self._stamps = stamps
            await self._take(changed)

    async def _take(self, changed: set[Path]) -> None:
        """Put in force what is new, if it can be used. Each begins with what the one before it left."""
        async with self._one:
            wanted = self._wanted
            try:
                contents = await self._with_files() if changed else self._with_urls()
                if wanted is not self._wanted or contents == self._contents:
                    return
                await self._changed(contents)
            except ConfigError as exc:
                hint = "what was read before stays in force"
                log.error("files_refused", error=str(exc), hint=hint)
                return
            if wanted is self._wanted:  # else another configuration came, with what was read for it
                new = sorted(key for key, data in contents.items() if data != self._contents.get(key))
                self._contents = contents
                log.info("files_read", changed=new)

    async def _with_files(self) -> Contents:
        return await asyncio.to_thread(_read, self._wanted, self._keys)

    def _with_urls(self) -> Contents:
        urls = {one.key: self._keys(one.source) for one in self._wanted if isinstance(one.source, str)}
        return {**self._contents, **urls}


def _read(wanted: tuple[Material, ...], keys: Callable[[str], bytes]) -> Contents:
    contents: dict[str, bytes] = {}
    faults = []
    for one in wanted:
        try:
            contents[one.key] = keys(one.source) if isinstance(one.source, str) else _text(one.source)
        except OSError as exc:
            faults.append(Fault(one.key, f"the file {one.source} cannot be read: {exc.strerror}"))
    if faults:
        raise ConfigError(faults)
    return contents


def _text(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise OSError(errno.EFBIG, f"it has more than {_LARGEST >> 20} MiB")
    return data


def _paths(wanted: Iterable[Material]) -> list[Path]:
    return [one.source for one in wanted if isinstance(one.source, Path)]


def _stamp(path: Path) -> _Stamp:
    """What differs when a file was written, replaced or made readable; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
