"""Ciruela puts a whole directory on every server of a cluster: signed, verified, and visible in one atomic step.

The folders are floors of a house; imports only go down (``docs/explanation/architecture.rst`` draws the picture):

- ``daemon`` and ``client``: the doors, where everything is wired together;
- ``gossip``, ``uploads``, ``download``, ``reconcile``, ``scrub``, ``cleanup`` and ``hooks``: the work, without files or sockets;
- ``disk``, ``net`` and ``web``: the world, without decisions;
- ``tracking``, ``runtime`` and ``interfaces``: what a node remembers, its periodic duties, and what work asks of the world;
- ``index``, ``keys`` and ``proto``: formats, as pure functions;
- ``model``: the words all of them share.
"""

from ciruela._version import __version__

__all__ = ["__version__"]
