"""The pure parts of the benchmarks: a wrong bound, median or byte count would make every report wrong, and nobody would see it."""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.scale import Layered
from benchmarks.tables import bound_s, list_table, percentile, spread
from benchmarks.torrent import PIECE_BYTES, bencode, torrent
from benchmarks.workloads import configuration, files_of, rewrite, small_files


class TableTests(SynchronousTestCase):
    """Figures and tables."""

    def test_bound(self) -> None:
        """The client's link bounds small clusters, all links together large ones; more nodes never lower it."""
        self.assertEqual(bound_s(100, 1, 10), 10)
        self.assertEqual(bound_s(100, 3, 10), 10)
        times = [bound_s(1000, nodes, 7) for nodes in range(1, 50)]
        self.assertEqual(times, sorted(times))

    def test_spread(self) -> None:
        """One run has no spread."""
        self.assertEqual((spread([1.234]), spread([3, 1, 2], 1)), ("1.23", "2.0 (1.0 .. 3.0)"))

    def test_percentile(self) -> None:
        """By nearest rank: always a value that was measured."""
        values = [float(value) for value in range(20, 0, -1)]
        self.assertEqual([percentile(values, percent) for percent in (0, 50, 95, 100)], [1, 10, 19, 20])
        self.assertEqual(percentile([7.0], 95), 7)

    def test_table(self) -> None:
        """Sphinx refuses a table whose rows differ in length, so it is refused here."""
        text = list_table(("A", "B"), [("1", ""), ("2", "3")])
        self.assertEqual(text, ".. list-table::\n   :header-rows: 1\n\n   * - A\n     - B\n   * - 1\n     -\n   * - 2\n     - 3\n")
        self.assertRaises(ValueError, list_table, ("A", "B"), [("1",)])


class LayeredTests(SynchronousTestCase):
    """What each simulated node knows, over what all know."""

    def test_as_a_dict(self) -> None:
        """A node of the simulation must not see what another one heard, nor lose what it heard itself."""
        rng = random.Random(5)
        shared = {number: str(number) for number in range(10)}
        layered, plain = Layered(shared, 3), {number: str(number) for number in range(10) if number != 3}
        for step in range(2000):
            key = rng.randrange(14)
            match rng.randrange(3):
                case 0:
                    layered[key] = plain[key] = f"{step}"
                case 1:
                    self.assertEqual(layered.pop(key, None), plain.pop(key, None))
                case 2:
                    self.assertEqual((layered.get(key), key in layered), (plain.get(key), key in plain))
            self.assertEqual((dict(layered.items()), len(layered)), (plain, len(plain)))
            self.assertEqual(list(layered.values()), [layered[one] for one in layered])
        self.assertEqual(shared, {number: str(number) for number in range(10)})


class TreeTests(SynchronousTestCase):
    """What is sent."""

    def test_torrent(self) -> None:
        """A torrent with a wrong piece would never be complete, and the swarms would look bad through our fault."""
        self.assertEqual(bencode({"b": [1, "x"], "a": b"\0"}), b"d1:a1:\0001:bli1e1:xee")
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            (tree / "sub").mkdir(parents=True)
            first, second = bytes(range(256)) * 1000, b"y" * PIECE_BYTES
            (tree / "a").write_bytes(first)
            (tree / "sub" / "b").write_bytes(second)
            whole = first + second
            pieces = b"".join(hashlib.sha1(whole[at : at + PIECE_BYTES]).digest() for at in range(0, len(whole), PIECE_BYTES))
            info = {
                "name": "tree",
                "piece length": PIECE_BYTES,
                "files": [{"length": len(first), "path": ["a"]}, {"length": len(second), "path": ["sub", "b"]}],
                "pieces": pieces,
            }
            self.assertEqual(torrent(tree, "http://here/"), bencode({"announce": "http://here/", "info": info}))

    def test_sizes(self) -> None:
        """Every ratio to the bound is computed from the size that a workload says it has."""
        with tempfile.TemporaryDirectory() as folder:
            for make in (small_files, configuration):
                workload = make(Path(folder), 0.005)
                self.assertEqual(workload.size_bytes, sum(path.stat().st_size for path in files_of(workload.tree)))
                self.assertGreaterEqual(len(files_of(workload.tree)), 20)

    def test_a_configuration_differs_in_each_turn(self) -> None:
        """An upload of what is there already would look very fast."""
        with tempfile.TemporaryDirectory() as folder:
            tree = configuration(Path(folder), 1).tree
            seen = set()
            for turn in range(5):
                rewrite(tree, turn)
                seen.add(tuple(path.read_bytes() for path in files_of(tree)))
            self.assertEqual(len(seen), 5)
