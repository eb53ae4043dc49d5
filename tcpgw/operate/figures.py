"""Figures as people read them, in few characters."""


def age(seconds: float) -> str:
    """`42 s`, `5 min`, `2 h 5 min`, `3 d 4 h`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if count]
    return " ".join(parts[:2]) or f"{rest} s"


def latency(seconds: float | None) -> str:
    """Three digits: `850 µs`, `4.25 ms`, `1.20 s`; `-` where there is none."""
    if seconds is None:
        return "-"
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds)} s"


def size(count: float) -> str:
    """Bytes: `512 B`, `1.5 KiB`, `340 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1023.5:
            return f"{count:.0f} B" if unit == "B" else f"{_digits(count)} {unit}"
        count /= 1024
    return f"{_digits(count)} TiB"


def rate(per_second: float) -> str:
    """`0`, `0.25`, `12.3`, `1,234`."""
    return "0" if not per_second else f"{per_second:,.0f}" if per_second >= 99.95 else _digits(per_second)


def share(part: float | None) -> str:
    """`12.5%`; `-` where there is none."""
    return "-" if part is None else f"{part:.1%}"


def _digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"
