"""Asking some nodes of a cluster what is at a path, before anything is signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import partial
from typing import TypeVar

from ciruela.client.contacts import ClosableLink, ClusterAddresses, OnlyAsks, RunContext
from ciruela.client.crawl import MOST_ANSWERS, ServerSearch, answer_of, spare
from ciruela.client.options.signing import ClusterNames
from ciruela.client.survey import Survey
from ciruela.interfaces import Address
from ciruela.model.errors import CiruelaError, LinkLost, NoImages, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import (
    BaseDirData,
    GetBaseDir,
    GetIndexAt,
    GetPathState,
    IndexAtData,
    PathStateData,
    Request,
)

T = TypeVar("T")

NO_CONFIG = "No such config"
"""The answer to GetBaseDir of a node that does not have the directory, ours and the reference's."""


class NotTold(LinkLost):
    """Nodes were reached, and none said what is at the path."""


@dataclass(slots=True)
class PathView:
    """View of one path, as nodes of a cluster tell it.

    ``problems`` are those of nodes that did not say anything, as they came. ``silent`` are the nodes among them that may have something
    there all the same: what they have is not known, which is not the same as nothing. ``met`` nodes could be connected to.
    """

    vpath: VPath
    answers: dict[str, BaseDirData] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    met: int = 0

    @property
    def states(self) -> Mapping[str, State]:
        """States of what is there, or on its way, by the name of the node."""
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

    def unheard(self, name: str, text: str) -> None:
        """A node, or whatever ``name`` stands for, did not say what it has."""
        self.problems.append(text)
        self.silent.append(name)

    def with_image(self, image: ImageId) -> list[str]:
        """The nodes that have this image."""
        return [name for name, state in self.states.items() if state.image == image]


async def look(name: str, vpath: VPath, world: RunContext) -> PathView:
    """Ask up to three nodes, found by the entry point ``name``.

    Raises LinkLost when the name has no address, or no node can be reached, and NotTold when none that is reached says what is there.
    """
    sight = PathView(vpath)
    places = ClusterAddresses((name,), world.resolve, world.clock)
    if not await places.entries():
        raise LinkLost(places.problems[name])

    def lost(host: str, why: str) -> None:
        sight.unheard(host, f"{host}: {why}")

    search = ServerSearch(places, world.rng, partial(_ask_one, sight, world), lost)
    await search.run(lambda: len(sight.answers), MOST_ANSWERS)
    if not sight.answers:
        kind = NotTold if sight.met else LinkLost
        raise kind("; ".join(sight.problems))
    return sight


async def _ask_one(sight: PathView, world: RunContext, address: Address, label: str) -> list[str]:
    """Add the answer of one node, or its problem; gives the names of the others that take the directory."""
    try:
        link: ClosableLink = await world.connect(address, OnlyAsks())
    except CiruelaError as error:
        sight.unheard(label, str(error) if label in str(error) else f"{label}: {error}")
        return []
    sight.met += 1
    hosts: list[str] = []
    try:
        spare(link.bulk, sight.vpath)
        others = await _told(link, GetIndexAt(str(sight.vpath)), IndexAtData, world)
        hosts = list(others.hosts.values()) if others is not None else []
        state = await _told(link, GetPathState(str(sight.vpath)), PathStateData, world) if link.bulk else None
        answer = await answer_of(link, GetBaseDir(str(sight.vpath.base)), world)
        if not isinstance(answer, BaseDirData):
            raise RemoteError(f"unexpected {type(answer).__name__}")
        if state is None or state.taken:
            sight.answers[label] = answer
        else:
            sight.problems.append(f"{label}: it takes no image at {sight.vpath}")
    except CiruelaError as error:
        text = f"{label}: {error}"
        if isinstance(error, NoImages) or str(error) == NO_CONFIG:
            sight.problems.append(text)
        else:
            sight.unheard(label, text)
    finally:
        link.close()
    return hosts


async def _told(link: ClosableLink, request: Request, kind: type[T], world: RunContext) -> T | None:
    """The answer of a node; None where it does not tell. That is no reason to ask it nothing else."""
    try:
        found = await answer_of(link, request, world)
    except RemoteError:
        return None
    return found if isinstance(found, kind) else None


# -- better words for what is wrong -------------------------------------------------------------------------------------------


async def levels_of(cluster: ClusterNames, vpath: VPath, survey: Survey) -> int | None:
    """The ``num-levels`` of the directory that a path is in, as the first node has it that tells; None when none does."""
    try:
        for node in (await survey.find(cluster)).answering:
            for one in await survey.dirs(node):
                if one.key == vpath.key:
                    return one.num_levels
    except CiruelaError:
        return None  # what is wrong is told already: this only finds better words
    return None


def wrong_depth(vpath: VPath, levels: int | None) -> str:
    """Says in words what is wrong with a path that has too few or too many components."""
    wanted = f"/{vpath.key}" + "/NAME" * (levels or 0)
    much = "many" if vpath.level > (levels or 0) else "few"
    return f"{vpath} cannot have an image, it has too {much} components: images of /{vpath.key} are at {wanted} (num-levels: {levels})"


async def claimed_signers(cluster: ClusterNames, vpath: VPath, image: ImageId, survey: Survey | None) -> tuple[str, ...]:
    """The fingerprints of the keys that signed ``image``, as nodes tell them: nothing to rely on, but somebody to ask."""
    found: dict[str, None] = {}
    if survey is None:
        return ()
    try:
        for node in (await survey.find(cluster)).answering[:MOST_ANSWERS]:
            there = (await survey.at(node, vpath)).committed
            if there is not None and there.image == image.hex():
                found.update(dict.fromkeys(there.signers))
    except CiruelaError:
        return tuple(found)  # that the image is not verified is told in any case
    return tuple(found)
