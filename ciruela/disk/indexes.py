"""Stored indexes: hashed at each load, written durably (protocol sections 5.1 and 5.7, threats 6.1)."""

from __future__ import annotations

from ciruela.disk.layout import Records, index_name
from ciruela.disk.states import NOT_A_FILE, quarantine, write_file
from ciruela.index.order import MAX_INDEX_BYTES
from ciruela.index.parse import image_id_of, parse
from ciruela.index.tree import Index
from ciruela.model.errors import BadIndex, DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.order import Abort


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
        except BadIndex as error:
            quarantine(directory, name, error)
            return None
        if found != image:
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
    if len(data) > most_bytes and image_id_of(data) == image:
        raise DownloadFailed(Abort.IMAGE_TOO_LARGE, f"the index has {len(data)} bytes, at most {most_bytes} are taken here")
    index = parse(data, image)
    with records.indexes(image, create=True) as directory:
        write_file(directory, index_name(image), data)
    return index
