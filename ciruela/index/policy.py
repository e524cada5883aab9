"""Whether a directory of this node may take an image: size, number of files, symbolic links (threats A3, A5, A8 and 6.12). Pure."""

from __future__ import annotations

from ciruela.index.tree import Index, Symlink
from ciruela.model.dirconfig import DirConfig, Symlinks
from ciruela.model.errors import DownloadFailed
from ciruela.model.order import Abort


def check(index: Index, config: DirConfig) -> None:
    """Raise DownloadFailed, with the numbers or the link, unless ``config`` allows the image. Equal blocks count each time."""
    most_bytes, most_files = config.max_image_bytes, config.max_image_files
    if most_bytes is not None and index.total_bytes > most_bytes:
        raise DownloadFailed(Abort.IMAGE_TOO_LARGE, f"it has {index.total_bytes} bytes, max-image-bytes is {most_bytes} here")
    count = len(index.files) + len(index.symlinks) + len(index.directories) - 1
    if most_files is not None and count > most_files:
        raise DownloadFailed(Abort.IMAGE_TOO_LARGE, f"it has {count} files, links and directories, max-image-files is {most_files} here")
    if config.symlinks is Symlinks.NONE and index.symlinks:
        raise _refused(index.symlinks[0], "symlinks is none here")
    if config.symlinks is Symlinks.INSIDE:
        directories = {directory.path for directory in index.directories}
        for link in index.symlinks:
            if not stays_inside(link, directories):
                raise _refused(link, "it may lead out of the image, symlinks is inside here")


def _refused(link: Symlink, why: str) -> DownloadFailed:
    return DownloadFailed(Abort.BAD_SYMLINK, f"{link.path[:200]!r} -> {link.target[:200]!r}: {why}")


def stays_inside(link: Symlink, directories: set[str]) -> bool:
    """Whether following ``link``, and whatever links of the same kind it meets, ends inside the image.

    ``..`` leads up from a directory of the image only: behind a name that may be a link nobody knows where "up" is.
    """
    if link.target.startswith("/"):
        return False
    here = link.path.rpartition("/")[0]
    for part in link.target.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            here = f"{here}/{part}"
        elif here == "" or here not in directories:
            return False
        else:
            here = here.rpartition("/")[0]
    return True
