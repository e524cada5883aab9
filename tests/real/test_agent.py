"""A real ssh-agent, with a key that ssh-add put into it."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import TestCase

from ciruela.keys.public import parse_public, verify
from ciruela.net.agent import AgentFailed
from ciruela.net.agentclient import agent_keys
from tests.keys.samples import sample


class RealAgentTests(TestCase):
    """Keys that OpenSSH keeps sign uploads."""

    timeout = 60

    def setUp(self) -> None:
        folder = tempfile.mkdtemp(prefix="ciruela-agent-")  # a socket's path must be short
        self.addCleanup(shutil.rmtree, folder)
        self.socket = os.path.join(folder, "socket")
        started = subprocess.run(["ssh-agent", "-s", "-a", self.socket], check=True, capture_output=True, text=True)
        pid = int(started.stdout.split("SSH_AGENT_PID=")[1].split(";")[0])
        self.addCleanup(os.kill, pid, signal.SIGTERM)
        self.addCleanup(os.unlink, self.socket)  # before the agent does it, while the folder is being removed
        for name in ("plain", "rsa"):
            path = Path(folder, name)
            path.write_text(sample(name))
            path.chmod(0o600)
            self.add(str(path))

    def add(self, *arguments: str, answer: str = "") -> None:
        """Run ssh-add."""
        environ = os.environ | {"SSH_AUTH_SOCK": self.socket}
        subprocess.run(["ssh-add", *arguments], check=True, capture_output=True, env=environ, input=answer, text=True)

    def test_list_and_sign(self) -> Deferred[None]:
        """An ed25519 key of the agent is listed and makes a valid signature; an RSA key is noted."""

        async def run() -> None:
            answer = await agent_keys(reactor, self.socket)
            public = parse_public(sample("plain.pub"))
            self.assertEqual([key.public for key in answer.keys], [public])
            self.assertEqual(answer.keys[0].public.comment, "plain@example")
            self.assertIn("RSA", answer.notes[0])
            self.assertTrue(verify(public, b"data", await answer.keys[0].sign(b"data")))

        return ensureDeferred(run())

    def test_key_removed(self) -> Deferred[None]:
        """A key that was taken out of the agent in between is refused with a message."""

        async def run() -> None:
            answer = await agent_keys(reactor, self.socket)
            self.add("-D")
            error = await self.assertFailure(answer.keys[0].sign(b"data"), AgentFailed)
            self.assertIn("refused", str(error))

        return ensureDeferred(run())

    def test_no_agent(self) -> Deferred[None]:
        """A socket that is not there, or whose path is too long for one, is a message."""

        async def run() -> None:
            for path in (self.socket + ".gone", self.socket + "x" * 200):
                error = await self.assertFailure(agent_keys(reactor, path), AgentFailed)
                self.assertIn("cannot be reached", str(error))

        return ensureDeferred(run())
