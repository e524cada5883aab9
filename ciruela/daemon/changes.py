"""Requests of clients that change a node: uploads, removals, taking an upload back, and the dry run (protocol sections 5.3 and 6.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from ciruela.daemon.acquaintance import WarmUpBarrier
from ciruela.daemon.clients import Clients
from ciruela.interfaces import Connection, NodeContext
from ciruela.model.errors import DiskError
from ciruela.model.upload import (
    Accepted,
    Command,
    Decision,
    Origin,
    Progress,
    Rejection,
    RejectReason,
    Removal,
    RemovalGranted,
    UploadRequest,
)
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry
from ciruela.model.vpath import VPath
from ciruela.proto.messages import AppendDir, CheckData, CheckUpload, Hosts, RemoveDir, ReplaceDir, Response, UploadAck, WithdrawUpload
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.removals import Removals
from ciruela.uploads.service import Uploads

T = TypeVar("T")

MAX_DETAIL = 1000
"""Characters of what is told about a refusal: below the limit of the wire in any script."""

_OTHER_IMAGE = frozenset({RejectReason.ALREADY_EXISTS, RejectReason.ALREADY_UPLOADING, RejectReason.REPLACE_DOESNT_MATCH})
"""Signed wishes refused for what is there. The reference's client ends, well or not, once it heard what all nodes have at that path."""


@dataclass(eq=False)
class ChangeRequests:
    """Answers AppendDir, ReplaceDir, RemoveDir, WithdrawUpload and CheckUpload. The answers name the other nodes, once these are known.

    ``there`` looks at the disk for a committed image (``scrub.presence``).
    """

    context: NodeContext
    ledger: Ledger
    uploads: Uploads
    removals: Removals
    clients: Clients
    acquaintance: WarmUpBarrier
    there: Callable[[VPath], Deferred[bool]]

    def upload(self, link: Connection, request: AppendDir | ReplaceDir, command: Command, replace: ReplaceDir | None) -> Deferred[Response]:
        """Judge an upload, and note that ``link`` waits for it."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:  # guard: A17 F3
            detail = str(error)[:MAX_DETAIL] if link.bulk else ""
            return succeed(self._signed(UploadAck(False, RejectReason.BAD_PATH.value, detail=detail), link))
        entries = tuple(SigEntry(request.timestamp_ms, signature) for signature in request.signatures)
        old_image = None if replace is None else replace.old_image
        order = UploadRequest(command, vpath, request.image, old_image, entries, Origin.CLIENT)
        return self.uploads.order(order, content=request.content).addCallback(self._judged, link, order).addCallback(self._signed, link)

    def _hosts(self, vpath: VPath) -> Hosts:
        """The other nodes that take ``vpath``, as far as these are known."""
        return self.acquaintance.cluster.hosts(vpath.key)

    def _signed(self, ack: UploadAck, link: Connection) -> Response:
        """The answer with the name of this node, for those who understand that."""
        return replace(ack, machine=self.context.me, hostname=self.context.hostname) if link.bulk else ack

    def check(self, request: CheckUpload) -> Deferred[Response]:
        """Tells what the upload would be answered. The connection is not remembered as one that waits for anything."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            refused = CheckData(
                False, RejectReason.BAD_PATH.value, str(error)[:MAX_DETAIL], None, None, None, self.context.me, self.context.hostname
            )
            return succeed(refused)
        entries = tuple(SigEntry(request.timestamp_ms, signature) for signature in request.signatures)
        command = Command.REPLACE if request.replace else Command.APPEND
        old_image = request.old_image if request.replace else None
        order = UploadRequest(command, vpath, request.image, old_image, entries, Origin.CLIENT)
        # guard: K3.5, -> succeed(True)
        looked = self.there(vpath).addErrback(lambda failure: failure.trap(DiskError))  # then the records say what they can
        return looked.addCallback(lambda _: self.uploads.check(order)).addCallback(self._checked, vpath)

    def _checked(self, verdict: Decision, vpath: VPath) -> Deferred[Response]:
        """The answer; the record of what does not stand on the disk is gone by now."""
        if vpath.key not in self.context.configs:
            return self.acquaintance.wait().addCallback(lambda _: self._check_data(verdict, vpath, None))
        free = self.acquaintance.wait().addCallback(lambda _: self.context.disk.free(vpath.key).addErrback(self._untold, None))
        return free.addCallback(lambda free_bytes: self._check_data(verdict, vpath, free_bytes))

    def _check_data(self, verdict: Decision, vpath: VPath, free_bytes: int | None) -> Response:
        reason, detail = (verdict.reason.value, verdict.detail) if isinstance(verdict, Rejection) else (None, "")
        committed = self.ledger.committed(vpath) if vpath.key in self.context.configs else None
        pending = self.ledger.pending(vpath)
        return CheckData(
            reason is None,
            reason,
            detail[:MAX_DETAIL],
            None if committed is None else committed.image,
            None if pending is None else pending.state.image,
            free_bytes,
            self.context.me,
            self.context.hostname,
            self._hosts(vpath),
            None if committed is None else committed.version.timestamp_ms,
            None if pending is None else pending.state.version.timestamp_ms,
        )

    def _untold(self, failure: Failure, unknown: T) -> T:
        """Gives ``unknown`` when the free room cannot be told: the base is not mounted, say. The decision can."""
        failure.trap(DiskError)
        return unknown

    def _judged(self, verdict: Decision, link: Connection, order: UploadRequest) -> Deferred[UploadAck]:
        vpath, reason, detail = order.vpath, None, ""
        match verdict:
            case Rejection():
                reason = verdict.reason.value
                detail = verdict.detail[:MAX_DETAIL] if link.bulk else ""
                if verdict.reason in _OTHER_IMAGE:  # guard: A18, -> True
                    self.clients.watch(link, vpath)
            case Accepted():
                self.clients.watch(link, vpath)
                self.clients.accepted(link, vpath, order.image, began=verdict.progress is Progress.NEW)
                committed = self.ledger.committed(vpath)
                if verdict.progress is Progress.ALREADY_DONE and committed is not None and self.ledger.pending(vpath) is None:
                    self.clients.received(vpath, committed)
        return self.acquaintance.wait().addCallback(lambda _: UploadAck(reason is None, reason, self._hosts(vpath), detail=detail))

    def withdraw(self, link: Connection, request: WithdrawUpload) -> Deferred[Response]:
        """Only what this connection alone asked for, and what is not committed yet: it is no way to remove anything of others."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            return succeed(self._signed(UploadAck(False, RejectReason.BAD_PATH.value, detail=str(error)[:MAX_DETAIL]), link))
        if not self.clients.wishes.sole(link, vpath, request.image):  # guard: I4
            return succeed(self._not_withdrawn(link, "this connection did not begin that upload, or others asked for it, too"))

        def withdrawn(there_was: bool) -> Response:
            self.clients.wishes.withdrawn(link, vpath, request.image)
            if not there_was:
                return self._not_withdrawn(link, "it is not on its way any more: it is there, or was given up")
            return self._signed(UploadAck(True, None), link)

        return self.uploads.withdraw(vpath, request.image).addCallback(withdrawn)

    def _not_withdrawn(self, link: Connection, detail: str) -> Response:
        return self._signed(UploadAck(False, RejectReason.NOT_WITHDRAWN.value, detail=detail), link)

    def remove(self, link: Connection, request: RemoveDir) -> Deferred[Response]:
        """Judge a removal, and note that ``link`` waits for it."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError:
            return succeed(UploadAck(False, RejectReason.BAD_PATH.value))
        removal = Removal(
            vpath, request.image, request.timestamp_ms, request.signatures, Origin.CLIENT, forced=request.force, asked_by=link.name
        )

        def judged(verdict: RemovalGranted | Rejection) -> Deferred[UploadAck]:
            reason = verdict.reason if isinstance(verdict, Rejection) else None
            if reason is None or reason in _OTHER_IMAGE:
                self.clients.watch(link, vpath)
            if reason is None:
                self.clients.gone(vpath, request.image)
            word = None if reason is None else reason.value
            detail = verdict.detail[:MAX_DETAIL] if isinstance(verdict, Rejection) and link.bulk else ""
            return self.acquaintance.wait().addCallback(lambda _: UploadAck(reason is None, word, self._hosts(vpath), detail=detail))

        return self.removals.remove(removal).addCallback(judged).addCallback(self._signed, link)
