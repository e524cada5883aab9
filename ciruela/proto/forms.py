"""Forms of values on the wire: how each is written, and how it is read, checked and bounded (protocol sections 3.3 and 3.4).

A :class:`Codec` is the form of one value; :class:`Struct` is that of a map with fields, which is what a message consists of. Reading raises
FormatError, and nothing else, unless the value has exactly the form it should have. The limits are those of threats 6.3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from ciruela.model.bitfield import MASK_BYTES, MOST_CUTS
from ciruela.model.errors import FormatError
from ciruela.model.ids import HASH_BYTES, MACHINE_ID_BYTES, BlockHash, ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.model.versions import SIGNATURE_BYTES
from ciruela.model.vpath import MAX_COMPONENT_BYTES, MAX_PATH_BYTES

T = TypeVar("T")

MAX_HOSTS = 1000
MAX_BULK = 1024
"""Blocks that one GetBlocks may ask for."""

FEW_PIECES = 16
"""Pieces that are told by number."""

MAX_NAME_BYTES = 255
MAX_TEXT_BYTES = 4096
MAX_UINT = (1 << 64) - 1
ALGORITHM = "ssh-ed25519"

_MISSING = object()

# -- values -------------------------------------------------------------------------------------------------------------------


class Codec(ABC, Generic[T]):
    """Form of one value. The errors of ``read`` call the value ``name``; ``write`` makes what cbor2 encodes."""

    __slots__ = ()

    @abstractmethod
    def read(self, value: Any, name: str) -> T:
        """Checks ``value`` and makes ours of it. Raises FormatError."""

    def write(self, value: T) -> object:
        """Makes what cbor2 encodes; most values are written as they are."""
        return value

    def writer(self) -> Callable[[Any], object] | None:
        """Finds the shortest way to what ``write`` does; None where that gives back what it got."""
        return None if type(self).write is Codec.write else self.write


class Text(Codec[str]):
    """Text of at most ``most`` bytes. ``label``: its name in errors, where that is not the field's. ``raw``: it may be a byte string."""

    __slots__ = ("label", "most", "raw")

    def __init__(self, most: int, label: str = "", *, raw: bool = False) -> None:
        self.most, self.label, self.raw = most, label, raw

    def read(self, value: Any, name: str) -> str:
        """As :meth:`Codec.read`."""
        found = value if isinstance(value, str) else self._decoded(value, name)
        if len(found) > self.most or len(found.encode("utf-8")) > self.most:  # guard: A24 F13
            raise FormatError(f"{self.label or name} is longer than {self.most} bytes")
        return found

    def _decoded(self, value: object, name: str) -> str:
        if not self.raw or not isinstance(value, bytes):
            raise FormatError(f"{self.label or name} is not a text")
        if len(value) > self.most:
            raise FormatError(f"{name} is longer than {self.most} bytes")
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{name} is not UTF-8") from None


class Fixed(Codec[T]):
    """Exactly ``length`` bytes: an id, a hash. ``label`` as in :class:`Text`."""

    __slots__ = ("label", "length")

    def __init__(self, length: int, label: str = "") -> None:
        self.length, self.label = length, label

    def read(self, value: Any, name: str) -> T:
        """As :meth:`Codec.read`."""
        if not isinstance(value, bytes) or len(value) != self.length:  # guard: A24 F13
            raise FormatError(f"{self.label or name} is not {self.length} bytes")
        return value  # type: ignore[return-value]


class Data(Codec[bytes]):
    """Bytes, at most ``most`` of them; as many as the message may have where that is None."""

    __slots__ = ("label", "most")

    def __init__(self, most: int | None = None, label: str = "") -> None:
        self.most, self.label = most, label

    def read(self, value: Any, name: str) -> bytes:  # noqa: ARG002 - it is data everywhere
        """As :meth:`Codec.read`."""
        if not isinstance(value, bytes):
            raise FormatError("data is not bytes")
        if self.most is not None and len(value) > self.most:  # guard: A24
            raise FormatError(f"{self.label} is longer than {self.most} bytes")
        return value


class Uint(Codec[int]):
    """Unsigned integer of 64 bits."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> int:
        """As :meth:`Codec.read`."""
        if type(value) is not int or not 0 <= value <= MAX_UINT:  # guard: A13 A24 F13
            raise FormatError(f"{name} is not an unsigned integer of 64 bits")
        return value


class PortNumber(Codec[int]):
    """Number of a port, 1 to 65,535."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> int:
        """As :meth:`Codec.read`."""
        port = UINT.read(value, name)
        if not 0 < port < 65536:
            raise FormatError(f"port {port} is none")
        return port


class Flag(Codec[bool]):
    """True or false."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> bool:
        """As :meth:`Codec.read`."""
        if not isinstance(value, bool):
            raise FormatError(f"{name} is neither true nor false")
        return value


class Signature(Codec[bytes]):
    """Signature of ed25519, 64 bytes: a pair with the name of the algorithm."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> bytes:
        """As :meth:`Codec.read`."""
        if not isinstance(value, list) or len(value) != 2 or value[0] != ALGORITHM:  # guard: A11
            raise FormatError(f"a signature is not of the form [{ALGORITHM}, bytes]")
        return _SIGNATURE_BYTES.read(value[1], name)

    def write(self, value: bytes) -> object:
        """As :meth:`Codec.write`."""
        return [ALGORITHM, value]


class Mask(Codec[bytes]):
    """Bitfield of pieces (``model.bitfield.Pieces.to_bytes``)."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> bytes:
        """As :meth:`Codec.read`."""
        mask = DATA.read(value, name)
        if not mask or len(mask) % MASK_BYTES or len(mask) > MASK_BYTES * MOST_CUTS:  # guard: A24; A24, without 3
            raise FormatError(f"{name} is not a mask of pieces")
        return mask


class PieceSet(Codec[int]):
    """Set of pieces as an int with their bits: the numbers of a few, the bytes of a bitfield (lowest bits first) for more."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> int:
        """As :meth:`Codec.read`."""
        if isinstance(value, bytes) and len(value) <= MASK_BYTES * MOST_CUTS:  # guard: A15 A24, without 2
            return int.from_bytes(value, "little")
        mask = 0
        for number in listed(value, name, FEW_PIECES):
            if type(number) is not int or not 0 <= number < 8 * MASK_BYTES * MOST_CUTS:  # guard: A15 A24
                raise FormatError(f"{name} is not a set of pieces")
            mask |= 1 << number
        return mask

    def write(self, value: int) -> object:
        """As :meth:`Codec.write`."""
        if value.bit_count() > FEW_PIECES:
            return value.to_bytes((value.bit_length() + 7) // 8, "little")
        numbers = []
        while value:
            low = value & -value
            numbers.append(low.bit_length() - 1)
            value ^= low
        return numbers


class Runs(Codec[tuple[int, ...]]):
    """Ascending numbers, at most MAX_BULK of them: first, count, first, count..."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> tuple[int, ...]:
        """As :meth:`Codec.read`."""
        runs = listed(value, name, 2 * MAX_BULK)
        if len(runs) % 2:
            raise FormatError(f"{name} has a run without a count")
        found: list[int] = []
        for first, count in zip(runs[::2], runs[1::2], strict=True):
            begin, length = UINT.read(first, name), UINT.read(count, name)
            if length == 0 or len(found) + length > MAX_BULK or (found and begin <= found[-1]):  # guard: A23 A34 I6, without 2
                raise FormatError(f"{name} is not ascending, or has an empty run, or more than {MAX_BULK} numbers")
            found.extend(range(begin, begin + length))
        return tuple(found)

    def write(self, value: Sequence[int]) -> list[int]:
        """As :meth:`Codec.write`."""
        runs: list[int] = []
        for number in value:
            if runs and number == runs[-2] + runs[-1]:
                runs[-1] += 1
            else:
                runs += (number, 1)
        return runs


# -- of several values --------------------------------------------------------------------------------------------------------


def listed(value: Any, name: str, most: int) -> list[Any]:
    """Checks that ``value`` is a list of at most ``most``."""
    if not isinstance(value, list) or len(value) > most:  # guard: A15 F11, without 2
        raise FormatError(f"{name} is not a list of at most {most}")
    return value


def _flat(expression: str, codecs: Iterable[Codec[Any]], **names: Any) -> Callable[[Any], Any]:
    """Compiles a loop over the parts of a value, written out as ``dataclasses`` does with ``__init__``: a long list runs it 20,000 times.

    That takes 0.1 ms, so it is put off until the form is needed. In the expression ``read0`` and ``write0`` are those of the first codec.
    """
    for at, codec in enumerate(codecs):
        names |= {f"read{at}": codec.read, f"write{at}": codec.writer()}
    return eval(expression, names)  # type: ignore[no-any-return]  # noqa: S307 - made of this package's names alone


class Listed(Codec[tuple[T, ...]]):
    """List of at most ``most`` values, of which the first ``kept`` are looked at. ``label``: name of one of them in errors."""

    def __init__(self, of: Codec[T], most: int, label: str = "", kept: int | None = None) -> None:
        self.of, self.most, self.kept = of, most, kept
        self._label = label

    @cached_property
    def _write(self) -> Callable[[T], object] | None:
        return self.of.writer()

    def read(self, value: Any, name: str) -> tuple[T, ...]:
        """As :meth:`Codec.read`."""
        read, label = self.of.read, self._label or name
        values = listed(value, name, self.most)
        return tuple([read(one, label) for one in values[: self.kept]])  # guard: K7.4 A15, values[: self.kept] -> values

    def write(self, value: Iterable[T]) -> list[object]:
        """As :meth:`Codec.write`."""
        write = self._write
        return list(value) if write is None else [write(one) for one in value]

    def writer(self) -> Callable[[Any], object]:
        """As :meth:`Codec.writer`."""
        return list if self._write is None else self.write


class Row(Codec[T]):
    """List of one value for each of ``parts``: its name in errors, and its form.

    ``make`` takes them in order; ``attributes`` gives them back, without them the value is a tuple. ``wrong``: text of the error for a list
    of another length. ``named``: for a list that is too long, and for what is none, the error calls it so and tells the length.
    """

    def __init__(
        self, make: Callable[..., T], parts: Sequence[tuple[str, Codec[Any]]], wrong: str, named: str = "", attributes: Sequence[str] = ()
    ) -> None:
        self.parts = parts
        self._make, self._wrong, self._named, self._attributes = make, wrong, named, attributes

    @cached_property
    def _made(self) -> Callable[[list[Any]], T]:
        each = [f"read{at}(row[{at}], {label!r})" for at, (label, _) in enumerate(self.parts)]
        return _flat(f"lambda row: make({', '.join(each)})", (codec for _, codec in self.parts), make=self._make)

    @cached_property
    def _taken(self) -> Callable[[T], list[object]]:
        each = [f"value.{one}" for one in self._attributes] or [f"value[{at}]" for at in range(len(self.parts))]
        for at, (_, codec) in enumerate(self.parts):
            if codec.writer() is not None:
                each[at] = f"write{at}({each[at]})"
        return _flat(f"lambda value: [{', '.join(each)}]", (codec for _, codec in self.parts))

    def read(self, value: Any, name: str) -> T:  # noqa: ARG002 - its errors have names of their own
        """As :meth:`Codec.read`."""
        if self._named:
            listed(value, self._named, len(self.parts))
        if not isinstance(value, list) or len(value) != len(self.parts):
            raise FormatError(self._wrong)
        return self._made(value)

    def write(self, value: T) -> list[object]:
        """As :meth:`Codec.write`."""
        return self._taken(value)

    def writer(self) -> Callable[[Any], object]:
        """As :meth:`Codec.writer`."""
        return self._taken


class HostNames(Codec[dict[MachineId, str]]):
    """Map of machine ids to names, in the order of the ids."""

    __slots__ = ()

    def read(self, value: Any, name: str) -> dict[MachineId, str]:
        """As :meth:`Codec.read`."""
        if not isinstance(value, dict) or len(value) > MAX_HOSTS:  # guard: A29 A37 F24
            raise FormatError(f"{name} is not a map of at most {MAX_HOSTS}")
        return {MACHINE.read(machine, name): NAME.read(host, "a host name") for machine, host in value.items()}

    def write(self, value: dict[MachineId, str]) -> dict[MachineId, str]:
        """As :meth:`Codec.write`."""
        return {machine: value[machine] for machine in sorted(value)}


class Entries(Codec[dict[str, T]]):
    """Map by entry name, in order. An entry that is not well made costs that entry: the others are as good as without it."""

    __slots__ = ("of",)

    def __init__(self, of: Codec[T]) -> None:
        self.of = of

    def read(self, value: Any, name: str) -> dict[str, T]:
        """As :meth:`Codec.read`."""
        if not isinstance(value, dict):
            raise FormatError(f"{name} is not a map")
        read, found = self.of.read, {}
        for key, one in value.items():
            try:
                entry, content = ENTRY.read(key, "a directory name"), read(one, name)
            except FormatError:  # guard: K3.6
                continue
            found[entry] = content
        return found

    def write(self, value: Mapping[str, T]) -> dict[str, object]:
        """As :meth:`Codec.write`."""
        write = self.of.writer() or self.of.write
        return {name: write(value[name]) for name in sorted(value)}


# -- maps with fields ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """Field of a map.

    ``name`` on the wire, where that is not the attribute's. ``absent``: content that a missing field stands for; None: the content may be
    null, and is so for an attribute that is None. ``spare``: left out where it would say what a missing one does. ``beside``: name of a
    field without which it is neither written nor believed. ``last``: written behind the others, so that what is long is sent uncopied.
    """

    codec: Codec[Any]
    name: str = ""
    absent: object = _MISSING
    spare: bool = False
    beside: str = ""
    last: bool = False

    @property
    def optional(self) -> bool:
        """Tells whether a message without the field is read."""
        return self.absent is not _MISSING

    def read_as(self, read: str, absent: str) -> str:
        """Expression for the value, where ``get`` gives the content of a field."""
        if self.absent is None:
            return f"None if get({self.name!r}) is None else {read}(get({self.name!r}), {self.name!r})"
        value = f"{read}(get({self.name!r}, {absent}), {self.name!r})"
        # Bad content is refused beside a missing field, too.
        return f"({value}, {absent})[get({self.beside!r}) is None]" if self.beside else value

    def written_as(self, write: str, value: str, absent: str) -> str:
        """Item of a dict display, for an attribute of which ``value`` is the expression."""
        if self.codec.writer() is not None:
            value = f"None if {value} is None else {write}({value})" if self.absent is None else f"{write}({value})"
        if self.spare:
            return f"**({{}} if (written := {value}) == {absent} else {{{self.name!r}: written}})"
        return f"{self.name!r}: {value}"


def required(codec: Codec[Any], name: str = "", *, last: bool = False) -> Field:
    """Field that must be there."""
    return Field(codec, name, last=last)


def optional(codec: Codec[Any], absent: object, name: str = "", *, beside: str = "") -> Field:
    """Field that is always written, and may be missing."""
    return Field(codec, name, absent, beside=beside)


def spare(codec: Codec[Any], absent: object, name: str = "") -> Field:
    """Field that is written only where it says something."""
    return Field(codec, name, absent, spare=True)


def nullable(codec: Codec[Any], name: str = "") -> Field:
    """Field that is always written, as null for None, and may be missing."""
    return Field(codec, name, None)


class Struct(Codec[T]):
    """Map with ``fields`` by attribute, in the order of the arguments of ``make``. Fields that are not known here are ignored."""

    def __init__(self, make: Callable[..., T], fields: Mapping[str, Field]) -> None:
        self.fields = {attribute: replace(field, name=field.name or attribute) for attribute, field in fields.items()}
        self._make = make
        self._codecs = [one.codec for one in self.fields.values()]
        self._required = [one.name for one in self.fields.values() if not one.optional]
        self._absent = {f"absent{at}": one.absent for at, one in enumerate(self.fields.values())}
        self._beside = [(one.name, one.beside) for one in self.fields.values() if one.beside]

    @cached_property
    def _made(self) -> Callable[[Callable[..., Any]], T]:
        each = [one.read_as(f"read{at}", f"absent{at}") for at, one in enumerate(self.fields.values())]
        return _flat(f"lambda get: make({', '.join(each)})", self._codecs, make=self._make, **self._absent)

    @cached_property
    def _taken(self) -> Callable[[T], dict[str, Any]]:
        order = sorted(enumerate(self.fields.items()), key=lambda item: item[1][1].last)
        each = [one.written_as(f"write{at}", f"value.{attribute}", f"absent{at}") for at, (attribute, one) in order]
        return _flat(f"lambda value: {{{', '.join(each)}}}", self._codecs, **self._absent)

    @classmethod
    def of(cls, made: type[T]) -> Struct[T]:
        """The form of a class whose attributes are annotated with their :class:`Field`."""
        return cls(made, {name: kind.__metadata__[0] for name, kind in made.__annotations__.items()})

    def read(self, value: Any, name: str = "") -> T:  # noqa: ARG002 - its errors name its fields
        """As :meth:`Codec.read`."""
        content = fields_of(value)
        try:
            return self._made(content.get)
        except FormatError:
            for field in self._required:  # no form takes what stands for a missing field
                if field not in content:
                    raise FormatError(f"field {field} is missing") from None
            raise

    def write(self, value: T) -> dict[str, Any]:
        """As :meth:`Codec.write`."""
        content = self._taken(value)
        for field, beside in self._beside:
            if beside not in content:
                del content[field]
        return content

    def writer(self) -> Callable[[Any], object]:
        """As :meth:`Codec.writer`."""
        return self.write if self._beside else self._taken


def fields_of(value: object) -> dict[str, Any]:
    """The fields of a map by name; names may have come as byte strings."""
    if not isinstance(value, dict):
        raise FormatError("the fields are not a map")
    for key in value:
        if type(key) is not str:
            break
    else:
        return value
    fields: dict[str, Any] = {}
    for key, content in value.items():
        name = key if isinstance(key, str) else key.decode("latin-1")
        if name in fields:  # guard: A23
            raise FormatError("a field appears twice")
        fields[name] = content
    return fields


# -- values that most messages have -------------------------------------------------------------------------------------------

VPATH = Text(MAX_PATH_BYTES, raw=True)
"""Text of a virtual path."""

TEXT = Text(MAX_TEXT_BYTES)
NAME = Text(MAX_NAME_BYTES)
ENTRY = Text(MAX_COMPONENT_BYTES)
"""Name of an entry of a base dir."""

IMAGE: Codec[ImageId] = Fixed(HASH_BYTES)
BLOCK: Codec[BlockHash] = Fixed(HASH_BYTES)
HASH: Codec[bytes] = Fixed(HASH_BYTES)
MACHINE: Codec[MachineId] = Fixed(MACHINE_ID_BYTES, "a machine id")
_SIGNATURE_BYTES: Codec[bytes] = Fixed(SIGNATURE_BYTES, "a signature")
DATA = Data()
UINT = Uint()
PORT = PortNumber()
FLAG = Flag()
SIGNATURE = Signature()
MASK = Mask()
PIECES = PieceSet()
RUNS = Runs()
HOSTS = HostNames()
