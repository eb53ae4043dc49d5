"""`tcpgw demo` as its user meets it: a command, its output, its exit code, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Seconds after which something that should have happened has not: long, so that a busy machine fails nothing.
_PATIENCE = 30.0


@contextmanager
def _demo(folder: Path, *args: str) -> Iterator["subprocess.Popen[str]"]:
    """Run it with its temporary files in `folder`, by which `_processes` knows its processes as well."""
    with subprocess.Popen(
        [sys.executable, "-m", "tcpgw", "demo", *args],
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _processes(folder: Path) -> list[str]:
    """The command lines of all processes whose environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def _read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read stdout up to the line with the text."""
    assert process.stdout
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} does not stand in: {seen}")


def _run_printed(line: str) -> Any:
    """What a printed command says, in JSON. `tcpgw` is the one of this interpreter."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", line], env=os.environ | {"PATH": path}, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def test_json_tells_of_a_run_that_kept_every_promise(tmp_path: Path) -> None:
    """Through a death and an arrival nothing fails needlessly, and exactly the keys move that must."""
    with _demo(tmp_path, "--json", "--seconds", "3") as process:
        stdout, stderr = process.communicate(timeout=4 * _PATIENCE)
    result = json.loads(stdout)
    assert (process.returncode, result["promises_broken"], stderr) == (0, [], "")
    assert (result["failed"], result["bytes_mismatched"], result["moved_while_steady"]) == (0, 0, 0)
    assert result["moved_on_remove"] == result["keys_on_killed"] > 0
    assert result["keys"] / 4 / 3 <= result["moved_on_add"] <= result["keys"] / 4 * 2
    # Those who came before it was ejected, which takes five refusals.
    assert result["second_choice"] >= min(5, result["keys_on_killed"])
    assert len(result["per_endpoint"]) == 9
    assert all(result["per_endpoint"].values())
    assert sum(result["per_endpoint"].values()) + result["cut_with_instance"] >= result["connections"] > 1000
    rpc = result["rpc"]
    assert (rpc["connections_lost"], rpc["missing"], rpc["wrong"], rpc["failed_elsewhere"]) == (0, 0, 0, 0)
    # Each client asked at least twice: before the kill, and after it.
    assert rpc["requests"] >= 2 * rpc["clients"] == 2000
    assert 0 < rpc["failed"] <= rpc["pending_on_killed"]
    assert sum(rpc["requests_per_endpoint"].values()) + rpc["failed"] == rpc["requests"]
    assert list(rpc["connections_per_endpoint"].values()) == [4, 4, 4, 4]
    assert 0 < result["api_calls"] <= 120
    assert result["token_calls"] > 0
    assert _processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_serve_answers_the_lines_it_prints_until_it_is_interrupted(
    tmp_path: Path, need: Callable[[str], str]
) -> None:
    """The printed lines work verbatim in a shell, and Ctrl-C is a good end that leaves nothing."""
    need("curl")
    with _demo(tmp_path, "--serve") as process:
        printed = _read_until(process, "Ctrl-C")
        line = next(line for line in printed.splitlines() if line.strip().startswith("curl"))
        answer = subprocess.run(
            ["sh", "-c", f"{line} --silent --show-error"], capture_output=True, check=True
        )
        assert json.loads(answer.stdout)["input"] == {"a": "a"}
        assert json.loads(answer.stdout)["instance"] in {f"predict-{number}" for number in range(1, 5)}
        _read_until(process, "client_fin")
        need("tcpgw")
        predicted, seen = (_run_printed(line) for line in printed.splitlines() if "tcpgw call" in line)
        assert predicted["input"] == {"a": "a"}
        assert {predicted["instance"], seen["instance"]} <= {f"infer-{number}" for number in range(1, 5)}
        assert seen["connections"] == 4
        _read_until(process, "requests: 1")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, stderr) == (0, "")
    assert _processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_signal_in_the_middle_ends_everything(tmp_path: Path) -> None:
    """Interrupted under traffic, the demo leaves no process and no file, and does not claim success."""
    with _demo(tmp_path, "--seconds", "600") as process:
        _read_until(process, "clients connect")
        assert len(_processes(tmp_path)) == 16  # itself, twelve instances, the gateway and its two workers
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, stderr) == (1, "")
    assert _processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_outlives_a_demo_that_was_killed(tmp_path: Path) -> None:
    """Even SIGKILL, which nobody can handle, leaves no process behind."""
    with _demo(tmp_path, "--serve") as process:
        _read_until(process, "Ctrl-C")
        process.kill()
        process.wait(_PATIENCE)
    _wait_until(lambda: _processes(tmp_path) == [])


def test_a_gateway_that_dies_is_told(tmp_path: Path) -> None:
    """Without its gateway the demo ends with 1 and an explanation."""
    with _demo(tmp_path, "--serve") as process:
        _read_until(process, "Ctrl-C")
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_text()
            except OSError:
                continue
            if re.search(rf"run\0-c\0{tmp_path}/", command):
                os.kill(int(path.parent.name), signal.SIGKILL)
        _, stderr = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 1
    assert "the gateway ended by itself" in stderr
    assert _processes(tmp_path) == []


@pytest.mark.parametrize("args", [("--json", "--serve"), ("--seconds", "0")])
def test_bad_usage_is_refused(tmp_path: Path, args: tuple[str, ...]) -> None:
    """What cannot be asked for leaves with 2, before anything starts."""
    with _demo(tmp_path, *args) as process:
        stdout, stderr = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, stdout) == (2, "")
    assert args[0] in stderr
