"""What is said next, to whom, and how often."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.membership.broadcast import (
    BEAT_DATAGRAMS,
    MEMBER_RENEW_S,
    MOST_DATAGRAMS,
    MOST_HEAT,
    WATCH_RENEW_S,
    Composer,
    FactKind,
    Filling,
    TransmitQueue,
    heat_for,
    member_parts,
)
from ciruela.membership.cluster import Cluster
from ciruela.membership.notify import ANSWER_S, FAN_OUT, PROBES, AnswerCache, ProbeRotation, ReliableNotifier, beat_targets, choose
from ciruela.membership.packets import (
    MAX_PARTS,
    ROOM_BYTES,
    Ack,
    BaseHash,
    Complete,
    Deleted,
    DownloadFact,
    Header,
    Hooked,
    Item,
    MemberFact,
    Packet,
    WatchFact,
    body,
    decode,
    encode_item,
)
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from tests.measure import UnmeasuredTestCase
from tests.proof import shows

ME, A, B = (MachineId(bytes((letter,)) * 16) for letter in b"mab")
AT_A, AT_B = Address("10.0.0.1", 24783), Address("10.0.0.2", 24783)
PATH = VPath.parse("/app/web/v1")
ONE, TWO = ImageId(b"1" * 32), ImageId(b"2" * 32)
PLACES = [Address(f"10.1.0.{number}", 24783) for number in range(50)]


class RumorTests(SynchronousTestCase):
    """The order of facts."""

    def test_least_said_first(self) -> None:
        """News must not wait behind what was said ten times."""
        rumors: TransmitQueue[str] = TransmitQueue()
        rumors.put("old")
        rumors.said("old", 9)
        rumors.put("new")
        rumors.put("newer")
        self.assertEqual(list(rumors.hot()), ["new", "newer", "old"])
        rumors.said("new", 9)
        self.assertEqual(list(rumors.hot()), ["newer", "old", "new"])

    def test_cold_facts_take_turns(self) -> None:
        """Each base dir hash must come round, or a node that missed it stays behind."""
        rumors: TransmitQueue[int] = TransmitQueue()
        for key in range(5):
            rumors.put(key)
            rumors.said(key, 1)
        self.assertEqual((list(rumors.hot()), list(rumors.cold())), ([], [0, 1, 2, 3, 4]))
        rumors.said(0, 1)
        self.assertEqual(list(rumors.cold()), [1, 2, 3, 4, 0])
        rumors.put(3)
        self.assertEqual((list(rumors.hot()), list(rumors.cold())), ([3], [1, 2, 4, 0]))

    def test_fading(self) -> None:
        """Completions are news; said often enough they make room."""
        rumors: TransmitQueue[str] = TransmitQueue(fading=True)
        rumors.put("done")
        rumors.said("done", 2)
        self.assertIn("done", rumors)
        rumors.said("done", 2)
        self.assertNotIn("done", rumors)
        rumors.said("done", 2)
        self.assertEqual((len(rumors), list(rumors.hot()), list(rumors.cold())), (0, [], []))

    def test_bound(self) -> None:
        """A flood of facts must not fill the memory; what everybody has heard goes first."""
        rumors: TransmitQueue[int] = TransmitQueue(limit=3)
        for key in (1, 2, 3):
            rumors.put(key)
        rumors.said(2, 1)
        rumors.put(4)
        self.assertEqual((list(rumors.hot()), list(rumors.cold())), ([1, 3, 4], []))
        rumors.said(3, 9)
        rumors.put(5)
        self.assertEqual(list(rumors.hot()), [1, 4, 5])

    def test_heat(self) -> None:
        """The number of repetitions grows with the logarithm of the cluster."""
        self.assertEqual([heat_for(nodes) for nodes in (0, 2, 6, 1000)], [3, 6, 9, 30])
        self.assertEqual(heat_for(10**9), MOST_HEAT)


class TargetTests(SynchronousTestCase):
    """To whom."""

    def test_preferred_first(self) -> None:
        """Nodes that take a directory hear its news before others do."""
        rng = random.Random(1)
        for _ in range(20):
            chosen = choose(rng, PLACES[:3], PLACES)
            self.assertLessEqual(set(PLACES[:3]), set(chosen))
            self.assertEqual(len(set(chosen)), FAN_OUT)
        self.assertEqual(set(choose(rng, PLACES[:2], PLACES[:2])), set(PLACES[:2]))
        self.assertEqual(choose(rng, (), ()), [])

    def test_everybody_is_chosen(self) -> None:
        """A choice with a favorite would leave somebody out."""
        rng = random.Random(1)
        self.assertEqual({address for _ in range(200) for address in choose(rng, PLACES, ())}, set(PLACES))

    def test_probes_take_turns(self) -> None:
        """A node that was down must be found again when it comes back, and soon."""
        probes = ProbeRotation(random.Random(1))
        first = [address for _ in range(5) for address in probes.choose(PLACES[:10], 2)]
        again = [address for _ in range(5) for address in probes.choose(PLACES[:10], 2)]
        self.assertEqual((set(first), again), (set(PLACES[:10]), first))
        self.assertNotEqual(first, PLACES[:10])
        self.assertEqual(ProbeRotation(random.Random(1)).choose(PLACES[:1], 2), PLACES[:1])

    def test_beat(self) -> None:
        """Each beat reaches four living nodes and probes two others; alone, a node looks for six."""
        rng = random.Random(1)
        probes = ProbeRotation(rng)
        chosen = beat_targets(rng, probes, PLACES[:20], PLACES[20:])
        self.assertEqual([address in PLACES[:20] for address in chosen], [True] * FAN_OUT + [False] * PROBES)
        self.assertEqual(len(set(beat_targets(rng, probes, (), PLACES))), FAN_OUT + PROBES)
        self.assertEqual(len(beat_targets(rng, probes, PLACES[:3], PLACES[:3])), 3)


class TellingTests(SynchronousTestCase):
    """Completions until they are acknowledged."""

    def setUp(self) -> None:
        self.tellings = ReliableNotifier(limit=3)

    def due(self, now_s: float) -> list[tuple[VPath, MachineId]]:
        """What is due while all watches last."""
        return self.tellings.due(now_s, lambda vpath, machine: True)

    def test_backoff_until_acknowledged(self) -> None:
        """A lost completion must be said again, but a dead watcher must not be flooded."""
        self.assertTrue(self.tellings.begin(PATH, A, ONE, 0))
        times = []
        for tenth in range(1000):
            if self.due(tenth / 10):
                self.tellings.told(PATH, A, tenth / 10)
                times.append(tenth / 10)
        self.assertEqual(times, [0, 1, 3, 7, 15, 31, 61, 91])
        self.tellings.acked(PATH, A, TWO)
        self.assertEqual(self.due(200), [(PATH, A)])
        self.tellings.acked(PATH, A, ONE)
        self.assertEqual(self.due(200), [])
        self.assertFalse(self.tellings.begin(PATH, A, ONE, 200))
        self.assertEqual(self.due(200), [])
        self.assertTrue(self.tellings.begin(PATH, A, TWO, 200))
        self.assertEqual(self.due(200), [(PATH, A)])

    def test_end_of_watch(self) -> None:
        """Nobody is told of what nobody waits for."""
        self.tellings.begin(PATH, A, ONE, 0)
        self.assertEqual(self.tellings.due(0, lambda vpath, machine: False), [])
        self.assertEqual(len(self.tellings), 0)

    def test_restart_of_the_watcher(self) -> None:
        """Clients of a node that restarted have not heard what it acknowledged before."""
        self.tellings.begin(PATH, A, ONE, 0)
        self.tellings.begin(PATH, B, ONE, 0)
        self.tellings.acked(PATH, A, ONE)
        self.tellings.started_anew(A)
        self.assertEqual(self.due(0), [(PATH, B)])
        self.assertTrue(self.tellings.begin(PATH, A, ONE, 0))

    @shows("A34", "I6")
    def test_bound(self) -> None:
        """Forged watches must not fill the memory."""
        for number in range(5):
            self.tellings.begin(PATH, MachineId(b"%016d" % number), ONE, 0)
        self.assertEqual([int(machine) for _, machine in self.due(0)], [2, 3, 4])

    def test_answers(self) -> None:
        """Forged questions cannot draw more than one answer in five seconds for each node and image, and only so many at all."""
        answers = AnswerCache(limit=2)
        self.assertTrue(answers.due(A, PATH, ONE, 0))
        self.assertFalse(answers.due(A, PATH, ONE, 1))
        self.assertTrue(answers.due(B, PATH, ONE, 2))
        self.assertFalse(answers.due(B, PATH, TWO, 2))
        answers.expire(ANSWER_S)
        self.assertTrue(answers.due(A, PATH, ONE, ANSWER_S))
        self.assertFalse(answers.due(B, PATH, ONE, ANSWER_S))


class OwnFacts:
    """``Facts`` to be filled by tests."""

    def __init__(self) -> None:
        self.key_list: list[str] = ["app"]
        self.bases: dict[VPath, bytes] = {}
        self.fetching: list[DownloadFact] = []
        self.waiting: set[VPath] = set()
        self.images: dict[VPath, Version] = {}
        self.removed: list[tuple[VPath, ImageId, int]] = []
        self.removals: dict[VPath, Version] = {}
        self.bits = 0
        self.ended: list[Hooked] = []

    def keys(self) -> Sequence[str]:
        return self.key_list

    def base_hashes(self) -> Mapping[VPath, bytes]:
        return dict(self.bases)

    def downloads(self) -> Sequence[DownloadFact]:
        return list(self.fetching)

    def watching(self) -> Collection[VPath]:
        return self.waiting

    def committed(self, vpath: VPath) -> Version | None:
        return self.images.get(vpath)

    def due_bits(self, vpath: VPath) -> int:
        return self.bits

    def hooks(self) -> Sequence[Hooked]:
        return list(self.ended)

    def deleted(self) -> Sequence[tuple[VPath, ImageId, int]]:
        return self.removed

    def removal(self, vpath: VPath) -> Version | None:
        return self.removals.get(vpath)


class ComposerTests(UnmeasuredTestCase):
    """What goes into a datagram."""

    def setUp(self) -> None:
        self.facts = OwnFacts()
        self.cluster = Cluster(ME, 1, lambda: 1)
        self.cluster.configured({AT_A: "a", AT_B: "b"})
        self.lost: list[Item] = []
        self.now_ms = 5_000_000
        self.composer = Composer(ME, "me", self.facts, self.cluster, lambda: self.now_ms, self.lost.append)

    def said(self, groups: list[list[bytes]]) -> list[Item]:
        """The items of some datagrams, as they are read by others."""
        for group in groups:
            self.assertLessEqual(sum(map(len, group)), ROOM_BYTES)
        return [item for group in groups for item in decode(body(Header(ME, 1, 1), group)).items]

    def beat(self, now_s: float = 0.0, *extra: Item) -> list[Item]:
        """What one target of a beat hears."""
        self.composer.refresh(now_s, 10)
        return self.said(self.composer.beat(extra))

    def test_everything_is_said(self) -> None:
        """A fact that is never said does not exist for the others."""
        self.facts.bases = {PATH.base: b"h" * 32}
        self.facts.fetching = [DownloadFact(PATH, ONE, 3, True, False)]
        self.facts.waiting = {PATH}
        self.facts.removed = [(PATH, TWO, 9)]
        self.assertEqual(
            set(self.beat(0.0, Ack(PATH, ONE))),
            {
                Ack(PATH, ONE),
                MemberFact(ME, None, 5_000_000, "me", 0, 1, ("app",)),
                BaseHash(PATH.base, b"h" * 32),
                DownloadFact(PATH, ONE, 3, True, False),
                WatchFact(PATH, ME, 5_000_001),
                Deleted(PATH, TWO, 9),
            },
        )

    def test_what_ended_is_not_said(self) -> None:
        """A finished download must not look as if it went on."""
        self.facts.bases = {PATH.base: b"h" * 32}
        self.facts.fetching = [DownloadFact(PATH, ONE, 3, True, False)]
        self.facts.waiting = {PATH}
        self.beat()
        self.facts.bases, self.facts.fetching, self.facts.waiting = {}, [], set()
        self.assertEqual({type(item) for item in self.beat()}, {MemberFact})

    def test_renewal(self) -> None:
        """A watch and a membership get new stamps before they end elsewhere; in between only their age grows."""
        self.facts.waiting = {PATH}
        self.beat()
        self.now_ms += 1000
        watch = next(item for item in self.beat(WATCH_RENEW_S - 1) if isinstance(item, WatchFact))
        self.assertEqual(watch, WatchFact(PATH, ME, 5_000_001, 9000))
        self.now_ms -= 500_000
        watch = next(item for item in self.beat(WATCH_RENEW_S) if isinstance(item, WatchFact))
        self.assertEqual(watch, WatchFact(PATH, ME, 5_000_002, 0))
        member = next(item for item in self.beat(MEMBER_RENEW_S - 1) if isinstance(item, MemberFact))
        self.assertEqual((member.stamp, member.age_ms), (5_000_000, 59_000))
        member = next(item for item in self.beat(MEMBER_RENEW_S) if isinstance(item, MemberFact))
        self.assertGreater(member.stamp, 5_000_002)
        self.assertEqual(member.age_ms, 0)
        self.facts.key_list = ["app", "more"]
        again = next(item for item in self.beat(MEMBER_RENEW_S + 1) if isinstance(item, MemberFact))
        self.assertEqual((again.keys, again.stamp > member.stamp), (("app", "more"), True))

    def test_hearsay_is_passed_on_with_its_age(self) -> None:
        """Far nodes hear of watches and members only this way."""
        items = (
            WatchFact(PATH, B, 7, 100),
            MemberFact(B, str(AT_B), 8, "b", 0, 1, ("app",), 200),
            MemberFact(A, None, 9, "a", 0, 1, ("app",)),
        )
        self.cluster.heard(AT_A, Packet(Header(A, 1, 1), items), 10.0)
        for fact in ((FactKind.WATCH, (PATH, B)), (FactKind.MEMBER, (B, 0)), (FactKind.MEMBER, (A, 0))):
            self.composer.put(fact)
        self.cluster.expire(12.0)
        said = self.beat(12.0)
        self.assertIn(WatchFact(PATH, B, 7, 2100), said)
        self.assertIn(MemberFact(B, str(AT_B), 8, "b", 0, 1, ("app",), 2200), said)
        self.assertIn(MemberFact(A, str(AT_A), 9, "a", 0, 1, ("app",), 2000), said)
        self.cluster.expire(80.0)
        self.assertFalse(any(isinstance(item, WatchFact) for item in self.beat(80.0)))

    def test_completion_fades(self) -> None:
        """A completion is said some times and then no more; the base dir hash speaks for it."""
        self.facts.images[PATH] = Version(4, ONE)
        self.composer.put((FactKind.COMPLETE, PATH))
        times = sum(Complete(PATH, ONE, 4) in self.beat() for _ in range(50))
        self.assertEqual(times, heat_for(10))

    def test_change_is_hot_again(self) -> None:
        """A base dir that changes after a quiet hour is news."""
        self.facts.bases = {VPath(("app", f"{number:0200d}")): b"h" * 32 for number in range(20)}
        for _ in range(100):
            self.beat()
        changed = VPath(("app", f"{7:0200d}"))
        self.facts.bases[changed] = b"i" * 32
        self.composer.refresh(0.0, 10)
        news = self.said(self.composer.datagrams((), (), Filling.NEWS))
        self.assertEqual([item for item in news if isinstance(item, BaseHash)], [BaseHash(changed, b"i" * 32)])

    @shows("A35", "F26")
    def test_every_base_comes_round(self) -> None:
        """10,000 images in 1,000 base dirs: each hash is said within a minute, also while downloads make news all the time."""
        self.facts.bases = {VPath(("app", f"base{number}")): b"h" * 32 for number in range(1000)}
        for _ in range(300):
            self.beat()
        said: set[Item] = set()
        for turn in range(60 * FAN_OUT):
            self.facts.fetching = [DownloadFact(VPath(("app", f"v{number}")), ONE, turn, False, False) for number in range(100)]
            said.update(item for item in self.beat() if isinstance(item, BaseHash))
        self.assertEqual(len(said), 1000)

    def test_long_paths_are_not_passed_over(self) -> None:
        """A path of the longest kind must get its turn among short ones and a stream of news, and must not block them."""
        long = VPath(("app", "x" * 255, "y" * 255, "z" * 255, "w" * 240))
        self.facts.bases = {VPath(("app", f"base{number}")): b"h" * 32 for number in range(60)} | {long: b"h" * 32}
        self.facts.waiting = set(self.facts.bases)
        heard: dict[Item, int] = {}
        for turn in range(600):
            self.facts.fetching = [DownloadFact(VPath(("app", f"v{number}")), ONE, turn, False, False) for number in range(60)]
            for item in self.beat():
                heard[item] = heard.get(item, 0) + 1
        for kind in (BaseHash, WatchFact):
            counts = [count for item, count in heard.items() if isinstance(item, kind)]
            self.assertEqual(len(counts), 61, kind)
            self.assertGreater(min(counts), 2 * heat_for(10))

    @shows("I6")
    def test_limits_on_datagrams(self) -> None:
        """Ten thousand pieces of news in one turn must not become a burst of datagrams."""
        self.facts.bases = {VPath(("app", f"base{number}")): b"h" * 32 for number in range(2000)}
        self.composer.refresh(0.0, 10)
        facts = [(FactKind.BASE, base) for base in self.facts.bases]
        self.assertEqual(len(self.composer.datagrams(facts, (), Filling.NEWS)), MOST_DATAGRAMS)
        self.assertEqual(len(self.composer.beat(())), BEAT_DATAGRAMS)
        acks = [Ack(VPath(("app", f"{number:0200d}")), ONE) for number in range(11)]
        self.assertEqual(len(self.composer.beat(acks)), 3)

    def test_idle_beat_is_one_datagram(self) -> None:
        """A quiet cluster must cost next to nothing."""
        self.facts.bases = {VPath(("app", f"base{number}")): b"h" * 32 for number in range(50)}
        for _ in range(100):
            self.composer.refresh(0.0, 3)
            groups = self.composer.beat(())
        self.assertEqual(len(groups), 1)
        self.assertEqual(len(set(self.said(groups))), len(self.said(groups)))

    def test_nothing_else_in_an_answer(self) -> None:
        """An answer that is longer than its question would make us a tool for floods (threats U25)."""
        self.facts.bases = {PATH.base: b"h" * 32}
        self.composer.refresh(0.0, 10)
        self.assertEqual(self.said(self.composer.datagrams((), (Ack(PATH, ONE),), Filling.NOTHING)), [Ack(PATH, ONE)])

    def test_oversized_item_is_reported(self) -> None:
        """What cannot be said must not block the rest, nor vanish without a word."""
        huge = VPath(("app", "x" * 2000))
        self.facts.bases = {huge: b"h" * 32, PATH.base: b"h" * 32}
        said = self.beat()
        self.assertIn(BaseHash(PATH.base, b"h" * 32), said)
        self.assertEqual(self.lost, [BaseHash(huge, b"h" * 32)])

    @shows("A35", "F26")
    @settings(max_examples=30, derandomize=True, deadline=None, database=None)
    @given(st.lists(st.tuples(st.sampled_from(["base", "load", "wait", "done"]), st.integers(1, 980)), max_size=40), st.integers(0, 9))
    def test_no_datagram_is_too_long(self, facts: list[tuple[str, int]], extra: int) -> None:
        """A datagram beyond 1,400 bytes is cut by IP, and lost with any of its pieces (threats A35)."""
        self.setUp()
        for number, (kind, length) in enumerate(facts):
            name = f"{number:04d}" + "x" * length
            path = VPath(("app", *(name[start : start + 250] for start in range(0, len(name), 250))))
            match kind:
                case "base":
                    self.facts.bases[path] = b"h" * 32
                case "load":
                    self.facts.fetching.append(DownloadFact(path, ONE, None, False, False))
                case "wait":
                    self.facts.waiting.add(path)
                case "done":
                    self.facts.images[path] = Version(1, ONE)
                    self.composer.put((FactKind.COMPLETE, path))
        for _ in range(5):
            self.beat(0.0, *[Ack(PATH, ImageId(b"%032d" % number)) for number in range(extra)])
        self.assertEqual(self.lost, [])

    def test_member_parts(self) -> None:
        """A node with a thousand directories tells of all; with more than can be told it says so to its operator."""
        keys = [f"directory-{number:05d}" for number in range(1000)]
        parts = member_parts(ME, 1, "h" * 255, keys)
        self.assertEqual([key for part in parts for key in part.keys], keys)
        self.assertLessEqual(max(len(encode_item(part)) for part in parts), ROOM_BYTES)
        self.assertEqual({(part.part, part.parts) for part in parts}, {(number, len(parts)) for number in range(len(parts))})
        self.assertEqual(member_parts(ME, 1, "h", []), [MemberFact(ME, None, 1, "h", 0, 1, ())])
        self.beat()
        self.assertTrue(self.composer.complete_list)
        self.facts.key_list = [f"{number:0100d}" for number in range(MAX_PARTS * 7)]
        self.beat()
        self.assertFalse(self.composer.complete_list)
