"""Settings by dotted key with where each came from: config.yml, then what weaves say, then the environment.

docs/protocol.md section 11, docs/settings.md; for weaves ADR-0033.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loom.spool import fs
from loom.spool.layout import Home
from loom.wire import settings as wire
from loom.wire.errors import Config
from loom.wire.jsontext import Malformed, loads_object
from loom.wire.record import field, record

MAX_BYTES = 1 << 20
ENV_MODEL = "LOOM_MODEL"
ENV_PROVIDER = "LOOM_DEFAULT_PROVIDER"


@record
class Loaded:
    """Settings by dotted key; `origin` says for each whether it is the default or from which file or variable."""

    values: Mapping[str, Any] = field(default_factory=wire.defaults)
    origin: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)


def load(home: Home, env: Mapping[str, str], overrides: Iterable[wire.Override] | None = None) -> Loaded:
    """Defaults, then config.yml, then what weaves say, then the environment.

    overrides  what weaves say, by one who is about to write it; None: what settings.json holds
    Raises Config naming file, line and the nearest right word.
    """
    config, said = _bytes(home.config), _bytes(home.overrides) if overrides is None else None
    chosen = {"model": env.get(ENV_MODEL), "default_provider": env.get(ENV_PROVIDER)}
    made_of = (config, said, *chosen.values())
    known = _known.get(home.path)
    if overrides is None and known is not None and known[0] == made_of:
        return known[1]
    values = wire.defaults()
    origin: dict[str, str] = {}
    for key, (value, where) in ({} if config is None else _parse(home.config, config)).items():
        values[key] = wire.check(key, value, where)
        origin[key] = where
    for one in _decode_overrides(home.overrides, said) if overrides is None else overrides:
        values[one.key], origin[one.key] = one.value, f"{one.file}:{one.line}"
    for (key, word), variable in zip(chosen.items(), (ENV_MODEL, ENV_PROVIDER), strict=True):
        if word:
            values[key], origin[key] = word, variable
    loaded = Loaded(values, origin)
    if overrides is None:
        _known[home.path] = made_of, loaded
    return loaded


# What a supervisor has read, the runners that it forks need not read again: the same bytes mean the same.
_known: dict[Path, tuple[tuple[bytes | str | None, ...], Loaded]] = {}


def _bytes(path: Path) -> bytes | None:
    """None: there is no such file."""
    try:
        return fs.read(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except (fs.NotRegular, fs.TooLarge) as error:
        raise Config(f"{path} cannot be read: {error}") from None


def read_overrides(home: Home) -> tuple[wire.Override, ...]:
    """What weaves say in this home. Raises Config when settings.json cannot be read, or a value is none any more."""
    return _decode_overrides(home.overrides, _bytes(home.overrides))


def _decode_overrides(path: Path, data: bytes | None) -> tuple[wire.Override, ...]:
    if data is None:
        return ()
    try:
        return wire.decode_overrides(loads_object(data).get("settings"), str(path))
    except Malformed as error:
        hint = "remove it, then bring the weaves up again: loom up"
        raise Config(f"{path} cannot be read: {error}", hint=hint) from None


def _parse(path: Path, data: bytes) -> dict[str, tuple[Any, str]]:
    import yaml  # here, because most homes have no config.yml and a filter should not pay for it

    try:
        text = data.decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise Config(f"{path} is not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Config(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise Config(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise Config(f"{path}: nested too deeply") from None
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise Config(f"{path}:1: expected `key: value` lines")
    found: dict[str, tuple[Any, str]] = {}
    _walk(node, "", path, found, yaml.SafeLoader(text))
    return found


def _walk(node: Any, prefix: str, path: Path, found: dict[str, tuple[Any, str]], loader: Any) -> None:
    import yaml

    from loom.wire import yamltext

    for key_node, value_node in node.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise Config(f"{where}: a key must be a word")
        key = f"{prefix}{key_node.value}"
        if isinstance(value_node, yaml.MappingNode):
            # Asked before going on: an alias can make a mapping hold itself, or more than there are atoms.
            if wire.is_group(key):
                _walk(value_node, f"{key}.", path, found, loader)
            elif wire.row_of(key) is None:
                wire.check(key, None, where)
            else:
                raise Config(f"{where}: {key} is a mapping, expected one value")
            continue
        try:
            value = yamltext.flat(yamltext.read_part(value_node, loader))
        except (yamltext.Unreadable, yaml.YAMLError) as error:
            raise Config(f"{where}: {key} cannot be read: {error}") from None
        except RecursionError:
            raise Config(f"{where}: {key} cannot be read: nested too deeply") from None
        if value is None and wire.is_group(key):
            continue  # a heading whose lines are all commented out
        if key in found:
            raise Config(f"{where}: {key} is set twice, first in {found[key][1]}")
        found[key] = (value, where)
