"""Ciruela puts a whole directory on every server of a cluster: signed, verified, and visible in one atomic step.

The packages are layers; imports only go down (``docs/explanation/architecture.rst`` draws the picture):

- ``daemon`` and ``client``: the applications, which build everything and connect it;
- ``membership``, ``uploads``, ``download``, ``reconcile``, ``scrub``, ``cleanup`` and ``hooks``: the services, which decide; no files, no
  sockets;
- ``disk``, ``net`` and ``web``: the adapters, which act; no decisions;
- ``tracking``, ``runtime`` and ``interfaces``: what a node remembers, its periodic tasks, and the ports between services and adapters;
- ``index``, ``keys`` and ``proto``: formats, as pure functions;
- ``model``: the values that all of them share.
"""

from ciruela._version import __version__

__all__ = ["__version__"]
