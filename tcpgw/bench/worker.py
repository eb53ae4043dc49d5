"""`python -m tcpgw.bench.worker`: one process of the generator, told by its stdin and heard on its stdout.

A line of JSON each: it is given its share of the run, says {"ready": true} when its connections are open, is
given {"begin": nanoseconds of the monotonic clock, which all processes of a machine share}, says {"answers",
"failures"} from time to time, and at the end {"counts": …}. {"failed": sentence} stands in place of whatever
cannot be. It ends when its stdin does: no worker outlives its parent.
"""

import asyncio
import contextlib
import json
import sys
from typing import Any

import uvloop

from tcpgw.bench.load import Load
from tcpgw.bench.plan import BenchError, Share
from tcpgw.process.limits import calm_collector, raise_open_files

_PROGRESS = 0.2  # s


def main() -> None:
    """Do what stdin says."""
    with contextlib.suppress(asyncio.CancelledError):
        uvloop.run(_work())


async def _work() -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    share = Share.from_json(await commands.readline())
    begin: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine's is never

    async def obey() -> None:
        if line := await commands.readline():
            begin.set_result(json.loads(line)["begin"])
            await commands.read()
        task.cancel()

    obeying = asyncio.create_task(obey())
    try:
        await _put_load(share, begin)
    finally:
        obeying.cancel()


async def _put_load(share: Share, begin: "asyncio.Future[int]") -> None:
    raise_open_files()
    load = Load(share)
    try:
        await load.open()
        calm_collector()
        _say({"ready": True})
        telling = asyncio.create_task(_tell(load))
        try:
            counts = await load.run(await begin)
        finally:
            telling.cancel()
        _say({"counts": counts.to_dict()})
    except BenchError as exc:
        _say({"failed": str(exc)})
    finally:
        load.close()


async def _tell(load: Load) -> None:
    while True:
        await asyncio.sleep(_PROGRESS)
        _say({"answers": load.tally.answers, "failures": load.tally.failures})


def _say(message: dict[str, Any]) -> None:
    # A pipe takes 64 KiB without waiting; that is minutes of this.
    print(json.dumps(message), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
