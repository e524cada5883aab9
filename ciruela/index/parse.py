"""Reading an index: its hash first, then every line strictly (protocol sections 1.1 to 1.6, threats A1 to A6).

Only the canonical spelling is accepted: for every ``data`` that :func:`parse` takes, ``emit`` of the result gives ``data`` again. Nothing
is allocated for a number that the text declares; the result is bounded by the size of the text and by ``names.MAX_LISTING_BYTES``.
"""

from __future__ import annotations

import re
from binascii import unhexlify

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.names import MAX_COMPONENT_BYTES, MAX_INDEX_BYTES, Preorder, check_component, check_target, size_in_utf8, unescape
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.errors import BadIndex, UnfitIndex
from ciruela.model.ids import HASH_BYTES, ImageId, image_id

HEADERS = {kind: f"DIRSIGNATURE.v1 {kind.value} block_size={BLOCK_BYTES}\n".encode() for kind in HashKind}
"""The header line of each hash kind, the only spelling that is accepted."""

FOOTER_BYTES = 2 * HASH_BYTES + 1

_FOOTER = re.compile(rb"[0-9a-f]{64}\n")
_FILE = re.compile(r"  ([!-.0-~]{1,1020}) ([fx]) (0|[1-9][0-9]{0,18})(?= |\Z)")
_SMALL_FILE = re.compile(rb"  ([!-.0-\[\]-~]{1,255}) ([fx]) ([1-9][0-9]{0,4}) ([0-9a-f]{64})\n")
_LINK = re.compile(r"  ([!-.0-~]{1,1020}) s ([!-~]+)")
_HASH_TEXT = 2 * HASH_BYTES + 1
_LONG_LINE = 32768
_HASHES_AT_ONCE = 1024
_SPACE, _SLASH = b" /"
_DOTS = (b".", b"..")


def peek_kind(data: bytes) -> HashKind:
    """The hash kind that the header of ``data`` names. Raises BadIndex; nothing but the header is looked at."""
    for kind, header in HEADERS.items():
        if data.startswith(header):
            return kind
    kinds = ", ".join(kind.value for kind in HashKind)
    raise BadIndex(f"line 1: not the header of an index that we read (DIRSIGNATURE.v1, block size {BLOCK_BYTES}, one of {kinds})")


def image_id_of(data: bytes, max_bytes: int = MAX_INDEX_BYTES) -> ImageId:
    """The image id in the footer of ``data``, after the body was hashed and agrees with it. The body is not parsed. Raises BadIndex."""
    if len(data) > max_bytes:
        raise BadIndex(f"the index has {len(data)} bytes, at most {max_bytes} are allowed")
    kind = peek_kind(data)
    begin, end = len(HEADERS[kind]), len(data) - FOOTER_BYTES
    # A footer cannot overlap the header, which is not hexadecimal.
    if not _FOOTER.fullmatch(data, end) or data[end - 1] != 0x0A:
        raise BadIndex("last line: not a footer of 64 lower-case hexadecimal digits and a newline")
    digest = kind.hash(memoryview(data)[begin:end])
    if digest.hex().encode() != data[end:-1]:
        raise BadIndex(f"last line: the {kind.value} hash of the body is {digest.hex()}, the footer says otherwise")
    return image_id(digest)


def parse(data: bytes, expected: ImageId, max_bytes: int = MAX_INDEX_BYTES) -> Index:
    """The index in ``data``, which must be the one with the id ``expected`` and at most ``max_bytes`` long.

    Takes some seconds for a million files: call it in a thread. Raises BadIndex with what is wrong; UnfitIndex, with the number of the
    line, when it has this id and can never be taken.
    """
    image = image_id_of(data, max_bytes)
    if image != expected:
        raise BadIndex(f"this is the index {image.hex()}, not {expected.hex()}")
    kind = peek_kind(data)
    body = _EntryParser(data, len(HEADERS[kind]), len(data) - FOOTER_BYTES)
    try:
        directories = body.directories()
    except ValueError as error:
        raise UnfitIndex(f"line {body.line}: {error}") from None
    index = Index(image, kind, directories)
    _ = index.pieces  # with it all that is counted over every file: this is a thread, and who asks later is not
    return index


class _EntryParser:
    """The lines between header and footer; every fault is a ValueError about the line at ``_position``."""

    def __init__(self, data: bytes, begin: int, end: int) -> None:
        self._data = data
        self._position = begin
        self._end = end

    @property
    def line(self) -> int:
        """The number of the line that is being read; the header is line 1."""
        return self._data.count(b"\n", 0, self._position) + 1

    def directories(self) -> tuple[Directory, ...]:
        """All directories with their entries."""
        data, end = self._data, self._end
        order = Preorder()
        result: list[Directory] = []
        while self._position < end:
            if data[self._position] == _SLASH:
                stop = data.index(b"\n", self._position, end)
                if stop - self._position > _LONG_LINE:
                    raise ValueError("the path of the directory is too long")
                path = unescape(data[self._position : stop].decode("ascii"))
                entries: list[File | Symlink] = []
                order.enter(path, entries)
                self._position = stop + 1
                self._entries(entries, order)
                result.append(Directory(path, tuple(entries)))
            elif not result:
                raise ValueError("the first line after the header is not the directory /")
            else:
                raise ValueError("neither a directory nor an entry, which begins with exactly two spaces")
        if not result:
            raise ValueError("there is not even the directory /")
        return tuple(result)

    def _entries(self, entries: list[File | Symlink], order: Preorder) -> None:
        """Read entries up to the first line that is none."""
        data, position, end = self._data, self._position, self._end
        prefix, most, roomy = order.prefix, order.most, order.room >= MAX_COMPONENT_BYTES
        small_file = _SMALL_FILE.match
        last = ""
        entry: File | Symlink
        while position < end:
            match = small_file(data, position) if roomy else None
            if match is not None and (size := int(match[3])) <= BLOCK_BYTES and match[1] not in _DOTS:
                name = match[1].decode("ascii")
                entry = File(prefix + name, match[2] == b"x", size, unhexlify(match[4]))
                position = match.end()
            elif data[position] == _SPACE:
                stop = data.index(b"\n", position, end)
                name, entry = self._entry(position, stop, order)
                position = stop + 1
            else:
                return
            if name <= last:
                raise ValueError(f"the entry {name[:80]!r} is listed twice or out of order")
            if len(entries) >= most:
                raise ValueError("too many files, links and directories in one image")
            last = name
            entries.append(entry)
            self._position = position

    def _entry(self, position: int, stop: int, order: Preorder) -> tuple[str, File | Symlink]:
        length = stop - position
        line = self._data[position : stop if length < _LONG_LINE else position + _LONG_LINE].decode("ascii")
        match = _FILE.match(line)
        if match is None:
            return self._link(line, order)
        spelled, letter, digits = match.groups()
        name = _name(spelled, order)
        size = int(digits)
        count = -(-size // BLOCK_BYTES)
        at = match.end()
        if length != at + _HASH_TEXT * count:
            raise ValueError(f"a file of {size} bytes has {count} hashes of 64 digits, each after one space, and nothing else on its line")
        hashes = _hashes(line[at + 1 :]) if length < _LONG_LINE else self._many_hashes(position + at, stop)
        return name, File(order.prefix + name, letter == "x", size, hashes)

    def _many_hashes(self, position: int, stop: int) -> bytes:
        parts = []
        for at in range(position, stop, _HASH_TEXT * _HASHES_AT_ONCE):
            text = self._data[at : min(at + _HASH_TEXT * _HASHES_AT_ONCE, stop)].decode("ascii")
            if text[0] != " ":
                raise ValueError("hashes are not separated by exactly one space")
            parts.append(_hashes(text[1:]))
        return b"".join(parts)

    def _link(self, line: str, order: Preorder) -> tuple[str, Symlink]:
        match = _LINK.fullmatch(line)
        if match is None:
            raise ValueError(f"{line[:80]!r} is not a file (NAME f|x SIZE HASHES) nor a link (NAME s TARGET)")
        name = _name(match[1], order)
        target = unescape(match[2])
        check_target(target)
        return name, Symlink(order.prefix + name, target)


def _name(spelled: str, order: Preorder) -> str:
    """The checked name of an entry. Almost all names need no look at their bytes."""
    name = spelled
    if "\\" in spelled or len(spelled) > MAX_COMPONENT_BYTES or spelled in (".", ".."):
        name = unescape(spelled)
        check_component(name)
    if order.room < MAX_COMPONENT_BYTES and size_in_utf8(name) > order.room:
        raise ValueError(f"the path of {name[:80]!r} is too long or too deep")
    return name


def _hashes(text: str) -> bytes:
    """The bytes of hashes in their one spelling: lower case, one space between."""
    hashes = bytes.fromhex(text)
    if hashes.hex(" ", HASH_BYTES) != text:
        raise ValueError("hashes are lower-case hexadecimal digits with exactly one space between two hashes")
    return hashes
