"""A sample of the sweeps; ``python -m tests.campaigns swarm`` has all of them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.swarm.model import Simulation
from ciruela.swarm import exchange
from tests.swarm.sweeps import SWEEPS, broken


class SampleTests(SynchronousTestCase):
    """Twenty nodes: more than each of them knows as neighbor."""

    twenty = next(sweep for sweep in SWEEPS if sweep.setting.nodes == 20)

    def test_twenty_nodes(self) -> None:
        """A cluster of twenty takes as long as its links, and nobody gives more than its part."""
        self.assertEqual(broken(self.twenty, Simulation(self.twenty.setting).run()), [])

    def test_the_heart(self) -> None:
        """Without "first what was given least" the same nodes take much longer: the limits would show it."""
        self.patch(exchange, "LEVELS", 1)
        found = Simulation(self.twenty.setting).run()
        self.assertIn("the worst node", " ".join(broken(self.twenty, found)))
        self.assertGreater(found.worst, 1.15)
