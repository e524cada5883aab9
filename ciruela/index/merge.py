"""Comparison of two indexes: which files they share (protocol section 5.8)."""

from __future__ import annotations

from ciruela.index.tree import File, Index

Content = tuple[bool, int, bytes]
"""Identity of a file's content, whatever its path: executable bit, size, hashes."""


def same_files(wanted: Index, theirs: Index) -> list[File | None]:
    """For each of ``wanted.files`` a file of ``theirs`` with the same mode and content, or None.

    A file at the same path is preferred, else it is the first in order: moved and renamed files are found, and one file of ``theirs`` may
    serve several. Empty files are left out. Between indexes of different hash kinds files of the same path and size are paired: whoever
    uses one has to hash it anyway. (No pairs: a hundred thousand new objects would have the garbage collector look through all others.)
    """
    alike = wanted.kind is theirs.kind
    here = {file.path: file for file in theirs.files}
    found: list[File | None] = []
    elsewhere: dict[Content, File | None] = {}
    for file in wanted.files:
        other = here.get(file.path)
        if not file.size or (other is not None and not _same(file, other, alike)):
            other = None
        if other is None and file.size and alike:
            elsewhere[file.executable, file.size, file.hashes] = None
        found.append(other)
    if elsewhere:
        for other in theirs.files:
            content = other.executable, other.size, other.hashes
            # ``other`` as the default: only content that is looked for and has no file yet gives None.
            if elsewhere.get(content, other) is None:
                elsewhere[content] = other
        for number, file in enumerate(wanted.files):
            if found[number] is None:
                found[number] = elsewhere.get((file.executable, file.size, file.hashes))
    return found


def _same(file: File, other: File, alike: bool) -> bool:
    return file.size == other.size and file.executable is other.executable and (not alike or file.hashes == other.hashes)
