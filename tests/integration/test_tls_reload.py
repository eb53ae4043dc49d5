"""Certificates and lists of the revoked that are replaced under load, in a gateway as operators run it."""

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.certificates import AUTHORITY, SERVER, Issued, client_side
from tests.support.load import Background
from tests.support.processes import PATIENCE, Address, GatewayProcess, free_port, wait_until
from tests.support.secure import MUTUAL, PLAIN_TLS, put, server_tls
from tests.support.workers import Run, config_of

RENEWED = AUTHORITY.issue("localhost", "127.0.0.1")
ALICE = AUTHORITY.issue("alice.example.com")
BOB = AUTHORITY.issue("bob.example.com")
# Files are looked at every 5 s; the rest is for a busy machine.
WATCH = 5.0 + 5.0
# So many in a row meet every worker, as far as tests go: a missed one has a chance of 2^-24.
ENOUGH = 24


class TlsLoad:
    """Clients that come one after the other, shake hands, exchange a few bytes and go."""

    def __init__(self, address: Address, own: Issued | None = None) -> None:
        self.served = 0
        self.failures: list[str] = []
        self._address = address
        self._context = client_side(own)
        self._stop = threading.Event()

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                with connected(self._address, self._context) as client:
                    exchange(client)
            except (OSError, EOFError) as exc:
                self.failures.append(repr(exc))
            else:
                self.served += 1
            time.sleep(0.005)

    @contextlib.contextmanager
    def running(self, clients: int = 3) -> Iterator["TlsLoad"]:
        threads = [threading.Thread(target=self.run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: self.served > 10 or self.failures)
            yield self
            before = self.served
            wait_until(lambda: self.served > before + 10 or self.failures)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert not self.failures, self.failures[:5]


@contextlib.contextmanager
def connected(address: Address, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(address, PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as client,
    ):
        yield client


def exchange(client: ssl.SSLSocket) -> None:
    client.sendall(b"hello")
    got = b""
    while len(got) < 5:
        data = client.recv(5)
        if not data:
            raise EOFError("no answer")
        got += data
    assert got == b"hello"


def shown(address: Address, count: int = ENOUGH) -> set[bytes | None]:
    """The certificates that so many new clients are shown."""
    found = set()
    for _ in range(count):
        with connected(address, client_side()) as client:
            found.add(client.getpeercert(binary_form=True))
    return found


def der(issued: Issued) -> bytes:
    return ssl.PEM_cert_to_DER_cert(issued.chain.decode())


def replace(folder: Path, **issued: Issued) -> None:
    """As the programs do that renew certificates: each file at once, one after the other."""
    (folder / "new").mkdir(exist_ok=True)
    put(folder / "new", **issued)
    for name in issued:
        for kind in ("pem", "key"):
            (folder / "new" / f"{name}.{kind}").rename(folder / f"{name}.{kind}")


@contextlib.contextmanager
def started(folder: Path, listener: str, workers: int = 2) -> Iterator[tuple[Run, GatewayProcess]]:
    put(folder, server=SERVER)
    (folder / "ca.pem").write_bytes(AUTHORITY.pem)
    with Background() as background:
        run = Run(folder, config_of(background.instances, free_port(), workers=workers, more=listener))
        with run.started() as gateway:
            yield run, gateway


def test_a_certificate_is_renewed(tmp_path: Path) -> None:
    """New clients get it from every worker within the watch, not one fails, and old connections go on.

    So it is by `tcpgw reload`, at once.
    """
    with started(tmp_path, PLAIN_TLS) as (run, gateway), connected(run.address, client_side()) as old:
        exchange(old)
        with TlsLoad(run.address).running():
            assert shown(run.address) == {der(SERVER)}
            replace(tmp_path, server=RENEWED)
            began = time.monotonic()
            wait_until(lambda: shown(run.address) == {der(RENEWED)})
            assert time.monotonic() - began < WATCH
            exchange(old)

            replace(tmp_path, server=SERVER)
            told = run.command("reload")
            assert told.returncode == 0, told.stderr
            assert shown(run.address) == {der(SERVER)}
            exchange(old)
        assert gateway.events("files_read")
        status = run.status()
        assert status["worker_deaths"] == 0


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    """The old one stays in force, log and command name the key path, and a good one ends it."""
    where = "listener[0].tls.certificates[0]"
    with started(tmp_path, PLAIN_TLS) as (run, gateway), TlsLoad(run.address).running():
        (tmp_path / "server.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nrubbish\n")
        told = run.command("reload")
        assert told.returncode == 2
        fault = f"{where}.chain: {tmp_path}/server.pem: no certificates in PEM form"
        assert fault in told.stderr + told.stdout
        wait_until(lambda: gateway.events("reload_refused"))  # the log is written some time later
        assert fault in gateway.events("reload_refused")[0]["error"]
        assert shown(run.address) == {der(SERVER)}

        put(tmp_path, server=SERVER)
        (tmp_path / "server.key").write_bytes(RENEWED.key)
        told = run.command("reload")
        assert told.returncode == 2
        fault = f"{where}.key: {tmp_path}/server.key: the key is not that of the chain's first certificate"
        assert fault in told.stderr + told.stdout
        assert shown(run.address) == {der(SERVER)}

        put(tmp_path, server=RENEWED)
        told = run.command("reload")
        assert told.returncode == 0, told.stderr
        assert shown(run.address) == {der(RENEWED)}


def test_a_client_is_revoked(tmp_path: Path) -> None:
    """From then on it is refused by every worker, with the alert; others see nothing of it."""
    (tmp_path / "clients.crl").write_bytes(AUTHORITY.crl())
    listener = server_tls("server", more=f'{MUTUAL}, client_crl = "clients.crl"')
    with started(tmp_path, listener) as (run, _), TlsLoad(run.address, ALICE).running():
        context = client_side(BOB)  # its sessions are kept, to be taken up again
        with connected(run.address, context) as client:
            exchange(client)
            session = client.session
        (tmp_path / "clients.crl").write_bytes(AUTHORITY.crl([BOB]))
        assert run.command("reload").returncode == 0
        assert all(refused(run.address, context) for _ in range(ENOUGH))
        assert refused(run.address, context, session=session)
        assert refusals(run) > 0

        (tmp_path / "clients.crl").write_bytes(AUTHORITY.crl())
        assert run.command("reload").returncode == 0
        assert not refused(run.address, context)


def refused(address: Address, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> bool:
    try:
        with (
            socket.create_connection(address, PATIENCE) as sock,
            context.wrap_socket(sock, server_hostname="localhost", session=session) as client,
        ):
            exchange(client)
    except ssl.SSLError as exc:
        if exc.reason != "SSLV3_ALERT_CERTIFICATE_REVOKED":
            raise
        return True
    return False


def refusals(run: Run) -> int:
    ended: dict[str, int] = run.status()["listeners"]["l"]["ended"]
    return ended.get("tls_error", 0)


def test_more_certificates_and_another_authority(tmp_path: Path) -> None:
    """A reload that brings mutual TLS holds for who comes from then on; who is there stays."""
    with started(tmp_path, PLAIN_TLS) as (run, _), connected(run.address, client_side()) as old:
        exchange(old)
        text = run.file.read_text()
        run.file.write_text(text.replace(PLAIN_TLS, server_tls("server", more=MUTUAL)))
        assert run.command("reload").returncode == 0
        for _ in range(ENOUGH):
            with connected(run.address, client_side(ALICE)) as client:
                exchange(client)
        with (
            pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
            connected(run.address, client_side()) as client,
        ):
            exchange(client)
        exchange(old)


def test_workers_are_replaced_under_tls(tmp_path: Path) -> None:
    """A worker that is asked to leave finishes its handshakes and exchanges; clients see nothing."""
    with started(tmp_path, PLAIN_TLS) as (run, gateway), TlsLoad(run.address).running():
        before: Sequence[int] = gateway.ready["workers"]
        os.kill(before[0], signal.SIGTERM)
        wait_until(lambda: before[0] not in {worker["pid"] for worker in run.status()["workers"]})
