"""``srv:NAME``: SRV records say names and ports (RFC 2782). Priorities and weights do not matter here: all nodes are equal.

``dns:NAME``: every address of a name is a node, as with a headless service of Kubernetes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionLost, DNSLookupError
from twisted.names import client, dns
from twisted.names.error import DNSNameError, DNSQueryTimeoutError, DomainError, ResolverError
from twisted.python.failure import Failure

from ciruela.interfaces import Address
from ciruela.model.errors import FormatError, LinkLost
from ciruela.net.discovery.fetch import MOST_NAMES
from ciruela.net.resolve import Resolve, join_name, split_name


def host_addresses(name: str, resolve: Resolve, default_port: int) -> Callable[[], Deferred[Sequence[str]]]:
    """Makes the question for the addresses of ``name``; each counts as a node of its own. ``name`` may have a port."""

    def ask() -> Deferred[Sequence[str]]:
        return resolve(name, default_port).addCallback(_texts)

    return ask


def _texts(addresses: list[Address]) -> list[str]:
    return [str(address) for address in addresses]


TIMEOUTS_S = (1, 3, 5)
"""Time-outs of the attempts to ask the name server, in seconds."""

Lookup = Callable[[str], Deferred[list[tuple[str, int]]]]
"""The targets and ports of an SRV name."""


def srv(name: str, lookup: Lookup) -> Callable[[], Deferred[Sequence[str]]]:
    """Makes the question for the SRV records of ``name``, each ``TARGET:PORT``; a target of ``.`` says that the service is not there."""

    def ask() -> Deferred[Sequence[str]]:
        return lookup(name).addCallbacks(_named, _unknown, errbackArgs=(name,))

    return ask


def _named(found: list[tuple[str, int]]) -> list[str]:
    if len(found) > MOST_NAMES:
        raise FormatError(f"there are {len(found)} records, {MOST_NAMES} are the most")
    return [join_name(split_name(target, 0)[0], port) for target, port in found if target not in ("", ".") and port]


def _unknown(failure: Failure, name: str) -> list[str]:
    failure.trap(DomainError, ResolverError, DNSQueryTimeoutError, DNSLookupError, DeferredTimeout, ConnectionLost, OSError)
    if failure.check(DNSNameError):
        reason = "there is no such name"
    elif failure.check(DNSQueryTimeoutError, DeferredTimeout):
        reason = "no name server answers"
    else:
        reason = type(failure.value).__name__
    raise LinkLost(f"the SRV records of {name} cannot be had: {reason}")


def srv_lookup(reactor: Any, servers: Sequence[tuple[str, int]] | None = None) -> Lookup:
    """Look SRV records up at the name servers of ``/etc/resolv.conf``, or at ``servers``. The resolver is made when it is first needed."""
    made: list[client.Resolver] = []

    def lookup(name: str) -> Deferred[list[tuple[str, int]]]:
        if not made:
            made.append(client.Resolver(resolv=None if servers else "/etc/resolv.conf", servers=servers, reactor=reactor))
        found: Deferred[list[tuple[str, int]]] = made[0].lookupService(name, TIMEOUTS_S).addCallback(_targets)
        return found

    return lookup


def _targets(answer: tuple[list[Any], list[Any], list[Any]]) -> list[tuple[str, int]]:
    return [
        (record.payload.target.name.decode("ascii", "replace"), int(record.payload.port)) for record in answer[0] if record.type == dns.SRV
    ]
