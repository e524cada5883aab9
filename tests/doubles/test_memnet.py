"""The network in memory: a double that lies makes every simulation worthless."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost
from ciruela.proto import messages as m
from tests.doubles.clock import HeapClock, Timers
from tests.doubles.memnet import SILENCE_S, Hub
from tests.net.bench import Counterpart
from tests.proto import samples as s

A, B, C = (Address(f"10.0.0.{number}", 24783) for number in (1, 2, 3))
BLOCK = m.GetBlock(s.BLOCK, None)
SLOW = m.GetBaseDir("/a")


class Memory(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, random.Random(1))
        self.parts = {address: Counterpart() for address in (A, B, C)}
        self.heard: dict[Address, list[Any]] = {address: [] for address in (A, B, C)}
        self.nodes = {address: self.start(address) for address in (A, B, C)}

    def start(self, address: Address) -> Any:
        return self.hub.node(address, self.parts[address], lambda data, source: self.heard[address].append((data, source)))

    def turn(self, seconds: float = 1.0) -> None:
        for _ in range(int(seconds * 200)):
            self.clock.advance(0.005)

    def link(self, address: Address) -> tuple[Counterpart, Any]:
        client = Counterpart()
        done = self.hub.link(client, address)
        self.turn()
        return client, self.successResultOf(done)

    def test_datagrams(self) -> None:
        """Nothing is lost unless it is asked for, and nothing arrives at once."""
        self.nodes[A][1].send(b"x", B)
        self.assertEqual(self.heard[B], [])
        self.turn()
        self.assertEqual(self.heard[B], [(b"x", A)])
        self.nodes[A][1].send(b"x" * 1401, B)
        self.turn()
        self.assertEqual((len(self.heard[B]), self.hub.counters["lost"], self.hub.counters["datagrams"]), (1, 1, 2))
        self.assertEqual(self.hub.counters["datagram bytes"], 1402)

    def test_loss_and_doubles(self) -> None:
        """A simulation that asks for 20 % must get them, the same ones each time."""
        self.hub.loss, self.hub.duplication = 0.2, 0.1
        for number in range(1000):
            self.nodes[A][1].send(number.to_bytes(2, "big"), B)
        self.turn()
        self.assertTrue(150 < self.hub.counters["lost"] < 250)
        self.assertTrue(50 < len(self.heard[B]) - (1000 - self.hub.counters["lost"]) < 120)
        again = Hub(Clock(), random.Random(1))
        again.loss, again.duplication = 0.2, 0.1
        again.node(B, Counterpart(), lambda data, source: None)
        _, socket = again.node(A, Counterpart(), lambda data, source: None)
        for number in range(1000):
            socket.send(number.to_bytes(2, "big"), B)
        self.assertEqual(again.counters["lost"], self.hub.counters["lost"])

    def test_reordering(self) -> None:
        """Datagrams that overtake each other are what breaks a naive cluster."""
        self.hub.reordering = 0.3
        for number in range(50):
            self.nodes[A][1].send(bytes([number]), B)
        self.turn()
        seen = [data for data, _ in self.heard[B]]
        self.assertEqual(sorted(seen), [bytes([number]) for number in range(50)])
        self.assertNotEqual(seen, sorted(seen))

    def test_partition(self) -> None:
        """Both halves must really be alone, also with what is under way."""
        answer = self.nodes[A][0].ask(C, SLOW)
        self.turn()
        self.nodes[A][1].send(b"under way", C)
        self.hub.partition([[A, B], [C]])
        self.turn()
        self.failureResultOf(answer, LinkLost)
        self.assertEqual(self.heard[C], [])
        self.assertEqual(len(self.parts[C].lost_links), 1)
        near, far = self.nodes[A][0].ask(B, BLOCK), self.nodes[A][0].ask(C, BLOCK)
        self.turn()
        self.successResultOf(near)
        self.failureResultOf(far, LinkLost)
        self.hub.heal()
        far = self.nodes[A][0].ask(C, BLOCK)
        self.turn()
        self.successResultOf(far)

    def test_kill_and_restart(self) -> None:
        """A dead node neither speaks nor hears; a new one under its address does."""
        client, link = self.link(B)
        answer = link.ask(SLOW)
        other = self.nodes[A][0].ask(B, SLOW)
        self.turn()
        self.hub.kill(B)
        self.turn()
        self.failureResultOf(answer, LinkLost)
        self.failureResultOf(other, LinkLost)
        self.assertEqual(client.lost_links, [link])
        self.nodes[B][1].send(b"ghost", A)
        self.nodes[A][1].send(b"to a ghost", B)
        ghost = self.nodes[B][0].ask(A, BLOCK)
        self.turn()
        self.failureResultOf(ghost, LinkLost)
        self.assertEqual((self.heard[A], self.heard[B]), ([], []))
        self.start(B)
        answer = self.nodes[A][0].ask(B, BLOCK)
        self.turn()
        self.successResultOf(answer)

    def test_gone_processes_hear_nothing(self) -> None:
        """A process that was killed while the end of a connection was on its way to it would go on, beside the one started after it."""

        def closes(hub: Hub, near: Any, far: Any) -> None:
            far.close()

        def vanishes(hub: Hub, near: Any, far: Any) -> None:
            hub.vanish(B, told=True)

        def loses_power(hub: Hub, near: Any, far: Any) -> None:
            hub.vanish(B, told=False)

        def falls_silent(hub: Hub, near: Any, far: Any) -> None:
            hub.silence(A, B)
            near.tell(s.NOTIFICATIONS["PublishImage"])

        for ends in (closes, vanishes, loses_power, falls_silent):
            for dies in (False, True):
                clock, client, part = HeapClock(), Counterpart(), Counterpart()
                hub, process = Hub(clock, random.Random(1)), Timers(clock)
                hub.node(A, Counterpart(), lambda data, source: None, process)
                hub.node(B, part, lambda data, source: None)
                linking = hub.link(client, B, A, process)
                clock.advance(1.0)
                link = self.successResultOf(linking)
                link.ask(SLOW).addErrback(lambda failure: None)
                clock.advance(1.0)
                ends(hub, link, next(iter(part.links)))
                if dies:
                    process.dead = True
                    hub.vanish(A, told=True)
                clock.advance(2 * SILENCE_S)
                self.assertEqual(client.lost_links, [] if dies else [link], f"{ends.__name__}, {dies}")

    def test_client_links(self) -> None:
        """Both ends ask and tell, in order; closing is heard on both."""
        client, link = self.link(A)
        link.tell(s.NOTIFICATIONS["PublishImage"])
        answer = link.ask(BLOCK)
        self.turn()
        self.assertEqual(self.parts[A].told, [s.NOTIFICATIONS["PublishImage"]])
        self.successResultOf(answer)
        far = next(iter(self.parts[A].links))
        back = far.ask(BLOCK)
        far.tell(s.NOTIFICATIONS["ReceivedImage"])
        self.turn()
        self.successResultOf(back)
        self.assertEqual(client.told, [s.NOTIFICATIONS["ReceivedImage"]])
        self.assertEqual((link.name, far.name), (str(A), "192.0.2.1:1"))
        link.close()
        self.turn()
        self.assertEqual((client.lost_links, self.parts[A].lost_links), ([link], [far]))
        self.failureResultOf(link.ask(BLOCK), LinkLost)
        self.assertGreater(self.hub.counters["message bytes"], 65536)

    def test_nobody_listens(self) -> None:
        """As a real connection is refused."""
        done = self.hub.link(Counterpart(), Address("10.0.0.9", 1))
        self.turn()
        self.failureResultOf(done, LinkLost)

    def test_only_what_can_travel(self) -> None:
        """A value that the codec refuses must not slip through in simulations and fail in production."""
        _, link = self.link(A)
        answer = link.ask(m.GetBaseDir("/" + "x" * 2000))
        self.turn()
        self.failureResultOf(answer)
        self.assertEqual(self.parts[A].asked, [])
