"""What the shipped tools share: the two verbs, checked input, one-line errors, and a workspace nobody leaves.

A tool is a program that answers one call (docs/tools.md). Its file holds what is special about it: SPEC, the
description a model sees, and a function from checked input to a result. Everything else is here.

Nothing here is imported from loom, and only what one call needs is imported at all: a tool starts for every call.
Every path is opened from a descriptor of the workspace, never by name from the root, so there is no moment
between a check and its use. The kernel keeps us beneath (openat2); where it cannot, no symbolic link is followed.
"""

import errno
import json
import os
import stat
import sys

INPUT_BYTES = 8 * 1024 * 1024
REPLY_BYTES = 1024 * 1024 - 16 * 1024  # the whole reply, so that a runner's limit of 1 MiB always holds
TEMP_PREFIX = ".loom-tmp-"
MAX_DEPTH = 40
MAX_ENTRIES = 200_000

OPENAT2 = 437  # the same number on every architecture of OPENAT2_MACHINES
OPENAT2_MACHINES = ("x86_64", "aarch64", "riscv64", "ppc64le", "s390x")
RESOLVE_BENEATH_NO_MAGICLINKS = 0x08 | 0x02

READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # O_NONBLOCK: a FIFO must not hold us up
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Refused(Exception):
    """The call cannot be answered as asked: one line for the model, what was tried, what was found, what to do."""


# --- the two verbs -----------------------------------------------------------------------------------------------


def main(spec, answer):
    """Do what the command line says. `answer` turns checked input into a result or raises Refused.

    Returns the exit status: 0 also for a refused call (that is an answer), 2 for wrong usage, 70 for a bug.
    """
    if sys.argv[1:] == ["describe"]:
        return emit(spec)
    if sys.argv[1:] != ["invoke"]:
        print(f"usage: {spec['name']} describe | {spec['name']} invoke < input.json", file=sys.stderr)
        return 2
    try:
        reply = {"status": "ok", "result": answer(checked_input(spec))}
    except Refused as refusal:
        reply = {"status": "error", "error": " ".join(str(refusal).split())}
    except OSError as error:
        reply = {"status": "error", "error": f"{spec['name']} was stopped by the system: {error.strerror or error}"}
    except Exception:
        import traceback

        traceback.print_exc()
        return 70
    return emit(reply)


def emit(record):
    """Print one JSON line. A reader that has gone away is not our fault."""
    data = memoryview(encoded(record) + b"\n")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        pass
    return 0


def encoded(value):
    """`value` as the UTF-8 bytes that are printed for it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def shown(text):
    """Text from a model or a file name, fit for an error: quoted, control characters escaped, cut when long."""
    safe = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text[:200]
    )
    return f"'{safe}…'" if len(text) > 200 else f"'{safe}'"


# --- input -------------------------------------------------------------------------------------------------------


def checked_input(spec):
    """The call's input from stdin, of the shape spec's input_schema says, defaults filled in."""
    name, schema = spec["name"], spec["input_schema"]
    data = bytearray()
    while chunk := os.read(0, 1 << 16):
        data += chunk
        if len(data) > INPUT_BYTES:
            raise Refused(f"the input of {name} is larger than {INPUT_BYTES} bytes; send less in one call")
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the input of {name} is not JSON in UTF-8 ({error or 'nested too deep'}); send one JSON object")
    if not isinstance(value, dict):
        raise Refused(f"the input of {name} is not a JSON object; send one with {_names(schema)}")
    for key in value:
        if key not in schema["properties"]:
            raise Refused(f"{name} has no field {shown(key)}; its fields are {_names(schema)}")
    for key in schema["required"]:
        if key not in value:
            raise Refused(f"{name} needs the field '{key}', which is missing; its fields are {_names(schema)}")
    return {key: _checked(key, rule, value) for key, rule in schema["properties"].items()}


JSON_TYPES = {str: "string", int: "integer", bool: "boolean", list: "array", dict: "object", type(None): "null"}


def _no_constant(text):
    raise ValueError(f"{text} is not JSON")


def _names(schema):
    return ", ".join(schema["properties"])


def _checked(key, rule, given):
    """One field's value, or its default when it is not given."""
    if key not in given:
        return rule.get("default")
    value, kind = given[key], rule["type"]
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    found = JSON_TYPES.get(type(value), "number")
    if found != kind:
        raise Refused(f"field '{key}' must be of type {kind}, not {found}; correct it and call again")
    if kind == "integer" and not rule["minimum"] <= value <= rule["maximum"]:
        raise Refused(f"field '{key}' is {str(value)[:20]}; it must be from {rule['minimum']} to {rule['maximum']}")
    if kind == "string":
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused(f"field '{key}' holds half of a surrogate pair, which is not text; send valid Unicode")
        if len(value) > rule.get("maxLength", len(value)):
            raise Refused(f"field '{key}' is longer than {rule['maxLength']} characters")
    return value


def string(description, **more):
    """A string field of an input schema."""
    return {"type": "string", "description": description, **more}


def integer(description, minimum, maximum, default):
    """An integer field of an input schema."""
    return {
        "type": "integer",
        "description": description,
        "minimum": minimum,
        "maximum": maximum,
        "default": default,
    }


def flag(description):
    """A boolean field of an input schema that is false when left out."""
    return {"type": "boolean", "description": description, "default": False}


def fields(required, **properties):
    """The input schema of a tool: these fields and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


# --- the workspace -----------------------------------------------------------------------------------------------


def workspace_path():
    """The absolute path of the workspace this call works in, as LOOM_WORKSPACE says."""
    path = os.environ.get("LOOM_WORKSPACE", "")
    if not path:
        raise Refused("LOOM_WORKSPACE is not set, so there is no workspace; start the tool through loom or set it")
    if not path.startswith("/"):
        raise Refused(f"LOOM_WORKSPACE is {shown(path)}, which is not absolute; set it to an absolute directory")
    return path


def parts_of(path, directory=False):
    """The names a relative path is made of, as bytes; [] for the workspace itself, which only a directory may be.

    A `..` is refused even where it would stay inside: there is always a way to write the path without it.
    """
    if not path:
        raise Refused("the path is empty; give one relative to the workspace, as in 'src/main.py'")
    if "\0" in path:
        raise Refused(f"path {shown(path)} contains a NUL character; leave it out")
    if path.startswith("/"):
        raise Refused(f"path {shown(path)} is absolute; give it relative to the workspace")
    raw = path.encode()
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Refused(f"path {shown(path)} contains '..'; write it from the top of the workspace, without '..'")
    if len(raw) > 4000 or any(len(part) > 255 for part in parts):
        raise Refused(f"path {shown(path)} is too long; 4000 bytes in all and 255 for one name are the most")
    if not directory and (not parts or path.endswith(("/", "/."))):
        raise Refused(f"path {shown(path)} names a directory; give the path of a file")
    return parts


class Workspace:
    """The one directory a file tool can reach, held by a descriptor.

    beneath  False, or LOOM_TOOL_NO_OPENAT2=1, walks with O_NOFOLLOW as where the kernel has no openat2: stricter
    """

    def __init__(self, beneath=True):
        path = workspace_path()
        try:
            self.fd = os.open(path, DIRECTORY)
        except OSError as error:
            raise Refused(f"workspace {shown(path)} cannot be opened: {error.strerror}; create it or correct the path")
        beneath = beneath and not os.environ.get("LOOM_TOOL_NO_OPENAT2")
        self._openat2 = _openat2(self.fd) if beneath else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def open(self, parts, flags):
        """A descriptor of what `parts` lead to, beneath the workspace whatever links or renames there are.

        Raises OSError; EXDEV and ELOOP are the refusals.
        """
        if self._openat2:
            return self._openat2(self.fd, b"/".join(parts) or b".", flags)
        fd = os.dup(self.fd)
        try:
            for part in parts[:-1]:
                below = os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            return os.open(parts[-1] if parts else b".", flags | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)

    def open_file(self, path):
        """A descriptor and the stat of the regular file at `path`, to read from."""
        try:
            fd = self.open(parts_of(path), READ)
        except OSError as error:
            raise refusal("open", path, error)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise Refused(f"{shown(path)} is {kind_of(found.st_mode)}; only regular files can be read")
        return fd, found

    def open_directory(self, path):
        """A descriptor of the directory at `path`, to list."""
        try:
            return self.open(parts_of(path, directory=True), DIRECTORY)
        except OSError as error:
            raise refusal("open the directory", path, error)


def _openat2(probe_fd):
    """openat2 as a function of descriptor, path and flags, or None where it is missing or forbidden."""
    if sys.platform != "linux" or os.uname().machine not in OPENAT2_MACHINES:
        return None
    try:
        import ctypes

        syscall = ctypes.CDLL(None, use_errno=True).syscall
    except (ImportError, OSError, AttributeError):
        return None
    syscall.restype = ctypes.c_long

    def call(dir_fd, path, flags):
        how = (ctypes.c_uint64 * 3)(flags, 0, RESOLVE_BENEATH_NO_MAGICLINKS)
        for _ in range(128):  # EAGAIN: something was renamed while the kernel looked, so it could not be sure
            fd = syscall(ctypes.c_long(OPENAT2), ctypes.c_int(dir_fd), path, ctypes.byref(how), ctypes.c_size_t(24))
            if fd >= 0:
                return fd
            if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
                break
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    try:
        os.close(call(probe_fd, b".", DIRECTORY))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise
    return call


MEANING = {
    errno.EXDEV: "it leads out of the workspace through a link; use a path that stays inside",
    errno.ELOOP: "it goes through a symbolic link that may not be followed; use the path the link stands for",
    errno.ENOENT: "there is no such file or directory; list-files shows what there is",
    errno.ENOTDIR: "a part of it is not a directory, or is a symbolic link that may not be followed",
    errno.EISDIR: "it is a directory; give the path of a file",
    errno.ENXIO: "it is a socket or a FIFO; only regular files can be used",
    errno.ENODEV: "it is a device; only regular files can be used",
    errno.EACCES: "permission denied",
    errno.EAGAIN: "it is being renamed all the time; try again",
}


def refusal(verb, path, error):
    """The Refused for a system error on a model's path."""
    why = MEANING.get(error.errno) or error.strerror
    return Refused(f"could not {verb} {shown(path)}: {why}")


def kind_of(mode):
    """What is there instead of a regular file, in words."""
    for test, words in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return words
    return "a device"


# --- walking -----------------------------------------------------------------------------------------------------


class Tally:
    """What a walk left out, for the reply to say."""

    def __init__(self):
        self.entries = 0
        self.unreadable_names = 0
        self.unreadable_directories = 0
        self.truncated = False

    def notes(self):
        """The counts that are not zero."""
        counts = {
            "unreadable_names": self.unreadable_names,
            "unreadable_directories": self.unreadable_directories,
        }
        return {name: count for name, count in counts.items() if count}


def walk(directory, tally, prefix="", depth=0):
    """Every regular file beneath a directory's descriptor as (path, descriptor of its directory, name), by path.

    Follows no symbolic link, leaves out `.git` and the litter of an interrupted write-file; closes `directory`.
    """
    try:
        for key, name in _entries(directory, tally):
            if not key.endswith("/"):
                yield prefix + key, directory, name
            elif depth >= MAX_DEPTH:
                tally.truncated = True
            else:
                try:
                    below = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                except OSError:  # no permission, or replaced since it was read
                    tally.unreadable_directories += 1
                    continue
                yield from walk(below, tally, prefix + key, depth + 1)
    finally:
        os.close(directory)


def _entries(directory, tally):
    """(key, name) of the files and directories in a directory. A directory's key ends in `/`, which sorts by path."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            tally.entries += 1
            if tally.entries > MAX_ENTRIES:
                tally.truncated = True
                break
            name = os.fsencode(entry.name)
            if name == b".git" or name.startswith(TEMP_PREFIX.encode()):
                continue
            try:
                key = name.decode()
            except UnicodeDecodeError:
                tally.unreadable_names += 1
                continue
            if entry.is_dir(follow_symlinks=False):
                found.append((key + "/", name))
            elif entry.is_file(follow_symlinks=False):
                found.append((key, name))
    return sorted(found)
