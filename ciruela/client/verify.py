"""``ciruela verify``: whether a directory is exactly an image, and if not, what differs."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ciruela.client.context import AppContext, make_display
from ciruela.client.errors import write_line
from ciruela.client.options.local import VerifyOptions
from ciruela.client.orders import OURS, LocalProblem, check_directory
from ciruela.client.progress import Display
from ciruela.client.scanning import scan_directory
from ciruela.client.text import count
from ciruela.client.tracker import EXIT_LOCAL
from ciruela.index.digest import HashKind
from ciruela.index.names import MAX_INDEX_BYTES
from ciruela.index.parse import image_id_of, parse
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.errors import BadIndex
from ciruela.model.ids import ImageId

Entry = Directory | File | Symlink


def differences(wanted: Index, found: Index) -> Iterator[tuple[str, str]]:
    """Yields the differences of ``found`` from ``wanted``: (word, path inside the image), in order of the paths. Both have one hash kind.

    The words are ``missing``, ``extra``, ``changed`` (content, type, or target of a link) and ``mode`` (only whether it is executable).
    What lies in a directory that is missing or extra itself is not listed.
    """
    want, have = _by_path(wanted), _by_path(found)
    skipped = ""
    for path in sorted(want.keys() | have.keys(), key=lambda path: path.split("/")):
        if skipped and path.startswith(skipped):
            continue
        word = _word(want.get(path), have.get(path))
        if word is None:
            continue
        if isinstance(want.get(path), Directory) or isinstance(have.get(path), Directory):
            skipped = f"{path}/"
        yield word, path


def _by_path(index: Index) -> dict[str, Entry]:
    found: dict[str, Entry] = {directory.path: directory for directory in index.directories}
    found.update((entry.path, entry) for entry in index.entries())
    return found


def _word(wanted: Entry | None, found: Entry | None) -> str | None:
    match wanted, found:
        case None, _:
            return "extra"
        case _, None:
            return "missing"
        case Directory(), Directory():
            return None
        case File(), File() if (wanted.size, wanted.hashes) == (found.size, found.hashes):
            return None if wanted.executable == found.executable else "mode"
        case Symlink(), Symlink() if wanted.target == found.target:
            return None
    return "changed"


def read_index_file(path: str) -> Index:
    """The index in a file that the user named. Raises LocalProblem for what cannot be read, BadIndex for what is no index."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
                raise OSError(errno.EINVAL, "it is neither a file nor a pipe")
            os.set_blocking(file.fileno(), True)  # only the opening must not wait, for a pipe that nobody writes to
            data = file.read(MAX_INDEX_BYTES + 1)
            if not data and stat.S_ISFIFO(mode):
                raise OSError(errno.EINVAL, "nothing came through this pipe")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LocalProblem(f"{path} cannot be read: {reason} (name an index file, or an image id of 64 hexadecimal digits)") from None
    try:
        return parse(data, image_id_of(data))
    except BadIndex as error:
        raise BadIndex(f"{path} is no index: {error}") from None


async def verify(options: VerifyOptions, around: AppContext) -> int:
    """``ciruela verify``. Gives the exit code; raises LocalProblem, DiskError or BadIndex for what cannot be read."""
    check_directory(options.directory)
    display = make_display(options.common, around, None)
    if options.index_file is not None:
        wanted = await around.in_thread(read_index_file, options.index_file)
        return await _against_index(options.directory, wanted, display, around)
    if options.image is not None:
        return await _against_id(options.directory, options.image, options.common.hash or OURS, display, around)
    found = await scan_directory(options.directory, options.common.hash or OURS, display, around.in_thread)
    write_line(around.stdout, found.image.hex())
    return 0


async def _against_index(name: str, wanted: Index, display: Display, around: AppContext) -> int:
    found = await scan_directory(name, wanted.kind, display, around.in_thread)
    number = 0
    for word, path in await around.in_thread(lambda: list(differences(wanted, found.index))):
        write_line(around.stdout, f"{word:<8} {path}")
        number += 1
    number += len(found.warnings)
    return _judged(name, wanted.image, number, display)


async def _against_id(name: str, image: ImageId, first: HashKind, display: Display, around: AppContext) -> int:
    """An id does not tell with which hash it was made: all are tried, and only a directory that differs is read more than once."""
    others = []
    for kind in sorted(HashKind, key=lambda kind: kind is not first):
        found = await scan_directory(name, kind, display, around.in_thread)
        if found.image == image:
            return _judged(name, image, len(found.warnings), display)
        others.append(f"other    {found.image.hex()} {kind.value}")
    for line in others:
        write_line(around.stdout, line)
    return _judged(name, image, 1, display)


def _judged(name: str, image: ImageId, number: int, display: Display) -> int:
    """Tells the user the result, and gives the exit code. Entries that no image can have count among the ``number`` differences."""
    if not number:
        display.say(f"{name} is the image {image.hex()}")
        return 0
    display.say(f"{name} is not the image {image.hex()}: {count(number, 'difference')}")
    return EXIT_LOCAL
