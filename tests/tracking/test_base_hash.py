"""The hash of a base dir, which is updated with each change, against the one that is made anew of everything."""

import hashlib
from types import SimpleNamespace
from unittest.mock import patch

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Held, Loaded, Pending
from ciruela.model.config import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.tracking import ledger as ledgers
from ciruela.tracking.ledger import Ledger, base_dir_hash

BASES = VPath.parse("/app"), VPath.parse("/log")
LEVEL_ZERO = VPath.parse("/zero")
SETTINGS = settings(max_examples=120, deadline=None, derandomize=True, database=None)
NAMES = ("v1", "v10", "v2", "é", "z\ue000", "z\U0001f40c", "n" * 30, "n" * 255)
IMAGES = [ImageId(bytes([number]) * 32) for number in range(3)]
STAMPS = st.sampled_from((0, 23, 24, 1_700_000_000_000, 1_700_000_000_001))

states = st.builds(
    lambda image, stamps: State(image, tuple(SigEntry(stamp, bytes(64)) for stamp in sorted(stamps))),
    st.sampled_from(IMAGES),
    st.sets(STAMPS, min_size=1, max_size=3),
)
versions = st.builds(Version, STAMPS, st.sampled_from(IMAGES))
tombstones = st.builds(Tombstone, versions, st.just(9), st.sampled_from(((), (bytes(64),))))
names = st.sampled_from(NAMES)
burials = st.builds(Tombstones, st.just(0), st.dictionaries(names, tombstones, max_size=4), st.integers(0, 3))
paths = st.builds(lambda base, name: base.child(name), st.sampled_from(BASES), names) | st.just(LEVEL_ZERO)
moves = st.one_of(
    st.tuples(st.sampled_from(("begin", "commit", "restore", "abort", "vanish")), paths, states),
    st.tuples(st.sampled_from(("bury", "fold", "fill")), paths, burials),
    st.tuples(st.sampled_from(("forget", "flip")), paths, st.none()),
    st.tuples(st.just("look"), paths, st.none()),
)


def config(key, append_only):
    return DirConfig(key, f"/srv/{key}", append_only=append_only, num_levels=1)


def plain(entries, removed, append_only):
    """The rows as the comment of ``base_dir_hash`` has them, encoded as one value."""
    rows = []
    for name, state in sorted(entries.items(), key=lambda item: item[0].encode()):
        after = [entry for entry in state.signatures if name not in removed or (entry.timestamp_ms, state.image) > removed[name]]
        claim_ms = min(entry.timestamp_ms for entry in after or state.signatures)
        newest_ms = max(entry.timestamp_ms for entry in state.signatures)
        rows.append([name, newest_ms, state.image, *([claim_ms] if append_only and claim_ms != newest_ms else [])])
    rows += [[name, *version, True] for name, version in sorted(removed.items(), key=lambda item: item[0].encode())]
    return hashlib.blake2b(cbor2.dumps(rows), digest_size=32).digest()


class BaseHashTests(SynchronousTestCase):
    """Nodes whose hashes differ by the way that they came to be would ask each other for ever; equal ones would miss an upload."""

    def setUp(self):
        self.configs = {
            "app": config("app", append_only=False),
            "log": config("log", append_only=True),
            "zero": config("zero", append_only=False),
        }
        self.ledger = Ledger(Clock(), self.configs)

    def move(self, name, vpath, value):
        ledger, base = self.ledger, vpath.base
        match name:
            case "begin":
                ledger.begin(Pending(vpath, value, Command.APPEND))
            case "commit":
                ledger.commit(vpath, value)
            case "restore":
                ledger.vanish(vpath, Pending(vpath, value, Command.APPEND))
            case "vanish":
                ledger.vanish(vpath, None)
            case "abort":
                ledger.abort(vpath, 1)
            case "bury":
                ledger.bury(vpath, value)
            case "fold":
                ledger.fold(base, value)
            case "fill":
                held = [Held(vpath, State(IMAGES[0], (SigEntry(7, bytes(64)),)), None, ())]
                ledger.fill(Loaded(held, {base: value}))
            case "forget":
                ledger.forget(vpath.key)
            case "flip":
                self.configs[vpath.key] = config(vpath.key, append_only=not self.configs[vpath.key].append_only)
                ledger.commit(vpath, State(IMAGES[0], (SigEntry(7, bytes(64)),)))
            case "look":
                self.check()

    def check(self):
        ledger = self.ledger
        expected = {}
        for base in (*BASES, LEVEL_ZERO.base):
            entries = ledger.entries(base)
            removed = {name: one.version for name, one in ledger.removed(base).items()}
            if entries or removed:
                expected[base] = plain(entries, removed, self.configs[base.key].append_only)
                self.assertEqual(base_dir_hash(entries, removed, self.configs[base.key].append_only), expected[base])
        self.assertEqual(dict(ledger.base_hashes()), expected)

    @given(st.lists(moves, max_size=25))
    @SETTINGS
    def test_equals_the_plain_computation(self, played):
        """After any changes the hash is that of what is there."""
        self.setUp()
        for one in played:
            self.move(*one)
        self.check()

    def test_any_number_of_entries(self):
        """The head of the array has one, two, three or five bytes."""
        state, removed = State(IMAGES[0], (SigEntry(7, bytes(64)),)), {"v1": Version(7, IMAGES[0])}
        for count in (0, 22, 23, 254, 255, 65_534, 65_535):
            entries = dict.fromkeys(map(str, range(count)), state)
            self.assertEqual(base_dir_hash(entries, removed), plain(entries, removed, False))

    def test_one_change_encodes_one_entry(self):
        """An upload to a directory of ten thousand would keep the node busy for as long as to read them all."""
        for number in range(500):
            self.ledger.commit(BASES[0].child(f"v{number}"), State(IMAGES[0], (SigEntry(number, bytes(64)),)))
        self.ledger.base_hashes()
        encoded = []
        counting = SimpleNamespace(dumps=lambda value: encoded.append(value) or cbor2.dumps(value))
        with patch.object(ledgers, "cbor2", counting):
            self.ledger.commit(BASES[0].child("v7"), State(IMAGES[1], (SigEntry(7, bytes(64)),)))
            self.ledger.base_hashes()
        self.assertEqual(encoded, [["v7", 7, IMAGES[1]], 500])
        self.check()
