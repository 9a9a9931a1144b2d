"""Model names as other processes will see them: complete, checked, without the caller's keys (docs/models.md).

A detached agent and the roles of a goal run with the supervisor's cleaned environment. So a name is settled here,
where the caller's environment is known, and checked against theirs: what would keep them from working is said now.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from loom.cli.ensure import supervisor_environment
from loom.models import proxies
from loom.models.base import ModelContext
from loom.models.registry import SERVERS_BY_VARIABLE, check_model, find_provider, is_server, members, split_name
from loom.spool import secrets
from loom.spool.config import Loaded
from loom.spool.layout import Home
from loom.wire import settings
from loom.wire.errors import Config, LoomError


def context(home: Home, loaded: Loaded, env: Mapping[str, str], cwd: str) -> ModelContext:
    """What models may know, in this environment."""
    return ModelContext(
        env=env,
        providers=settings.providers(loaded.values),
        secret=lambda name: secrets.get(home, name),
        default_provider=loaded["default_provider"],
        cwd=cwd,
    )


# Certificates that a server is believed by.
_TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def whole_paths(name: str) -> str:
    """The name with the paths of programs and scripts as they are seen from here; everything else as it is."""
    return "|".join(_anchored(member) for member in members(name))


def depends_on_directory(name: str) -> bool:
    """Whether a path in this name means another file in another directory."""
    return any(path and not path.startswith("/") for path in map(_path_in, members(name)))


def _path_in(member: str) -> str:
    """The path of a program or a script; empty for any other model, and for a program that is looked for on PATH."""
    prefix, _, rest = member.partition("/")
    return rest if prefix == "script" or (prefix == "exec" and "/" in rest) else ""


def _anchored(member: str) -> str:
    path = _path_in(member)
    return f"{member.partition('/')[0]}/{Path(path).absolute()}" if path else member


def settle(home: Home, loaded: Loaded, name: str, given: Mapping[str, str] | None = None) -> tuple[str, dict[str, str]]:
    """(the name with nothing left that depends on this directory or environment, the variables it needs).

    A variable that says where a server or a proxy is travels with whoever works for the caller; a key never does.
    Those that are `given` already are left alone.
    """
    env = {variable: value for variable, value in os.environ.items() if variable not in (given or ())}
    here = context(home, loaded, env, os.getcwd())
    names: list[str] = []
    needed: dict[str, str] = {}
    for member in members(whole_paths(name)):
        prefix, rest = split_name(member, here)
        names.append(f"{prefix}/{rest}" if rest else prefix)
        if is_server(prefix):
            url = find_provider(prefix, here).base_url
            told = (SERVERS_BY_VARIABLE.get(prefix, ""), *(_TRUST if url.startswith("https:") else ()))
            needed |= {variable: env[variable] for variable in told if env.get(variable)}
            needed |= proxies.variables(url, env)
    return "|".join(names), needed


def check(home: Home, loaded: Loaded, name: str, env: Mapping[str, str], cwd: str) -> None:
    """Raise what would keep a process with the supervisor's environment and `env` from using this model."""
    clean = {**supervisor_environment(home.path, os.environ), **env}
    for member in members(name):
        try:
            check_model(member, context(home, loaded, clean, cwd))
        except Config as error:
            if not _works_here(home, loaded, member, {**os.environ, **env}, cwd):
                raise
            provider = member.partition("/")[0]
            raise Config(
                f"the key of {provider} is only in this environment, which processes of the supervisor do not get",
                hint=f"store it with: loom secret set {provider}",
                kind=error.kind,
            ) from None


def _works_here(home: Home, loaded: Loaded, name: str, env: Mapping[str, str], cwd: str) -> bool:
    try:
        check_model(name, context(home, loaded, env, cwd))
    except LoomError:
        return False
    return True
