"""Index collection: deleting the stored indexes that no image needs any more (protocol section 5.14).

Stored indexes: hashed at each load, written durably (protocol sections 5.1 and 5.7, threats 6.1).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection
from threading import Lock

from ciruela.disk import retained, states
from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.layout import INDEX, INDEXES, NEW_STATE, SIGNATURES, STATE, Records, index_name
from ciruela.disk.removal import MAX_DEPTH
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import NOT_A_FILE, TEMPORARY, quarantine, write_file
from ciruela.index.names import MAX_INDEX_BYTES
from ciruela.index.parse import image_id_of, parse
from ciruela.index.tree import Index
from ciruela.model.errors import BadIndex, DiskError, DownloadFailed, FormatError
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.upload import AbortReason


def load_bytes(records: Records, image: ImageId) -> bytes | None:
    """The index of ``image``, whose hash was checked; None when it is absent or bad. A bad one is set aside. Raises OSError."""
    try:
        directory = records.indexes(image)
    except FileNotFoundError:
        return None
    with directory:
        name = index_name(image)
        if directory.stat(name) is None:
            return None
        try:
            with directory.open_read(name) as file:
                data = file.read_at(min(file.stat().st_size, MAX_INDEX_BYTES + 1), 0)
        except OSError as error:
            if error.errno not in NOT_A_FILE:
                raise
            quarantine(directory, name, "not a regular file")
            return None
        try:
            found = image_id_of(data)
        except BadIndex as error:  # guard: A45 F39
            quarantine(directory, name, error)
            return None
        if found != image:  # guard: A4 I1
            quarantine(directory, name, f"it is the index {found.hex()}")
            return None
    return data


def load(records: Records, image: ImageId) -> Index | None:
    """As :func:`load_bytes`, parsed. One that is not canonical is as bad as one with a wrong hash."""
    data = load_bytes(records, image)
    if data is None:
        return None
    try:
        return parse(data, image)
    except BadIndex as error:
        with records.indexes(image) as directory:
            quarantine(directory, index_name(image), error)
    return None


def store(records: Records, image: ImageId, data: bytes, most_bytes: int = MAX_INDEX_BYTES) -> Index:
    """Verify, parse and store an index. Raises BadIndex or DownloadFailed(IMAGE_TOO_LARGE) before anything is written, OSError."""
    if len(data) > most_bytes and image_id_of(data) == image:  # guard: A6 F6
        raise DownloadFailed(AbortReason.IMAGE_TOO_LARGE, f"the index has {len(data)} bytes, at most {most_bytes} are taken here")
    index = parse(data, image)
    with records.indexes(image, create=True) as directory:
        write_file(directory, index_name(image), data)
    return index


class Marks:
    """Images that were wanted since a collection began: what is accepted while it runs must not lose its index."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._wanted: set[ImageId] | None = None

    def begin(self) -> None:
        """A collection begins."""
        with self._lock:
            self._wanted = set()

    def end(self) -> None:
        """It has ended."""
        with self._lock:
            self._wanted = None

    def want(self, image: ImageId) -> None:
        """``image`` was accepted: from now on its index stays."""
        with self._lock:
            if self._wanted is not None:
                self._wanted.add(image)

    def delete(self, directory: SafeDir, image: ImageId) -> bool:
        """Delete an index unless it was wanted meanwhile. Whether it is gone by this. Raises OSError."""
        with self._lock:
            if self._wanted is None or image in self._wanted:  # guard: I9, without 2
                return False
            try:
                directory.unlink(index_name(image))
            except FileNotFoundError:
                return False
            return True


def collect(records: Records, keep: Collection[ImageId], marks: Marks) -> Steps[int]:
    """Delete all indexes of images that are neither in ``keep`` nor named by a state. Raises DiskError, OSError before any is deleted."""
    stored = yield from _stored(records)
    named = set(keep)  # guard: I9, named = set(keep -> named: set[ImageId] = set(
    try:
        with records.root() as root:
            top = root.descend((SIGNATURES,))
    except FileNotFoundError:
        if stored:  # guard: I9
            raise DiskError("there are indexes but no states at all, nothing is deleted (is the db directory the right one?)") from None
        return 0
    with top:
        yield from _named(top, named, 0)  # guard: I9, -> (yield ENTRY_COST)
    deleted = 0
    for shard, images in stored.items():
        unnamed = [image for image in images if image not in named]
        if not unnamed:
            continue
        with records.root() as root, root.descend((INDEXES, shard)) as directory:
            for image in unnamed:
                yield ENTRY_COST
                deleted += marks.delete(directory, image)
    return deleted


def _stored(records: Records) -> Steps[dict[str, list[ImageId]]]:
    """The images whose indexes are stored, by directory. Taken first: what is stored later is not looked at."""
    found: dict[str, list[ImageId]] = {}
    try:
        with records.root() as root:
            top = root.descend((INDEXES,))
    except FileNotFoundError:
        return found
    with top:
        for shard in sorted(top.names()):
            yield ENTRY_COST
            try:
                directory = top.open_dir(shard)
            except NotADirectoryError:
                continue
            with directory:
                for name in directory.names():
                    image = _image_of(name)
                    if image is not None and image.hex()[:2] == shard:
                        found.setdefault(shard, []).append(image)
    return found


def _image_of(name: str) -> ImageId | None:
    if not name.endswith(INDEX):
        return None
    try:
        return parse_image_id(name.removesuffix(INDEX))
    except ValueError:
        return None


def _named(directory: SafeDir, named: set[ImageId], depth: int) -> Steps[None]:
    """Add the images of all state files below ``directory``, of keys that are not configured now as well."""
    if depth > MAX_DEPTH:
        raise OSError(errno.ELOOP, "the db directory is nested too deep", directory.where)
    for name in sorted(directory.names()):
        yield ENTRY_COST
        found = directory.stat(name)
        if found is None:
            continue
        if stat.S_ISDIR(found.st_mode):
            with directory.open_dir(name) as below:
                yield from _named(below, named, depth + 1)
        elif name.endswith(STATE) and not name.startswith(TEMPORARY):
            named.add(_image_in(directory, name))
        elif retained.is_record(name):
            named.update(_kept_in(directory, name))


def _kept_in(directory: SafeDir, name: str) -> set[ImageId]:
    with directory.open_read(name) as file:
        data = file.read_at(retained.MAX_BYTES + 1, 0)
    try:
        return {row.version.image for row in retained.decode(data)}
    except FormatError as error:
        raise DiskError(f"{directory.within(name)} cannot be understood ({error}), no index is deleted") from None


def _image_in(directory: SafeDir, name: str) -> ImageId:
    with directory.open_read(name) as file:
        data = file.read_at(states.MAX_STATE_BYTES + 1, 0)
    try:
        return states.decode_journal(data).state.image if name.endswith(NEW_STATE) else states.decode_state(data).image
    except FormatError as error:
        raise DiskError(f"{directory.within(name)} cannot be understood ({error}), no index is deleted") from None  # guard: I9 A45
