"""Which hash a cluster gets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.orders import EVERYBODYS, OURS, kind_for
from tests.proof import shows


class HashTests(SynchronousTestCase):
    @shows("K6.1", "K6.2", "K6.3")
    def test_kinds(self) -> None:
        """Silence would choose the slow hash, or a server of the reference would be given one that it does not know."""
        for bulks, kind in (((), OURS), ((True,), OURS), ((True, True), OURS), ((True, False, True), EVERYBODYS), ((False,), EVERYBODYS)):
            self.assertIs(kind_for(bulks), kind, bulks)
