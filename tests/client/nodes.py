"""Servers for tests of the client: each answers as it is told, over memory links with the real codec."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed

from ciruela.interfaces import Address, Connection
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import ImageId, MachineId, Server, SharedId
from ciruela.proto.messages import (
    AbortedImage,
    AppendDir,
    CheckData,
    CheckUpload,
    GetIndex,
    GetIndexAt,
    GetPathState,
    IndexAtData,
    IndexData,
    Notification,
    PathStateData,
    PublishImage,
    ReceivedImage,
    ReplaceDir,
    Request,
    Response,
    UploadAck,
    WithdrawUpload,
)
from tests.doubles.memnet import Hub

PORT = 24783


def address(number: int) -> Address:
    return Address(f"10.0.0.{number}", PORT)


def machine(number: int) -> MachineId:
    return MachineId(number.to_bytes(16, "big"))


class FakeNode:
    """Node ``number``: ``reason`` refuses, ``error`` answers with Error, ``silent`` never answers.

    ``peers`` are the nodes that its answers name. ``links`` are the open ones, ``requests`` the orders that came in, ``checks`` the
    questions. Both are answered alike; ``asked`` is the reason of a refusal that only a question gets. ``there`` is what stands at the
    path, signed for ``there_ms``, with the bytes of its index. With ``rows`` it
    answers GetPathState, after it was too busy ``busy`` times; without it is a node that knows no such question.
    """

    def __init__(self, hub: Hub, number: int, peers: Sequence[int] = ()) -> None:
        self.number = number
        self.peers = peers
        self.reason: str | None = None
        self.error: str | None = None
        self.silent = False
        self.hangs_up = False
        self.rows: list[Server] | None = None
        self.shared: tuple[SharedId, ...] = ()
        self.busy = 0
        self.machine = machine(number)
        self.epoch_ms = 1000 + number
        self.taken = True
        self.has: list[tuple[str, ImageId]] = []
        self.links: list[Connection] = []
        self.requests: list[Request] = []
        self.checks: list[CheckUpload] = []
        self.asked: str | None = None
        self.there: ImageId | None = None
        self.there_ms: int | None = None
        self.index: bytes | None = None
        self.withdrawn: list[WithdrawUpload] = []
        self.published: list[ImageId] = []
        self.hub = hub
        hub.node(address(number), self, lambda data, source: None)

    @property
    def hosts(self) -> dict[MachineId, str]:
        return {machine(peer): f"n{peer}" for peer in self.peers if peer != self.number}

    def _state(self, path: str) -> PathStateData:
        rows = tuple(self.rows or ())
        return PathStateData(self.machine, f"n{self.number}", self.epoch_ms, self.taken, servers=rows, shared_ids=self.shared)

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        match request:
            case GetPathState():
                if self.silent or self.hangs_up:
                    return Deferred()
                if self.busy:
                    self.busy -= 1
                    return fail(Busy(SLOW_DOWN))
                return fail(RemoteError("'GetPathState' is not known here")) if self.rows is None else succeed(self._state(request.path))
            case CheckUpload():
                return self.checked(request)
            case GetIndexAt():
                return succeed(IndexAtData(self.index, self.hosts))
            case GetIndex():
                return succeed(IndexData(self.index)) if self.index is not None else fail(RemoteError("no such index"))
            case WithdrawUpload():
                self.withdrawn.append(request)
                return succeed(UploadAck(self.there != request.image, None, self.hosts))
            case _:
                pass
        self.requests.append(request)
        if link not in self.links:
            self.links.append(link)
        assert isinstance(request, AppendDir | ReplaceDir)
        if self.hangs_up:
            link.close()  # type: ignore[attr-defined]
        if self.silent or self.hangs_up:
            return Deferred()
        if self.error is not None:
            return fail(Busy(self.error) if self.error.startswith(SLOW_DOWN) else RemoteError(self.error))
        if (request.path, request.image) in self.has:
            self.tell_received(request.path, request.image, self.number)
        named = (self.machine, f"n{self.number}") if self.rows is not None else (None, "")
        return succeed(UploadAck(self.reason is None, self.reason, self.hosts, *named))

    def checked(self, request: CheckUpload) -> Deferred[Response]:
        """What an order would be answered."""
        self.checks.append(request)
        if self.silent or self.hangs_up:
            return Deferred()
        if self.error is not None:
            return fail(RemoteError(self.error))
        reason = self.asked or self.reason
        if reason == "stale_timestamp" and self.there_ms is not None and request.timestamp_ms > self.there_ms:
            reason = None
        if self.there == request.image:
            reason = None
        host, me = f"n{self.number}", machine(self.number)
        return succeed(CheckData(reason is None, reason, "", self.there, None, 1 << 33, me, host, self.hosts, self.there_ms))

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Connection, notification: Notification) -> None:
        assert isinstance(notification, PublishImage)
        if link not in self.links:
            self.links.append(link)
        self.published.append(notification.image)

    def lost(self, link: Connection) -> None:
        if link in self.links:
            self.links.remove(link)

    def tell_received(self, path: str, image: ImageId, number: int) -> None:
        """Say that node ``number`` has it."""
        for link in self.links:
            named = self.machine if number == self.number else machine(number)
            link.tell(ReceivedImage(image, path, named, f"n{number}", number != self.number))

    def tell_aborted(self, path: str, image: ImageId, reason: str) -> None:
        """Say that this node gave it up."""
        for link in self.links:
            link.tell(AbortedImage(image, path, machine(self.number), f"n{self.number}", False, reason))
