"""Pages of nodes, as values: whatever a page holds, it is values or FormatError."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import schema
from ciruela.client.schema import At, Dir, ImageVersion, Neighbour, NodeIdentity, RefusedImage
from ciruela.interfaces import Address
from ciruela.model.errors import FormatError
from tests.proof import shows

IMAGE = "ab" * 32
VERSION = {"path": "/a/v1", "image": IMAGE, "signed_ms": 5, "state": "committed", "signatures": [{"signed_ms": 5, "key": "SHA256:x"}]}
PENDING = {**VERSION, "state": "downloading", "phase": "blocks", "done": 0.5, "stalled": False, "age_s": 3.0}
OURS: list[tuple[Any, Any]] = [
    (
        schema.identity,
        {"machine_id": "11", "hostname": "n1", "version": "1", "now_ms": 7, "uptime_s": 2.5, "ready": True, "images": 3, "downloads": 0},
    ),
    (
        schema.neighbours,
        {
            "peers": [
                {"machine_id": "22", "hostname": "n2", "name": "x", "address": "[::1]:5", "heard_s": 0.5, "dirs": ["a"]},
                {"machine_id": None, "hostname": None, "name": "x", "address": "10.0.0.1:5", "heard_s": None, "dirs": []},
            ]
        },
    ),
    (
        schema.dirs,
        {
            "dirs": [
                {
                    "key": "a",
                    "append_only": True,
                    "num_levels": 1,
                    "config_hash": "00",
                    "images": 1,
                    "usable": True,
                    "free_bytes": 1,
                    "size_bytes": 2,
                    "reserve_bytes": None,
                }
            ]
        },
    ),
    (schema.keys, {"dirs": {"a": ["SHA256:x"]}}),
    (schema.versions, {"path": "/a", "base_dirs": [{"path": "/a/b", "images": 2}], "versions": [VERSION, PENDING]}),
    (
        schema.at,
        {
            "taken": True,
            "committed": VERSION,
            "pending": PENDING,
            "refused": {"image": IMAGE, "reason": "no_space", "rejected": False, "age_s": 1.5},
        },
    ),
]
REFERENCE: list[tuple[Any, Any]] = [
    (schema.old_identity, {"machine_id": "11", "hostname": "n1", "version": "0.6", "process": {"timestamp": 9}}),
    (schema.old_neighbours, {"11": {"id": "11", "addr": "10.0.0.1:5", "hostname": "n1", "name": "x"}}),
    (schema.old_dirs, {"a": {"append_only": False, "num_levels": 1, "auto_clean": True}}),
    (
        lambda page: schema.old_versions(page, "/a"),
        {"v1": {"image": IMAGE, "signatures": [{"timestamp": "2023-11-14T22:13:20.123000000Z", "signature": "ssh-ed25519 AA"}]}},
    ),
    (schema.old_downloads, {"/a/v1": {"image_id": IMAGE, "mask": 3, "stalled": True, "source": False}}),
]


class ShapesTests(SynchronousTestCase):
    """What a client shows is what a page says."""

    def test_ours(self) -> None:
        """A field would be lost, or stand for another."""
        found = [read(page) for read, page in OURS]
        self.assertEqual(found[0], NodeIdentity("11", "n1", "1", True, True, 7, 2.5, 3, 0))
        self.assertEqual(
            found[1],
            (
                Neighbour(Address("::1", 5), "22", "n2", 0.5, ("a",), 0.5, addresses=("[::1]:5",)),
                Neighbour(Address("10.0.0.1", 5), None, "x", None, None, addresses=("10.0.0.1:5",)),
            ),
        )
        self.assertEqual(found[2], (Dir("a", True, 1, "00", 1, True, 1, 2, None),))
        self.assertEqual(found[3], {"a": ("SHA256:x",)})
        there = ImageVersion("/a/v1", IMAGE, 5, ("SHA256:x",), True)
        coming = ImageVersion("/a/v1", IMAGE, 5, ("SHA256:x",), False, 0.5, False, 3.0)
        self.assertEqual(found[4], ((there, coming), (("/a/b", 2),)))
        self.assertEqual(found[5], At(True, there, coming, RefusedImage(IMAGE, "no_space", False, 1.5)))

    def test_reference(self) -> None:
        """Servers of the reference could not be looked at."""
        found = [read(page) for read, page in REFERENCE]
        self.assertEqual(found[0], NodeIdentity("11", "n1", "0.6", False, clock_ms=9))
        self.assertEqual(found[1], (Neighbour(Address("10.0.0.1", 5), "11", "n1", None, None, addresses=("10.0.0.1:5",)),))
        self.assertEqual(found[2], (Dir("a", False, 1),))
        self.assertEqual(found[3], (ImageVersion("/a/v1", IMAGE, 1_700_000_000_123, (), True),))
        self.assertEqual(found[4], {"/a/v1": (IMAGE, True)})
        self.assertEqual(schema.old_identity({"machine_id": "1", "hostname": "n", "version": "0", "process": None}).clock_ms, None)

    @shows("A29")
    def test_anything_else(self) -> None:
        """A server could end a client with a traceback, by any page that it makes up."""
        rng = random.Random(5)
        junk: list[Any] = [None, True, 1, -1, 1e308, "", "x" * 5000, [], {}, [[]], {"a": 1}, "\x1b[2J", float("inf"), float("nan"), 10**400]
        for read, page in OURS + REFERENCE:
            for other in junk:
                self._tried(read, other)
            for _ in range(300):
                self._tried(read, self._changed(copy.deepcopy(page), rng, junk))

    def test_numbers(self) -> None:
        """A number that is none would end a client where it is printed."""
        for bad in (float("inf"), float("nan"), 2**63, 10**400, True, "1"):
            for read, page in (
                (OURS[5][0], {**OURS[5][1], "pending": {**PENDING, "age_s": bad}}),
                (OURS[0][0], {**OURS[0][1], "now_ms": bad}),
            ):
                self.assertRaises(FormatError, read, page)

    def _tried(self, read: Any, page: Any) -> None:
        try:
            read(page)
        except FormatError:
            pass
        except Exception as error:
            raise AssertionError(f"{json.dumps(page)[:300]} brought {error!r}") from error

    def _changed(self, page: Any, rng: random.Random, junk: list[Any]) -> Any:
        """The page with something else at one place."""
        here = page
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                return page
            key = rng.choice(keys)
            if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.7:
                here = here[key]
                continue
            here[key] = rng.choice(junk)
            return page
