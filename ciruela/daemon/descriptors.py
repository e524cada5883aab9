"""How many files and sockets this process may have open (threats A41)."""

from __future__ import annotations

import resource

from ciruela.disk import handles

WANTED = 65_536
"""As many as the limit is raised to, where that is allowed without asking anybody."""


def most_descriptors() -> int:
    """The limit, after it was raised as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return WANTED if soft == resource.RLIM_INFINITY else soft


def share_out(limit: int) -> int:
    """Let the disk keep open what is its due of ``limit`` descriptors. Returns how many images may be put together at a time."""
    handles.KEPT.resize(handles.kept_of(limit))
    return handles.trees_of(limit)
