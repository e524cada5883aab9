"""Whom a command asks to run it, and whom the process that waits for work listens to."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import warm, warmserver
from tests.proof import shows


class WarmTests(SynchronousTestCase):
    """A directory with a socket that somebody listens to."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        for change in (patch.dict(os.environ, {"XDG_RUNTIME_DIR": str(self.top)}), patch.object(warm, "_order", self.order)):
            change.start()
            self.addCleanup(change.stop)
        self.name = warm.socket_name()
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(self.server.close)
        self.server.bind(str(self.top / self.name))
        (self.top / self.name).chmod(0o600)
        self.server.listen()
        self.ordered = 0

    def order(self, link: socket.socket, program: str) -> None:
        self.ordered += 1
        raise OSError("far enough")

    def refused(self, why: str) -> None:
        """Nobody is asked, for this reason."""
        error = self.assertRaises(warm.Unavailable, warm.elsewhere, "main")
        self.assertIn(why, str(error))
        self.assertEqual(self.ordered, 0)

    def test_asked(self) -> None:
        """The other tests would pass where nobody is ever asked."""
        self.assertRaises(warm.Unavailable, warm.elsewhere, "main")
        self.assertEqual(self.ordered, 1)

    @shows("A48")
    def test_directory(self) -> None:
        """Others could put a socket there."""
        for mode in (0o710, 0o701, 0o770):
            self.top.chmod(mode)
            self.refused("is not this user's alone")
        self.top.chmod(0o700)
        other = os.geteuid() + 1
        with patch.object(os, "geteuid", lambda: other), patch.object(os, "getuid", lambda: other):
            self.refused("is not this user's alone")

    @shows("A48")
    def test_socket(self) -> None:
        """Others could speak for the user, or what was put there is none."""
        place = self.top / self.name
        for mode in (0o660, 0o606, 0o700):
            place.chmod(mode)
            self.refused("is not this user's alone")
        place.unlink()
        place.touch(mode=0o600)
        self.refused("is not this user's alone")
        place.unlink()
        self.refused("nobody waits for work")

    @shows("A48")
    def test_user(self) -> None:
        """The kernel knows better than names who is there; a program with another user's rights has other secrets."""
        with patch.object(warm, "user_of", lambda _: os.geteuid() + 1):
            self.refused("another user waits for work there")
        for name in ("getuid", "getgid"):
            with patch.object(os, name, lambda: 65533):
                self.refused("runs for another user")

    @shows("K8.1")
    def test_closed(self) -> None:
        """What is opened next would be sent as stdout."""
        whole = os.fstat

        def closed(number: int) -> Any:
            if number == 1:
                raise OSError("closed")
            return whole(number)

        with patch.object(os, "fstat", closed):
            self.refused("descriptor 1 is closed")

    @shows("A48")
    def test_asking_user(self) -> None:
        """Another user would run uploads with what the process of this one may read."""
        forked: list[Callable[..., object]] = []
        waiting = warmserver._ForkServer(self.server)
        self.addCleanup(waiting._events.close)
        for user, count in ((os.geteuid() + 1, 0), (os.geteuid(), 1)):
            with (
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link,
                patch.object(warmserver, "user_of", lambda _, user=user: user),
                patch.object(waiting, "_fork", lambda *given: forked.append(given)),
                open(os.devnull, "rb") as nothing,
            ):
                link.connect(str(self.top / self.name))
                socket.send_fds(link, [b"\0"], [nothing.fileno()] * warm.DESCRIPTORS)
                waiting._accept()
            self.assertEqual(len(forked), count)
        forked[0][0].close()  # type: ignore[index]

    def test_name(self) -> None:
        """What begins otherwise would be run as if it had not."""
        names = {self.name, warm.socket_name()}
        for variable in ("PYTHONPATH", "LC_ALL", "TZ"):
            with patch.dict(os.environ, {variable: "other"}):
                names.add(warm.socket_name())
        with patch.dict(os.environ, {"CIRUELA_KEY": "secret"}):
            names.add(warm.socket_name())
            self.assertNotIn("CIRUELA_KEY", warm.inherited())
        self.assertEqual(len(names), 4)

    def test_seconds(self) -> None:
        """A mistyped number would be taken for another one."""
        self.assertEqual([warm.seconds_wanted(text) for text in ("1", "300", "86400")], [1, 300, 86400])
        for wrong in ("", "0", "86401", "-1", "1.5", "\u0663", "9" * 40):
            self.assertRaises(ValueError, warm.seconds_wanted, wrong)
