"""How the C library keeps the memory of large messages and blocks: for the next ones, instead of giving it back each time."""

from __future__ import annotations

import ctypes

KEPT_BYTES = 32 * 1024 * 1024
"""So much that is free at the end of the heap is not given back: more than is on its way at one time."""

LARGE_BYTES = 8 * 1024 * 1024
"""What is at least so large has memory of its own, which is given back at once: an index of an image with very many files."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""


def keep() -> bool:
    """Ask for it, once for the process; False where the C library is another one than glibc, which nothing depends on.

    By default glibc takes new pages for each message of a megabyte, and the kernel has to empty them: a quarter of a client's work.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES)) and bool(mallopt(_MMAP_THRESHOLD, LARGE_BYTES))
