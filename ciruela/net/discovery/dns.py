"""``dns:NAME``: every address of a name is a node, as with a headless service of Kubernetes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from ciruela.net.resolve import Resolve
from ciruela.seams import Address


def dns(name: str, resolve: Resolve, default_port: int) -> Callable[[], Deferred[Sequence[str]]]:
    """What to ask: each address counts as a node of its own. ``name`` may have a port."""

    def ask() -> Deferred[Sequence[str]]:
        return resolve(name, default_port).addCallback(_texts)

    return ask


def _texts(addresses: list[Address]) -> list[str]:
    return [str(address) for address in addresses]
