"""Syntax of a place that knows the peers: ``dns:NAME``, ``srv:NAME``, ``file:PATH``, ``http://...``, ``consul:SERVICE``.

It turns the words of the operator into the sources that are asked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.interfaces import IReactorTime

from ciruela.interfaces import InThread
from ciruela.model.errors import FormatError
from ciruela.net.discovery.files import PeersFile
from ciruela.net.discovery.source import ANSWER_S, PeerSource, Repeated
from ciruela.net.discovery.srv import host_addresses
from ciruela.net.resolve import Resolve, split_name

CONSUL = "http://127.0.0.1:8500"
"""URL at which a Consul agent listens by default (its documentation, "Required Ports")."""

INTERVAL_S = 60.0
"""Interval at which a place is asked again when nothing else is configured; names of ``peers.txt`` are looked up as often."""

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_SRV_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
_EXAMPLE = "dns:NAME, srv:NAME, file:PATH, http://HOST/PATH, https://HOST/PATH or consul:SERVICE"


class SourceKind(Enum):
    """The kinds of places, by the word before the colon."""

    FILE = "file"
    DNS = "dns"
    SRV = "srv"
    HTTP = "http"
    CONSUL = "consul"


@dataclass(frozen=True, slots=True)
class Spec:
    """One place: ``text`` as it was written, ``where`` what follows the kind (a path, a name, a whole URL, a service)."""

    kind: SourceKind
    text: str
    where: str


@dataclass(frozen=True, slots=True)
class SourceSpecs:
    """All places, and how they are asked. ``consul`` is a URL, ``consul_token_file`` the path of a file or empty."""

    specs: tuple[Spec, ...] = ()
    interval_s: float = INTERVAL_S
    consul: str = CONSUL
    consul_token_file: str = ""


def parse_spec(text: str) -> Spec:
    """Read one item of ``peers:``. Raises FormatError with what to write instead."""
    word, colon, rest = text.partition(":")
    if not colon or word not in ("file", "dns", "srv", "http", "https", "consul"):
        raise FormatError(f'"{text[:80]}" is not a place that knows peers (write {_EXAMPLE}; single nodes stand in peers.txt)')
    if word in ("http", "https"):
        return Spec(SourceKind.HTTP, text, check_url(text))
    kind = SourceKind(word)
    if not rest:
        raise FormatError(f'"{text}": nothing stands after the colon (write {_EXAMPLE})')
    match kind:
        case SourceKind.DNS:
            split_name(rest, 1)
        case SourceKind.SRV:
            labels = rest.removesuffix(".").split(".")
            if len(rest) > 253 or len(labels) < 2 or not all(_SRV_LABEL.match(label) for label in labels):
                raise FormatError(f'"{rest[:80]}" is not the name of an SRV record (write srv:_ciruela._udp.example.org)')
        case SourceKind.CONSUL:
            if not _SERVICE.match(rest):
                raise FormatError(f'"{rest[:80]}" is not the name of a service (letters, digits, dots, hyphens; write consul:ciruela)')
        case _:
            if any(ord(char) < 32 or ord(char) == 127 for char in rest):
                raise FormatError(f'"{rest[:80]!r}" is not a path (there is a control character in it)')
    return Spec(kind, text, rest)


def check_url(text: str) -> str:
    """``text`` if it is an http or https URL without a password. Raises FormatError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = None, None
    good = parts is not None and parts.scheme in ("http", "https") and parts.hostname and port != 0
    if not good or any(ord(char) <= 32 or ord(char) > 126 for char in text):
        raise FormatError(f'"{text[:80]}" is not a URL (write https://HOST/PATH)')
    assert parts is not None
    if parts.username is not None or parts.password is not None:
        raise FormatError(f"the URL at {parts.hostname} has a name or a password in it, which would be shown in the log (leave it out)")
    if ":" in (parts.hostname or ""):  # the library that fetches it understands no such address
        raise FormatError(f"the URL has the IPv6 address {parts.hostname} in it, which is not supported (name the host)")
    return text


@dataclass(frozen=True, slots=True)
class Means:
    """Ports that sources need. ``reactor`` is for connections and name servers; everything else is a port of its own."""

    reactor: Any
    clock: IReactorTime
    rng: random.Random
    in_thread: InThread
    resolve: Resolve
    default_port: int


def sources(asked: SourceSpecs, peers_file: str, means: Means) -> list[PeerSource]:
    """``peers_file``, and all that ``asked`` names. The libraries for HTTP and SRV are loaded only where they are needed."""
    without = "only the places under peers: in ciruela.yaml are asked" if asked.specs else "this node stands alone"
    found: list[PeerSource] = [PeersFile(peers_file, means.clock, means.rng, means.in_thread, without)]
    makers: dict[SourceKind, Callable[[Spec, SourceSpecs, Means], PeerSource]] = {
        SourceKind.FILE: lambda spec, _, means: PeersFile(
            spec.where, means.clock, means.rng, means.in_thread, "no nodes are known from there"
        ),
        SourceKind.DNS: lambda spec, asked, means: _repeated(
            spec, asked, means, host_addresses(spec.where, means.resolve, means.default_port)
        ),
        SourceKind.SRV: _srv,
        SourceKind.HTTP: _http,
        SourceKind.CONSUL: _consul,
    }
    return found + [makers[spec.kind](spec, asked, means) for spec in asked.specs]


def _repeated(spec: Spec, asked: SourceSpecs, means: Means, ask: Any) -> PeerSource:
    return Repeated(spec.text, (spec, asked.interval_s), ask, asked.interval_s, means.clock, means.rng, ANSWER_S)


def _srv(spec: Spec, asked: SourceSpecs, means: Means) -> PeerSource:
    from ciruela.net.discovery.srv import srv, srv_lookup

    return _repeated(spec, asked, means, srv(spec.where, srv_lookup(means.reactor)))


def _http(spec: Spec, asked: SourceSpecs, means: Means) -> PeerSource:
    from ciruela.net.discovery.fetch import agent, fetcher, http

    return _repeated(spec, asked, means, http(spec.where, fetcher(agent(means.reactor))))


def _consul(spec: Spec, asked: SourceSpecs, means: Means) -> PeerSource:
    from ciruela.net.discovery import consul
    from ciruela.net.discovery.fetch import agent, fetcher

    told = consul.Consul(
        asked.consul, spec.where, means.default_port, fetcher(agent(means.reactor)), means.in_thread, asked.consul_token_file
    )
    identity = (spec, asked.consul, asked.consul_token_file)
    return Repeated(spec.text, identity, told.ask, consul.PAUSE_S, means.clock, means.rng, consul.ANSWER_S)
