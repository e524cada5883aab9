"""Which servers there are, by the words of several nodes and by what the client met."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.servers import MOST_LOOSE, MetServer, Servers, ServersTold, address_of
from ciruela.interfaces import Address
from ciruela.model.ids import MachineId, Server, SharedId
from tests.proof import shows


def machine(number: int) -> MachineId:
    return MachineId(number.to_bytes(16, "big"))


def at(number: int) -> str:
    return f"10.0.{number // 250}.{number % 250}:24783"


def server(number: int, heard_ms: int | None = 100, *, known: bool = True, configured: bool = True, where: tuple[int, ...] = ()) -> Server:
    places = tuple(at(one) for one in where or (number,))
    return Server(f"n{number}", machine(number) if known else None, places, heard_ms, configured)


class ServersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.servers = Servers()

    def tell(self, teller: int, *rows: Server, shared: tuple[SharedId, ...] = (), connected: bool = True) -> None:
        if connected:
            self.servers.open(at(teller))
        self.servers.tell(ServersTold(at(teller), rows, shared))

    def meet(self, number: int, where: int | None = None, *, taken: bool | None = True, epoch_ms: int = 1, connected: bool = True) -> None:
        place = at(where or number)
        if connected:
            self.servers.open(place)
        self.servers.meet(MetServer(place, machine(number), f"n{number}", taken, epoch_ms))

    def names(self) -> list[str]:
        return sorted(row.name for row in self.servers.view().rows())

    def row(self, number: int):
        return self.servers.view().machines[machine(number)]

    @shows("K1.1", "I7")
    def test_silent_ones_count(self) -> None:
        """A server that nobody hears would be taken for absent."""
        self.tell(1, server(2), server(3, None, known=False), server(4, 320_000))
        self.assertEqual(self.names(), ["n2", "n3", "n4"])
        self.assertEqual([row.silent for row in sorted(self.servers.view().rows(), key=lambda row: row.name)], [False, True, True])
        self.assertEqual(self.row(4).told(), "n4 (not heard for 5:20)")

    def test_one_machine(self) -> None:
        """A server that two nodes name would be two."""
        self.tell(1, server(3, 40_000))
        self.tell(2, server(3, 50_000, where=(3, 13)))
        row = self.row(3)
        self.assertEqual((self.names(), row.heard_ms, list(row.addresses)), (["n3"], 40_000, [at(3), at(13)]))
        self.assertFalse(row.hearsay or row.unvouched)

    def test_by_address(self) -> None:
        """A node that has not met a server would make it a second one."""
        self.tell(1, server(3, None, known=False))
        self.tell(2, server(3))
        self.assertEqual(self.names(), ["n3"])
        self.assertTrue(self.row(3).unvouched)
        self.assertFalse(self.row(3).hearsay)
        self.servers = Servers()
        self.tell(1, server(3, None, known=False))
        self.tell(2, server(3, None, known=False))
        self.assertEqual(self.names(), ["n3"])
        self.meet(3)
        self.assertEqual(list(self.servers.view().machines), [machine(3)])

    @shows("K1.6")
    def test_met_under_another_id(self) -> None:
        """A host that was set up anew would count as two servers: the one that is there, and the one that some nodes remember."""
        self.tell(1, server(3))
        self.meet(7, 3)
        self.assertEqual(self.names(), ["n3"])
        self.assertEqual(list(self.servers.view().machines), [machine(7)])

    @shows("I7")
    def test_who_says_no(self) -> None:
        """A server without the directory would be waited for; or one would talk another away by giving its machine id for its own."""
        self.tell(1, server(3), server(4))
        self.meet(3, taken=False)
        self.assertEqual(self.names(), ["n4"])
        self.meet(4, 9, taken=False)
        self.assertEqual(self.names(), ["n4"])
        self.meet(3, taken=True)
        self.assertEqual(self.names(), ["n3", "n4"])
        self.servers.meet(MetServer(at(5), None, "old", False))
        self.tell(2, server(5, None, known=False), server(5))
        self.assertEqual(self.names(), ["n3", "n4"])

    @shows("K1.4")
    def test_speakers(self) -> None:
        """Whoever speaks to a node would have to be waited for; or a server that is configured on one side only would be left out."""
        self.tell(1, server(3, configured=False))
        self.assertEqual(self.names(), [])
        self.assertEqual([row.name for row in self.servers.view().strangers], ["n3"])
        self.meet(3)
        self.assertEqual((self.names(), list(self.servers.view().strangers)), (["n3"], []))
        self.servers = Servers()
        self.tell(1, server(3, configured=False))
        self.tell(2, server(3))
        self.assertEqual(self.names(), ["n3"])

    @shows("K1.5", "I7")
    def test_shared(self) -> None:
        """Two servers with one machine id would be one."""
        self.meet(2, 2, epoch_ms=10)
        self.meet(2, 2, epoch_ms=11)
        self.assertEqual(self.servers.view().complaint(), "")
        self.meet(2, 3, epoch_ms=12)
        view = self.servers.view()
        self.assertEqual([(one.machine, one.addresses) for one in view.shared], [(machine(2), (at(2), at(3)))])
        self.assertEqual(view.doubles, 1)
        self.servers = Servers()
        self.meet(2, 2, epoch_ms=10, connected=False)
        self.meet(2, 3, epoch_ms=12)
        self.assertEqual(self.servers.view().complaint(), "", "it may have been restarted between the two")
        self.tell(1, shared=(SharedId(machine(5), (at(5), at(6))),))
        self.assertIn(f"{at(5)} and {at(6)} have one machine id", self.servers.view().complaint())

    @shows("K1.1", "K1.5")
    def test_moved(self) -> None:
        """A clone at one address would stand in for the server that its id belonged to, which nobody hears: done, one server short."""
        for telling in ("its own memory", "others"):
            self.servers = Servers()
            self.meet(2, 1, epoch_ms=900)
            if telling == "its own memory":
                self.tell(1, server(2, 600_000))
            else:
                self.meet(3)
                self.tell(1, server(3))
                self.tell(3, server(2, 100, where=(1,)), server(2, 600_000))
            rows = list(self.servers.view().rows())
            self.assertEqual([list(row.addresses) for row in rows if row.machine is None], [[at(2)]], telling)
            self.assertEqual(len(rows), 2 if telling == "its own memory" else 3)

    def test_many_addresses(self) -> None:
        """A server that is met at one of its addresses would count twice."""
        self.meet(2)
        self.tell(1, server(2, where=(2, 12)))
        self.tell(3, server(2, where=(12, 2)))
        self.assertEqual([row.machine for row in self.servers.view().rows()], [machine(2)])

    def test_only_who_is_connected_hears(self) -> None:
        """What a node said before it died would keep a dead server alive."""
        self.tell(1, server(3))
        self.assertFalse(self.row(3).silent)
        self.servers.lost(at(1))
        self.assertTrue(self.row(3).silent)
        self.assertEqual(self.row(3).told(), "n3")

    def test_many(self) -> None:
        """In a large cluster a node hears each other one every few minutes: chance would be taken for silence."""
        for teller in (1, 2, 3):
            self.tell(teller, *(server(number, 500_000) for number in range(1, 1001)))
        self.assertFalse(self.row(900).silent)
        self.tell(1, server(900, 5_000_000))
        self.servers.lost(at(2))
        self.servers.lost(at(3))
        self.assertTrue(self.row(900).silent)

    def test_last_word(self) -> None:
        """A server that was taken out of the configuration would be waited for, for ever."""
        self.tell(1, server(3), server(4))
        self.tell(1, server(4))
        self.assertEqual(self.names(), ["n4"])

    @shows("A29")
    def test_made_up(self) -> None:
        """A server could fill the memory of the client."""
        for teller in range(1, 8):
            self.tell(teller, *(Server("x", None, (f"10.{teller}.{one // 250}.{one % 250}:1",), None) for one in range(2000)))
        self.assertEqual(len(self.servers.view().loose), MOST_LOOSE)

    def test_addresses(self) -> None:
        """What is no address would end the command."""
        self.assertEqual(address_of("[::1]:5"), Address("::1", 5))
        self.assertEqual(address_of("::ffff:10.0.0.1:5"), Address("10.0.0.1", 5))
        for text in ("", "n1:5", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:99999", "10.0.0.1:\u0665", ":5"):
            self.assertIsNone(address_of(text), text)

    def test_thousand(self) -> None:
        """With a thousand servers each word of one of them would cost as much as all of them."""
        for teller in (1, 2, 3):
            self.tell(teller, *(server(number) for number in range(1, 1001)))
        self.servers.view()
        merges = self.servers.merges
        for number in range(1, 1200):
            self.servers.speak(at(1), machine(number), f"n{number}")
            self.servers.view()
        self.assertEqual(self.servers.merges, merges)
        self.assertEqual(len(self.servers.view().machines), 1199)
