"""Ciruela puts a whole directory on every server of a cluster: signed, verified, and visible in one atomic step.

The packages are layers; imports only go down (``docs/explanation/architecture.rst`` draws the picture):

- ``daemon`` and ``client``: the applications, which build everything and connect it;
- ``membership``, ``uploads``, ``download``, ``reconcile``, ``scrub``, ``cleanup`` and ``hooks``: the services, which decide; no files, no
  sockets;
- ``disk``, ``net`` and ``web``: the adapters, which act; no decisions;
- ``tracking``, ``swarm``, ``runtime`` and ``interfaces``: what a node remembers, who gives which piece to whom, periodic tasks, and the
  ports between services and adapters;
- ``index``, ``keys`` and ``proto``: formats, as pure functions;
- ``model``: the values that all of them share.

Public is :class:`ClusterClient` (``docs/reference/library.rst``). It is loaded when it is first asked for: commands, and daemons, have no
use for all of it.
"""

from ciruela._version import __version__

TYPE_CHECKING = False
"""True for type checkers, which know the name; ``typing`` itself is not loaded for it."""

if TYPE_CHECKING:
    from ciruela.client.cluster import ClusterClient

__all__ = ["ClusterClient", "__version__"]


def __getattr__(name: str) -> object:
    """Loads a public name when it is first asked for."""
    if name == "ClusterClient":
        from ciruela.client.cluster import ClusterClient

        return ClusterClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
