"""Addresses of model servers. Pure, and light: checking a name needs no socket."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from loom.wire import errors


def split_url(url: str) -> SplitResult:
    """The parts of a server's address. Raises Config when it is not one we can use."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not (url.isascii() and url.isprintable()) or " " in url:
        raise errors.Config(f"base_url {url!r} is no http:// or https:// address; correct it in config.yml")
    if parts.username is not None or parts.password is not None:
        raise errors.Config(
            f"the base_url at {parts.hostname} holds a user or password; remove it and use key_file in config.yml"
        )
    return parts


def ollama_url(host: str) -> str:
    """OLLAMA_HOST as a base_url: `box`, `box:9999`, `:9999`, `[::1]` and whole addresses mean what Ollama means.

    0.0.0.0 is where a server listens; a client finds it at 127.0.0.1.
    """
    scheme, separator, place = host.rstrip("/").rpartition("://")
    place, slash, path = place.partition("/")
    if place.count(":") > 1 and not place.startswith("["):
        place = f"[{place}]"  # a bare IPv6 address
    name, colon, port = place.rpartition(":") if ":" in place.rpartition("]")[2] else (place, "", "")
    if name in ("", "0.0.0.0", "[::]"):
        name = "127.0.0.1"
    if not separator:
        colon, port = ":", port or "11434"
    path = slash + path
    return f"{scheme or 'http'}://{name}{colon}{port}{path}" + ("" if path.endswith("/v1") else "/v1")
