"""One file put into an index: what ``ciruela edit`` and ``ciruela put-file`` do to an image. Pure.

Everything else of the image stays as it is: other files, links, and directories, empty ones too.
"""

from __future__ import annotations

from ciruela.index.names import components
from ciruela.index.tree import Directory, File, Index, Symlink


class NoPlace(ValueError):
    """A file cannot be at that path; says what is there instead."""


def find(index: Index, path: str) -> File | None:
    """The file at ``path``, None when nothing is there.

    Raises NoPlace where a file cannot be: something else stands there, or something that is no directory on the way to it.
    """
    parts = components(path)
    if not parts:
        raise NoPlace("/ is a directory; name a file")
    entries = {entry.path: entry for entry in index.entries()}
    above = ""
    for part in parts[:-1]:
        above = f"{above}/{part}"
        match entries.get(above):
            case File():
                raise NoPlace(f"{above} is a file, so nothing can be below it")
            case Symlink(target=target):
                raise NoPlace(f"{above} is a symbolic link to {target}; name the file by its real path")
    match entries.get(path):
        case File() as file:
            return file
        case Symlink(target=target):
            raise NoPlace(f"{path} is a symbolic link to {target}; name the file itself")
    if any(directory.path == path for directory in index.directories):
        raise NoPlace(f"{path} is a directory; name a file")
    return None


def put(index: Index, file: File) -> tuple[Directory, ...]:
    """The directories of ``index`` with ``file`` in place of what is at its path, or as a new file, in directories that are made for it.

    They come in the order of an index. Raises NoPlace as :func:`find`.
    """
    find(index, file.path)
    entries: dict[str, tuple[File | Symlink, ...]] = {directory.path: directory.entries for directory in index.directories}
    above = "/"
    for part in components(file.path)[:-1]:
        above = f"{above.rstrip('/')}/{part}"
        entries.setdefault(above, ())
    beside = [entry for entry in entries[above] if entry.path != file.path]
    entries[above] = tuple(sorted([*beside, file], key=lambda entry: entry.path))
    return tuple(Directory(path, entries[path]) for path in sorted(entries, key=components))
