"""From what the operator wrote to the places that are asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IReactorTime

from ciruela.net.discovery.files import PeersFile
from ciruela.net.discovery.source import ANSWER_S, Repeated, Source
from ciruela.net.discovery.spec import Asked, Kind, Spec
from ciruela.net.discovery.srv import host_addresses
from ciruela.net.resolve import Resolve
from ciruela.seams import InThread


@dataclass(frozen=True, slots=True)
class Means:
    """What sources need from outside. ``reactor`` is for connections and name servers; everything else has a seam of its own."""

    reactor: Any
    clock: IReactorTime
    rng: random.Random
    in_thread: InThread
    resolve: Resolve
    default_port: int


def sources(asked: Asked, peers_file: str, means: Means) -> list[Source]:
    """``peers_file``, and all that ``asked`` names. The libraries for HTTP and SRV are loaded only where they are needed."""
    without = "only the places under peers: in ciruela.yaml are asked" if asked.specs else "this node stands alone"
    found: list[Source] = [PeersFile(peers_file, means.clock, means.rng, means.in_thread, without)]
    makers: dict[Kind, Callable[[Spec, Asked, Means], Source]] = {
        Kind.FILE: lambda spec, _, means: PeersFile(spec.where, means.clock, means.rng, means.in_thread, "no nodes are known from there"),
        Kind.DNS: lambda spec, asked, means: _repeated(spec, asked, means, host_addresses(spec.where, means.resolve, means.default_port)),
        Kind.SRV: _srv,
        Kind.HTTP: _http,
        Kind.CONSUL: _consul,
    }
    return found + [makers[spec.kind](spec, asked, means) for spec in asked.specs]


def _repeated(spec: Spec, asked: Asked, means: Means, ask: Any) -> Source:
    return Repeated(spec.text, (spec, asked.interval_s), ask, asked.interval_s, means.clock, means.rng, ANSWER_S)


def _srv(spec: Spec, asked: Asked, means: Means) -> Source:
    from ciruela.net.discovery.srv import srv, srv_lookup

    return _repeated(spec, asked, means, srv(spec.where, srv_lookup(means.reactor)))


def _http(spec: Spec, asked: Asked, means: Means) -> Source:
    from ciruela.net.discovery.fetch import agent, fetcher, http

    return _repeated(spec, asked, means, http(spec.where, fetcher(agent(means.reactor))))


def _consul(spec: Spec, asked: Asked, means: Means) -> Source:
    from ciruela.net.discovery import consul
    from ciruela.net.discovery.fetch import agent, fetcher

    told = consul.Consul(
        asked.consul, spec.where, means.default_port, fetcher(agent(means.reactor)), means.in_thread, asked.consul_token_file
    )
    identity = (spec, asked.consul, asked.consul_token_file)
    return Repeated(spec.text, identity, told.ask, consul.PAUSE_S, means.clock, means.rng, consul.ANSWER_S)
