"""Asking some nodes of a cluster what is at a path, before anything is signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail

from ciruela.client.contacts import reachable_from
from ciruela.client.sync import ANSWER_TIMEOUT_S, ClosableLink, World
from ciruela.clockwork import within
from ciruela.model.errors import CiruelaError, LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.state import State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetBaseDir, GetIndexAt, IndexAtData, Notification, Request, Response
from ciruela.seams import Address, Link

MOST_ANSWERS = 3
"""Nodes that are asked: as many as an upload connects to. They may differ while something is on its way."""

MOST_TRIES = 12
"""Addresses that are tried for these answers."""


class _Quiet:
    """The counterpart of a connection on which only questions are asked."""

    def requested(self, link: Link, request: Request) -> Deferred[Response]:  # noqa: ARG002
        return fail(RemoteError("this client only asks"))

    def notified(self, link: Link, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def lost(self, link: Link) -> None:
        """A question fails with it."""


@dataclass(slots=True)
class Sight:
    """What nodes of a cluster say of one path. ``problems`` are those of nodes that did not say anything, as they came."""

    vpath: VPath
    answers: dict[str, BaseDirData] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def states(self) -> Mapping[str, State]:
        """What is there, or on its way, by the name of the node."""
        entry = self.vpath.entry
        return {name: answer.dirs[entry] for name, answer in self.answers.items() if entry in answer.dirs}

    @property
    def newest(self) -> State | None:
        """The newest version that a node has."""
        return max(self.states.values(), key=lambda state: state.version, default=None)

    @property
    def kept(self) -> dict[ImageId, tuple[Version, list[str]]]:
        """The replaced images that nodes keep, each with its newest version and the nodes; the one that was replaced last first.

        Those that are current where most is known are left out.
        """
        found: dict[ImageId, tuple[Version, list[str]]] = {}
        rows = [(at, version, name) for name, answer in self.answers.items() for at, version in enumerate(answer.kept.get(self._entry, ()))]
        for _, version, name in sorted(rows, key=lambda row: (row[0], -row[1].timestamp_ms)):
            known, names = found.get(version.image, (version, []))
            found[version.image] = (max(known, version), [*names, name])
        if self.newest is not None:
            found.pop(self.newest.image, None)
        return found

    @property
    def _entry(self) -> str:
        return self.vpath.entry

    def with_image(self, image: ImageId) -> list[str]:
        """The nodes that have this image."""
        return [name for name, state in self.states.items() if state.image == image]


async def look(name: str, vpath: VPath, world: World) -> Sight:
    """Ask up to three nodes, found by the entry point ``name``. Raises what resolving it raises, and LinkLost when no node answers."""
    sight = Sight(vpath)
    entries = await world.resolve(name)
    waiting: list[tuple[str, Address]] = [(str(address) if len(entries) > 1 else name, address) for address in entries]
    world.rng.shuffle(waiting)
    seen = {address for _, address in waiting}
    tries = 0
    while waiting and len(sight.answers) < MOST_ANSWERS and tries < MOST_TRIES:
        tries += 1
        label, address = waiting.pop(0)
        for host in await _ask_one(label, address, sight, world):
            try:
                found = [one for one in await world.resolve(host) if reachable_from(entries, one) and one not in seen]
            except CiruelaError as error:
                sight.problems.append(f"{host}: {error}")
                continue
            seen.update(found[:1])
            waiting += [(host, one) for one in found[:1]]
    if not sight.answers:
        raise LinkLost("; ".join(sight.problems) or f"{name} has no address")
    return sight


async def _ask_one(label: str, address: Address, sight: Sight, world: World) -> list[str]:
    """Add the answer of one node, or its problem; gives the names of the others that take the directory."""
    try:
        link: ClosableLink = await world.connect(address, _Quiet())
    except CiruelaError as error:
        sight.problems.append(str(error) if label in str(error) else f"{label}: {error}")
        return []
    hosts: list[str] = []
    try:
        found = await _answer(link, GetIndexAt(str(sight.vpath)), world)
        hosts = list(found.hosts.values()) if isinstance(found, IndexAtData) else []
        answer = await _answer(link, GetBaseDir(str(sight.vpath.base)), world)
        if isinstance(answer, BaseDirData):
            sight.answers[label] = answer
    except CiruelaError as error:
        sight.problems.append(f"{label}: {error}")
    finally:
        link.close()
    return hosts


def _answer(link: Link, request: Request, world: World) -> Deferred[Response]:
    return within(link.ask(request), ANSWER_TIMEOUT_S, world.clock)
