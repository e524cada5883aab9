"""The body of a list of servers, without a socket; ``tests.real.test_discovery`` has the rest."""

from __future__ import annotations

from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone

from ciruela.model.errors import FormatError
from ciruela.net.discovery.fetch import MAX_LIST_BYTES, _ListBody
from tests.proof import shows


class BodyTests(SynchronousTestCase):
    """What is kept of an answer."""

    @shows("A60")
    def test_without_end(self) -> None:
        """An answer without end would fill the memory."""
        for size, good in ((MAX_LIST_BYTES, True), (MAX_LIST_BYTES + 1, False)):
            body, transport = _ListBody(), StringTransport()
            body.makeConnection(transport)
            for part in (b"n" * (size - 1), b"n"):
                body.dataReceived(part)
            self.assertEqual(transport.disconnecting, not good)
            body.connectionLost(Failure(ResponseDone()))
            if good:
                self.assertEqual(len(self.successResultOf(body.done)), size)
            else:
                self.failureResultOf(body.done, FormatError)
