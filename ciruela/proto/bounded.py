"""A CBOR reader (RFC 8949) that cannot be made to work or allocate more than its input is worth (threats 6.3, A23).

Strict decoding of cbor2 builds the value, and one walk over it refuses the rest of what no message of ours contains: floats and other
special values, too many items, an empty container too deep, trailing bytes. The linear scan of the headers has three tasks that cbor2 does
not do: to name the offset of what was refused, to count the items of a long message before anything is built, and to find the byte strings
that are not copied.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, NoReturn

import cbor2

from ciruela.model.errors import FormatError

MAX_DEPTH = 8
"""Containers within containers. The deepest message, a base dir with its states, has seven."""

LONG_BYTES = 4096
"""Byte strings from this size on are not copied by :func:`loads_cut`."""

BUILT_FIRST_BYTES = 64 * 1024  # guard: A23 F13, -> 128 * 1024
"""Up to this length a value is built before its items are counted: the worst one, lists of an empty list, has 5 MB for that moment."""

BYTES_PER_ITEM = 24
"""Nor is what is built first longer than so many bytes for each item allowed: the work for a message stays in proportion to its budget."""

_EMPTY = b"\x40"
_SIMPLE = frozenset((0xF4, 0xF5, 0xF6))
_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
_LONGER = 24
"""From this on, the low bits of a header say how many bytes behind it hold the number."""

_PLAIN = frozenset((int, str, bytes, bool, type(None)))
_REFUSED = object()
_FAULTS = (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError)


class _NoTags(dict[int, NoReturn]):
    """Decoders of tags, none of which may be used: cbor2 asks for one at the header of each tag, before it reads the content."""

    def __missing__(self, tag: int) -> NoReturn:
        # No LookupError: after one cbor2 would use its own decoder of the tag.
        raise FormatError(f"CBOR tag {tag}")


_NO_TAGS = _NoTags()


def loads(data: bytes | memoryview, *, max_items: int, max_depth: int = MAX_DEPTH) -> object:
    """The value that ``data`` encodes: ints, bytes, text, lists, dicts, booleans, None.

    ``max_items`` counts every key, value and container; the container that holds them says how many come. Raises FormatError with the
    offset, and nothing else, for: too many items, too deep, lengths that do not fit into what is left, tags, floats, undefined and other
    simple values, indefinite lengths, map keys that are neither text nor bytes, duplicate keys, bad UTF-8, trailing bytes.
    """
    # Each item takes a byte at least: of no more bytes than items are allowed, none has to be counted first.
    # guard: A23 F13, -> True; A23 F13, -> len(data) <= max(max_items, BUILT_FIRST_BYTES)
    if len(data) <= max(max_items, min(BYTES_PER_ITEM * max_items, BUILT_FIRST_BYTES)):
        value = _strict(data, max_items, max_depth)
        if value is not _REFUSED:
            return value
    _scan(data, max_items, max_depth, None)
    return _built(data)


def loads_cut(data: memoryview, *, max_items: int, max_depth: int = MAX_DEPTH) -> tuple[object, list[memoryview]]:
    """As :func:`loads`, but byte strings of LONG_BYTES and more are empty in the value: they come as views of ``data``, in order."""
    cuts: list[tuple[int, int, int]] = []
    _scan(data, max_items, max_depth, cuts)
    rest = bytearray()
    at = 0
    for start, _, end in cuts:
        rest += data[at:start]
        rest += _EMPTY
        at = end
    rest += data[at:]
    return _built(bytes(rest)), [data[begin:end] for _, begin, end in cuts]


def _strict(data: bytes | memoryview, max_items: int, max_depth: int) -> object:
    """The value that ``data`` encodes, or ``_REFUSED`` for all that :func:`loads` does not accept."""
    source = BytesIO(data)
    decoder = cbor2.CBORDecoder(
        source,
        semantic_decoders=_NO_TAGS,  # guard: A23 F13, -> None
        read_size=len(data) or 1,
        max_depth=max_depth,
        allow_indefinite=False,  # guard: A23 F13, -> True
        allow_duplicate_keys=False,  # guard: A23 F13, -> True
        strict_hashable_types=True,  # guard: A23 F13, -> False
    )
    try:
        value = decoder.decode()
    except _FAULTS:  # guard: A23 F13
        return _REFUSED
    # The decoder goes back to the end of the item: there is no other sign of trailing bytes.
    if source.tell() != len(data):  # guard: A23 F13
        return _REFUSED
    return value if _is_plain(value, max_items, max_depth) else _REFUSED


def _is_plain(value: object, max_items: int, max_depth: int) -> bool:
    """Tell whether ``value`` holds nothing but what :func:`loads` returns, within both limits. Keys are texts and bytes already."""
    left = max_items - 1
    level: list[Any] = [value]
    while level:
        inner: list[Any] = []
        for item in level:
            kind = type(item)
            if kind in _PLAIN:
                continue
            if kind is list:
                left -= len(item)
                inner += item
            elif kind is dict:
                left -= 2 * len(item)
                inner += item.values()
            else:
                return False  # guard: A23 F13
            # cbor2 takes an empty container for a plain item: its depth is looked at here alone.
            if left < 0 or not max_depth:  # guard: A23 F13, without 1; A23 F13, without 2
                return False
        max_depth -= 1
        level = inner
    return True


def _built(data: bytes | memoryview) -> object:
    try:
        return cbor2.loads(data)
    except _FAULTS as fault:  # guard: A23 F13
        raise FormatError(f"CBOR with a text that is not UTF-8 ({type(fault).__name__})") from None


def _scan(data: bytes | memoryview, max_items: int, max_depth: int, cuts: list[tuple[int, int, int]] | None) -> None:
    """Refuse what :func:`loads` does not accept, by the headers alone, with its offset; bad UTF-8 excepted. Fill ``cuts``."""
    end = len(data)
    at = 0
    items = due = 1
    keys: set[tuple[int, bytes]] | None = None
    open_containers: list[tuple[int, set[tuple[int, bytes]] | None]] = []
    while due or open_containers:
        if not due:
            due, keys = open_containers.pop()
            continue
        if at >= end:  # guard: A23 F13
            raise FormatError(f"CBOR ends in the middle, at offset {at}")
        due -= 1
        head = data[at]
        start = at
        at += 1
        if keys is None:
            if head < _LONGER:  # a small number
                continue
            is_key = False
        else:
            # A map of n pairs is 2n items due: after counting this one down, an odd rest means that its value is still to come.
            is_key = due & 1 == 1
        size = head & 31
        major = head >> 5
        if size >= _LONGER and major < _TAG:
            if size > 27:  # guard: A23 F13
                raise FormatError(f"CBOR item of indefinite length at offset {start}")
            width = 1 << (size - _LONGER)
            if width > end - at:  # guard: A23 F13
                raise FormatError(f"CBOR ends in the middle, at offset {start}")
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        if _BYTES <= major <= _TEXT:
            if size > end - at:
                raise FormatError(f"CBOR string longer than what is left, at offset {start}")
            if is_key:
                assert keys is not None
                key = (major, bytes(data[at : at + size]))
                if key in keys:  # guard: A23 F13
                    raise FormatError(f"CBOR map with a duplicate key at offset {start}")
                keys.add(key)
            elif cuts is not None and major == _BYTES and size >= LONG_BYTES:
                cuts.append((start, at, at + size))
            at += size
        elif is_key:  # guard: A23 F13
            raise FormatError(f"CBOR map key that is neither text nor bytes, at offset {start}")
        elif _ARRAY <= major <= _MAP:
            # Each item takes at least one byte, so a count beyond the rest is a lie, found before anything is made for it.
            count = size if major == _ARRAY else 2 * size
            if count > end - at:  # guard: A23 F13
                raise FormatError(f"CBOR container longer than what is left, at offset {start}")
            items += count
            if items > max_items:  # guard: A23 F13
                raise FormatError(f"CBOR with more than {max_items} items, at offset {start}")
            open_containers.append((due, keys))
            if len(open_containers) > max_depth:  # guard: A23 F13
                raise FormatError(f"CBOR nested deeper than {max_depth}, at offset {start}")
            due = count
            keys = None if major == _ARRAY else set()
        elif major >= _TAG and head not in _SIMPLE:  # guard: A23 F13
            raise FormatError(f"CBOR tag, float or special value at offset {start}")
    if at != end:  # guard: A23 F13
        raise FormatError(f"{end - at} bytes after the CBOR item, at offset {at}")
