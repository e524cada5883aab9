"""One upload on its way to one cluster, and the request for it at each node, as a state machine.

A request belongs to one connection and ends with it. Its states own the answer that is due, so an end reaches it, and nobody has to note
beside them which nodes were asked and which have not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field, replace
from typing import ClassVar, Protocol

from automat import TypeMachine, TypeMachineBuilder
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.client.listener import HookAccount
from ciruela.client.text import count
from ciruela.client.tracker import MOST_NAMED, RUNNING, UploadProgress, UploadTracker, Verdict
from ciruela.interfaces import Address, Connection
from ciruela.model.upload import RejectReason
from ciruela.model.values import dataclass
from ciruela.proto.messages import AppendDir, ImageContent, RemoveDir, ReplaceDir, Request, Response
from ciruela.runtime import Backoff

ANSWER_TIMEOUT_S = 30.0
"""An answer to a request needs a signature check and a few small files; a node that takes longer is asked again."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One signed wish, ready to be sent. ``total_bytes`` of all files of the image."""

    request: AppendDir | ReplaceDir | RemoveDir
    weak: bool
    total_bytes: int

    def message(self, content: ImageContent | None) -> Request:
        """The request as it is sent, with the image itself where that is given."""
        return self.request if content is None or isinstance(self.request, RemoveDir) else replace(self.request, content=content)

    def takes_back(self, reason: str | None) -> bool:
        """Tells whether a refusal by one server means that no server should have it: other content is there already.

        Of two that are on their way the servers agree on one, and of two replaces the newer one wins: there is nothing to take back.
        """
        match self.request:
            case AppendDir():
                return not self.weak and reason in (RejectReason.ALREADY_EXISTS, RejectReason.STALE_TIMESTAMP)
            case ReplaceDir():
                return reason == RejectReason.REPLACE_DOESNT_MATCH
            case RemoveDir():
                return False


@dataclass(frozen=True, slots=True)
class RunEnd:
    """End of an upload at ``at_s``, with the numbers of then: nothing is heard of anybody once the connections are closed."""

    verdict: Verdict
    standing: UploadProgress
    at_s: float


class UploadRun:
    """One upload on one cluster. ``promised``: the nodes that accepted it; ``taken_back``: why no node should have it any more."""

    def __init__(self, upload: Upload, clock: IReactorTime) -> None:
        self.upload = upload
        self.book = UploadTracker(upload.request.path, upload.request.image, upload.weak, isinstance(upload.request, RemoveDir))
        self.hooks = HookAccount(upload.request.path, upload.request.image, runs=not isinstance(upload.request, RemoveDir))
        self.requests: dict[Address, NodeRequest] = {}
        self.promised: set[Address] = set()
        self.taken_back = ""
        self.refusals: dict[str, list[str]] = {}
        self.hindered = False
        self.pause: Backoff[Address] = Backoff(clock)
        self.sent_bytes = 0
        self.uncounted = False
        self.end: RunEnd | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict of now."""
        return self.end.verdict if self.end else RUNNING

    @property
    def standing(self) -> UploadProgress:
        """The numbers of now; when it is over those of then."""
        return self.end.standing if self.end else self.book.standing()

    def untold_refusals(self) -> Iterator[str]:
        """Gives what nodes refused since this was asked last: a reason once, and who gave it."""
        for reason, hosts in self.refusals.items():
            who = hosts[0] if len(hosts) == 1 else f"{count(len(hosts), 'node')} ({', '.join(hosts[:MOST_NAMED])}"
            if len(hosts) > 1:
                who += f" and {len(hosts) - MOST_NAMED} more)" if len(hosts) > MOST_NAMED else ")"
            yield f"{who} {self.book.path} {reason}"
        self.refusals.clear()

    @property
    def outstanding(self) -> bool:
        """True while a node has not answered."""
        return any(request.due for request in self.requests.values())


# -- the request for an upload at one node ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """The node has not answered yet. ``answer`` is booked when it comes; cancelling it forgets the question."""

    answer: Deferred[Response]


class AnswerBooked:
    """The node has answered, or never will: it is not asked again on this connection."""


Booked = Callable[[Response, "NodeRequest"], None]
NotBooked = Callable[[Failure, "NodeRequest"], None]
"""Functions that book an answer, or a failure, and tell the machine what follows."""


class RequestEvents(Protocol):
    """The inputs of the machine."""

    def ask(self, message: Request, booked: Booked, failed: NotBooked) -> None:
        """Sends the request."""

    def answered(self) -> None:
        """The answer was booked."""

    def put_off(self) -> None:
        """The answer says that it should be sent again later."""

    def take_back(self, message: Request, booked: Booked, failed: NotBooked) -> None:
        """Tells the node to give up what it accepted."""

    def let_go(self) -> None:
        """Cancels what is under way: the connection ended, or the run."""


@dataclass(eq=False, slots=True)
class NodeRequest:
    """The request for the upload of ``run`` at the node at ``address``, over ``link``. ``state``: None as long as it is to be sent.

    ``servers_asked_s``: when the node told last which servers it knows; infinite until then, and while it is asked for them.
    """

    run: UploadRun
    address: Address
    link: Connection
    clock: IReactorTime
    state: Asking | AnswerBooked | None = field(init=False, default=None)
    servers_asked_s: float = field(init=False, default=float("inf"))
    events: RequestEvents = field(init=False)

    _log: ClassVar[Logger] = Logger()

    def __post_init__(self) -> None:
        """Makes the machine."""
        self.events = RequestMachine(self)

    @property
    def due(self) -> bool:
        """True while the node has not answered."""
        return isinstance(self.state, Asking)

    def broken(self, failure: Failure) -> None:
        """A fault of ours: nobody must wait for what was lost by it."""
        self._log.failure("an answer of {peer} was not booked", failure, peer=str(self.address))
        self.events.answered()


def _send(_events: RequestEvents, request: NodeRequest, message: Request, booked: Booked, failed: NotBooked) -> Asking:
    answer = request.link.ask(message)
    request.state = state = Asking(answer)
    answer.addTimeout(ANSWER_TIMEOUT_S, request.clock)
    answer.addCallbacks(booked, failed, callbackArgs=(request,), errbackArgs=(request,)).addErrback(request.broken)
    return state


def _answered(_events: RequestEvents, request: NodeRequest, _state: object = None) -> None:
    request.state = AnswerBooked()


def _put_off(_events: RequestEvents, request: NodeRequest, _state: Asking) -> None:
    request.state = None


def _cancel(_events: RequestEvents, request: NodeRequest, state: Asking) -> None:
    request.state = AnswerBooked()
    state.answer.cancel()


def _request_machine() -> TypeMachine[RequestEvents, NodeRequest]:
    builder = TypeMachineBuilder(RequestEvents, NodeRequest)
    unasked, answered, over = (builder.state(name) for name in ("unasked", "answered", "over"))
    asking, taking_back = (builder.state(name, _send) for name in ("asking", "taking back"))

    unasked.upon(RequestEvents.ask).to(asking).returns(None)
    asking.upon(RequestEvents.put_off).to(unasked)(_put_off)
    for waiting in (asking, taking_back):
        waiting.upon(RequestEvents.answered).to(answered)(_answered)
        waiting.upon(RequestEvents.let_go).to(over)(_cancel)
    for idle in (unasked, answered):
        idle.upon(RequestEvents.take_back).to(taking_back).returns(None)
        idle.upon(RequestEvents.answered).loop().returns(None)  # it was booked, and what followed from it failed
        idle.upon(RequestEvents.let_go).to(over)(_answered)
    late: list[Callable[..., None]] = [getattr(RequestEvents, name) for name in ("ask", "answered", "put_off", "take_back", "let_go")]
    for event in late:  # whoever hears of an answer may end the run there and then
        over.upon(event).loop().returns(None)
    return builder.build()


RequestMachine = _request_machine()
