"""The formats of strings that a schema may ask for. Pure; others are not looked at, as the standard allows."""

from __future__ import annotations

import re
from collections.abc import Callable

_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})", re.ASCII)
_TIME = re.compile(r"(\d{2}):(\d{2}):(\d{2})(?:\.\d+)?(?:[Zz]|[+-](\d{2}):(\d{2}))", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
# RFC 5321: a name, plain or quoted; a host or an address in brackets. ASCII, which is what people mean by an address.
_EMAIL = re.compile(
    r"(?:[\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*|\"(?:[^\"\\\r\n]|\\.)*\")@"
    r"(?:\[[0-9A-Za-z:.]+\]"
    r"|[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*)",
    re.ASCII,
)
_CHAR = r"[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2}"  # in a name, a path, a query (RFC 3986)
_URI = re.compile(
    rf"[A-Za-z][A-Za-z0-9+.-]*+:(?://(?:(?:{_CHAR}|:)*@)?(?:\[[0-9A-Fa-f:.]+\]|(?:{_CHAR})*+)(?::\d*+)?(?=[/?#]|\Z)|(?!//))"
    rf"(?:{_CHAR}|[:@/])*+(?:\?(?:{_CHAR}|[:@/?])*+)?(?:\#(?:{_CHAR}|[:@/?])*+)?",
    re.ASCII,
)
_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MAX_EMAIL = 254


def fits(name: str, text: str) -> bool:
    """Whether the text is of the format of this name; True for formats that are not known."""
    check = _CHECKS.get(name)
    return check is None or check(text)


def _is_date(text: str) -> bool:
    found = _DATE.fullmatch(text)
    if found is None:
        return False
    year, month, day = (int(part) for part in found.groups())
    if not 1 <= month <= 12:
        return False
    leap = month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 1 <= day <= _MONTHS[month - 1] + leap


def _is_time(text: str) -> bool:
    found = _TIME.fullmatch(text)
    if found is None:
        return False
    hour, minute, second, offset_hour, offset_minute = (int(part or 0) for part in found.groups())
    if hour > 23 or minute > 59 or offset_hour > 23 or offset_minute > 59:
        return False
    if second < 60:
        return True
    sign = 1 if "+" in text else -1
    of_day = (hour * 60 + minute - sign * (offset_hour * 60 + offset_minute)) % 1440
    return second == 60 and of_day == 1439  # a leap second comes at the end of a day in UTC


def _is_date_time(text: str) -> bool:
    return text[10:11] in ("T", "t") and _is_date(text[:10]) and _is_time(text[11:])


def _is_email(text: str) -> bool:
    return len(text) <= _MAX_EMAIL and _EMAIL.fullmatch(text) is not None


def _is_address(version: int) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        from ipaddress import AddressValueError, IPv4Address, IPv6Address  # here, because it is rarely asked for

        try:
            (IPv4Address if version == 4 else IPv6Address)(text)
        except AddressValueError:
            return False
        return "%" not in text  # a zone is no part of the address

    return check


_CHECKS: dict[str, Callable[[str], bool]] = {
    "date": _is_date,
    "time": _is_time,
    "date-time": _is_date_time,
    "email": _is_email,
    "uri": lambda text: _URI.fullmatch(text) is not None,
    "uuid": lambda text: _UUID.fullmatch(text) is not None,
    "ipv4": _is_address(4),
    "ipv6": _is_address(6),
}
