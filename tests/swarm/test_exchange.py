"""The exchange of pieces: what each node may do at any moment, and that everybody gets everything."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.swarm.model import FAULTS, Machine, Setting, Simulation
from ciruela.proto.messages import PieceNews, PieceOffer
from ciruela.swarm import exchange
from ciruela.swarm.exchange import PieceExchange
from tests.proof import shows

KIB = 1024


def pair(pieces: int, count: int = 8) -> tuple[PieceExchange[str], PieceExchange[str]]:
    """A node that has ``pieces`` (a mask), and one that has nothing; they are neighbors and have said so."""
    giver: PieceExchange[str] = PieceExchange(count, pieces, random.Random(1))
    taker: PieceExchange[str] = PieceExchange(count, 0, random.Random(2))
    giver.join("taker")
    taker.join("giver")
    for _, message in taker.messages(0.0):
        giver.heard("taker", message, 0.0)
    return giver, taker


class PairTests(SynchronousTestCase):
    """Two nodes, message by message."""

    def test_a_piece(self) -> None:
        """Offered, taken, sent, and known to both: nothing is left under way."""
        giver, taker = pair(0b100)
        ((_, offer),) = giver.messages(0.0)
        self.assertEqual((offer.has, offer.offers), (0b100, (PieceOffer(0b100),)))
        self.assertEqual(taker.heard("giver", offer, 0.01), 0)
        ((_, answer),) = taker.messages(0.01)
        self.assertEqual((answer.takes, answer.answers), (0b100, (0b100,)))
        self.assertEqual(giver.heard("taker", answer, 0.02), 0b100)
        self.assertEqual((giver.out, taker.coming), (1, {2: ("giver", 0.01)}))
        giver.sent("taker", 0b100, 0.03)
        taker.arrived("giver", 0b100, 0.04)
        self.assertEqual((giver.out, taker.coming, taker.have), (0, {}, 0b100))
        self.assertEqual(giver.messages(0.05), [])

    def test_nothing_twice(self) -> None:
        """Two givers offer the same: it is taken once, and the other is told."""
        taker: PieceExchange[str] = PieceExchange(4, 0, random.Random(1))
        taker.join("a")
        taker.join("b")
        taker.messages(0.0)
        taker.heard("a", PieceNews(has=1, offers=(PieceOffer(1),)), 0.0)
        taker.heard("b", PieceNews(has=1, offers=(PieceOffer(1),)), 0.0)
        self.assertEqual([(key, message.answers) for key, message in taker.messages(0.0)], [("a", (1,)), ("b", (0,))])

    def test_another_in_its_place(self) -> None:
        """Who has a piece already takes another one of the offer instead: an offer is seldom in vain."""
        taker: PieceExchange[str] = PieceExchange(4, 0b1, random.Random(1))
        taker.join("a")
        taker.heard("a", PieceNews(has=0b111, offers=(PieceOffer(0b1, 0b110),)), 0.0)
        ((_, message),) = taker.messages(0.0)
        self.assertEqual(message.answers, (0b10,))

    def test_more_than_offered(self) -> None:
        """A taker gets what it was offered, whatever it answers, and an answer without an offer nothing: nobody fills our queue."""
        giver, _ = pair(0b111)
        giver.messages(0.0)
        under_way = giver.out
        ((_, offer),) = list(giver.neighbors["taker"].offers)[:1]
        self.assertEqual(giver.heard("taker", PieceNews(answers=(0b11111111,)), 0.01), offer.pieces | offer.others)
        self.assertLessEqual(giver.out, under_way + 2)
        giver.heard("taker", PieceNews(answers=(0b11111111,) * 100), 0.02)
        self.assertLessEqual(giver.neighbors["taker"].owed.bit_count(), 3)
        self.assertEqual(giver.heard("taker", PieceNews(answers=(0b11111111,)), 0.03), 0)
        self.assertEqual(giver.heard("stranger", PieceNews(answers=(1,)), 0.02), 0)

    def test_taken_and_not_asked_for(self) -> None:
        """Who takes everything and fetches nothing keeps the uplink for some seconds, and not for ever."""
        giver, _ = pair(0b111)
        giver.messages(0.0)
        giver.heard("taker", PieceNews(answers=(0b111,)), 0.0)
        giver.look(9.9)
        self.assertTrue(giver.neighbors["taker"].owed)
        giver.look(10.1)
        self.assertEqual((giver.neighbors["taker"].owed, giver.out), (0, giver.neighbors["taker"].under_way))

    def test_full(self) -> None:
        """A node takes no more than it can get soon, and says so; from a client, which gives everything once, it takes what it gets."""
        taker: PieceExchange[str] = PieceExchange(200, 0, random.Random(1))
        taker.join("a")
        taker.join("client", takes_part=False)
        offers = tuple(PieceOffer(1 << number) for number in range(30))
        taker.heard("a", PieceNews(has=(1 << 30) - 1, offers=offers), 0.0)
        told = dict(taker.messages(0.0))["a"]
        self.assertEqual((sum(map(bool, told.answers)), told.full), (exchange.IN, True))
        taker.heard("client", PieceNews(offers=tuple(PieceOffer(1 << number) for number in range(100, 130))), 0.0)
        told = dict(taker.messages(0.0))["client"]
        self.assertEqual((sum(map(bool, told.answers)), told.full), (30, False))

    def test_late(self) -> None:
        """A piece that does not come is taken from somebody else, and from the one that owed it nothing for a while."""
        taker: PieceExchange[str] = PieceExchange(4, 0, random.Random(1))
        for key in "ab":
            taker.join(key)
        taker.heard("a", PieceNews(has=1, offers=(PieceOffer(1),)), 0.0)
        taker.messages(0.0)
        self.assertEqual((taker.look(1.0), taker.look(1.3)), (0, 1))
        self.assertEqual([message.freed for _, message in taker.messages(1.3, 1.3)], [1, 1])
        taker.heard("a", PieceNews(offers=(PieceOffer(1),)), 1.4)
        taker.heard("b", PieceNews(has=1, offers=(PieceOffer(1),)), 1.4)
        self.assertEqual([message.answers for _, message in taker.messages(1.4)], [(0,), (1,)])
        taker.arrived("b", 1, 1.5)
        taker.heard("a", PieceNews(has=2, offers=(PieceOffer(2),)), 2.4)
        self.assertEqual([message.answers for _, message in taker.messages(2.4)], [(2,)])

    def test_slow_links(self) -> None:
        """What is late is measured by what pieces take here: on a slow link a piece of 3 s is soon not late any more."""
        taker: PieceExchange[str] = PieceExchange(64, 0, random.Random(1))
        taker.join("a")
        late = 0
        for number in range(40):
            now_s = number * 100.0
            taker.heard("a", PieceNews(has=1 << number, offers=(PieceOffer(1 << number),)), now_s)
            late += taker.look(now_s + 2.99).bit_count()
            taker.arrived("a", 1 << number, now_s + 3)
        self.assertTrue(0 < late < 8, late)

    def test_wrong_bytes(self) -> None:
        """A piece that is wrong may come from others, and its giver is believed less each time."""
        taker: PieceExchange[str] = PieceExchange(4, 0, random.Random(1))
        taker.join("a")
        until = []
        for now_s in (0.0, 10.0, 20.0):
            taker.heard("a", PieceNews(has=1, offers=(PieceOffer(1),)), now_s)
            self.assertEqual(list(taker.coming), [0])
            taker.failed("a", 1, now_s)
            self.assertEqual(taker.coming, {})
            until.append(taker.neighbors["a"].distrusted_until_s - now_s)
        self.assertEqual(until, [1.0, 2.0, 4.0])

    def test_client_once(self) -> None:
        """A client gives each piece once while one of its links has or takes it, in order; and again what a lost link took with it."""
        client: PieceExchange[str] = PieceExchange(6, 0b111111, random.Random(1), client=True)
        for key in "ab":
            client.join(key)
            client.heard(key, PieceNews(), 0.0)
        offered = [(key, offer.pieces) for key, message in client.messages(0.0) for offer in message.offers]
        self.assertEqual(sorted(pieces for _, pieces in offered), [1, 2, 4, 8, 16, 32])
        for key, pieces in offered:
            client.heard(key, PieceNews(answers=(pieces,), takes=pieces), 0.1)
            client.sent(key, pieces, 0.1)
        self.assertEqual((client.messages(0.1), client.out), ([], 0))
        lost = sum(pieces for key, pieces in offered if key == "a")
        client.leave("a", 0.2)
        self.assertEqual(sum(offer.pieces for _, message in client.messages(0.2) for offer in message.offers), lost)

    def test_client_hears_what_did_not_come(self) -> None:
        """A piece that its taker waits for no longer is offered again at once: nobody else has it."""
        client: PieceExchange[str] = PieceExchange(1, 1, random.Random(1), client=True)
        client.join("a")
        client.heard("a", PieceNews(), 0.0)
        client.messages(0.0)
        client.heard("a", PieceNews(answers=(1,), takes=1), 0.1)
        client.sent("a", 1, 0.1)
        self.assertEqual(client.messages(0.1), [])
        client.heard("a", PieceNews(freed=1), 0.2)
        self.assertEqual([message.offers for _, message in client.messages(0.2)], [(PieceOffer(1),)])

    def test_client_begins_late(self) -> None:
        """A client whose clock has run for long gives each piece once all the same."""
        client: PieceExchange[str] = PieceExchange(2, 0b11, random.Random(1), client=True)
        for key in "ab":
            client.join(key)
            client.heard(key, PieceNews(), 1000.0)
        for key in "ab":
            client.heard(key, PieceNews(), 1000.1)
        offers = [offer.pieces for _, message in client.messages(1000.1) for offer in message.offers]
        self.assertEqual(sorted(offers), [1, 2])

    def test_client_in_the_end(self) -> None:
        """What one link took and the other lacks is given again, after a second in which nothing was taken: it may not be passed on."""
        client: PieceExchange[str] = PieceExchange(1, 1, random.Random(1), client=True)
        for key in "ab":
            client.join(key)
            client.heard(key, PieceNews(takes=key == "a"), 0.0)
        client.look(0.9)
        self.assertEqual([message.offers for _, message in client.messages(0.9)], [(), ()])
        client.look(1.1)
        self.assertEqual([(key, message.offers) for key, message in client.messages(1.1)], [("b", (PieceOffer(1),))])


class Watched(Simulation):
    """A simulation that looks at every node after each event."""

    def __init__(self, setting: Setting, check: Callable[[Machine], None]) -> None:
        self._check = check
        super().__init__(setting)

    def _at(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        def checked(*given: Any) -> None:
            call(*given)
            for one in given:
                if isinstance(one, Machine):
                    self._check(one)

        super()._at(delay_s, checked, *args)


class AnswerTests(SynchronousTestCase):
    """What is sent is what was offered."""

    @shows("A24")
    def test_only_what_was_offered(self) -> None:
        """A taker that answers with all that it lacks would fill the queue of the giver, and be sent what others are to give it."""
        giver: PieceExchange[str] = PieceExchange(64, (1 << 64) - 1, random.Random(1))
        giver.join("a")
        giver.heard("a", PieceNews(joins=True), 0.0)
        ((_, news),) = giver.messages(0.0)
        offered = news.offers[0].pieces | news.offers[0].others
        self.assertLess(offered.bit_count(), 5)
        self.assertEqual(giver.heard("a", PieceNews(answers=((1 << 64) - 1,)), 0.1), offered)
        self.assertEqual(giver.neighbors["a"].owed, offered)


class EarlyTests(SynchronousTestCase):
    """Answers and pieces that go different ways."""

    def test_sent_before_the_answer(self) -> None:
        """A piece that was asked for before the answer to its offer was heard would count as under way until UNPAID_S."""
        giver: PieceExchange[str] = PieceExchange(64, (1 << 64) - 1, random.Random(1))
        giver.join("a")
        giver.heard("a", PieceNews(joins=True), 0.0)
        offers = [offer for _, news in giver.messages(0.0) for offer in news.offers]
        self.assertEqual(len(offers), 2)
        giver.sent("a", offers[0].pieces, 0.1)
        never = giver.everything & ~(offers[0].pieces | offers[0].others | offers[1].pieces | offers[1].others)
        giver.sent("a", never, 0.1)
        giver.heard("a", PieceNews(answers=tuple(offer.pieces for offer in offers)), 0.2)
        neighbor = giver.neighbors["a"]
        self.assertEqual(
            (neighbor.owed, neighbor.early, neighbor.under_way, giver.out), (offers[1].pieces, 0, neighbor.under_way, giver.out)
        )
        self.assertEqual(giver.out, 1 + len(neighbor.offers))
        giver.sent("a", offers[1].pieces, 0.3)
        self.assertEqual((neighbor.owed, giver.out), (0, sum(offer.pieces.bit_count() for _, offer in neighbor.offers)))

    def test_sent_and_not_taken(self) -> None:
        """Who asks for what it then does not take would owe less than nothing later."""
        giver: PieceExchange[str] = PieceExchange(8, 0b1, random.Random(1))
        giver.join("a")
        giver.heard("a", PieceNews(joins=True), 0.0)
        giver.messages(0.0)
        giver.sent("a", 0b1, 0.1)
        giver.heard("a", PieceNews(answers=(0,)), 0.2)
        neighbor = giver.neighbors["a"]
        self.assertEqual((neighbor.early, neighbor.under_way, giver.out), (0, 0, 0))


class InvariantTests(SynchronousTestCase):
    """Whole uploads, with everything that can go wrong."""

    def check(self, one: Machine) -> None:
        """At no moment."""
        state = one.exchange
        given: list[int] = state._given
        near = list(state.neighbors.values())
        self.assertEqual(state.coming_mask, sum(1 << piece for piece in state.coming), "what is on its way is counted twice, or not")
        self.assertEqual(state.have & state.coming_mask, 0, "a piece is on its way that is here")
        self.assertEqual(
            sum(mask.bit_count() for mask in given), state.have.bit_count(), "a piece was given two different numbers of times"
        )
        self.assertEqual(given[0] | given[1] | given[2], state.have)
        self.assertEqual(state.out, sum(neighbor.under_way for neighbor in near), "something is under way to nobody")
        for neighbor in near:
            self.assertTrue(0 <= neighbor.under_way <= max(2 * state.window(0), exchange.MOST_MORE), neighbor)
            offers = sum(offer.pieces.bit_count() for _, offer in neighbor.offers)
            self.assertEqual(neighbor.under_way, offers + neighbor.owed.bit_count())
            self.assertEqual(neighbor.offered & ~state.have, 0, "something is offered that is not here")
            self.assertTrue(neighbor.takes_part or not neighbor.offered, "a client was offered something")

    def upload(self, fault: str, seed: int, nodes: int = 7) -> Simulation:
        """A small one."""
        setting = Setting(nodes, 32 * 32 * KIB, 1.25e6, jitter_s=0.002, fault=fault, seed=seed)
        simulation = Watched(setting, self.check)
        found = simulation.run()
        alive = [one for one in simulation.nodes if one.alive]
        self.assertTrue(all(one.done_s is not None for one in alive), f"{fault} {seed}: somebody never got it: {found}")
        return simulation

    def test_each_fault(self) -> None:
        """Whoever lives gets everything, whatever happens to others."""
        for fault in ("", *FAULTS):
            for seed in range(2):
                self.upload(fault, seed)

    def test_nothing_left(self) -> None:
        """At the end nothing is under way, and without faults everything was sent once to each."""
        for seed in range(2):
            simulation = self.upload("", seed)
            simulation.drain(30.0)
            self.assertEqual([one.exchange.out for one in (*simulation.nodes, simulation.client)], [0] * 8)
            self.assertEqual(sum(one.twice for one in simulation.nodes), 0)
            sent = sum(one.sent for one in simulation.nodes) + simulation.client.sent
            self.assertEqual(round(sent), 7 * simulation.setting.size)
