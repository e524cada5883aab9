"""Confirmation of what datagrams say: before a client hears that a node has an image, or has removed one, that node is asked over TCP.

A datagram can be forged by whoever can send one; the answer of the node at its configured address cannot.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, Connector
from ciruela.membership.cluster import Completed, RemovedHeard
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetBaseDir, GetPathState, PathStateData, Response, unknown_request
from ciruela.runtime import BoundedMap, within

Claim = Completed | RemovedHeard

MOST_UNDER_WAY = 32
MOST_CLAIMS = 4096
"""Claims that wait to be confirmed. Of a path for which there were more all are looked at again when half of them are dealt with."""

MOST_CONFIRMED = 16384
CONFIRMED_S = 60.0
"""A confirmation is good for so long; then a client that has begun to wait hears of it only after the node was asked again."""

ANSWER_S = 5.0
LONGEST_DELAY_S = 30.0
"""A node that does not answer is asked again after 1, 2, 4, 8, 16, then each 30 seconds."""

_Key = tuple[VPath, MachineId]
_Token = tuple[ImageId, int]


@dataclass(slots=True)
class _ProofRequest:
    claim: Claim
    next_s: float
    delay_s: float = 1.0
    under_way: Deferred[None] | None = None


class Confirmations:
    """Asks, several nodes at a time. ``confirmed`` gets each claim that is true, ``waits`` tells whether a client waits for a path.

    ``again`` is called with a path for which claims found no room: it asks once more.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        wire: Connector,
        waits: Callable[[VPath], bool],
        confirmed: Callable[[Claim], None],
        again: Callable[[VPath], None],
    ) -> None:
        self._clock = clock
        self._wire = wire
        self._waits = waits
        self._confirmed = confirmed
        self._again = again
        self._asked: dict[_Key, _ProofRequest] = {}
        self._proved: BoundedMap[_Key, tuple[_Token, float]] = BoundedMap(MOST_CONFIRMED)
        self._refuted: BoundedMap[_Key, tuple[_Token, float]] = BoundedMap(MOST_CLAIMS)
        self._crowded: dict[VPath, None] = {}
        self._flying = 0
        self._starting = False
        self.refuted = 0

    def proved(self, claim: Claim) -> bool:
        """Tells whether ``claim`` was confirmed lately."""
        known = self._proved.get(_key(claim))
        return known is not None and known[0] == _token(claim) and self._clock.seconds() - known[1] < CONFIRMED_S

    def prove(self, claim: Claim) -> None:
        """``claim`` came from the node itself, over a connection."""
        key = _key(claim)
        asked = self._asked.pop(key, None)
        if asked is not None and asked.under_way is not None:
            asked.under_way.cancel()
        self._note(key, claim)

    def ask(self, claim: Claim) -> None:
        """Have ``claim`` confirmed, unless it is being confirmed, or was found to be wrong just now."""
        key, now_s = _key(claim), self._clock.seconds()
        known = self._asked.get(key)
        wrong = self._refuted.get(key)
        if known is not None and _token(known.claim) == _token(claim):
            return
        if wrong is not None and wrong[0] == _token(claim) and now_s - wrong[1] < 1.0:
            return
        if known is not None and known.under_way is not None:
            known.under_way.cancel()
        if known is None and len(self._asked) >= MOST_CLAIMS:  # guard: A34 F25
            if self._waits(key[0]):
                self._crowded[key[0]] = None
            return
        self._asked[key] = _ProofRequest(claim, now_s)
        self._go_on()

    def beat(self) -> None:
        """Once a second: ask again who did not answer; forget what nobody waits for."""
        now_s = self._clock.seconds()
        for key, asked in list(self._asked.items()):
            if asked.under_way is None and not self._waits(key[0]):
                del self._asked[key]
        self._crowded = {vpath: None for vpath in self._crowded if self._waits(vpath)}
        for table in (self._proved, self._refuted):
            table.expire(lambda noted: now_s - noted[1] >= CONFIRMED_S)
        self._go_on()

    def stop(self) -> None:
        """End."""
        asked, self._asked, self._crowded = self._asked, {}, {}
        for one in asked.values():
            if one.under_way is not None:
                one.under_way.cancel()

    def _go_on(self) -> None:
        """Start what can be started. An answer that comes at once must not lead here again, or many would end the stack."""
        if self._starting or self._flying >= MOST_UNDER_WAY:
            return
        self._starting = True
        try:
            now_s = self._clock.seconds()
            for key in list(self._asked):
                asked = self._asked.get(key)
                if self._flying >= MOST_UNDER_WAY:
                    return
                if asked is not None and asked.under_way is None and asked.next_s <= now_s:
                    self._start(asked)
        finally:
            self._starting = False

    def _start(self, asked: _ProofRequest) -> None:
        self._flying += 1
        asked.next_s = self._clock.seconds() + asked.delay_s
        asked.delay_s = min(2 * asked.delay_s, LONGEST_DELAY_S)
        claim = asked.claim
        answer = within(self._wire.ask(claim.address, GetPathState(str(_vpath(claim)))), ANSWER_S, self._clock)
        done: Deferred[bool] = answer.addCallback(self._there, claim)
        done.addErrback(self._older_version, claim)
        asked.under_way = done.addCallbacks(self._answered, self._unanswered, callbackArgs=(asked,))
        asked.under_way.addErrback(self._failed, claim.address).addBoth(self._landed, asked)

    def _there(self, response: Response, claim: Claim) -> bool:
        """Tells whether the answer confirms ``claim``."""
        if not isinstance(response, PathStateData) or response.machine != claim.machine:  # guard: S5, without 2
            return False
        there = response.committed
        if isinstance(claim, Completed):
            return there is not None and there.image == claim.image  # guard: S5, without 2
        return response.taken and (there is None or there.image != claim.item.image)

    def _older_version(self, failure: Failure, claim: Claim) -> Deferred[bool]:
        """A node that does not know GetPathState lists the base dir: the same answer, less directly."""
        failure.trap(RemoteError)
        if self._wire.bulk(claim.address) and not unknown_request(failure.getErrorMessage()):
            failure.raiseException()
        vpath = _vpath(claim)
        answer = within(self._wire.ask(claim.address, GetBaseDir(str(vpath.base))), ANSWER_S, self._clock)

        def listed(response: Response) -> bool:
            if not isinstance(response, BaseDirData):
                return False
            entry = next((name for name in response.dirs if vpath.base.image_at(name) == vpath), None)
            there = None if entry is None or entry in response.pending else response.dirs[entry].image
            return there == claim.image if isinstance(claim, Completed) else there != claim.item.image

        return answer.addCallback(listed)

    def _answered(self, true: bool, asked: _ProofRequest) -> None:
        key = _key(asked.claim)
        if self._asked.get(key) is not asked:
            return
        del self._asked[key]
        if true:
            self._note(key, asked.claim)
            self._confirmed(asked.claim)
        else:
            self.refuted += 1
            self._refuted.put(key, (_token(asked.claim), self._clock.seconds()))

    def _note(self, key: _Key, claim: Claim) -> None:
        self._proved.put(key, (_token(claim), self._clock.seconds()))

    def _unanswered(self, failure: Failure) -> None:
        """It is asked again, for as long as somebody waits."""
        failure.trap(LinkLost, RemoteError, CancelledError)

    def _failed(self, failure: Failure, address: Address) -> None:
        self._log.failure("what {address} confirmed could not be dealt with", failure, address=str(address))

    def _landed(self, _: object, asked: _ProofRequest) -> None:
        asked.under_way = None
        self._flying -= 1
        if self._crowded and len(self._asked) <= MOST_CLAIMS // 2:
            crowded, self._crowded = self._crowded, {}
            for vpath in crowded:
                self._again(vpath)
        self._go_on()


def _vpath(claim: Claim) -> VPath:
    return claim.vpath if isinstance(claim, Completed) else claim.item.vpath


def _key(claim: Claim) -> _Key:
    return _vpath(claim), claim.machine


def _token(claim: Claim) -> _Token:
    """By which a claim is known again. More hooks may become due for an image that is there already."""
    return (claim.image, claim.due) if isinstance(claim, Completed) else (claim.item.token, 0)
