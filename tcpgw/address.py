"""Addresses as users write and read them: `gateway:9000`, `[::1]:9000`, `unix:/run/x.sock`."""

import re
import socket
from typing import NamedTuple, Self


class Address(NamedTuple):
    """`host` (an IP address or a name) and `port`, or, where `path` is not empty, a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address. Port 0 stands for one that the kernel chooses. Raises ValueError for the user."""
        if text.startswith("unix:") and text.removeprefix("unix:"):
            return cls(path=text.removeprefix("unix:"))
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host.strip("[]")
        if not (colon and host) or not re.fullmatch("[0-9]{1,5}", port) or (":" in host) != bracketed:
            raise ValueError(
                f"{text!r} is no address: write 10.0.0.1:9000, [::1]:9000, a name such as gateway:9000, "
                "or unix:/run/x.sock"
            )
        if int(port) > 65535:
            raise ValueError(f"{text!r} is no address: port {port} is not between 0 and 65535")
        try:
            host.encode("idna")  # as every resolver does, where it would be too late to say so
        except UnicodeError:
            raise ValueError(f"{text!r} is no address: {host!r} can be no host's name") from None
        return cls(host, int(port))

    @classmethod
    def of_socket(cls, sock: socket.socket) -> Self:
        """Return where a socket of one of these kinds is bound."""
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX:
            return cls(path=name if isinstance(name, str) else f"@{name[1:].decode(errors='replace')}")
        return cls(*name[:2])

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
