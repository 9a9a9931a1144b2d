"""Which proxy a request goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY. Pure, and light.

The rules are those of curl where it and others agree: the name in lower case goes before the one in capitals, the
variable for the scheme before ALL_PROXY, and NO_PROXY lists hosts, domains with all below them, networks, or `*`.
As in Go this machine itself (localhost, 127.0.0.0/8, ::1) is never asked for through a proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from loom.models.address import split_url
from loom.wire import errors
from loom.wire.record import field, record

_NO_PROXY = ("no_proxy", "NO_PROXY")


@record
class Proxy:
    """An HTTP proxy. `user` is `name:password`, '' when it wants none; `variable` is where it was named."""

    host: str
    port: int
    variable: str
    user: str = field(default="", repr=False)

    @property
    def where(self) -> str:
        """The proxy as people may see it."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def proxy_for(url: str, env: Mapping[str, str]) -> Proxy | None:
    """The proxy for a server's address; None: straight. Raises Config for one that cannot be used."""
    variable = _variable(url, env)
    return _parsed(env[variable].strip(), variable) if variable else None


def variables(url: str, env: Mapping[str, str]) -> dict[str, str]:
    """What another process must know to take the same way. Raises Config when that is a password."""
    variable = _variable(url, env)
    if not variable:
        return {}
    if _parsed(env[variable].strip(), variable).user:
        raise errors.Config(
            f"{variable} holds a password, which processes of the supervisor do not get",
            hint=f"give it to an agent with --env {variable}=…, or use a proxy without one",
        )
    return {name: env[name] for name in (variable, *_NO_PROXY) if env.get(name)}


def _variable(url: str, env: Mapping[str, str]) -> str:
    """The variable that names the proxy for this address; '' for none."""
    parts = split_url(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)
    names = (f"{parts.scheme}_proxy", "all_proxy")
    found = next((n for name in names for n in (name, name.upper()) if env.get(n, "").strip()), "")
    if not found or is_loopback(host):
        return ""
    excepted = next((env[name] for name in _NO_PROXY if env.get(name)), "")
    return "" if any(_matches(entry.strip().lower(), host, port) for entry in excepted.split(",")) else found


def is_loopback(host: str) -> bool:
    """Whether this host is this machine."""
    return host in ("localhost", "::1") or host.endswith(".localhost") or (host.startswith("127.") and _is_ip(host))


def _is_ip(host: str) -> bool:
    return host.replace(".", "").isdigit()


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY names this host: `*`, a host, a domain, an address, a network; `:port` for one."""
    if "/" in entry:
        return _in_network(host, entry)
    name, colon, only = entry.rpartition(":")
    if colon and only.isdigit() and (":" not in name or name.endswith("]")):
        if int(only) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*.").strip(".")
    return bool(entry) and (entry == "*" or host == entry or (host.endswith(f".{entry}") and not _is_ip(host)))


def _in_network(host: str, network: str) -> bool:
    from ipaddress import ip_address, ip_network  # here, because few write networks

    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _parsed(value: str, variable: str) -> Proxy:
    """The proxy a variable names. Its value may hold a password and is never shown."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        raise errors.Config(f"{variable} is no address of a proxy; write http://host:port") from None
    if parts.scheme != "http":
        raise errors.Config(
            f"{variable} names a {parts.scheme}:// proxy; this version speaks to http:// proxies only",
            hint=f"unset {variable}, or name the server in NO_PROXY",
        )
    if not host or not value.isascii() or not value.isprintable() or " " in value:
        raise errors.Config(f"{variable} is no address of a proxy; write http://host:port")
    user = "" if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, variable, user)
