"""The decorator of values: that of ``dataclasses``, which a start can afford two hundred times.

Python 3.11 compiles six functions for each frozen class with slots, and an eighth of a small upload is that. Here it is one, ``__init__``;
what else such a class has are functions that all classes share. Everything but that is left to ``dataclasses``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Never

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    from dataclasses import dataclass as _dataclass

    def dataclass(made: type | None = None, /, **how: bool) -> Any:
        """As ``dataclasses.dataclass``."""
        if how.keys() <= {"frozen", "slots", "eq"} and how.get("frozen") and how.get("slots"):
            return lambda plain: _frozen(plain, how.get("eq", True))
        return _dataclass(made, **how)

    def _frozen(plain: type, eq: bool) -> type:
        own = {name for name, value in plain.__dict__.items() if value is not None}  # __hash__ is None beside an __eq__
        made = _dataclass(plain, init=False, repr=False, eq=False, slots=True)
        shared = {"__init__": _init(made), "__repr__": _repr, "__setattr__": _set, "__delattr__": _set}
        if eq:
            shared |= _comparing([field.name for field in fields(made) if field.compare])
        for name, function in shared.items():
            if name not in own:
                setattr(made, name, function)
        return made


def _init(made: type) -> Callable[..., None]:
    """Compiles ``__init__``: assigns the arguments, or what stands for those that are missing."""
    names: dict[str, Any] = {"assign": object.__setattr__, "missing": MISSING}
    arguments, lines = ["self"], []
    for field in fields(made):
        name, default = field.name, ""
        if field.default is not MISSING:
            names[f"default_{name}"] = field.default
            default = f"default_{name}"
        elif field.default_factory is not MISSING:
            names[f"make_{name}"] = field.default_factory
            default = "missing"
        value = name if field.init else default
        if default == "missing":
            value = f"make_{name}()" if not field.init else f"make_{name}() if {name} is missing else {name}"
        if field.init:
            arguments.append(f"{name}={default}" if default else name)
        if value:
            lines.append(f"assign(self, {name!r}, {value})")
    if hasattr(made, "__post_init__"):
        lines.append("self.__post_init__()")
    exec(f"def __init__({', '.join(arguments)}):\n " + "\n ".join(lines or ["pass"]), names)  # noqa: S102  made of the names of fields alone
    init: Callable[..., None] = names["__init__"]
    init.__annotations__ = {field.name: field.type for field in fields(made) if field.init} | {"return": None}
    init.__qualname__ = f"{made.__qualname__}.__init__"
    return init


def _repr(self: Any) -> str:
    shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
    return f"{type(self).__qualname__}({shown})"


def _set(_self: Any, name: str, *_value: object) -> Never:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _comparing(names: list[str]) -> dict[str, Callable[..., Any]]:
    """Makes what compares and hashes by the attributes ``names``."""
    content: Callable[[Any], object] = attrgetter(*names) if names else lambda _: ()

    def equal(self: Any, other: object) -> Any:
        return content(self) == content(other) if type(other) is type(self) else NotImplemented

    return {"__eq__": equal, "__hash__": lambda self: hash(content(self))}
