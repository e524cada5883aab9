"""Power cuts below a running daemon; ``campaign_power`` has many more."""

from __future__ import annotations

import time
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.campaign_power import CONFIGS, MAIN, Cut, PowerBench
from tests.real.daemons import RealCluster
from tests.real.mounts import loops_forbidden, needs
from tests.real.trees import shape

CUTS = 3


class PowerTests(SynchronousTestCase):
    """The plug is pulled."""

    @needs(loops_forbidden)
    @shows("F38", "A44", "I1", "I2", "I11", "G14")
    def test_cuts(self) -> None:
        """After a power cut a directory that was reported as uploaded would be gone, or full of files without content."""
        bench = PowerBench(self)
        first = bench.upload()
        bench.cluster.until(lambda: len(bench.acknowledged) >= 2, "the first uploads are done", poll_s=0.002)
        cuts = [bench.cut()]  # some acknowledged, others in their middle
        self.assertEqual(first.wait(60), 0)
        cuts.append(bench.cut())  # right after DONE
        second = bench.upload()
        bench.cluster.until(lambda: len(bench.acknowledged) > 9, "the second uploads have begun", poll_s=0.002)
        time.sleep(0.01)
        cuts.append(bench.cut())
        self.assertEqual(second.wait(60), 0)
        self.assertEqual(len(cuts), CUTS)
        self.assertGreaterEqual(len(cuts[2].acknowledged), 10)
        self.assertEqual(len(bench.acknowledged), 14)

        places = [bench.mounted(cut) for cut in cuts]
        for cut, top in zip(cuts, places, strict=True):
            bench.visible(cut, top / "data")
        after = RealCluster(
            self,
            CUTS,
            CONFIGS,
            groups=[[number] for number in range(CUTS)],
            data={number: top / "data" for number, top in enumerate(places)},
            db={number: top / "db" for number, top in enumerate(places)},
        )
        for number, cut in enumerate(cuts):
            self.told(bench, cut, after, number)

    @needs(loops_forbidden)
    def test_bench_can_fail(self) -> None:
        """The cuts would lose nothing whatever the daemon does, and prove nothing: without any sync they do lose what was acknowledged."""
        bench = PowerBench(self, "fsync: none\n")
        client = bench.upload()
        bench.cluster.until(lambda: len(bench.acknowledged) >= 3, "uploads are done", poll_s=0.002)
        cut = bench.cut()
        self.assertEqual(client.wait(60), 0)
        with self.assertRaises(AssertionError):
            bench.check(cut)

    def told(self, bench: PowerBench, cut: Cut, after: RealCluster, number: int) -> None:
        """What a daemon says and shows that was started on what a cut left."""
        node = after.nodes[number]
        bench.visible(cut, node.data)
        for vpath, version in cut.acknowledged:
            base, _, entry = vpath.rpartition("/")
            self.assertIn(entry, node.get(f"/list-dir{base}"), f"{vpath}: acknowledged and not known to {node.name}")
            if vpath != MAIN:  # what replaces that one may be on its way
                self.assertTrue(node.has(vpath), vpath)
                self.assertEqual(shape(node.path(vpath)), bench.shapes[vpath, version])
        after.until(partial(self.only_pending, bench, node.get, node.data), f"{node.name} has no debris")

    def only_pending(self, bench: PowerBench, get: object, data: object) -> bool:
        """Whether staging directories belong to uploads that are under way."""
        assert callable(get)
        hidden = [path for key in CONFIGS for path in (data / key).glob(".*")]  # type: ignore[operator]
        return len(hidden) <= len(get("/downloading/"))
