"""A network of one test: a new network namespace with nothing but loopback, and a firewall in it. Needs the right to make one, and nft.

The thread of the test moves into the namespace: whatever it starts, or connects to, is in there. The namespace ends with the last process
in it; the network of this host is never touched.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from functools import cache

from twisted.trial.unittest import SynchronousTestCase

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_libc = ctypes.CDLL(None, use_errno=True)


@cache
def forbidden() -> str:
    """Why no firewall of a test's own can be made here, or nothing; for ``mounts.needs``."""
    for name in ("nft", "ip"):
        if shutil.which(name, path=PATH) is None:
            return f"there is no {name}"
    before = os.open(OWN, os.O_RDONLY)
    try:
        if _libc.unshare(CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            if error not in (errno.EPERM, errno.EACCES):
                raise OSError(error, os.strerror(error))
            return f"no network namespace may be made ({os.strerror(error)})"
        try:
            made = subprocess.run(["nft", "add", "table", "inet", "try"], capture_output=True, check=False, env=os.environ | {"PATH": PATH})
        finally:
            _return_to(before)
    finally:
        os.close(before)
    return "" if made.returncode == 0 else "this kernel has no nftables"


def _return_to(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Network:
    """The namespace of one test. Make it before the daemons in it, so that these end first."""

    def __init__(self, case: SynchronousTestCase) -> None:
        before = os.open(OWN, os.O_RDONLY)
        case.addCleanup(os.close, before)
        if _libc.unshare(CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        case.addCleanup(_return_to, before)
        self._run("ip", "link", "set", "lo", "up")

    def drop(self, *rules: str) -> None:
        """Drop what one of ``rules`` matches, as nft writes them, and nothing else."""
        lines = "".join(f"    {rule} drop\n" for rule in rules)
        table = f"table inet test {{\n  chain input {{\n    type filter hook input priority 0;\n{lines}  }}\n}}\n"
        self._run("nft", "-f", "-", text=f"table inet test\ndelete table inet test\n{table}")

    @staticmethod
    def _run(*command: str, text: str = "") -> None:
        done = subprocess.run(
            command, input=text, capture_output=True, encoding="utf-8", check=False, env=os.environ | {"PATH": PATH}, timeout=30
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
