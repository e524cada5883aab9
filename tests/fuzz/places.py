"""What has to hold for lists of peers that others give, and for the one that is kept."""

from __future__ import annotations

import json

from ciruela.disk import peercache
from ciruela.model.errors import FormatError
from ciruela.net.discovery.fetch import MOST_NAMES, consul_nodes, read_list
from ciruela.net.resolve import split_name
from tests.fuzz.wire import refusal
from tests.net.discovery.test_lists import instance

TOKENS = (b"[", b"]", b'"', b"{", b"}", b":", b",", b"\n", b"#", b"null", b"true", b"-1", b"1e999", b"Address", b"Port", b"\xff", b"[::1]:")


def _names(names: list[str]) -> bool:
    """Each can be looked up, and stays what it is when it is read again."""
    assert len(names) <= MOST_NAMES
    for name in names:
        split_name(name, 1)
    assert read_list(json.dumps(names).encode()) == names, names
    return True


def check_list(data: bytes) -> bool:
    """A page that lists nodes."""
    try:
        return _names(read_list(data))
    except FormatError as fault:
        return refusal(fault)


def check_consul(data: bytes) -> bool:
    """An answer of Consul: every node has a port."""
    try:
        found = consul_nodes(data, 24783)
    except FormatError as fault:
        return refusal(fault)
    assert all(split_name(name, 0)[1] for name in found), found
    return _names(found)


def check_cache(data: bytes) -> bool:
    """The file of the last run."""
    try:
        found = peercache.decode(data)
    except ValueError:
        return False
    assert peercache.decode(json.dumps(found).encode()) == found
    assert peercache.decode(peercache.encode(found)) == found
    return True


def list_samples() -> tuple[bytes, ...]:
    """Pages as people and programs write them."""
    return (b"# us\nn1\n10.0.0.1:5\n[2001:db8::1]\n", b'["n1", "10.0.0.1:5"]', b"", b"<html></html>", b"[1]")


def consul_samples() -> tuple[bytes, ...]:
    """Answers with and without addresses of services."""
    return tuple(json.dumps(value).encode() for value in ([instance()], [instance("10.0.0.2", 5), instance("::1", 7)], [], [{}], {}))


def cache_samples() -> tuple[bytes, ...]:
    """The file as it is written."""
    return (
        b'{"sources":{"dns:x":["n1","10.0.0.1:5"]},"addresses":{"n1":["10.0.0.1:24783"]}}',
        b'{"sources":{},"addresses":{}}',
        peercache.encode({"sources": {}, "addresses": {}, "known": {"n1": ["x"]}}),
        b"[]",
    )
