"""Keys that change while clients come: in files and behind a URL, at a gateway of several processes."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tcpgw.access.keys import NewKey, new_key
from tests.support.access import now_claims
from tests.support.issuer import Issuer, issuing
from tests.support.load import Background
from tests.support.processes import PATIENCE, Address, free_port, wait_until
from tests.support.tokens import jwks, public_ec, public_rsa, signed
from tests.support.workers import Run, config_of

DENIED = b"TCPGW DENIED\n"


@pytest.fixture
def background() -> Iterator[Background]:
    with Background(instances=2) as background:
        yield background


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have supervisors look at files, and ask for sets of keys, more often than they do."""

    def set_to(seconds: float) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\n"
            "if 'run' in sys.argv or 'run' in sys.orig_argv:\n"
            "    import tcpgw.access.jwks, tcpgw.app.material\n"
            f"    tcpgw.app.material._LOOK = {seconds}\n"
            f"    tcpgw.access.jwks.AT_MOST_EVERY = {seconds}\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")

    return set_to


def replace(file: Path, *lines: str) -> None:
    other = file.with_suffix(".new")
    other.write_text("\n".join(lines))
    other.replace(file)


def shown(address: Address, token: str | bytes) -> bytes:
    """What a client is answered that shows a token and sends one line: that line, or the denial."""
    text = token.decode() if isinstance(token, bytes) else token
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(f"TCPGW AUTH {text}\nhello".encode())
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


class Clients:
    """Threads that come again and again, each with the key that is theirs at the moment."""

    def __init__(self, address: Address, key: NewKey, count: int = 4) -> None:
        self.keys = [key] * count
        self.served = 0
        self.failures: list[object] = []
        self._address = address
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Return when all have come a few times more."""
        before = self.served
        wait_until(lambda: self.failures or self.served >= before + 10 * len(self.keys))

    def _run(self, at: int) -> None:
        while not self._end.is_set():
            try:
                answer: object = shown(self._address, self.keys[at].key)
            except OSError as exc:
                answer = exc
            if answer != b"hello":
                self.failures.append(answer)
            self.served += 1
            time.sleep(0.002)


def access(file: Path) -> str:
    return f'[listener.access]\napi_keys = "{file}"\n'


@pytest.mark.parametrize("how", ["noticed", "reloaded"])
def test_a_key_is_rotated(
    how: str, impatient: Callable[[float], None], tmp_path: Path, background: Background
) -> None:
    """Add the new one, change the clients, take the old one out: nobody with a valid key is ever refused."""
    impatient(0.5 if how == "noticed" else 30.0)
    file, old, new = tmp_path / "keys", new_key("alice"), new_key("alice")
    replace(file, old.line)
    run = Run(tmp_path, config_of(background.instances, free_port(), more=access(file)))

    def put(*lines: str) -> None:
        replace(file, *lines)
        reads = len(gateway.events("files_read"))
        if how == "reloaded":
            told = run.command("reload")
            assert told.returncode == 0, told.stderr
        else:
            wait_until(lambda: len(gateway.events("files_read")) > reads)

    with run.started() as gateway, Clients(run.address, old) as clients:
        assert shown(run.address, new.key) == DENIED
        clients.goes_on()
        put(old.line, new.line)
        wait_until(lambda: all(shown(run.address, new.key) == b"hello" for _ in range(8)))
        for at in range(len(clients.keys)):
            clients.keys[at] = new
            clients.goes_on()
        put(new.line)
        wait_until(lambda: all(shown(run.address, old.key) == DENIED for _ in range(8)))
        clients.goes_on()
        assert not clients.failures
        assert clients.served > 100
    ended = [line for line in gateway.events("denied") if line["reason"] == "denied_credentials"]
    assert 1 <= len(ended) <= 8  # a line each 10 s, of each worker
    text = run.log.read_text()
    assert old.key[-20:] not in text
    assert new.key.split("_", 2)[2] not in text


def test_a_broken_key_file(
    impatient: Callable[[float], None], tmp_path: Path, background: Background
) -> None:
    """It is refused, noticed or at a reload, with its name and the line; what was read before stays."""
    impatient(0.3)
    file, key, other = tmp_path / "keys", new_key("alice"), new_key("bob")
    replace(file, key.line)
    run = Run(tmp_path, config_of(background.instances, free_port(), more=access(file)))
    with run.started() as gateway:
        replace(file, key.line, "", other.line, "bob is here")
        told = run.command("reload")
        assert told.returncode != 0
        assert f"{file}: line 4: " in told.stderr
        assert shown(run.address, key.key) == b"hello"
        wait_until(lambda: gateway.events("files_refused"))
        (refused,) = gateway.events("files_refused")
        assert f"{file}: line 4: " in refused["error"]
        assert shown(run.address, key.key) == b"hello"
        assert shown(run.address, other.key) == DENIED
        file.unlink()
        wait_until(lambda: len(gateway.events("files_refused")) == 2)
        assert shown(run.address, key.key) == b"hello"
        replace(file, other.line)
        wait_until(lambda: gateway.events("files_read"))
        wait_until(lambda: all(shown(run.address, other.key) == b"hello" for _ in range(8)))
        assert shown(run.address, key.key) == DENIED


# ---- sets of keys ----


def jwt(source: str, algorithms: str = '"RS256", "ES256"') -> str:
    return f"""
[listener.access]
timeout = "5s"
[listener.access.jwt]
algorithms = [{algorithms}]
jwks = "{source}"
audience = "tcpgw"
"""


def test_a_set_of_keys_in_a_file(
    impatient: Callable[[float], None], tmp_path: Path, background: Background
) -> None:
    """An issuer's next key is taken once it stands in the file, and its last one until it does not."""
    impatient(0.3)
    file = tmp_path / "jwks.json"
    replace(file, jwks(public_rsa()))
    run = Run(tmp_path, config_of(background.instances, free_port(), more=jwt(str(file))))
    one, two = signed(now_claims(), "RS256"), signed(now_claims(), "ES256")
    with run.started() as gateway:
        assert shown(run.address, one) == b"hello"
        assert shown(run.address, two) == DENIED
        replace(file, jwks(public_rsa(), public_ec()))
        assert run.command("reload").returncode == 0
        assert [shown(run.address, token) for token in (one, two) * 4] == [b"hello"] * 8
        replace(file, "{}")
        wait_until(lambda: gateway.events("files_refused"))
        assert str(file) in gateway.events("files_refused")[0]["error"]
        assert shown(run.address, one) == b"hello"
        replace(file, jwks(public_ec()))
        wait_until(lambda: gateway.events("files_read"))
        wait_until(lambda: all(shown(run.address, one) == DENIED for _ in range(8)))
        assert shown(run.address, two) == b"hello"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(jwks(public_rsa())) as issuer:
        yield issuer


def test_a_key_that_the_issuer_has_just_made(
    issuer: Issuer, impatient: Callable[[float], None], tmp_path: Path, background: Background
) -> None:
    """Clients of all workers wait while the supervisor asks once, and are let in by what it is told."""
    impatient(1.0)
    run = Run(tmp_path, config_of(background.instances, free_port(), more=jwt(issuer.url)))
    one, two = signed(now_claims(), "RS256"), signed(now_claims(), "ES256")
    with run.started() as gateway:
        assert shown(run.address, one) == b"hello"
        assert issuer.asked == 1
        issuer.text = jwks(public_rsa(), public_ec())
        time.sleep(1.0)  # since it was asked last
        issuer.delay = 0.3
        answers = _at_once(lambda: shown(run.address, two), 12)
        assert answers == [b"hello"] * 12
        assert issuer.asked == 2
        # Whoever invents keys does not bring about a question each.
        stranger = signed(now_claims(), "RS256", kid="r9", key=None)
        answers = _at_once(lambda: shown(run.address, stranger), 12)
        assert answers == [DENIED] * 12
        assert issuer.asked <= 3
        assert shown(run.address, two) == b"hello"
        wait_until(lambda: len(gateway.events("jwks_read")) == 2)


def test_an_issuer_that_is_not_there(
    issuer: Issuer, impatient: Callable[[float], None], tmp_path: Path, background: Background
) -> None:
    """The gateway starts without it and denies tokens; who comes once it is there waits, and is let in."""
    impatient(0.5)
    issuer.status = 503
    run = Run(tmp_path, config_of(background.instances, free_port(), more=jwt(issuer.url)))
    one = signed(now_claims(), "RS256")
    with run.started() as gateway:
        assert shown(run.address, one) == DENIED
        (failed,) = gateway.events("jwks_failed")
        assert issuer.url in failed["error"]
        issuer.status = 200
        time.sleep(0.5)
        assert shown(run.address, one) == b"hello"
        issuer.status = 503
        told = run.command("reload")
        assert told.returncode == 0, told.stderr
        assert shown(run.address, one) == b"hello"


def _at_once(do: Callable[[], bytes], count: int) -> list[bytes]:
    answers: list[bytes] = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            thread = threading.Thread(target=lambda: answers.append(do()))
            thread.start()
            stack.callback(thread.join)
    return answers
