"""Records: frozen, slotted classes of named fields, like `dataclass(frozen=True, slots=True)` and cheap to define.

A filter defines some forty of them before it can ask its question. `dataclasses` writes and compiles six functions for
each, a third of a millisecond apiece; here equality, hash and repr are three functions that all records share, and the
one that differs, `__init__`, is compiled when the first instance is made (ADR-0018).

`dataclasses.asdict` and `fields` work on records, and `dataclasses.replace`; `replace` here loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")
_MISSING: Any = object()
_set = object.__setattr__


class _Field:
    """What `field` says of a field: its default, or what makes one, and whether repr shows it."""

    __slots__ = ("default", "make", "shown")

    def __init__(self, default: Any, make: Callable[[], Any] | None, shown: bool) -> None:
        self.default, self.make, self.shown = default, make, shown


def field(*, default: Any = _MISSING, default_factory: Callable[[], Any] | None = None, repr: bool = True) -> Any:
    """A field with more to say than a default: one made anew for each instance, one that repr leaves out."""
    return _Field(default, default_factory, repr)


@overload
def record(cls: type[T]) -> type[T]: ...
@overload
def record(*, frozen: bool = True) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[Any] | None = None, *, frozen: bool = True) -> Any:
    """Make a class with annotated fields a record; not `frozen`: its fields may be assigned, and it has no hash."""
    return (lambda given: _made(given, frozen)) if cls is None else _made(cls, frozen)


def replace(one: T, /, **changes: Any) -> T:
    """The same record with some fields changed, made anew."""
    known: Any = one
    return type(one)(**{name: getattr(one, name) for name in known.__record__} | changes)


class _Fields:
    """`__dataclass_fields__`, built when somebody asks: only `dataclasses` itself does."""

    __slots__ = ()

    def __get__(self, instance: Any, owner: type[Any]) -> dict[str, Any]:
        import dataclasses

        found = {}
        for name, said in owner.__record__.items():
            if said.make is not None:
                one = dataclasses.field(default_factory=said.make, repr=said.shown)
            else:
                default = dataclasses.MISSING if said.default is _MISSING else said.default
                one = dataclasses.field(default=default, repr=said.shown)
            one.name = name
            one.type = ""
            one._field_type = dataclasses._FIELD  # type: ignore[attr-defined]
            found[name] = one
        owner.__dataclass_fields__ = found
        return found


def _made(cls: type[Any], frozen: bool) -> type[Any]:
    fields: dict[str, _Field] = {}
    for base in reversed(cls.__mro__[1:]):
        fields |= base.__dict__.get("__record__", {})
    inherited = set(fields)
    space = dict(cls.__dict__)
    own = list(space.get("__annotations__", ()))
    for name in own:
        said = space.pop(name, _MISSING)
        fields[name] = said if isinstance(said, _Field) else _Field(said, None, True)
    seen_default = ""
    for name, said in fields.items():
        if said.default is not _MISSING or said.make is not None:
            seen_default = name
        elif seen_default:
            raise TypeError(f"{cls.__name__}: {name!r} without a default follows {seen_default!r} with one")
    space.pop("__dict__", None)
    space.pop("__weakref__", None)
    space["__slots__"] = tuple(name for name in own if name not in inherited)
    space["__record__"] = fields
    space["__match_args__"] = tuple(fields)
    space["__dataclass_fields__"] = _Fields()
    space.setdefault("__repr__", _repr)
    space.setdefault("__eq__", _eq)
    space["__hash__"] = (space.get("__hash__") or _hash) if frozen else None
    if frozen:
        space["__setattr__"] = space["__delattr__"] = _refuse
        space["__getstate__"], space["__setstate__"] = _getstate, _setstate
    made: Any = type(cls)(cls.__name__, cls.__bases__, space)  # type: ignore[misc]
    if "__init__" not in space:
        made.__init__ = _first_init(made)
        _uncompiled.append(made)
    return made  # type: ignore[no-any-return]


_uncompiled: list[Any] = []  # records made and perhaps not used yet


def compile_all() -> None:
    """Compile what is left to compile, for a process that forks: its children then need not, each for itself."""
    while _uncompiled:
        made = _uncompiled.pop()
        if getattr(made.__init__, "is_first", False):
            made.__init__ = _compiled_init(made)


def _first_init(made: Any) -> Callable[..., None]:
    """An `__init__` that puts the compiled one in its place when it is first called."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        made.__init__ = _compiled_init(made)
        made.__init__(self, *args, **kwargs)

    __init__.is_first = True  # type: ignore[attr-defined]
    return __init__


def _compiled_init(made: Any) -> Callable[..., None]:
    known: dict[str, Any] = {"_set": _set, "_MISSING": _MISSING}
    params, lines = ["self"], []
    for name, said in made.__record__.items():
        value = name
        if said.make is not None:
            known[f"_make_{name}"] = said.make
            params.append(f"{name}=_MISSING")
            value = f"_make_{name}() if {name} is _MISSING else {name}"
        else:
            known[f"_default_{name}"] = said.default
            params.append(name if said.default is _MISSING else f"{name}=_default_{name}")
        lines.append(f"    _set(self, {name!r}, {value})\n")
    if hasattr(made, "__post_init__"):
        lines.append("    self.__post_init__()\n")
    exec(f"def __init__({', '.join(params)}):\n{''.join(lines) or '    pass'}", known)  # noqa: S102 our own field names
    return known["__init__"]  # type: ignore[no-any-return]


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name, said in self.__record__.items() if said.shown)
    return f"{type(self).__qualname__}({shown})"


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__record__])


def _eq(self: Any, other: object) -> Any:
    if type(self) is not type(other):
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse(self: Any, name: str, *_value: Any) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: records are frozen")


def _getstate(self: Any) -> tuple[Any, ...]:
    return _values(self)


def _setstate(self: Any, state: tuple[Any, ...]) -> None:
    for name, value in zip(self.__record__, state, strict=True):
        _set(self, name, value)
