"""The request for an upload at one node: its states."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.uploadrun import ANSWER_TIMEOUT_S, NodeRequest, UploadRun
from ciruela.proto.messages import Request, Response, UploadAck, WithdrawUpload
from tests.client.nodes import address
from tests.client.test_sync import IMAGE, PATH, append

WITHDRAWAL = WithdrawUpload(PATH, IMAGE)


class OnPurposeError(Exception):
    """For a listener that is at fault."""


class Asked:
    """A connection that keeps what is asked on it."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[Response]] = []
        self.asked: list[Request] = []

    def ask(self, request: Request) -> Deferred[Response]:
        self.asked.append(request)
        self.waiting.append(Deferred())
        return self.waiting[-1]


class NodeRequestTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.link: Any = Asked()
        self.upload = append()
        self.run_ = UploadRun(self.upload, self.clock)
        self.request = self.run_.requests[address(1)] = NodeRequest(self.run_, address(1), self.link, self.clock)
        self.heard: list[object] = []

    def ask(self) -> None:
        self.request.events.ask(self.upload.request, self.booked, self.failed)

    def booked(self, response: Response, request: NodeRequest) -> None:
        self.heard.append(response)
        request.events.answered()

    def failed(self, failure: Failure, request: NodeRequest) -> None:
        self.heard.append(type(failure.value))
        if not failure.check(CancelledError):
            request.events.put_off()

    def test_again(self) -> None:
        """A node that did not answer in time is asked again, and what it accepts then can be taken back."""
        self.ask()
        self.assertTrue(self.run_.outstanding)
        self.clock.advance(ANSWER_TIMEOUT_S)
        self.assertEqual((self.run_.outstanding, self.request.state), (False, None))
        self.ask()
        self.link.waiting[1].callback(UploadAck(True, None))
        self.assertFalse(self.run_.outstanding)
        self.request.events.take_back(WITHDRAWAL, self.booked, self.failed)
        self.assertTrue(self.run_.outstanding)
        self.assertEqual(self.link.asked, [self.upload.request, self.upload.request, WITHDRAWAL])

    def test_booking_that_fails(self) -> None:
        """A fault of ours in the middle of an answer would keep the command from its end."""

        def booked(_response: Response, _request: NodeRequest) -> None:
            raise OnPurposeError

        self.request.events.ask(self.upload.request, booked, self.failed)
        self.link.waiting[0].callback(UploadAck(True, None))
        self.assertFalse(self.run_.outstanding)
        self.assertEqual(len(self.flushLoggedErrors(OnPurposeError)), 1)

    def test_end(self) -> None:
        """Nothing is asked any more over a connection that has ended, and no timer is left."""
        self.ask()
        self.request.events.let_go()
        self.assertEqual(self.heard, [CancelledError])
        self.assertFalse(self.run_.outstanding)
        self.ask()
        self.request.events.take_back(WITHDRAWAL, self.booked, self.failed)
        self.request.events.let_go()
        self.assertEqual(self.link.asked, [self.upload.request])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_end_before_it_was_asked(self) -> None:
        """A connection that ends while others are asked would be asked all the same."""
        self.request.events.let_go()
        self.assertIsNotNone(self.request.state)
