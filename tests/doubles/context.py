"""The world of a node, for tests of one service."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.task import Clock

from ciruela.interfaces import NodeContext
from ciruela.model.ids import MachineId
from ciruela.runtime import in_place


def node_context(**given: Any) -> NodeContext:
    """A context with what a test gives. Ports that are not given are None, so that a service which uses them fails."""
    fields: dict[str, Any] = {
        "me": MachineId(b"m" * 16),
        "hostname": "me",
        "epoch": 1,
        "configs": {},
        "disk": None,
        "wire": None,
        "datagrams": None,
        "authority": None,
        "clock": Clock(),
        "rng": random.Random(1),
        "now_ms": lambda: 0,
        "in_thread": in_place,
    }
    return NodeContext(**fields | given)
