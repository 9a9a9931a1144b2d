"""The checks of `loom doctor` on the machine and on providers, one function each.

Those on the home are in checks_home.py, those on its agents in checks_agents.py. They change
nothing but the home's own self-test.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from loom.cli import checks_agents
from loom.cli import checks_home as kept
from loom.cli.check import Check
from loom.cli.homes import is_reserved
from loom.models import keys
from loom.models.address import split_url
from loom.models.registry import DIALECTS, PROVIDERS, find_provider
from loom.proc import pidfd
from loom.spool import agents, locks, running
from loom.spool import home as homes
from loom.spool.layout import Home, default_home, programs_dir
from loom.wire.errors import LoomError

OLDEST = (3, 11)
FEW_FILES = 1024
FEW_INOTIFY = 32
FEW_PROCESSES = 512
_OPENAT2 = 437
_AT_FDCWD = -100


def all_checks() -> list[Check]:
    """Every check, in the order in which one depends on the other."""
    found = [_python(), _system(), *_limits()]
    path = default_home(os.environ)
    try:
        home = homes.open_home(path)
    except LoomError as error:
        return [*found, kept.clock(None), Check("home", "problem", str(error), error.hint), *_machine()]
    found += [Check("home", "ok", str(home.path)), kept.clock(home), _ground(home), _self_test(home), kept.room(home)]
    found += [*kept.permissions(home), _supervisor(home), *checks_agents.check(home)]
    found += [*kept.routes(home), *kept.jobs(home)]
    return [*found, *_machine(), *_providers(home)]


def _machine() -> list[Check]:
    return [_sandbox(), _strays(), _openat2(), _tools(), kept.time_zones()]


def _python() -> Check:
    text = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST:
        return Check("python", "problem", text, "loom needs Python 3.11 or newer")
    return Check("python", "ok", text)


def _system() -> Check:
    text = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform == "linux":
        return Check("system", "ok", text)
    return Check("system", "note", text, "filters, send and ps work here; supervision and tools need Linux")


def _limits() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FEW_FILES:
        yield Check("open files", "problem", f"{soft} at most", f"raise it: ulimit -n {min(hard, 65536)}")
    else:
        yield Check("open files", "ok", f"{soft} at most, {hard} on request")
    try:
        instances = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    if instances < FEW_INOTIFY:
        hint = "raise it: sysctl fs.inotify.max_user_instances=128; until then mail is found by looking every 2 s"
        yield Check("inotify", "note", f"{instances} instances a user", hint)
    else:
        yield Check("inotify", "ok", f"{instances} instances a user")
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and processes < FEW_PROCESSES:
        yield Check("processes", "note", f"{processes} at most", "each agent is one, and its tools: raise ulimit -u")
    else:
        most = "no limit" if processes == resource.RLIM_INFINITY else f"{processes} at most"
        yield Check("processes", "ok", most)


def _ground(home: Home) -> Check:
    ground = homes.ground(home.path)
    if ground.refused:
        return Check("file system", "problem", ground.name, "set LOOM_HOME to a local disk")
    if not ground.durable:
        return Check("file system", "note", ground.name, "it does not survive a power cut: good for trying only")
    return Check("file system", "ok", f"{ground.name}, device {os.stat(home.path).st_dev}")


def _self_test(home: Home) -> Check:
    try:
        # Not two at a time, and not while the home is being made ready for this boot.
        lock = locks.acquire(home.start_lock, wait=True)
        assert lock is not None
        with lock:
            homes.check_devices(home)
            homes.self_test(home)
    except LoomError as error:
        return Check("self-test", "problem", str(error), error.hint)
    except OSError as error:
        trouble = homes.disk_error(error, "the self-test failed")
        return Check("self-test", "problem", str(trouble), trouble.hint)
    return Check("self-test", "ok", "link, rename, flock and fsync do what they must")


def _grouped(said: running.Running | None) -> str:
    if said is None:
        return ""
    return f"; agents have cgroups of their own in {said.groups}" if said.groups else "; no cgroup was delegated to it"


def _supervisor(home: Home) -> Check:
    if sys.platform != "linux":
        return Check("supervisor", "note", "none: it needs Linux")
    who = locks.holder(home.supervisor_lock)
    said = running.read(home)
    if said is not None and said.code != running.code():
        text = f"runs, pid {said.pid}, with other code than this command: {said.code}, {running.code()}"
        return Check("supervisor", "note", text, "have it run the installed code: loom supervisor reload")
    if who is not None:
        return Check("supervisor", "ok", f"runs, pid {who.pid}{_grouped(said)}")
    if wanted := sum(1 for a in agents.each(home) if not is_reserved(a.name) and agents.read_want(a) == "up"):
        found = f"does not run, and {wanted} agent{'s are' if wanted > 1 else ' is'} wanted up"
        return Check("supervisor", "note", found, "start one: loom supervisor run; or for good: docs/service.md")
    return Check("supervisor", "ok", "does not run; it is started when an agent needs it")


def _sandbox() -> Check:
    bwrap = shutil.which("bwrap")
    there = f"bubblewrap at {bwrap}" if bwrap else "no bubblewrap"
    spaces = "user namespaces" if _user_namespaces() else "no user namespaces"
    return Check(
        "sandbox",
        "note",
        f"not part of this version ({there}, {spaces})",
        "run-shell runs only with --unsafe-no-sandbox, with all rights of its user",
    )


def _strays() -> Check:
    """What keeps processes of agents and tools from outliving their owner."""
    if sys.platform != "linux":
        return Check("strays", "note", "not here; supervision needs Linux")
    try:
        pidfd.check_supported()
    except LoomError as error:
        return Check("strays", "problem", str(error), error.hint)
    from loom.proc import enclosure

    if enclosure.available():
        return Check("strays", "ok", "tools run in pid namespaces: nothing that one starts outlives its call")
    hint = "allow user namespaces; until then what a tool hides from its session and environment may outlive its call"
    return Check("strays", "note", "pidfds, subreaper and PDEATHSIG; no pid namespaces here", hint)


def _user_namespaces() -> bool:
    """Whether a process may make one, tried in a child."""
    if not hasattr(os, "fork") or sys.platform != "linux":
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if libc.unshare(0x10000000) == 0 else 1)  # CLONE_NEWUSER
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _openat2() -> Check:
    """Tools for files open through it, so that no link leads out of the workspace."""
    if sys.platform != "linux":
        return Check("openat2", "note", "not here; tools for files need Linux")
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    how = (ctypes.c_uint64 * 3)(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, 0x08)  # RESOLVE_BENEATH
    fd = libc.syscall(_OPENAT2, _AT_FDCWD, b".", how, ctypes.sizeof(how))
    if fd < 0:
        why = os.strerror(ctypes.get_errno())
        return Check("openat2", "note", why, "tools for files check every part of a path themselves instead")
    os.close(fd)
    return Check("openat2", "ok", "works")


def _tools() -> Check:
    directory = programs_dir("tools")
    try:
        names = sorted(n for n in os.listdir(directory) if os.access(directory / n, os.X_OK) and "." not in n)
    except OSError:
        names = []
    names = [n for n in names if not n.startswith("_") and (directory / n).is_file()]
    if not names:
        return Check("tools", "problem", f"none in {directory}", "reinstall loom")
    return Check("tools", "ok", ", ".join(names))


def _providers(home: Home) -> Iterator[Check]:
    """Which keys are found, and whether Ollama answers. A missing key is no problem until somebody uses it."""
    context: Any
    try:
        surroundings = import_module("loom.daemons.surroundings")
        context = surroundings.model_context(home, dict(os.environ), os.getcwd(), {})
    except LoomError as error:
        yield Check("config.yml", "problem", str(error), error.hint)
        return
    yield Check("config.yml", "ok", str(home.config) if home.config.exists() else "not there; all is default")
    for alias in sorted({*PROVIDERS, *context.providers}):
        if not DIALECTS.get(find_provider(alias, context).dialect, "unknown"):
            continue  # a name without a dialect in this version: nothing to store a key for
        check: Callable[[str, Any], Check] = _ollama if alias == "ollama" else _key
        yield check(alias, context)


def _key(alias: str, context: Any) -> Check:
    provider = find_provider(alias, context)
    try:
        found = keys.find_key(provider, context)
    except LoomError as error:
        missing = "needs a key and none was found" in str(error)
        if missing and alias in PROVIDERS:
            return Check(alias, "note", "no key", f"to use it: loom secret set {provider.key}")
        return Check(alias, "problem", str(error), error.hint)
    return Check(alias, "ok", f"a key is found for {provider.base_url}" if found else f"{provider.base_url}, no key")


def _ollama(alias: str, context: Any) -> Check:
    provider = find_provider(alias, context)
    try:
        parts = split_url(provider.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=1.0).close()
    except LoomError as error:
        return Check(alias, "problem", str(error), error.hint)
    except OSError:
        return Check(alias, "note", f"nothing answers at {provider.base_url}", "to use it: ollama serve")
    return Check(alias, "ok", f"answers at {provider.base_url}")
