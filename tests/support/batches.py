"""Batches of requests, as a codec and a Mux know them."""

from dataclasses import dataclass


@dataclass(slots=True)
class Shared:
    """What some requests share. Two that say the same are equal, and yet not the same batch."""

    name: str
    came: float = 0.0


Given = tuple[str, bytes, Shared]
"""An answer: whose it is, its frame, and the batch of its request."""
