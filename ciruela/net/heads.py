"""The head of an HTTP/1 request, read strictly (RFC 9112): what two readers could take for two different things is refused."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) (HTTP/1\.[0-9])")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([/?].*)?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[!$&'()*+,;=._~0-9A-Za-z%-]*)(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status and a sentence for people."""

    code: int
    why: str


@dataclass(frozen=True, slots=True)
class Head:
    """A request. ``target`` begins with a slash, ``host`` is who was asked (None in HTTP/1.0 only), ``fields`` are by lower-case name.

    ``rewritten``: the head for who takes over, where the target was absolute; empty where it may be passed on as it came.
    """

    method: str
    target: str
    version: str
    host: str | None
    fields: dict[str, list[str]]
    rewritten: bytes = b""

    @property
    def upgrade(self) -> bool:
        """Whether it asks for something else than HTTP."""
        return "upgrade" in self.fields

    @property
    def body(self) -> bool:
        """Whether a body may follow, in whatever way its length is told."""
        return "transfer-encoding" in self.fields or self.fields.get("content-length", ["0"]) != ["0"]


def parse(data: bytes) -> Head | Refusal:
    """The request whose head is ``data``, without the empty line at its end."""
    first, *lines = data.decode("latin-1").split("\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        return Refusal(400, "bad request line")
    method, target, version = line.groups()
    fields: dict[str, list[str]] = {}
    for text in lines:
        name, colon, value = text.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            return Refusal(400, "bad header")
        fields.setdefault(name.lower(), []).append(value.strip(" \t"))
    hosts = fields.get("host", [])
    if len(hosts) > 1 or (not hosts and version != "HTTP/1.0") or not all(_HOST.fullmatch(host) for host in hosts):
        return Refusal(400, "Host is missing, wrong or there twice")
    host = hosts[0] if hosts else None
    if target.startswith("/"):
        return Head(method, target, version, host, fields)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return Refusal(400 if method in ("GET", "HEAD") else 405, "only GET and HEAD of a path are answered")
    scheme, host, rest = absolute.groups()
    if scheme.lower() != "http" or not host or not _HOST.fullmatch(host):
        return Refusal(400, "bad request target")
    path = rest if rest and rest.startswith("/") else f"/{rest or ''}"
    others = [text for text in lines if text.partition(":")[0].lower() != "host"]
    rewritten = "\r\n".join((f"{method} {path} {version}", f"Host: {host}", *others)).encode("latin-1")
    return Head(method, path, version, host, fields | {"host": [host]}, rewritten)


def names_this_host(host: str | None, names: Collection[str]) -> bool:
    """Whether a page may be given to who asked ``host`` for it: a numeric address, localhost or one of ``names``.

    A web page of a stranger whose name was made to lead here (DNS rebinding) asks for another one. Without a name nobody was misled.
    """
    if not host:
        return True
    match = _HOST.fullmatch(host)
    name = "" if match is None else match[1].lower().removesuffix(".")
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost" or name in names
    return True


def handshake_fault(head: Head) -> Refusal | None:
    """None if ``head`` is the handshake of RFC 6455 4.2.1, without a body, from an origin that is allowed."""
    fields = head.fields
    listed = [word.strip().lower() for value in fields.get("connection", []) for word in value.split(",")]
    if head.method != "GET" or head.version != "HTTP/1.1" or "upgrade" not in listed:
        return Refusal(400, "not a websocket handshake")
    if "websocket" not in [word.strip().lower() for value in fields["upgrade"] for word in value.split(",")]:
        return Refusal(400, "only an upgrade to websocket is possible")
    if fields.get("sec-websocket-version") != ["13"]:
        return Refusal(400, "only version 13 of websocket is spoken")
    if head.body:
        return Refusal(400, "a handshake has no body")
    if not _is_key(fields.get("sec-websocket-key", [])):
        return Refusal(400, "Sec-WebSocket-Key is missing or wrong")
    origins = fields.get("origin", [])
    if len(origins) > 1 or not origin_allowed(origins[0] if origins else None, head.host or ""):
        return Refusal(403, "origin not allowed")
    return None


def origin_allowed(origin: str | None, host: str) -> bool:
    """Whether a handshake with these headers may come in.

    The reference sends ``http://HOST/`` (protocol section 2.1). No browser ends an Origin with a slash, so none passes, whichever page
    or name it came from.
    """
    return origin is None or origin in ("http://ciruela/", "http://ciruela_internal/") or (host != "" and origin == f"http://{host}/")


def _is_key(values: list[str]) -> bool:
    try:
        return len(values) == 1 and len(values[0]) == 24 and len(base64.b64decode(values[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
