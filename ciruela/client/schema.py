"""Values of the pages of a node: every page is checked for its shape before anything of it is used.

The pages are ours (``docs/reference/status.rst``) or those of the reference (protocol section 8), which say less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from ciruela.client.servers import address_of
from ciruela.interfaces import Address
from ciruela.model.errors import FormatError
from ciruela.model.ids import MachineId, Server, SharedId
from ciruela.model.values import dataclass

MOST_ITEMS = 20_000
"""Entries of one list that are looked at."""

MOST_TEXT = 1100
"""Longest text: a virtual path."""

MOST_NUMBER = 2**62
"""Bytes, milliseconds and counts stay far below."""

_HEX = re.compile(r"[0-9a-f]{64}")
_MACHINE = re.compile(r"[0-9a-f]{32}")
_HEAD = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


@dataclass(frozen=True, slots=True)
class DiskHealth:
    """Faults in the directories of a node.

    ``set_aside``: paths at which something stood without a record, with its hidden name now. ``unseen``: directories (keys) that cannot be
    looked at; ``protect``: those of which a protected link cannot be followed. ``debris``: trees that cannot be deleted.
    """

    set_aside: tuple[tuple[str, str], ...] = ()
    unseen: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    debris: int = 0


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Node identity. ``clock_ms`` is its wall time, ``epoch_ms`` that of its start, ``uptime_s`` since then; None where it does not tell.

    ``config_mistakes``: places of mistakes for which it refused its last reload. ``failed_hooks``: paths, with what failed and why.
    ``disk``: what is not as it should be in its directories.
    """

    machine: str
    hostname: str
    version: str
    ours: bool
    ready: bool = True
    clock_ms: int | None = None
    uptime_s: float | None = None
    images: int | None = None
    downloads: int | None = None
    damaged: int = 0
    epoch_ms: int | None = None
    config_mistakes: tuple[str, ...] = ()
    failed_hooks: tuple[tuple[str, str], ...] = ()
    disk: DiskHealth = DiskHealth()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A peer of a node. ``heard_s``: since its last sign of life, None when there was none; ``dirs`` None where the page does not tell.

    ``udp_heard_s`` since its last datagram. ``reached`` is ``udp``, ``tcp``, or empty when it is not. Not ``configured``: it speaks there,
    and no list of peers names it. ``addresses`` are all that it has, as texts.
    """

    address: Address
    machine: str | None
    name: str
    heard_s: float | None
    dirs: tuple[str, ...] | None
    udp_heard_s: float | None = None
    reached: str = ""
    configured: bool = True
    addresses: tuple[str, ...] = ()

    def server(self, *, hears: bool) -> Server:
        """The row of which servers are counted. ``hears``: the page tells who is heard."""
        heard_ms = None if self.heard_s is None else round(self.heard_s * 1000)
        return Server(self.name, machine_of(self.machine), self.addresses, heard_ms if hears else 0, self.configured)


@dataclass(frozen=True, slots=True)
class Dir:
    """One configured directory of a node; what only our pages tell is None elsewhere."""

    key: str
    append_only: bool
    num_levels: int
    config_hash: str | None = None
    images: int | None = None
    usable: bool = True
    free_bytes: int | None = None
    size_bytes: int | None = None
    reserve_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """An image at a path of a node. ``signers``: fingerprints, as far as they are known; ``done``: from 0 to 1 while it is on its way."""

    path: str
    image: str
    signed_ms: int
    signers: tuple[str, ...]
    committed: bool
    done: float | None = None
    stalled: bool = False
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class RefusedImage:
    """An image that a node did not take, or gave up."""

    image: str
    reason: str
    rejected: bool
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Hook:
    """State of a hook of an image on a node: ``state`` is ``pending``, ``ok`` or ``failed``, ``message`` says why."""

    kind: str
    state: str
    message: str = ""

    @property
    def failure(self) -> str:
        """Name of the hook that failed, and why."""
        return f"{self.kind} {self.message or 'failed'}"


@dataclass(frozen=True, slots=True)
class At:
    """State of one path on a node. ``hooks`` are those of what is committed."""

    taken: bool
    committed: ImageVersion | None = None
    pending: ImageVersion | None = None
    refused: RefusedImage | None = None
    hooks: tuple[Hook, ...] = ()


class _Shape:
    """An object of a page. Each question raises FormatError when the answer is not what it should be."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise FormatError("a page has something else where an object should be")
        self._value: dict[str, Any] = value

    def _get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        found = self._value.get(name)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise FormatError(f"a page has no good {name!r}")
        return found

    def has(self, name: str) -> bool:
        return self._value.get(name) is not None

    def tells(self, name: str) -> bool:
        """Tells whether the field is there, be it null: older nodes lack it."""
        return name in self._value

    def text(self, name: str) -> str:
        found: str = self._get(name, str)
        if len(found) > MOST_TEXT:
            raise FormatError(f"the {name!r} of a page is too long")
        return found

    def image(self, name: str) -> str:
        found = self.text(name)
        if not _HEX.fullmatch(found):
            raise FormatError(f"the {name!r} of a page is no image id")
        return found

    def whole(self, name: str) -> int:
        found: int = self._get(name, int)
        if abs(found) > MOST_NUMBER:
            raise FormatError(f"the {name!r} of a page is no sensible number")
        return found

    def number(self, name: str) -> float | None:
        if not self.has(name):
            return None
        found = self._get(name, (int, float))
        # guard: A29
        if not abs(found) <= MOST_NUMBER:  # nor what is not a number
            raise FormatError(f"the {name!r} of a page is no sensible number")
        return float(found)

    def count(self, name: str) -> int | None:
        return self.whole(name) if self.has(name) else None

    def flag(self, name: str) -> bool:
        found: bool = self._get(name, bool)
        return found

    def below(self, name: str) -> _Shape | None:
        return _Shape(self._value[name]) if self.has(name) else None

    def items(self, name: str) -> Iterator[Any]:
        found: list[Any] = self._get(name, list)
        yield from found[:MOST_ITEMS]

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(found[:MOST_TEXT] for found in self.items(name) if isinstance(found, str))

    def shapes(self, name: str) -> Iterator[_Shape]:
        yield from map(_Shape, self.items(name))

    def pairs(self) -> Iterator[tuple[str, _Shape]]:
        for name, value in list(self._value.items())[:MOST_ITEMS]:
            yield name[:MOST_TEXT], _Shape(value)


def _address(text: str) -> Address:
    address = address_of(text)
    if address is None:
        raise FormatError("a page names a peer that has no address or no port")
    return address


# -- our pages ----------------------------------------------------------------------------------------------------------------


def identity(page: Any) -> NodeIdentity:
    """``/api/v1/status``."""
    found = _Shape(page)
    return NodeIdentity(
        found.text("machine_id"),
        found.text("hostname"),
        found.text("version"),
        True,
        found.flag("ready"),
        found.whole("now_ms"),
        found.number("uptime_s"),
        found.count("images"),
        found.count("downloads"),
        found.count("damaged") or 0,
        found.count("epoch_ms"),
        _config_mistakes(found),
        tuple((one.text("path"), _hook(one).failure) for one in (found.shapes("failed_hooks") if found.has("failed_hooks") else ())),
        _disk(found.below("disk")),
    )


def _disk(found: _Shape | None) -> DiskHealth:
    """Older nodes do not tell of it."""
    if found is None:
        return DiskHealth()
    return DiskHealth(
        tuple((one.text("path"), one.text("name")) for one in found.shapes("set_aside")),
        found.texts("unseen"),
        found.texts("protect") if found.has("protect") else (),
        found.count("debris") or 0,
    )


def _config_mistakes(found: _Shape) -> tuple[str, ...]:
    """Places of mistakes, with an empty one when a reload was refused and no place is told."""
    config = found.below("config")
    if config is None or config.flag("ok"):
        return ()
    return config.texts("places") or ("",)


def neighbours(page: Any) -> tuple[Neighbour, ...]:
    """``/api/v1/peers``."""
    return tuple(map(_neighbour, _Shape(page).shapes("peers")))


def _neighbour(one: _Shape) -> Neighbour:
    heard_s = one.number("heard_s")
    address = _address(one.text("address"))
    others = one.texts("addresses") if one.has("addresses") else ()
    dirs = one.texts("dirs") if one.has("dirs") else ()
    return Neighbour(
        address,
        one.text("machine_id") if one.has("machine_id") else None,
        one.text("hostname") if one.has("hostname") else one.text("name"),
        heard_s,
        dirs or None,
        one.number("udp_heard_s") if one.tells("udp_heard_s") else heard_s,
        one.text("reached") if one.has("reached") else "",
        one.flag("configured") if one.has("configured") else True,
        tuple(dict.fromkeys((str(address), *others))),
    )


def shared_ids(page: Any) -> tuple[SharedId, ...]:
    """The machine ids that several servers use, as ``/api/v1/peers`` tells; what is no such id is left out."""
    found = _Shape(page)
    rows = found.shapes("shared_ids") if found.has("shared_ids") else ()
    told = [(machine_of(one.text("machine_id")), one.texts("addresses")) for one in rows]
    return tuple(SharedId(machine, addresses) for machine, addresses in told if machine is not None)


def machine_of(text: str | None) -> MachineId | None:
    """The machine id that 32 hexadecimal digits spell; None for anything else."""
    return MachineId(bytes.fromhex(text)) if text is not None and _MACHINE.fullmatch(text) else None


def _hook(one: _Shape) -> Hook:
    return Hook(one.text("kind"), one.text("state"), one.text("message"))


def dirs(page: Any) -> tuple[Dir, ...]:
    """``/api/v1/dirs``."""
    return tuple(
        Dir(
            one.text("key"),
            one.flag("append_only"),
            one.whole("num_levels"),
            one.text("config_hash"),
            one.count("images"),
            one.flag("usable"),
            one.count("free_bytes"),
            one.count("size_bytes"),
            one.count("reserve_bytes"),
        )
        for one in _Shape(page).shapes("dirs")
    )


def keys(page: Any) -> Mapping[str, tuple[str, ...]]:
    """``/api/v1/keys``: fingerprints by directory."""
    below = _Shape(page).below("dirs")
    return {} if below is None else {key: below.texts(key) for key in below._value}


def _version(one: _Shape) -> ImageVersion:
    signers = tuple(dict.fromkeys(entry.text("key") for entry in one.shapes("signatures") if entry.has("key")))
    committed = one.text("state") == "committed"
    if committed:
        return ImageVersion(one.text("path"), one.image("image"), one.whole("signed_ms"), signers, True)
    return ImageVersion(
        one.text("path"),
        one.image("image"),
        one.whole("signed_ms"),
        signers,
        False,
        one.number("done"),
        one.flag("stalled") if one.has("stalled") else False,
        one.number("age_s"),
    )


def versions(page: Any) -> tuple[tuple[ImageVersion, ...], tuple[tuple[str, int], ...]]:
    """``/api/v1/dirs/KEY/...``: the images there, and the base dirs below with the number of their images."""
    found = _Shape(page)
    bases = tuple((one.text("path"), one.whole("images")) for one in found.shapes("base_dirs"))
    return tuple(map(_version, found.shapes("versions"))), bases


def at(page: Any) -> At:
    """``/api/v1/images/KEY/...``."""
    found = _Shape(page)
    committed, pending, refused = found.below("committed"), found.below("pending"), found.below("refused")
    return At(
        found.flag("taken"),
        None if committed is None else _version(committed),
        None if pending is None else _version(pending),
        None
        if refused is None
        else RefusedImage(refused.image("image"), refused.text("reason"), refused.flag("rejected"), refused.number("age_s")),
        tuple(map(_hook, found.shapes("hooks"))) if found.has("hooks") else (),
    )


# -- the reference's ----------------------------------------------------------------------------------------------------------


def old_identity(page: Any) -> NodeIdentity:
    """``/status/``."""
    found = _Shape(page)
    process = found.below("process")
    clock_ms = process.count("timestamp") if process is not None else None
    return NodeIdentity(found.text("machine_id"), found.text("hostname"), found.text("version"), False, clock_ms=clock_ms)


def old_neighbours(page: Any) -> tuple[Neighbour, ...]:
    """``/peers/``."""
    found = []
    for _, one in _Shape(page).pairs():
        machine = one.text("id") if one.has("id") else None
        name = one.text("hostname") if one.has("hostname") else one.text("name")
        address = _address(one.text("addr"))
        found.append(Neighbour(address, machine, name, None, None, addresses=(str(address),)))
    return tuple(found)


def old_dirs(page: Any) -> tuple[Dir, ...]:
    """``/configs/``."""
    return tuple(Dir(key, one.flag("append_only"), one.whole("num_levels")) for key, one in _Shape(page).pairs())


def old_versions(page: Any, base: str) -> tuple[ImageVersion, ...]:
    """``/list-dir/KEY/..``; what is on its way stands in it, too, and is taken for committed unless the page says otherwise."""
    found = []
    for name, one in _Shape(page).pairs():
        stamps = [_stamp_ms(entry.text("timestamp")) for entry in one.shapes("signatures")]
        committed = one.flag("committed") if one.has("committed") else True
        found.append(ImageVersion(f"{base}/{name}", one.image("image"), max(stamps, default=0), (), committed))
    return tuple(found)


def old_downloads(page: Any) -> Mapping[str, tuple[str, bool]]:
    """``/downloading/``: by path the image, and whether it is stalled."""
    return {path: (one.image("image_id"), one.flag("stalled")) for path, one in _Shape(page).pairs()}


def _stamp_ms(text: str) -> int:
    found = _HEAD.fullmatch(text)
    if found is None:
        return 0
    try:
        seconds = datetime.fromisoformat(f"{found[1]}+00:00").timestamp()
    except ValueError:
        return 0
    return int(seconds) * 1000 + int((found[2] or "0").ljust(9, "0")[:3])
