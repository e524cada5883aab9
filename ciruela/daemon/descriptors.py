"""How many files and sockets this process may have open (threats A41)."""

from __future__ import annotations

import resource

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
