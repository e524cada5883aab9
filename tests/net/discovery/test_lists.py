"""What places that know peers may say, and how they are written."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import FormatError
from ciruela.net.discovery.consul import next_index
from ciruela.net.discovery.fetch import MOST_NAMES, consul_nodes, read_list
from ciruela.net.discovery.spec import SourceKind, Spec, parse_spec
from tests.proof import shows


def instance(address: str = "", port: int = 0, node: str = "10.0.0.9") -> dict[str, object]:
    """One entry of a Consul answer, with some of what else is in there."""
    return {
        "Node": {"ID": "x", "Node": "web1", "Address": node, "Meta": {}},
        "Service": {"ID": "ciruela-1", "Service": "ciruela", "Address": address, "Port": port, "Tags": []},
        "Checks": [{"Status": "critical"}],
    }


class ListTests(SynchronousTestCase):
    """Half a list would hide half of the cluster."""

    def test_forms(self) -> None:
        """A page that people write, or one that a program writes."""
        expected = ["app1.example.org", "10.0.0.3:24784", "[2001:db8::1]:5"]
        self.assertEqual(read_list(b"# us\napp1.example.org\n\n 10.0.0.3:24784\n[2001:db8::1]:5\n"), expected)
        self.assertEqual(read_list(json.dumps(["App1.example.org.", *expected[1:]]).encode()), expected)
        self.assertEqual(read_list(b""), [])

    @shows("A60")
    def test_not_a_list(self) -> None:
        """An error page would be taken for a cluster of one."""
        for data in (
            b"<html>it works</html>", b"[1]", b'{"peers": []}', b'["a", "b', b"\xff", b"[" * 100_000, b'["a b"]', b"n1:99999",
            json.dumps(["n"] * (MOST_NAMES + 1)).encode(),
        ):  # fmt: skip
            self.assertRaises(FormatError, read_list, data)

    def test_consul(self) -> None:
        """The address of the service, or of its node; a port of its own, or the usual one."""
        found = json.dumps([instance(), instance("10.0.0.3", 5), instance("web3.example.org")]).encode()
        self.assertEqual(consul_nodes(found, 24783), ["10.0.0.9:24783", "10.0.0.3:5", "web3.example.org:24783"])

    @shows("A60")
    def test_bad_consul(self) -> None:
        """An answer that is not understood would empty the cluster."""
        for value in (
            {}, [1], [{}], [{"Node": {}, "Service": {"Port": 1}}], [instance(port=70_000)], [instance(port=-1)], [instance("a b")],
            [{"Node": {"Address": "10.0.0.1"}, "Service": {"Port": True}}], [instance()] * (MOST_NAMES + 1),
        ):  # fmt: skip
            self.assertRaises(FormatError, consul_nodes, json.dumps(value).encode(), 24783)

    @examples(derandomize=True, deadline=None, database=None, max_examples=200)
    @given(st.binary(max_size=200))
    def test_anything(self, data: bytes) -> None:
        """Whatever comes is a list or an error."""
        for read in (read_list, lambda found: consul_nodes(found, 1)):
            try:
                self.assertTrue(all(read(data)))
            except FormatError as error:
                self.assertNotEqual(str(error), "")

    def test_index(self) -> None:
        """A question with an index that the agent has forgotten would wait for ever, or return at once for ever."""
        self.assertEqual([next_index(*pair) for pair in ((0, "7"), (7, "7"), (7, "9"))], [7, 7, 9])
        self.assertEqual(
            [next_index(*pair) for pair in ((7, "5"), (7, "0"), (0, "0"), (7, ""), (7, "x"), (7, "-8"), (7, "8" * 30))], [0] * 7
        )


class SpecTests(SynchronousTestCase):
    """How places are written."""

    def test_kinds(self) -> None:
        """Each kind, as the documentation writes it."""
        for text, kind, where in (
            ("file:more-peers.txt", SourceKind.FILE, "more-peers.txt"),
            ("dns:ciruela.example.org", SourceKind.DNS, "ciruela.example.org"),
            ("dns:ciruela.example.org:24784", SourceKind.DNS, "ciruela.example.org:24784"),
            ("srv:_ciruela._udp.example.org", SourceKind.SRV, "_ciruela._udp.example.org"),
            ("https://conf.example.org/peers", SourceKind.HTTP, "https://conf.example.org/peers"),
            ("consul:ciruela", SourceKind.CONSUL, "ciruela"),
        ):
            self.assertEqual(parse_spec(text), Spec(kind, text, where))

    def test_mistakes(self) -> None:
        """A mistake has to be named at the start, not to be asked for for ever."""
        for text in (
            "", "n1", "10.0.0.1", "dns:", "dns:a b", "dns:n1:x", "srv:ciruela", "srv:_a..b", "http://", "https:///x", "http://a b/",
            "file:", "consul:", "consul:a/b", "consul:../x", "etcd:x", "http://h:99999/", "file:a\nb",
        ):  # fmt: skip
            self.assertRaises(FormatError, parse_spec, text)

    def test_no_password(self) -> None:
        """A password would stand in the log and on the status page."""
        error = self.assertRaises(FormatError, parse_spec, "https://me:secret@conf.example.org/peers")
        self.assertNotIn("secret", str(error))

    def test_no_ipv6_address(self) -> None:
        """A list that can never be fetched would be asked for again and again, with an error that nobody understands."""
        self.assertIn("name the host", str(self.assertRaises(FormatError, parse_spec, "http://[2001:db8::1]:8080/peers")))
