"""Lists of nodes as others give them: JSON, or one per line. Read whole or not at all: half a list would hide half of the cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ciruela.model.errors import FormatError
from ciruela.net.resolve import join_name, split_name

MAX_LIST_BYTES = 1024 * 1024
MOST_NAMES = 10_000
"""Nodes that one place may name. Our own limit; a cluster of this program is smaller."""


def json_value(data: bytes) -> object:
    """What the JSON text ``data`` says. Raises FormatError."""
    try:
        found: object = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the answer is not JSON: {str(error)[:80]}") from None
    return found


def read_list(data: bytes) -> list[str]:
    """The names in a page: a JSON list of texts, or one name per line with ``#`` before comments. Raises FormatError."""
    if data.lstrip()[:1] in (b"[", b"{"):
        found = json_value(data)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise FormatError('the answer is not a list of names (it should be like ["app1.example.org", "10.0.0.3:24783"])')
        return checked(found)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError("there are bytes in the answer that are not UTF-8") from None
    lines = (line.strip() for line in text.splitlines())
    return checked([line for line in lines if line and not line.startswith("#")])


def checked(names: Sequence[str]) -> list[str]:
    """``names`` if each can be the name of a node, in lower case. Raises FormatError with the first that cannot."""
    if len(names) > MOST_NAMES:
        raise FormatError(f"there are {len(names)} names in the answer, {MOST_NAMES} are the most")
    return [join_name(*split_name(name, 0)) for name in names]


def consul_nodes(data: bytes, default_port: int) -> list[str]:
    """The instances in an answer of ``/v1/health/service/NAME``, ``ADDRESS:PORT`` each. Raises FormatError.

    The address of the service counts, that of its node where there is none; a service without a port is at ``default_port``.
    """
    found = json_value(data)
    if not isinstance(found, list):
        raise FormatError("the answer is not a list of instances")
    if len(found) > MOST_NAMES:
        raise FormatError(f"there are {len(found)} instances, {MOST_NAMES} are the most")
    names = []
    for entry in found:
        match entry:
            case {"Service": {"Address": str(address), "Port": int(port)}} if address and not isinstance(port, bool):
                names.append(_at(address, port or default_port))
            case {"Node": {"Address": str(address)}, "Service": {"Port": int(port)}} if not isinstance(port, bool):
                names.append(_at(address, port or default_port))
            case _:
                raise FormatError("an instance has no Node.Address, or no Service.Port")
    return names


def _at(host: str, port: int) -> str:
    if not 0 < port < 65536:
        raise FormatError(f"{port} is not a port")
    return join_name(split_name(host, 0)[0], port)
