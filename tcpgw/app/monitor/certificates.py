"""When the certificates that listeners use expire, out of what was read for them."""

from collections.abc import Mapping

from tcpgw.app.material import Contents
from tcpgw.config import schema

Expiries = Mapping[str, Mapping[str, float]]
"""By listener, then by kind (certificate, crl): Unix time."""


def expiries(config: schema.Config, contents: Contents) -> Expiries:
    """Look at what was read and found to be of use."""
    found: dict[str, dict[str, float]] = {}
    for index, listener in enumerate(config.listener):
        place = f"listener[{index}].tls"
        if isinstance(listener.tls, schema.ServerTls):
            keys = [
                f"{place}.certificates[{number}].chain" for number in range(len(listener.tls.certificates))
            ]
            found[listener.name] = _ends([contents[key] for key in keys], contents.get(f"{place}.client_crl"))
    return found


def _ends(chains: list[bytes], crl: bytes | None) -> dict[str, float]:
    from tcpgw.access import certificates as read  # noqa: PLC0415 - see there what it takes

    first = min(read.end(one) for chain in chains for one in read.load(chain, "chain"))
    stale = read.crl_end(crl) if crl is not None else None
    return {"certificate": first} | ({"crl": stale} if stale is not None else {})
