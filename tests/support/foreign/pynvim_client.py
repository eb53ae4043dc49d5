"""A plug-in host for Neovim: `pynvim_client.py HOST PORT NAME` prints what it saw, as JSON.

A program of its own, because pynvim leaves its sockets to the garbage collector.
"""

import json
import sys
from typing import Any

import pynvim

host, port, name = sys.argv[1:]
editor = pynvim.attach("tcp", address=host, port=int(port))
seen: dict[str, Any] = {"asked": [], "told": []}


def answer(method: str, params: list[Any]) -> str:
    seen["asked"].append([method, params])
    return f"{name} says yes"


def told(method: str, params: list[Any]) -> None:
    seen["told"].append([method, params])


def work() -> None:
    try:
        seen["channel"] = editor.channel_id
        seen["sum"] = editor.eval("20 + 22")
        editor.command(f"call rpcnotify({editor.channel_id}, 'news', '{name}')")
        seen["answer"] = editor.eval(f"rpcrequest({editor.channel_id}, 'confirm', '{name}')")
        editor.command("nonesuch")
    except pynvim.NvimError as exc:
        seen["error"] = str(exc)
    finally:
        editor.stop_loop()


editor.run_loop(answer, told, work)
editor.close()
print(json.dumps(seen))  # noqa: T201 - that is its output
