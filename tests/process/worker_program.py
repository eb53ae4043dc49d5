"""A worker process for tests of its supervisor: does what its slot's file says. `SLOT DESCRIPTOR FOLDER`."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import uvloop

from tcpgw.process.channel import Channel


async def serve(slot: int, fd: int, folder: Path) -> None:
    done = asyncio.Event()
    channel = Channel(
        socket.socket(fileno=fd),
        {"accept": os.getpid, "drain": done.set, "die": lambda: os._exit(7), "hang": hang},
    )
    said = asyncio.create_task(channel.run())
    if (folder / f"dies-{slot}").exists():
        os._exit(3)
    channel.tell("report", {"listeners": {"l": {"active": slot}}})
    beat = asyncio.create_task(keep_beating(channel))
    waits = [asyncio.create_task(event.wait()) for event in (done, channel.closed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in (beat, *waits):
        task.cancel()
    channel.tell("report", {"listeners": {"l": {"active": 0, "accepted": 5}}})
    await channel.flushed()
    said.cancel()


async def keep_beating(channel: Channel) -> None:
    while True:
        channel.tell("beat")
        await asyncio.sleep(0.02)


def hang() -> None:
    while True:
        pass


uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
