"""Several nodes that compare their base dirs in any order end with the same, and lose nothing that was acknowledged. Pure."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.config import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.upload import Accepted, Command, Origin, Rejection, Removal, UploadRequest
from ciruela.model.versions import SigEntry, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import RemovedEntry
from ciruela.reconcile.diff import better, removal_in, removals_in, wanted
from ciruela.tracking.ledger import base_dir_hash
from ciruela.uploads.decision import Elsewhere, PathState, judge, judge_removal
from tests.proof import shows

BASE = VPath.parse("/app")
V1 = BASE.image_at("v1")
IMAGES = [ImageId(bytes([number]) * 32) for number in range(1, 5)]
START = 1_700_000_000_000


class Member:
    """One node: the state at one path, and what was removed from it."""

    def __init__(self, config: DirConfig) -> None:
        self.config = config
        self.state: State | None = None
        self.burials = Tombstones()

    def entries(self) -> dict[str, State]:
        return {} if self.state is None else {"v1": self.state}

    def removed(self) -> dict[str, RemovedEntry]:
        told = self.config.append_only or self.state is None
        return {
            name: RemovedEntry(one.version.timestamp_ms, one.version.image, ())
            for name, one in self.burials.tombstones.items()
            if told or self.state is None or self.state.version < one.version
        }

    def hash(self) -> bytes:
        removed = {name: Version(one.timestamp_ms, one.image) for name, one in self.removed().items()}
        return base_dir_hash(self.entries(), removed, self.config.append_only)

    def standing(self, elsewhere: Elsewhere | None = None) -> PathState:
        gone = removal_in(self.burials, "v1")
        return PathState(self.state, None, False, gone, 0, gone, elsewhere or Elsewhere())

    def order(self, order: UploadRequest, now_ms: int, elsewhere: Elsewhere | None = None) -> bool:
        verdict = judge(order, self.config, self.standing(elsewhere), order.signatures, now_ms)
        if isinstance(verdict, Rejection):
            return False
        assert isinstance(verdict, Accepted)
        makers = {entry: str(entry.signature[0]) for entry in verdict.state.signatures}
        self.state = verdict.state.compact(makers, claim=self.config.append_only)
        return True

    def remove(self, removal: Removal, now_ms: int) -> bool:
        signed = (SigEntry(removal.timestamp_ms, bytes(64)),)
        verdict = judge_removal(removal, self.standing(), signed, now_ms, append_only=self.config.append_only)
        if isinstance(verdict, Rejection):
            return False
        if verdict.fresh:
            self.burials = self.burials.with_one("v1", Tombstone(removal.version, now_ms, (bytes(64),)))
            self.state = self.state.since(removal.version) if verdict.outlived and self.state is not None else None
        return True

    def pull(self, others: list[Member], now_ms: int) -> None:
        """Compare with ``others``, merge what they want of us, and carry it out."""
        best: UploadRequest | None = None
        for other in others:
            append_only = self.config.append_only
            for removal in removals_in(BASE, self.entries(), other.removed(), self.burials, append_only):
                self.remove(removal, now_ms)
            for order in wanted(BASE, self.entries(), other.entries(), self.burials, append_only):
                best = order if best is None else better(order, best, removal_in(self.burials, "v1"), append_only)
        if best is not None:
            self.order(best, now_ms)


class Story:
    """Clients, partitions and comparisons, drawn by a seed."""

    def __init__(self, seed: int, append_only: bool, partitions: bool) -> None:
        self.rng = random.Random(seed)
        self.config = DirConfig("app", "/srv/app", append_only=append_only, num_levels=1)
        self.members = [Member(self.config) for _ in range(self.rng.randint(2, 5))]
        self.groups = [list(self.members)]
        self.partitions = partitions
        self.now_ms = START
        self.acked: ImageId | None = None

    def step(self) -> None:
        self.now_ms += self.rng.choice((0, 1, 1, 5))
        match self.rng.randrange(10):
            case 0 if self.partitions:
                self.split()
            case 1 if self.rng.random() < 0.4:
                self.remove()
            case 2 | 3 | 4:
                self.append()
            case 5 if not self.partitions:
                self.wipe()
            case _:
                group = self.rng.choice(self.groups)
                one = self.rng.choice(group)
                one.pull(self.rng.choices(group, k=self.rng.randint(1, 2)), self.now_ms)

    def split(self) -> None:
        members = self.rng.sample(self.members, len(self.members))
        cut = self.rng.randint(0, len(members) - 1)
        self.groups = [group for group in (members[:cut], members[cut:]) if group]

    def wipe(self) -> None:
        """A node is replaced by an empty one, unless nobody else has what it has."""
        one = self.rng.choice(self.members)
        others = [other for other in self.members if other is not one]
        images = {other.state.image for other in others if other.state is not None}
        if (one.state is None or one.state.image in images) and any(other.burials == one.burials for other in others):
            self.members[self.members.index(one)] = Member(self.config)
            self.groups = [list(self.members)]

    def append(self) -> None:
        image, key = self.rng.choice(IMAGES), self.rng.randint(1, 3)
        entry = SigEntry(self.now_ms - self.rng.randrange(3), bytes([key]) * 64)
        group = self.rng.choice(self.groups)
        for one in self.rng.sample(group, self.rng.randint(1, len(group))):
            others = [other.state.version for other in group if other is not one and other.state is not None]
            command = Command.APPEND if self.config.append_only else Command.REPLACE
            order = UploadRequest(command, V1, image, None, (entry,), Origin.CLIENT)
            if one.order(order, self.now_ms, Elsewhere(frozenset(others))):
                self.acked = image

    def remove(self) -> None:
        group = self.rng.choice(self.groups)
        one = self.rng.choice(group)
        if one.state is not None:
            wish = Removal(V1, one.state.image, self.now_ms, (bytes(64),), Origin.CLIENT)
            if one.remove(wish, self.now_ms):
                self.acked = None

    def settle(self) -> None:
        self.groups = [list(self.members)]
        for _ in range(6):
            self.now_ms += 1
            for one in self.rng.sample(self.members, len(self.members)):
                for other in self.members:
                    one.pull([other], self.now_ms)


class ConvergenceTests(SynchronousTestCase):
    """The same in the end, on every node."""

    @shows("K2.1", "I5", "A51")
    def test_all_agree(self):
        """After a partition the nodes would disagree for ever, or change places for ever."""
        for append_only in (True, False):
            for seed in range(400):
                story = Story(seed, append_only, partitions=True)
                for _ in range(story.rng.randint(5, 60)):
                    story.step()
                story.settle()
                states = {one.state and (one.state.version, one.state.claim() if append_only else None) for one in story.members}
                self.assertEqual(len(states), 1, f"seed {seed}, append-only {append_only}")
                self.assertEqual(len({one.hash() for one in story.members}), 1, f"seed {seed}, append-only {append_only}")

    @shows("K2.1", "K2.3", "I2")
    def test_acknowledged_stays(self):
        """Without a partition what was appended and acknowledged would be displaced, by a node that is behind or was replaced."""
        for seed in range(400):
            story = Story(seed, append_only=True, partitions=False)
            for _ in range(story.rng.randint(5, 60)):
                acked, before = story.acked, {one: one.state for one in story.members}
                story.step()
                for one in story.members:
                    was = before.get(one)
                    if acked == story.acked and was is not None and was.image == acked and one.state is not None:
                        self.assertEqual(one.state.image, acked, f"seed {seed}")
            story.settle()
            if story.acked is not None:
                self.assertEqual({one.state and one.state.image for one in story.members}, {story.acked}, f"seed {seed}")

    @shows("K3.6")
    def test_signatures_stay_few(self):
        """A state that is merged again and again would grow beyond what a peer reads."""
        for seed in range(200):
            story = Story(seed, append_only=True, partitions=True)
            for _ in range(200):
                story.step()
            for one in story.members:
                self.assertLessEqual(0 if one.state is None else len(one.state.signatures), 4)
