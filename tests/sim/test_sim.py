"""Some seeds of the simulator, and the proof that it would notice."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.defer import succeed

import ciruela.uploads.service as uploads
from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.membership import cluster
from ciruela.model.upload import Accepted, Progress, Rejection, RejectReason
from ciruela.model.versions import State
from ciruela.reconcile.service import Reconciler
from ciruela.uploads import decision
from ciruela.uploads.neighbours import Neighbours
from tests.doubles.memnet import MemoryLink
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.sim.invariants import agree, check
from tests.sim.plans import AGREE_S, BY_NAME, drawn, play, settle
from tests.sim.seeds import PINNED
from tests.sim.universe import Universe, Violation

FRESH = range(900_000, 900_004)


class Plan(RuleBasedStateMachine):
    """The same moves in an order that hypothesis chooses and makes shorter."""

    @initialize(seed=st.integers(0, 50))
    def begin(self, seed: int) -> None:
        self.universe = Universe(seed, 5)
        self.universe.__enter__()
        self.rng = random.Random(seed)

    @rule(name=st.sampled_from(sorted(BY_NAME)), pause_s=st.sampled_from((0.0, 0.5, 3.0)))
    def move(self, name: str, pause_s: float) -> None:
        BY_NAME[name](self.universe, self.rng)
        self.universe.run(pause_s)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "universe"):
            check(self.universe)
            assert self.universe.violations == [], self.universe.violations

    def teardown(self) -> None:
        if hasattr(self, "universe"):
            settle(self.universe)
            self.universe.run(AGREE_S, until=lambda: agree(self.universe))
            agreed = agree(self.universe)
            self.universe.__exit__(None, None, None)
            assert agreed


class SeedTests(UnmeasuredTestCase):
    """Whole clusters with everything that may happen to them."""

    @shows("I1", "I2", "I4", "I5", "I6", "I8", "I10", "I11", "A43", "A44", "A45", "A51", "A52", "A53", "A54", "F38", "F46", "F48", "G9")
    def test_fresh(self) -> None:
        """A plan that nobody thought of would lose, mix or forget a directory."""
        for seed in FRESH:
            play(seed, drawn(seed))

    def test_pinned(self) -> None:
        """A fault that a seed once found would come back."""
        for seed in PINNED:
            play(seed, drawn(seed))

    def test_hypothesis(self) -> None:
        """The same, with plans that become shorter when they fail."""
        Plan.TestCase.settings = settings(derandomize=True, deadline=None, database=None, max_examples=4, stateful_step_count=10)
        Plan.TestCase("runTest").debug()

    def test_repeatable(self) -> None:
        """A seed that fails on one machine could not be looked at on another."""
        stories: list[list[str]] = [[], []]
        for story in stories:
            play(3, drawn(3), story.append)
        self.assertEqual(stories[0], stories[1])
        self.assertGreater(len(stories[0]), 8)


class NoticeTests(UnmeasuredTestCase):
    """What the invariants are for: each of these faults is put in, and a seed has to find it."""

    def noticed(self, row: str, *seeds: int) -> None:
        for seed in seeds:
            try:
                play(seed, drawn(seed))
            except Violation as violation:
                self.assertIn(f"  {row}: ", str(violation))
                return
        self.fail(f"nobody noticed: {row}")

    def test_nothing_synced(self) -> None:
        """A power cut after an acknowledgement that came too early."""
        for kind in (SafeDir, OpenFile):
            self.patch(kind, "fsync", lambda _: None)
        self.patch(SafeDir, "syncfs", lambda _: None)
        self.noticed("I1", 2)

    def test_old_requests(self) -> None:
        """A recorded request that rolls a path back."""
        real = uploads.judge

        def judge(order, config, standing, verified, now_ms, max_age_ms=0):  # type: ignore[no-untyped-def]
            decision = real(order, config, standing, verified, now_ms, 1 << 60)
            if isinstance(decision, Rejection) and decision.reason is RejectReason.STALE_TIMESTAMP:
                return Accepted(Progress.NEW, State(order.image, tuple(sorted(verified))))
            return decision

        self.patch(uploads, "judge", judge)
        self.noticed("I10", 0, 28, 30)

    def test_ghosts(self) -> None:
        """A process that is gone and goes on, on the disk of the one that was started after it."""

        def breaks(link: MemoryLink, reason: str, delay_s: float) -> None:
            link._hub.clock.callLater(delay_s, link.broke, reason)

        self.patch(MemoryLink, "breaks", breaks)
        self.noticed("I8", 1003, 25, 11)

    def test_unsigned(self) -> None:
        """A node that believes what others say."""
        real = uploads.judge

        def judge(order, config, standing, verified, now_ms, max_age_ms=0):  # type: ignore[no-untyped-def]
            return real(order, config, standing, verified or order.signatures, now_ms, max_age_ms)

        self.patch(uploads, "judge", judge)
        self.noticed("I4", 26, 56, 55)

    @shows("K1.1")
    def test_who_was_never_met(self) -> None:
        """A server of which nothing was heard, taken for one that is not there."""
        real = cluster.servers
        self.patch(cluster, "servers", lambda places, key: [row for row in real(places, key) if row.machine is not None])
        self.noticed("K1.1", 45, 2)

    @shows("K2.1")
    def test_later_append(self) -> None:
        """A later append that takes the place of an acknowledged one, at nodes that ask nobody and go by the newest signature."""
        self.patch(decision, "_by_claim", lambda wish, _config, standing: decision._by_version(wish, standing))
        self.patch(Neighbours, "ask", lambda *_: succeed(decision.NOWHERE))
        self.noticed("I10", 299)

    def test_no_reconciliation(self) -> None:
        """Nodes that were away and never catch up."""
        self.patch(Reconciler, "differs", lambda *_: None)
        self.noticed("I5", 11, 12)
