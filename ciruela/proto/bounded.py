"""A CBOR reader (RFC 8949) that cannot be made to work or allocate more than its input is worth (threats 6.3, A23).

One linear scan looks at every header before anything is built. It refuses what no message of ours contains, so that the decoder behind
it only ever sees plain, definite, shallow data.
"""

from __future__ import annotations

import cbor2

from ciruela.model.errors import FormatError

MAX_DEPTH = 8
"""Containers within containers. The deepest message, a base dir with its states, has seven."""

LONG_BYTES = 4096
"""Byte strings from this size on are not copied by :func:`loads_cut`."""

_EMPTY = b"\x40"
_SIMPLE = frozenset((0xF4, 0xF5, 0xF6))
_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
_LONGER = 24
"""From this on, the low bits of a header say how many bytes behind it hold the number."""


def loads(data: bytes | memoryview, *, max_items: int, max_depth: int = MAX_DEPTH) -> object:
    """The value that ``data`` encodes: ints, bytes, text, lists, dicts, booleans, None.

    ``max_items`` counts every key, value and container; the container that holds them says how many come. Raises FormatError with the
    offset, and nothing else, for: too many items, too deep, lengths that do not fit into what is left, tags, floats, undefined and other
    simple values, indefinite lengths, map keys that are neither text nor bytes, duplicate keys, bad UTF-8, trailing bytes.
    """
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


def _built(data: bytes | memoryview) -> object:
    try:
        return cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError) as fault:
        raise FormatError(f"CBOR with a text that is not UTF-8 ({type(fault).__name__})") from None


def _scan(data: bytes | memoryview, max_items: int, max_depth: int, cuts: list[tuple[int, int, int]] | None) -> None:
    end = len(data)
    at = 0
    items = due = 1
    keys: set[tuple[int, bytes]] | None = None
    open_containers: list[tuple[int, set[tuple[int, bytes]] | None]] = []
    while due or open_containers:
        if not due:
            due, keys = open_containers.pop()
            continue
        if at >= end:
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
            if size > 27:
                raise FormatError(f"CBOR item of indefinite length at offset {start}")
            width = 1 << (size - _LONGER)
            if width > end - at:
                raise FormatError(f"CBOR ends in the middle, at offset {start}")
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        if _BYTES <= major <= _TEXT:
            if size > end - at:
                raise FormatError(f"CBOR string longer than what is left, at offset {start}")
            if is_key:
                assert keys is not None
                key = (major, bytes(data[at : at + size]))
                if key in keys:
                    raise FormatError(f"CBOR map with a duplicate key at offset {start}")
                keys.add(key)
            elif cuts is not None and major == _BYTES and size >= LONG_BYTES:
                cuts.append((start, at, at + size))
            at += size
        elif is_key:
            raise FormatError(f"CBOR map key that is neither text nor bytes, at offset {start}")
        elif _ARRAY <= major <= _MAP:
            # Each item takes at least one byte, so a count beyond the rest is a lie, found before anything is made for it.
            count = size if major == _ARRAY else 2 * size
            if count > end - at:
                raise FormatError(f"CBOR container longer than what is left, at offset {start}")
            items += count
            if items > max_items:
                raise FormatError(f"CBOR with more than {max_items} items, at offset {start}")
            open_containers.append((due, keys))
            if len(open_containers) > max_depth:
                raise FormatError(f"CBOR nested deeper than {max_depth}, at offset {start}")
            due = count
            keys = None if major == _ARRAY else set()
        elif major >= _TAG and head not in _SIMPLE:
            raise FormatError(f"CBOR tag, float or special value at offset {start}")
    if at != end:
        raise FormatError(f"{end - at} bytes after the CBOR item, at offset {at}")
