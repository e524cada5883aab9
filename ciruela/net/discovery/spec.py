"""How a place that knows the peers is written: ``dns:NAME``, ``srv:NAME``, ``file:PATH``, ``http://...``, ``consul:SERVICE``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from ciruela.model.errors import FormatError
from ciruela.net.resolve import split_name

CONSUL = "http://127.0.0.1:8500"
"""Where a Consul agent listens by default (its documentation, "Required Ports")."""

INTERVAL_S = 60.0
"""How often a place is asked again when nothing else is configured; names of ``peers.txt`` are looked up as often."""

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_SRV_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
_EXAMPLE = "dns:NAME, srv:NAME, file:PATH, http://HOST/PATH, https://HOST/PATH or consul:SERVICE"


class Kind(Enum):
    """The kinds of places, by the word before the colon."""

    FILE = "file"
    DNS = "dns"
    SRV = "srv"
    HTTP = "http"
    CONSUL = "consul"


@dataclass(frozen=True, slots=True)
class Spec:
    """One place: ``text`` as it was written, ``where`` what follows the kind (a path, a name, a whole URL, a service)."""

    kind: Kind
    text: str
    where: str


@dataclass(frozen=True, slots=True)
class Asked:
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
        return Spec(Kind.HTTP, text, check_url(text))
    kind = Kind(word)
    if not rest:
        raise FormatError(f'"{text}": nothing stands after the colon (write {_EXAMPLE})')
    match kind:
        case Kind.DNS:
            split_name(rest, 1)
        case Kind.SRV:
            labels = rest.removesuffix(".").split(".")
            if len(rest) > 253 or len(labels) < 2 or not all(_SRV_LABEL.match(label) for label in labels):
                raise FormatError(f'"{rest[:80]}" is not the name of an SRV record (write srv:_ciruela._udp.example.org)')
        case Kind.CONSUL:
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
    return text
