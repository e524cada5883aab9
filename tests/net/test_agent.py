"""Keys of an ssh-agent, against a doubled agent in memory."""

from twisted.conch.ssh.agent import SSHAgentServer
from twisted.conch.ssh.keys import Key
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, IOPump
from twisted.trial.unittest import SynchronousTestCase

from ciruela.keys.public import KEY_TYPE, parse_public, put_string, verify
from ciruela.net.agent import LIST_TIMEOUT_S, AgentFailed, AgentKeys
from ciruela.net.agentclient import MAX_ANSWER_BYTES, SIGN_TIMEOUT_S, agent_keys
from tests.keys.samples import sample

PATH = "/run/agent"
PUBLIC = parse_public(sample("appendix-c.pub"))


class Raw(Protocol):
    """An agent that answers each request with the same bytes."""

    answer = b""
    close = False

    def dataReceived(self, data: bytes) -> None:
        if self.answer:
            self.transport.write(self.answer)
        if self.close:
            self.transport.loseConnection()


def raw(answer: bytes, close: bool = False) -> Raw:
    """An agent that says ``answer``, framed."""
    server = Raw()
    server.answer = len(answer).to_bytes(4, "big") + answer
    server.close = close
    return server


def conch(*names: str) -> SSHAgentServer:
    """Conch's agent, holding keys of ``tests/vectors/keys``."""
    server = SSHAgentServer()
    server.factory = Factory()
    server.factory.keys = {}
    for name in names:
        key = Key.fromString(sample(name))
        server.factory.keys[key.blob()] = (key, f"{name} \x1b".encode())
    return server


class AgentTests(SynchronousTestCase):
    """Keys that never leave the agent sign uploads, and a broken agent costs a message, not a hang."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def serve(self, server: Protocol) -> FakeTransport:
        """Connect the newest attempt to ``server`` and let both talk; gives the client's side."""
        path, factory, *_ = self.reactor.unixClients[-1]
        self.assertEqual(path, PATH)
        client = factory.buildProtocol(None)
        client_side = FakeTransport(client, isServer=False)
        server_side = FakeTransport(server, isServer=True)
        self.pump = IOPump(client, server, client_side, server_side, False, Clock())
        client.makeConnection(client_side)
        server.makeConnection(server_side)
        self.pump.flush()
        return client_side

    def keys_of(self, server: Protocol) -> AgentKeys:
        """What ``server`` lists."""
        listed = agent_keys(self.reactor, PATH)
        side = self.serve(server)
        self.assertTrue(side.disconnecting or side.disconnected)
        return self.successResultOf(listed)

    def list_fails(self, server: Protocol) -> str:
        """The message when ``server`` is asked for its keys."""
        listed = agent_keys(self.reactor, PATH)
        self.serve(server)
        return str(self.failureResultOf(listed, AgentFailed).value)

    def test_list(self) -> None:
        """ed25519 keys are offered with their comments, others are told and left alone."""
        answer = self.keys_of(conch("appendix-c", "rsa", "ecdsa"))
        self.assertEqual([key.public for key in answer.keys], [PUBLIC])
        self.assertEqual(answer.keys[0].public.comment, "appendix-c ?")
        self.assertEqual(len(answer.notes), 2)
        self.assertIn("rsa ?: it is an RSA key", answer.notes[0])

    def test_empty(self) -> None:
        """An agent without keys is no error."""
        self.assertEqual(self.keys_of(conch()), AgentKeys((), ()))

    def test_sign(self) -> None:
        """A signature of the agent is the one a server verifies, and its connection is closed."""
        key = self.keys_of(conch("appendix-c")).keys[0]
        signed = key.sign(b"data")
        side = self.serve(conch("appendix-c"))
        signature = self.successResultOf(signed)
        self.assertTrue(verify(PUBLIC, b"data", signature))
        self.assertTrue(side.disconnecting or side.disconnected)

    def sign_fails(self, server: Protocol) -> str:
        """The message when ``server`` is asked to sign."""
        signed = self.keys_of(conch("appendix-c")).keys[0].sign(b"data")
        self.serve(server)
        return str(self.failureResultOf(signed, AgentFailed).value)

    def test_sign_refused(self) -> None:
        """A locked agent, or a person who says no, ends in a message that names the agent."""
        self.assertIn(f"the ssh-agent at {PATH} refused", self.sign_fails(raw(b"\x05")))

    def test_wrong_signature(self) -> None:
        """A signature that no server would accept is noticed before it is sent."""
        for kind in (KEY_TYPE.encode(), b"ssh-rsa"):
            answer = b"\x0e" + put_string(put_string(kind) + put_string(bytes(64)))
            self.assertIn("gave a wrong signature", self.sign_fails(raw(answer)))

    def test_short_signature(self) -> None:
        """An answer that ends too early is a message."""
        for answer in (b"\x0e", b"\x0e" + put_string(b"\0\0\0\x0b"), b"\x0c", b"\x06"):
            self.assertIn(PATH, self.sign_fails(raw(answer)))

    def test_unreachable(self) -> None:
        """A stale SSH_AUTH_SOCK is named."""
        listed = agent_keys(self.reactor, PATH)
        factory = self.reactor.unixClients[-1][1]
        factory.clientConnectionFailed(None, Failure(ConnectError(string="no such file")))
        message = str(self.failureResultOf(listed, AgentFailed).value)
        self.assertIn(f"{PATH} cannot be reached", message)

    def test_no_connection_in_time(self) -> None:
        """An agent that does not even accept is given up."""
        listed = agent_keys(self.reactor, PATH)
        self.reactor.advance(LIST_TIMEOUT_S)
        self.assertIn("did not answer in 10 seconds", str(self.failureResultOf(listed, AgentFailed).value))

    def test_no_answer_in_time(self) -> None:
        """A silent agent is given up and its connection closed."""
        listed = agent_keys(self.reactor, PATH)
        side = self.serve(Raw())
        self.reactor.advance(LIST_TIMEOUT_S - 0.1)
        self.assertNoResult(listed)
        self.reactor.advance(0.1)
        self.assertIn("did not answer", str(self.failureResultOf(listed, AgentFailed).value))
        self.assertTrue(side.disconnecting or side.disconnected)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_time_to_confirm(self) -> None:
        """A person has two minutes to allow the use of a key, not ten seconds."""
        signed = self.keys_of(conch("appendix-c")).keys[0].sign(b"data")
        self.serve(Raw())
        self.reactor.advance(SIGN_TIMEOUT_S - 1)
        self.assertNoResult(signed)
        self.reactor.advance(1)
        self.failureResultOf(signed, AgentFailed)

    def test_closed(self) -> None:
        """An agent that hangs up does not leave the client waiting."""
        server = raw(b"")
        server.answer = b""
        server.close = True
        self.assertIn("closed the connection", self.list_fails(server))

    def test_nonsense(self) -> None:
        """Answers that are not answers, of every kind that the parser could stumble over, are messages."""
        answers = (b"\x0e", b"\x0c", b"\x0c\0\0\0\1", b"\x0c\xff\xff\xff\xff", b"\x0c\0\0\0\1\0\0\0\xffab", b"\x06")
        for answer in answers:
            self.assertIn(PATH, self.list_fails(raw(answer)), answer)

    def test_key_cut_off(self) -> None:
        """A key of the wrong length in the list is a message."""
        blob = put_string(KEY_TYPE.encode()) + put_string(bytes(31))
        answer = b"\x0c\0\0\0\1" + put_string(blob) + put_string(b"me")
        self.assertIn("cannot be read", self.list_fails(raw(answer)))

    def test_flood(self) -> None:
        """An endless answer does not fill the memory."""
        server = Raw()
        server.answer = (MAX_ANSWER_BYTES * 2).to_bytes(4, "big") + bytes(MAX_ANSWER_BYTES + 1)
        self.assertIn("is not an answer", self.list_fails(server))

    def test_two_answers(self) -> None:
        """What comes after the answer does no harm."""
        server = Raw()
        server.answer = b"\0\0\0\5\x0c\0\0\0\0" * 2
        listed = agent_keys(self.reactor, PATH)
        self.serve(server)
        self.assertEqual(self.successResultOf(listed), AgentKeys((), ()))

    def test_cancel(self) -> None:
        """A user who stops waiting closes the connection."""
        listed = agent_keys(self.reactor, PATH)
        side = self.serve(Raw())
        listed.addErrback(lambda _: None)
        listed.cancel()
        self.assertTrue(side.disconnecting or side.disconnected)
