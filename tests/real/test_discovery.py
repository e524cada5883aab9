"""Places that know the peers, over real sockets: stand-ins for Consul (as its API is documented), for a web server and a name server."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.names import common, dns
from twisted.names.authority import FileAuthority
from twisted.names.server import DNSServerFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.util import Redirect

from ciruela.model.errors import FormatError, LinkLost
from ciruela.net.discovery.fetch import MAX_LIST_BYTES, agent, fetcher
from ciruela.net.discovery.srv import srv, srv_lookup
from tests.net.discovery.test_lists import instance
from tests.proof import shows
from tests.real.daemons import RealCluster, RealNode

reactor: Any = real_reactor


class ConsulStandIn:
    """An agent that knows one service: ``/v1/health/service/ciruela`` with ``index`` and ``wait``; and a ``page`` at ``/peers``.

    A question with the present index is held back until the service changes or the stand-in ends.
    """

    def __init__(self, case: SynchronousTestCase, token: str) -> None:
        self._turn = threading.Condition()
        self._nodes: list[dict[str, object]] = []
        self._index = 10
        self._over = False
        self.asked: list[str] = []
        self.page = b""
        stand_in = self

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body, index = stand_in.answer(self.path, self.headers.get("X-Consul-Token"), token)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Consul-Index", str(index))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        case.addCleanup(self.end)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str, given: str | None, token: str) -> tuple[int, bytes, int]:
        """Status, body and index."""
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        with self._turn:
            self.asked.append(path)
            if parts.path == "/peers":
                return 200, self.page, 0
            if given != token:
                return 403, b"Permission denied", 0
            if parts.path != "/v1/health/service/ciruela":
                return 404, b"", 0
            if query.get("index") == [str(self._index)]:
                assert query["wait"] == ["300s"]
                self._turn.wait_for(lambda: self._over or query["index"] != [str(self._index)])
            return 200, json.dumps(self._nodes).encode(), self._index

    def register(self, nodes: Sequence[RealNode]) -> None:
        """The instances of the service change."""
        with self._turn:
            self._nodes = [instance(node.host, node.port) for node in nodes]
            self._index += 1
            self._turn.notify_all()

    def end(self) -> None:
        """Stop; questions that wait are answered."""
        with self._turn:
            self._over = True
            self._turn.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class ClusterTests(SynchronousTestCase):
    """Daemons that find each other without a list of files."""

    def own(self, node: RealNode, text: str) -> None:
        """Write its ``ciruela.yaml``, and take its ``peers.txt`` away."""
        (node.config / "peers.txt").unlink()
        (node.config / "ciruela.yaml").write_text(text)
        (node.config / "ciruela.yaml").chmod(0o644)

    def know(self, cluster: RealCluster) -> None:
        """Wait until all nodes that run have heard of each other."""
        running = [node for node in cluster.nodes if node.process is not None]
        for node in running:
            others = {other.machine for other in running if other is not node}
            cluster.until(lambda node=node, others=others: others <= node.get("/peers/").keys(), f"{node.name} knows the others")  # type: ignore[misc]

    @shows("A60", "F56")
    def test_consul(self) -> None:
        """A server that comes or goes would have to be written into a file on all others; or an outage of Consul would part them."""
        cluster = RealCluster(self, 3, down=[0, 1, 2], groups=[[0], [1], [2]])
        consul = ConsulStandIn(self, "a-token")
        for node in cluster.nodes:
            (node.config / "token").write_text("a-token\n")
            self.own(node, f'peers: ["consul:ciruela"]\nconsul: {consul.url}\nconsul-token-file: {node.config / "token"}\n')
        consul.register(cluster.nodes[:2])
        cluster.start(0, 1)
        self.know(cluster)
        consul.register(cluster.nodes)
        cluster.start(2)
        self.know(cluster)
        source = cluster.top / "source"
        source.mkdir()
        (source / "file").write_text("x")
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "3/3 nodes")
        self.assertTrue(any("?index=11&wait=300s" in path for path in consul.asked), consul.asked)
        consul.end()
        cluster.stop(2)
        cluster.start(2)
        self.know(cluster)
        found = cluster.nodes[2].get("/status/")["peer_sources"]
        self.assertEqual([(one["source"], one["names"]) for one in found], [("file:peers.txt", 0), ("consul:ciruela", 3)])
        cluster.until(lambda: not cluster.nodes[2].get("/status/")["peer_sources"][1]["ok"], "the outage is told")

    def test_file_and_http(self) -> None:
        """Only one of several places would count; or a place that is added would need a restart."""
        cluster = RealCluster(self, 3, down=[0, 1, 2], groups=[[0], [1], [2]])
        places = ConsulStandIn(self, "")
        places.page = json.dumps([f"{node.host}:{node.port}" for node in cluster.nodes[:2]]).encode()
        for node in cluster.nodes:
            (node.config / "more.txt").write_text(f"{cluster.nodes[2].host}\n")
            self.own(node, f"peers:\n  - {places.url}/peers?token=secret\n")
        cluster.start(0, 1, 2)
        cluster.until(lambda: len(cluster.nodes[0].get("/peers/")) == 1, "the page is read")
        self.assertNotIn("secret", str(cluster.nodes[0].get("/status/")))
        for number, node in enumerate(cluster.nodes):
            with (node.config / "ciruela.yaml").open("a") as file:
                file.write("  - file:more.txt\n")
            cluster.signal(number, signal.SIGHUP)
        self.know(cluster)


class SocketTests(TestCase):
    """One question, over real sockets."""

    def listen(self, pages: Resource) -> str:
        """A web server; gives its URL."""
        port = reactor.listenTCP(0, Site(pages), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return f"http://127.0.0.1:{port.getHost().port}"

    async def fails(self, asked: Deferred[Any], kind: type[Exception], part: str) -> None:
        try:
            await asked
        except kind as error:
            self.assertIn(part, str(error))
        else:
            self.fail("there was an answer")

    @shows("A60")
    def test_fetch(self) -> Deferred[None]:
        """An answer without end would fill the memory, a redirect in a circle last for ever."""

        class Page(Resource):
            isLeaf = True

            def __init__(self, body: bytes, status: int = 200) -> None:
                super().__init__()
                self.body, self.status = body, status

            def render_GET(self, request: Any) -> bytes:
                request.setResponseCode(self.status)
                request.setHeader("X-Consul-Index", "12")
                return self.body

        top = Resource()
        top.putChild(b"good", Page(b"n1\n"))
        top.putChild(b"large", Page(b"n" * (MAX_LIST_BYTES + 1)))
        top.putChild(b"gone", Page(b"gone", 410))
        top.putChild(b"there", Redirect(b"/good"))
        top.putChild(b"circle", Redirect(b"/circle"))
        url = self.listen(top)
        fetch = fetcher(agent(reactor))

        async def go() -> None:
            page = await fetch(f"{url}/good", {}, wanted="X-Consul-Index")
            self.assertEqual((page.body, page.header), (b"n1\n", "12"))
            self.assertEqual((await fetch(f"{url}/there", {}, redirects=3)).body, b"n1\n")
            await self.fails(fetch(f"{url}/there", {}), LinkLost, "status 302")
            await self.fails(fetch(f"{url}/circle", {}, redirects=3), LinkLost, "no answer")
            await self.fails(fetch(f"{url}/large", {}), FormatError, "more than 1024 KiB")
            await self.fails(fetch(f"{url}/gone", {}), LinkLost, "status 410")
            await self.fails(fetch("http://127.0.0.1:1/", {}), LinkLost, "no answer")

        return Deferred.fromCoroutine(go())

    def test_srv(self) -> Deferred[None]:
        """Ports that SRV records name would not be used."""
        name = b"_ciruela._udp.example.org"
        records = {
            name: [dns.Record_SRV(0, 0, 24784, b"n1.example.org", 60), dns.Record_SRV(9, 1, 5, b"n2.example.org", 60)],
            b"example.org": [dns.Record_SOA(b"example.org", b"a.example.org", 1, 1, 1, 1, 1, 1)],
        }

        class Authority(FileAuthority):
            def __init__(self) -> None:
                common.ResolverBase.__init__(self)
                self.soa, self.records, self._cache = (b"example.org", records[b"example.org"][0]), records, {}

        authority = Authority()
        factory = DNSServerFactory(authorities=[authority])
        protocol = dns.DNSDatagramProtocol(factory, reactor=reactor)
        port = reactor.listenUDP(0, protocol, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        lookup = srv_lookup(reactor, [("127.0.0.1", port.getHost().port)])

        async def go() -> None:
            found = await srv(name.decode(), lookup)()
            self.assertEqual(sorted(found), ["n1.example.org:24784", "n2.example.org:5"])
            await self.fails(srv("_none._udp.example.org", lookup)(), LinkLost, "there is no such name")

        return Deferred.fromCoroutine(go())
