"""Numbers, times and states as people read them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from fedspk.api import Failure

FAILURES: dict[Failure, str] = {
    "unreachable": "it could not reach the server",
    "refused": "it did not accept the signatures or the files",
    "incompatible": "its fedspk cannot use the model; update the program",
    "disk full": "its disk is full",
    "clock": "its clock is wrong",
    "other": "something went wrong; `fedspk device status` there says what",
}
"""Why a device stays with its version, after the word "because"."""

NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"

_UNITS = (("day", 86400), ("h", 3600), ("min", 60))


def show_number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands apart, or a dash.

    >>> show_number(1234.5, 1), show_number(None)
    ('1,234.5', '–')
    """
    return NOTHING if value is None else f"{value:,.{digits}f}"


def show_value(value: object) -> str:
    """Return a configured value: numbers in few digits, what is nested as JSON.

    >>> show_value(1e-05), show_value(True), show_value("aam"), show_value([1, 2])
    ('1e-05', 'yes', 'aam', '[1, 2]')
    """
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show_signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign.

    >>> show_signed(-0.5), show_signed(0)
    ('−0.50', '±0.00')
    """
    sign = "±" if round(value, digits) == 0 else "+" if value > 0 else _MINUS
    return f"{sign}{abs(value):.{digits}f}"


def show_share(value: float) -> str:
    """Return a share from 0 to 1 in per cent.

    >>> show_share(0.1), show_share(0.001)
    ('10 %', '0.1 %')
    """
    return f"{100 * value:.6g} %"


def show_bytes(value: int) -> str:
    """Return a length in bytes.

    >>> show_bytes(900), show_bytes(7_340_032)
    ('900 bytes', '7.3 MB')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} bytes"


def show_day(time: datetime) -> str:
    """Return the day of a time, as "21 Nov 2026"."""
    return f"{time:%d %b %Y}".removeprefix("0")


def show_time(time: datetime) -> str:
    """Return a time to the minute, as "21 Nov 2026, 09:45"."""
    return f"{show_day(time)}, {time:%H:%M}"


def show_span(span: timedelta) -> str:
    """Return a length of time in its greatest unit.

    >>> show_span(timedelta(hours=50)), show_span(timedelta(seconds=40))
    ('2 days', 'less than a minute')
    """
    seconds = abs(span.total_seconds())
    for unit, size in _UNITS:
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return "less than a minute"


def count_of(count: int, noun: str) -> str:
    """Return a counted noun.

    >>> count_of(1, "device"), count_of(1200, "device")
    ('1 device', '1,200 devices')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
