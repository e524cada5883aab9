"""The verdict on one upload to one cluster."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.require import Requirement, parse_requirement
from ciruela.client.tracker import (
    ERROR_RETRIES,
    EXIT_CONFLICT,
    EXIT_DONE,
    EXIT_HOOK,
    EXIT_LOCAL,
    EXIT_NETWORK,
    EXIT_NOTHING,
    EXIT_PARTIAL,
    EXIT_REJECTED,
    MAX_MACHINES,
    CompletionRule,
    ConnectionReach,
    UploadOutcome,
    UploadTracker,
    refusal_code,
    worst,
)
from ciruela.interfaces import Address
from ciruela.model.ids import ImageId, MachineId, Server
from ciruela.model.upload import RejectReason
from ciruela.model.versions import Version
from ciruela.proto.messages import AbortedImage, PathStateData, ReceivedImage, UploadAck
from tests.proof import shows

IMAGE = ImageId(b"\x11" * 32)
OTHER = ImageId(b"\x12" * 32)
PATH = "/apps/v1"
SETTLED = ConnectionReach(busy=False, exhausted=True)
OPEN = ConnectionReach(busy=False, exhausted=False)
BUSY = ConnectionReach(busy=True, exhausted=False)
RULE = CompletionRule()


def machine(number: int) -> MachineId:
    return MachineId(number.to_bytes(16, "big"))


def address(number: int) -> Address:
    return Address(f"10.0.0.{number}", 24783)


class BookCase(SynchronousTestCase):
    weak = False

    def setUp(self) -> None:
        self.book = UploadTracker(PATH, IMAGE, self.weak)

    def ack(self, number: int, hosts: range | list[int], reason: str | None = None) -> None:
        """Node ``number`` is asked and answers; ``hosts`` are the nodes it knows, itself left out as nodes do."""
        self.book.asked(address(number), f"10.0.0.{number}")
        known = {machine(other): f"n{other}" for other in hosts if other != number}
        self.book.answered(address(number), UploadAck(reason is None, reason, known))

    def got(self, via: int, number: int, image: ImageId = IMAGE, path: str = PATH) -> bool:
        note = ReceivedImage(image, path, machine(number), f"n{number}", via != number)
        return self.book.received(address(via), note)

    def gave_up(self, number: int, reason: str) -> bool:
        return self.book.aborted(address(number), AbortedImage(IMAGE, PATH, machine(number), f"n{number}", False, reason))

    def expect(
        self,
        outcome: UploadOutcome,
        elapsed_s: float = 1.0,
        reach: ConnectionReach = OPEN,
        code: int | None = None,
        rule: CompletionRule = RULE,
    ) -> None:
        verdict = self.book.verdict(rule, elapsed_s, reach)
        self.assertIs(verdict.outcome, outcome, verdict)
        if code is not None:
            self.assertEqual(verdict.exit_code, code, verdict)
        self.assertEqual(bool(verdict.why), outcome not in (UploadOutcome.RUNNING, UploadOutcome.DONE))


class Counting(BookCase):
    def numbers(self) -> tuple[int, int]:
        standing = self.book.standing()
        return standing.done, standing.expected

    def test_answering_node_counts(self) -> None:
        """A node never lists itself: without counting it, a cluster of one would be complete with nobody (C25)."""
        self.ack(1, range(1, 2))
        self.assertEqual(self.numbers(), (0, 1))

    def test_same_nodes_seen_by_three(self) -> None:
        """Three nodes that list each other are three, not six: the user sees 0/3."""
        for number in (1, 2, 3):
            self.ack(number, range(1, 4))
        self.assertEqual(self.numbers(), (0, 3))

    def test_large_cluster(self) -> None:
        """Of 40 nodes of which three were asked, 40 are expected before and after they report themselves."""
        for number in (1, 2, 3):
            self.ack(number, range(1, 41))
        self.assertEqual(self.numbers(), (0, 40))
        self.got(1, 1)
        self.got(1, 2)
        self.got(3, 3)
        self.assertEqual(self.numbers(), (3, 40))

    @shows("A29", "F54", "I7")
    def test_made_up_machines_are_not_enough(self) -> None:
        """One server that speaks of many machines that do not exist would make a release "enough" that two real nodes out of three lack."""
        for number in (1, 2):
            self.ack(number, range(1, 3))
        self.ack(3, range(50, 250))
        self.got(1, 1)
        self.got(3, 3)
        for number in range(50, 250):
            self.got(3, number)
        self.assertEqual(self.book.done_machines(), 2)
        self.gave_up(2, "no_space")
        self.expect(UploadOutcome.FAILED, 60.0, code=EXIT_NETWORK)
        self.got(2, 2)
        self.expect(UploadOutcome.DONE, 60.0)

    def test_only_one_server(self) -> None:
        """Where only one node can be reached, what it says of the others is all there is."""
        self.ack(1, range(1, 21))
        for number in range(1, 18):
            self.got(1, number)
        self.assertEqual(self.book.done_machines(), 17)
        self.expect(UploadOutcome.EARLY, 60.0)

    def test_nodes_that_do_not_know_each_other(self) -> None:
        """Two nodes without peers are two: one that is done is not the whole cluster."""
        self.ack(1, [])
        self.ack(2, [])
        self.got(1, 1)
        self.assertEqual(self.numbers(), (1, 2))

    def test_refusing_node_is_not_one_that_is_done(self) -> None:
        """A node that refused must not be taken for one that somebody else reported as done."""
        self.ack(1, [2])
        self.got(1, 1)
        self.got(1, 2)
        self.ack(3, [], "signature_mismatch")
        self.assertEqual(self.numbers(), (2, 3))
        self.expect(UploadOutcome.RUNNING)

    def test_refusing_node_takes_a_place(self) -> None:
        """A machine that may be the node that refused cannot also stand for one that accepted."""
        self.ack(3, [5], "no_config")
        self.ack(1, [])
        self.ack(2, [], "signature_mismatch")
        self.assertEqual(self.numbers(), (0, 2))

    def test_names(self) -> None:
        """The display names who is missing and who failed, and why."""
        self.ack(1, range(1, 5))
        self.got(1, 1)
        self.got(1, 2)
        self.gave_up(3, "no_space")
        standing = self.book.standing()
        self.assertEqual((standing.missing, standing.failed, standing.accepted), (("n4",), (("n3", "no_space"),), ("10.0.0.1",)))

    @shows("A29", "F54", "I6")
    def test_made_up_machines(self) -> None:
        """A server that invents machines without end must not fill the memory of the client (A29)."""
        self.ack(1, range(MAX_MACHINES + 50))
        self.assertFalse(self.got(1, MAX_MACHINES + 60))
        self.assertLessEqual(self.numbers()[1], MAX_MACHINES + 1)


class RowCase(BookCase):
    """Nodes of ours name themselves in their answers, and tell which servers they know."""

    def named(self, number: int, reason: str | None = None, where: int | None = None) -> None:
        place = address(where or number)
        self.book.asked(place, f"10.0.0.{number}", servers=True)
        self.book.answered(place, UploadAck(reason is None, reason, {}, machine(number), f"n{number}"))

    def tells(self, number: int, *servers: Server, **fields: object) -> None:
        self.book.said(address(number), PathStateData(machine(number), f"n{number}", 1, True, servers=servers, **fields))  # type: ignore[arg-type]

    def server(self, number: int, heard_ms: int | None = 100) -> Server:
        return Server(f"n{number}", machine(number), (str(address(number)),), heard_ms)

    def numbers(self) -> tuple[int, int]:
        standing = self.book.standing()
        return standing.done, standing.expected

    def unreached(self, *numbers: int) -> ConnectionReach:
        return ConnectionReach(busy=False, exhausted=False, unreached=frozenset(str(address(number)) for number in numbers))


class Rows(RowCase):
    @shows("K1.6")
    def test_refused_and_got_it(self) -> None:
        """A node that refused, and then got the image from a peer, would count once by its address and once by its machine."""
        for number in (1, 2, 3):
            self.named(number, "already_exists" if number == 3 else None)
            self.tells(number, *(self.server(other) for other in (1, 2, 3) if other != number))
        self.assertEqual(self.numbers(), (0, 3))
        for number in (1, 2):
            self.got(number, number)
        self.got(1, 3)
        self.assertEqual(self.numbers(), (3, 3))
        self.assertEqual(self.book.standing().failed, ())
        self.expect(UploadOutcome.DONE)

    @shows("K1.6")
    def test_two_addresses(self) -> None:
        """A server that is met at two addresses would be expected twice, and fail twice."""
        self.named(1)
        self.named(2, "signature_mismatch")
        self.named(2, "signature_mismatch", where=12)
        self.tells(1, self.server(2), self.server(3))
        self.assertEqual(self.numbers(), (0, 3))
        self.got(1, 1)
        self.expect(UploadOutcome.RUNNING, 60.0)
        self.assertEqual(self.book.standing().failed, (("n2", "signature_mismatch"),))

    def test_waits_for_the_first_word(self) -> None:
        """A node that takes the image faster than it tells of the others would be all there is."""
        self.named(1)
        self.got(1, 1)
        self.expect(UploadOutcome.RUNNING)
        self.book.said_nothing(address(1))
        self.expect(UploadOutcome.DONE)

    @shows("K1.1", "I7")
    def test_own_word(self) -> None:
        """What others say of a node that we are connected to is hearsay, although its answer gave its machine id."""
        for number in (1, 2):
            self.named(number)
            self.tells(number, self.server(3 - number))
        self.got(1, 1)
        self.got(1, 2)
        self.expect(UploadOutcome.RUNNING)
        before = self.book.revision
        self.assertFalse(self.got(2, 2), "it is no news")
        self.assertGreater(self.book.revision, before)
        self.expect(UploadOutcome.DONE)

    @shows("K7.2", "I7")
    def test_word_of_others(self) -> None:
        """A node that was restarted and is not connected again would be waited for, although the others have told that it has it."""
        for number in (1, 2, 3):
            self.named(number)
            self.tells(number, *(self.server(other) for other in (1, 2, 3) if other != number))
        for number in (1, 3):
            self.got(number, number)
        self.book.lost(address(2))
        self.expect(UploadOutcome.RUNNING)
        self.got(1, 2)
        self.expect(UploadOutcome.DONE)
        self.named(2)
        self.book.said_nothing(address(2))
        self.expect(UploadOutcome.RUNNING)
        self.got(2, 2)
        self.expect(UploadOutcome.DONE)

    @shows("A29", "I7")
    def test_made_up_machine_of_a_real_server(self) -> None:
        """A server that invents a machine at the address of another one could report in its name."""
        self.named(1)
        self.named(2)
        self.tells(1, self.server(2), Server("n3", None, (str(address(3)),), None))
        self.tells(2, self.server(1), Server("n3", machine(66), (str(address(3)),), 100))
        for number in (1, 2):
            self.got(number, number)
        self.got(2, 66)
        self.expect(UploadOutcome.RUNNING)
        self.expect(UploadOutcome.RUNNING, 60.0)
        self.tells(3)
        self.assertEqual(self.numbers(), (3, 4), "the machine that was made up is one more")
        self.expect(UploadOutcome.RUNNING, 60.0)
        self.got(3, 3)
        self.expect(UploadOutcome.DONE)

    @shows("K7.2")
    def test_unreachable(self) -> None:
        """It would be waited for a server that is known to be off; or not for one that only the nodes, or only the client cannot reach."""
        for number in (1, 2):
            self.named(number)
            self.tells(number, self.server(3 - number), self.server(3, 45_000))
            self.got(number, number)
        gone = self.unreached(3)
        self.expect(UploadOutcome.RUNNING, 29.0, gone)
        self.assertIn("n3 (not heard for 0:45) cannot be reached, and 3 of 3 nodes are needed", self.book.hindrance(RULE, gone))
        self.assertEqual(self.book.hindrance(RULE, OPEN), "")
        self.expect(UploadOutcome.RUNNING, 60.0, OPEN)
        self.expect(UploadOutcome.PARTIAL, 30.0, gone, EXIT_PARTIAL)
        self.tells(1, self.server(2), self.server(3, 2_000))
        self.expect(UploadOutcome.RUNNING, 60.0, gone)

    @shows("K7.2")
    def test_final_faults(self) -> None:
        """A server that said itself that it refused the image would keep the client waiting until the deadline."""
        for number in (1, 2):
            self.named(number)
            self.tells(number, self.server(3 - number), self.server(3))
            self.got(number, number)
        self.tells(3, refused=(IMAGE, "signature_mismatch"))
        self.expect(UploadOutcome.FAILED, 30.0)
        self.tells(3, pending=Version(1, IMAGE))
        self.expect(UploadOutcome.RUNNING, 30.0)
        self.tells(3, committed=Version(1, IMAGE))
        self.expect(UploadOutcome.DONE)

    def test_nobody_left(self) -> None:
        """With all nodes restarting at once there would be a final word, although nothing is lost."""
        self.named(1)
        self.tells(1, self.server(2))
        self.book.lost(address(1))
        self.expect(UploadOutcome.RUNNING, 60.0, self.unreached(1, 2))

    @shows("K7.1")
    def test_never_reached(self) -> None:
        """A typing mistake would be tried for half an hour."""
        self.expect(UploadOutcome.RUNNING, 14.0, ConnectionReach(busy=False, exhausted=False, reached=False))
        never = ConnectionReach(busy=False, exhausted=False, reached=False, trouble="the name x cannot be resolved")
        self.expect(UploadOutcome.FAILED, 15.0, never, EXIT_NETWORK)
        self.assertIn("the name x cannot be resolved", self.book.verdict(RULE, 15.0, never).why)
        self.expect(UploadOutcome.RUNNING, 15.0, OPEN)

    def test_thousand(self) -> None:
        """With a thousand servers the client would be busy with counting."""
        rows = [Server(f"n{number}", machine(number), (f"10.1.{number // 250}.{number % 250}:1",), 10) for number in range(1, 1001)]
        for number in (1, 2, 3):
            self.named(number)
            self.tells(number, *rows)
        merges = self.book._servers.merges
        for via in (1, 2, 3):
            for number in range(1, 1001):
                self.got(via, number)
                self.book.verdict(RULE, 1.0, OPEN)
        self.assertEqual(self.numbers(), (1000, 1000))
        self.assertLess(self.book._servers.merges - merges, 10)


class WeakRows(RowCase):
    weak = True

    @shows("K1.1")
    def test_other_content_and_a_silent_server(self) -> None:
        """A weak append would be called complete although nobody knows what a silent server has."""
        for number in (1, 2):
            self.named(number, "already_exists")
            self.tells(number, self.server(3 - number), self.server(3, 400_000))
        self.expect(UploadOutcome.EARLY, 1.0, code=EXIT_DONE)
        self.expect(UploadOutcome.PARTIAL, 1.0, code=EXIT_PARTIAL, rule=CompletionRule(require=parse_requirement("all")))


class Done(BookCase):
    def test_all(self) -> None:
        """Success comes at once when every node has it, and not before the last one."""
        self.ack(1, range(1, 4))
        self.ack(2, range(1, 4))
        self.got(1, 1)
        self.got(2, 2)
        self.expect(UploadOutcome.RUNNING)
        self.got(1, 3)
        self.expect(UploadOutcome.DONE, code=EXIT_DONE)

    def test_waits_for_who_may_turn_up(self) -> None:
        """One fast node must not end the upload while the other entry points are still being contacted."""
        self.ack(1, [])
        self.got(1, 1)
        self.expect(UploadOutcome.RUNNING, reach=BUSY)
        self.expect(UploadOutcome.DONE)

    def test_waits_for_outstanding_answers(self) -> None:
        """The same holds for a node that was asked and has not answered, until its connection ends."""
        self.ack(1, [])
        self.got(1, 1)
        self.book.asked(address(2), "x")
        self.expect(UploadOutcome.RUNNING)
        self.book.lost(address(2))
        self.expect(UploadOutcome.DONE)

    @shows("A29", "I7")
    def test_counts_by_image(self) -> None:
        """Another version at the same path is not this one (C26), nor is this image at another path."""
        self.ack(1, [])
        self.assertFalse(self.got(1, 1, image=OTHER))
        self.assertFalse(self.got(1, 1, path="/apps/v2"))
        self.expect(UploadOutcome.RUNNING)

    def test_repeated_news(self) -> None:
        """Nodes repeat themselves each second; only the first time is news."""
        self.ack(1, range(1, 3))
        self.assertTrue(self.got(1, 2))
        self.assertFalse(self.got(1, 2))

    @shows("I7", "F54")
    def test_accepting_node_must_report_itself(self) -> None:
        """What others say of a node that we are connected to is hearsay, until the early timeout."""
        self.ack(1, range(1, 3))
        self.ack(2, range(1, 3))
        self.got(1, 1)
        self.got(1, 2)
        self.expect(UploadOutcome.RUNNING)
        self.expect(UploadOutcome.DONE, elapsed_s=30)

    def test_notice_before_the_answer(self) -> None:
        """A node that has it already says so before it answers; that must not be lost."""
        self.book.asked(address(1), "x")
        self.got(1, 1)
        self.expect(UploadOutcome.RUNNING)
        self.book.answered(address(1), UploadAck(True, None, {}))
        self.expect(UploadOutcome.DONE)

    def test_refusal_after_done(self) -> None:
        """Asked again after a reconnect, a node that meanwhile took a newer version refuses; it had ours all the same."""
        self.ack(1, [])
        self.got(1, 1)
        self.book.lost(address(1))
        self.ack(1, [], "already_exists")
        self.expect(UploadOutcome.DONE)
        self.assertFalse(self.book.refused(address(1)))
        for _ in range(ERROR_RETRIES + 1):
            self.book.errored(address(1), "broken")
        self.assertFalse(self.book.refused(address(1)))

    def test_abort_after_done(self) -> None:
        """Who has it cannot give it up any more."""
        self.ack(1, range(1, 3))
        self.got(1, 1)
        self.assertFalse(self.gave_up(1, "superseded"))
        self.assertEqual(self.book.standing().failed, ())


class Early(BookCase):
    def complete(self, nodes: int, done: int) -> None:
        self.ack(1, range(1, nodes + 1))
        for number in range(1, done + 1):
            self.got(1, number)

    def test_fraction(self) -> None:
        """After the early timeout three quarters are enough, one node less is not."""
        self.complete(40, 30)
        self.expect(UploadOutcome.RUNNING, elapsed_s=29.9)
        self.expect(UploadOutcome.EARLY, elapsed_s=30, code=EXIT_DONE)
        self.book = UploadTracker(PATH, IMAGE)
        self.complete(40, 29)
        self.expect(UploadOutcome.RUNNING, elapsed_s=30)

    def test_hosts(self) -> None:
        """Of four, three are needed even when the fraction asks for less."""
        self.complete(4, 2)
        self.expect(UploadOutcome.RUNNING, elapsed_s=100, rule=CompletionRule(early_fraction=0.25))
        self.got(1, 3)
        self.expect(UploadOutcome.EARLY, elapsed_s=100, rule=CompletionRule(early_fraction=0.25))

    def test_small_clusters(self) -> None:
        """A cluster of one or two can finish after the early timeout (C25)."""
        for nodes in (1, 2):
            self.book = UploadTracker(PATH, IMAGE)
            self.complete(nodes, nodes)
            self.expect(UploadOutcome.DONE, elapsed_s=31)

    def test_silent_node_does_not_hold_it_up(self) -> None:
        """A node that never answers delays success to the early timeout, not to the deadline."""
        self.complete(4, 4)
        self.book.asked(address(9), "x")
        self.expect(UploadOutcome.RUNNING, elapsed_s=29)
        self.expect(UploadOutcome.DONE, elapsed_s=30)

    def test_rest_failed(self) -> None:
        """When all others gave up, waiting for the deadline is in vain."""
        self.complete(4, 2)
        self.gave_up(3, "no_space")
        self.expect(UploadOutcome.RUNNING, elapsed_s=31)
        self.gave_up(4, "commit_error")
        self.expect(UploadOutcome.RUNNING, elapsed_s=29)
        self.expect(UploadOutcome.FAILED, elapsed_s=31, code=EXIT_NETWORK)

    def test_refused_and_got_it_all_the_same(self) -> None:
        """A node that refused, and then got the image from a peer, is done and not failed: the others are still waited for."""
        self.ack(1, [2, 3])
        self.ack(2, [1, 3], "stale_timestamp")
        self.got(2, 2)
        self.gave_up(3, "no_space")
        self.expect(UploadOutcome.RUNNING, elapsed_s=31)
        self.assertEqual(self.book.standing().failed, (("n3", "no_space"),))

    @shows("F54", "I7")
    def test_deadline(self) -> None:
        """Out of time without enough nodes is a failure; with enough it is a success even if the early timeout is later."""
        self.complete(10, 5)
        self.expect(UploadOutcome.RUNNING, elapsed_s=1799)
        self.expect(UploadOutcome.FAILED, elapsed_s=1800, code=EXIT_NETWORK)
        rule = CompletionRule(early_timeout_s=60, deadline_s=10)
        self.expect(UploadOutcome.FAILED, elapsed_s=10, rule=rule)
        for number in (6, 7, 8):
            self.got(1, number)
        self.expect(UploadOutcome.EARLY, elapsed_s=10, rule=rule, code=EXIT_DONE)

    @settings(derandomize=True, deadline=None, database=None, max_examples=100)
    @given(st.integers(1, 2000), st.integers(1, 50), st.floats(0, 1))
    def test_need(self, expected: int, hosts: int, fraction: float) -> None:
        """The rule never asks for more nodes than there are, nor for fewer than was said, nor for none."""
        need = CompletionRule(early_hosts=hosts, early_fraction=fraction).need(expected)
        self.assertTrue(1 <= need <= expected)
        self.assertTrue(need >= min(hosts, expected))
        self.assertTrue(need >= min(expected, expected * fraction - 1e-6))


class Refused(BookCase):
    @shows("F54", "I7")
    def test_all_refuse(self) -> None:
        """A wrong key ends the upload at once with its reason, also when the answers named more hosts that refused too (C49)."""
        self.ack(1, range(1, 3), "signature_mismatch")
        self.expect(UploadOutcome.RUNNING)
        self.ack(2, range(1, 3), "signature_mismatch")
        self.expect(UploadOutcome.REJECTED, reach=SETTLED, code=EXIT_REJECTED)
        self.assertIn("signature_mismatch", self.book.verdict(RULE, 1, SETTLED).why)

    def test_nobody_has_the_directory(self) -> None:
        """An unknown directory is a refusal."""
        self.ack(1, [], "no_config")
        self.expect(UploadOutcome.REJECTED, reach=SETTLED, code=EXIT_REJECTED)

    def test_redirect_is_no_refusal(self) -> None:
        """A node without the directory does not count, neither as expected nor as failed."""
        self.ack(1, range(2, 4), "no_config")
        self.ack(2, [3])
        self.ack(3, [2])
        self.got(2, 2)
        self.got(3, 3)
        self.expect(UploadOutcome.DONE)
        self.assertEqual(self.book.standing().failed, ())

    def test_codes(self) -> None:
        """Scripts tell a conflict from a lack of permission by the exit code."""
        conflicts = {"already_exists", "already_uploading_different_version", "replace_doesnt_match_index", "stale_timestamp"}
        for reason in RejectReason:
            self.assertEqual(refusal_code(reason.value), EXIT_CONFLICT if reason.value in conflicts else EXIT_REJECTED)
            self.book = UploadTracker(PATH, IMAGE)
            self.ack(1, [], reason.value)
            self.expect(UploadOutcome.REJECTED, reach=SETTLED, code=refusal_code(reason.value))
        self.assertEqual(refusal_code("word_of_a_newer_server"), EXIT_REJECTED)
        self.assertEqual(refusal_code(None), EXIT_REJECTED)

    def test_still_something_to_try(self) -> None:
        """While an address is left, two refusals are not the end."""
        self.ack(1, [], "no_config")
        self.expect(UploadOutcome.RUNNING, reach=OPEN)
        self.expect(UploadOutcome.RUNNING, reach=ConnectionReach(busy=True, exhausted=True))

    def test_errors(self) -> None:
        """``Error`` is asked again three times and then taken for a refusal, with its text (C33)."""
        for _ in range(ERROR_RETRIES):
            self.book.asked(address(1), "x")
            self.assertTrue(self.book.errored(address(1), "disk on fire"))
            self.expect(UploadOutcome.RUNNING)
            self.assertFalse(self.book.refused(address(1)))
        self.book.asked(address(1), "x")
        self.assertFalse(self.book.errored(address(1), "disk on fire"))
        self.assertTrue(self.book.refused(address(1)))
        self.expect(UploadOutcome.REJECTED, reach=SETTLED, code=EXIT_NETWORK)
        self.assertIn("disk on fire", self.book.verdict(RULE, 1, SETTLED).why)

    def test_busy(self) -> None:
        """A node that is busy is asked until the deadline: it has not refused anything."""
        for _ in range(10 * ERROR_RETRIES):
            self.book.asked(address(1), "x")
            self.assertTrue(self.book.errored(address(1), "slow down", busy=True))
        self.expect(UploadOutcome.RUNNING)
        self.assertFalse(self.book.refused(address(1)))

    def test_errors_are_counted_in_a_row(self) -> None:
        """An answer between two errors starts the count anew."""
        for _ in range(2):
            for _ in range(ERROR_RETRIES):
                self.book.asked(address(1), "x")
                self.assertTrue(self.book.errored(address(1), "busy"))
            self.ack(1, [])

    def test_late(self) -> None:
        """Refusals and silence until the deadline are a rejection; only silence is a network failure."""
        self.expect(UploadOutcome.FAILED, elapsed_s=1800, code=EXIT_NETWORK)
        self.ack(1, [], "already_exists")
        self.expect(UploadOutcome.REJECTED, elapsed_s=1800, code=EXIT_CONFLICT)


class Aborted(BookCase):
    def test_all_gave_up(self) -> None:
        """When every node that accepted gives up, the client says so at once and not at the deadline (C40)."""
        self.ack(1, range(1, 3))
        self.ack(2, range(1, 3))
        self.gave_up(1, "no_space")
        self.expect(UploadOutcome.RUNNING)
        self.gave_up(2, "cant_create_directory")
        self.expect(UploadOutcome.RUNNING, reach=BUSY)
        self.expect(UploadOutcome.FAILED, code=EXIT_NETWORK)
        self.assertEqual(dict(self.book.standing().failed), {"n1": "no_space", "n2": "cant_create_directory"})

    def test_lost_against_another_upload(self) -> None:
        """Giving way to another version is a conflict."""
        self.ack(1, [])
        self.gave_up(1, "superseded")
        self.expect(UploadOutcome.FAILED, code=EXIT_CONFLICT)

    @shows("A51", "F46", "I7")
    def test_conflict(self) -> None:
        """A user would read "done" while another image, appended to the same path elsewhere, takes its place on every node."""
        self.ack(1, [1, 2])
        self.got(1, 1)
        self.got(1, 2)
        self.expect(UploadOutcome.DONE)
        self.assertTrue(self.gave_up(1, "conflict: 012345, newer by the order of versions, takes its place"))
        self.expect(UploadOutcome.FAILED, code=EXIT_CONFLICT)
        self.assertIn("n1", dict(self.book.standing().failed))

    def test_conflict_by_hearsay(self) -> None:
        """A node could make an upload fail in the name of others."""
        self.ack(1, [1, 2])
        self.got(1, 1)
        self.got(1, 2)
        self.book.aborted(address(1), AbortedImage(IMAGE, PATH, machine(2), "n2", True, "conflict: made up"))
        self.expect(UploadOutcome.DONE)

    def test_reason_with_detail(self) -> None:
        """A directory that stands in the way would be told as a network problem."""
        self.ack(1, [])
        self.gave_up(1, "already_exists: /srv/app/v1: is not ours; move it away")
        self.expect(UploadOutcome.FAILED, code=EXIT_CONFLICT)

    def test_others_have_it(self) -> None:
        """While nodes that were not asked have it, those that gave up are not the end."""
        self.ack(1, range(1, 4))
        self.got(1, 2)
        self.gave_up(1, "no_space")
        self.expect(UploadOutcome.RUNNING)

    def test_asked_again(self) -> None:
        """A node that is asked again after it gave up gets a new chance."""
        self.ack(1, [])
        self.gave_up(1, "no_space")
        self.ack(1, [])
        self.expect(UploadOutcome.RUNNING)

    def test_came_after_all(self) -> None:
        """A node that gave up and then got it by reconciliation has it."""
        self.ack(1, [])
        self.gave_up(1, "cant_fetch_index")
        self.got(1, 1)
        self.expect(UploadOutcome.DONE)
        self.assertEqual(self.book.standing().failed, ())

    @shows("A29", "I7")
    def test_foreign(self) -> None:
        """An abort of another image or path says nothing about this upload."""
        self.ack(1, [])
        for note in (
            AbortedImage(OTHER, PATH, machine(1), "n1", False, "no_space"),
            AbortedImage(IMAGE, "/apps/v2", machine(1), "n1", False, "no_space"),
        ):
            self.assertFalse(self.book.aborted(address(1), note))
        self.expect(UploadOutcome.RUNNING)


class Weak(BookCase):
    weak = True

    def test_single_node(self) -> None:
        """Other content on the only node is success at once, not a wait for the deadline (C50)."""
        for reason in ("already_exists", "already_uploading_different_version"):
            self.book = UploadTracker(PATH, IMAGE, weak=True)
            self.ack(1, [], reason)
            self.expect(UploadOutcome.DONE, code=EXIT_DONE)

    def test_all_asked_have_other_content(self) -> None:
        """When nobody takes it because something is there, nothing will ever be reported, and that is as good."""
        for number in (1, 2, 3):
            self.ack(number, range(1, 41), "already_exists")
        self.expect(UploadOutcome.DONE)

    def test_mixed(self) -> None:
        """Nodes with other content count beside those that took it."""
        self.ack(1, range(1, 4))
        self.ack(2, range(1, 4), "already_exists")
        self.expect(UploadOutcome.RUNNING)
        self.got(1, 1)
        self.expect(UploadOutcome.RUNNING)
        self.got(1, 3, image=OTHER)
        self.expect(UploadOutcome.DONE)

    def test_waits_for_who_may_turn_up(self) -> None:
        """The first node with other content is not the answer of a cluster that is still being contacted."""
        self.ack(1, [2], "already_exists")
        self.expect(UploadOutcome.RUNNING, reach=BUSY)

    def test_one_gave_up(self) -> None:
        """Beside nodes with other content, one that gave up is a failed node and not the end."""
        self.ack(1, range(1, 3))
        self.ack(2, range(1, 3), "already_exists")
        self.gave_up(1, "no_space")
        self.expect(UploadOutcome.RUNNING)

    def test_never_more_than_all(self) -> None:
        """An address with other content that may be a machine which is done is not counted twice."""
        self.ack(3, [9], "no_config")
        self.ack(1, [], "already_exists")
        self.got(3, 9)
        standing = self.book.standing()
        self.assertLessEqual(standing.done, standing.expected)

    def test_other_refusals(self) -> None:
        """Weak forgives other content, not a wrong key."""
        self.ack(1, [], "signature_mismatch")
        self.expect(UploadOutcome.REJECTED, reach=SETTLED, code=EXIT_REJECTED)


class Local(BookCase):
    @shows("F54", "I7")
    def test_source_changed(self) -> None:
        """A file that changed under the upload fails it with its name, unless some node has everything already."""
        self.ack(1, range(1, 3))
        self.book.local_problem("./dist/a changed")
        self.expect(UploadOutcome.FAILED, code=EXIT_LOCAL)
        self.assertIn("./dist/a", self.book.verdict(RULE, 1, OPEN).why)
        self.got(1, 2)
        self.expect(UploadOutcome.RUNNING)

    def test_worst(self) -> None:
        """Of several uploads the exit code names the one that most needs a person."""
        self.assertEqual(worst([]), EXIT_DONE)
        self.assertEqual(worst([0, 0]), EXIT_DONE)
        self.assertEqual(worst([0, 3]), EXIT_NETWORK)
        self.assertEqual(worst([3, 6, 0]), EXIT_CONFLICT)
        self.assertEqual(worst([6, 3, 5]), EXIT_REJECTED)
        self.assertEqual(worst([5, 1, 6]), EXIT_LOCAL)


class Required(BookCase):
    """``--require``: the early rule alone is no success."""

    def required(self, text: str, elapsed_s: float, reach: ConnectionReach = SETTLED) -> tuple[UploadOutcome, int]:
        found = self.book.verdict(CompletionRule(require=parse_requirement(text)), elapsed_s, reach)
        return found.outcome, found.exit_code

    def four_of_five(self) -> None:
        for number in (1, 2, 3):
            self.ack(number, range(1, 6))
        for number in (1, 2, 3):
            self.got(number, number)
        self.got(1, 4)
        self.got(2, 4)

    @shows("I7")
    def test_all(self) -> None:
        """A release that one server lacks would count as one that is everywhere."""
        self.four_of_five()
        self.assertEqual(self.required("all", 31), (UploadOutcome.RUNNING, EXIT_DONE))
        self.assertEqual(self.required("all", 1800), (UploadOutcome.PARTIAL, EXIT_PARTIAL))
        self.assertEqual(self.book.verdict(RULE, 31, SETTLED).outcome, UploadOutcome.EARLY)
        self.got(1, 5)
        self.got(2, 5)
        self.assertEqual(self.required("all", 1), (UploadOutcome.DONE, EXIT_DONE))

    def test_number_and_percentage(self) -> None:
        """The number of nodes that a user asked for is what counts, from the early timeout on."""
        self.four_of_five()
        for text in ("4", "1", "80%", "75%", "1%"):
            self.assertEqual(self.required(text, 29), (UploadOutcome.RUNNING, EXIT_DONE), text)
            self.assertEqual(self.required(text, 30), (UploadOutcome.EARLY, EXIT_DONE), text)
        for text in ("5", "81%", "100%"):
            self.assertEqual(self.required(text, 30), (UploadOutcome.RUNNING, EXIT_DONE), text)
            self.assertEqual(self.required(text, 1800), (UploadOutcome.PARTIAL, EXIT_PARTIAL), text)

    def test_cannot_be_met(self) -> None:
        """A script would wait until the deadline for a node that has already said no."""
        self.four_of_five()
        self.ack(5, range(1, 6), reason="quota_exceeded")
        self.assertEqual(self.required("all", 29), (UploadOutcome.RUNNING, EXIT_DONE))
        self.assertEqual(self.required("all", 30), (UploadOutcome.PARTIAL, EXIT_PARTIAL))

    def test_more_than_there_are(self) -> None:
        """Three nodes of a cluster that should have five would count as five."""
        self.ack(1, range(1, 4))
        self.got(1, 1)
        for number in (2, 3):
            self.ack(number, range(1, 4))
            self.got(number, number)
        self.assertEqual(self.required("3", 1), (UploadOutcome.DONE, EXIT_DONE))
        self.assertEqual(self.required("5", 1), (UploadOutcome.RUNNING, EXIT_DONE))
        self.assertEqual(self.required("5", 30), (UploadOutcome.PARTIAL, EXIT_PARTIAL))
        self.assertEqual(self.required("all", 1), (UploadOutcome.DONE, EXIT_DONE))

    def test_neither(self) -> None:
        """Without enough for the early rule it is a plain failure, and no "partial"."""
        self.ack(1, range(1, 6))
        self.got(1, 1)
        self.assertEqual(self.required("all", 1800), (UploadOutcome.FAILED, EXIT_NETWORK))

    def test_words(self) -> None:
        """A mistyped requirement would be taken for another one."""
        self.assertEqual(parse_requirement("all"), Requirement(whole=True))
        self.assertEqual([str(parse_requirement(text)) for text in ("all", "7", "66%")], ["all", "7", "66%"])
        self.assertEqual([parse_requirement("66%").need(number) for number in (1, 3, 10)], [1, 2, 7])
        for bad in ("", "0", "0%", "101%", "-1", "most", "1.5", "5 %", "99999999", "\u0665"):
            self.assertRaises(ValueError, parse_requirement, bad)

    def test_worst(self) -> None:
        """A deployment that is partly done must not hide behind one that is done, nor hide one that failed."""
        self.assertEqual(worst([EXIT_DONE, EXIT_PARTIAL]), EXIT_PARTIAL)
        self.assertEqual(worst([EXIT_PARTIAL, EXIT_NETWORK]), EXIT_NETWORK)
        self.assertEqual(worst([EXIT_PARTIAL, EXIT_HOOK]), EXIT_PARTIAL)
        self.assertEqual(worst([EXIT_DONE, EXIT_HOOK]), EXIT_HOOK)
        self.assertEqual(worst([EXIT_DONE, EXIT_NOTHING]), EXIT_DONE)


class Revisions(BookCase):
    """The verdict is made anew when the revision is another one, and else at the next beat."""

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        st.booleans(),
        st.lists(
            st.tuples(st.sampled_from(["ack", "no", "got", "other", "abort", "conflict", "said"]), st.integers(1, 3), st.integers(1, 3)),
            max_size=14,
        ),
    )
    @shows("K7.6")
    def test_no_change_is_missed(self, weak: bool, events: list[tuple[str, int, int]]) -> None:
        """News that changes a verdict and not the revision would be judged a second later, which a tiny upload would wait for."""
        self.book = book = UploadTracker(PATH, IMAGE, weak)
        for number in range(1, 4):
            book.asked(address(number), f"10.0.0.{number}")
        for what, via, number in events:
            before = book.revision, [book.verdict(RULE, elapsed_s, SETTLED) for elapsed_s in (1.0, 40.0)], book.standing()
            named = machine(number), f"n{number}"
            match what:
                case "ack" | "no":
                    reason = None if what == "ack" else RejectReason.ALREADY_EXISTS.value
                    book.answered(address(via), UploadAck(reason is None, reason, {machine(number): f"n{number}"}))
                case "got" | "other":
                    self.got(via, number, IMAGE if what == "got" else OTHER)
                case "said":
                    book.said(address(via), PathStateData(*named, 1000, True, Version(1, IMAGE), None))
                case _:
                    word = "conflict" if what == "conflict" else "no_space"
                    book.aborted(address(via), AbortedImage(IMAGE, PATH, *named, via != number, word))
            after = [book.verdict(RULE, elapsed_s, SETTLED) for elapsed_s in (1.0, 40.0)]
            if book.revision == before[0]:
                self.assertEqual((after, book.standing()), before[1:], (weak, events))
