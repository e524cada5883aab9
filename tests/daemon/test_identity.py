"""Who a node is."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.plan import host_name, machine_id
from ciruela.model.errors import ConfigError
from tests.proof import shows

HEX = "0123456789abcdef0123456789ABCDEF"


class MachineIdTests(SynchronousTestCase):
    """Two nodes never pass for one."""

    def file(self, data: bytes) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(data)
        return path

    def test_file(self) -> None:
        """The system's machine id, with its newline or without."""
        for tail in (b"", b"\n"):
            self.assertEqual(machine_id(None, self.file(HEX.encode() + tail)), bytes.fromhex(HEX))

    def test_override(self) -> None:
        """The option wins, and the file need not be there."""
        self.assertEqual(machine_id(HEX, Path("/nowhere")), bytes.fromhex(HEX))

    @shows("A33")
    def test_bad(self) -> None:
        """What is no id is refused with its source and what to do; a machine that was never set up is one of these."""
        for data in (b"", b"uninitialized\n", HEX.encode()[:-1], HEX.encode() + b"0", HEX.encode() + b"\n\n", b"\xff" * 32, b"0" * 32):
            path = self.file(data)
            message = str(self.assertRaises(ConfigError, machine_id, None, path))
            self.assertTrue(message.startswith(f"{path}: "), message)
            self.assertIn("--override-machine-id", message)
        for text in ("", "xyz", HEX[:-1], "0" * 32):
            self.assertIn("--override-machine-id: ", str(self.assertRaises(ConfigError, machine_id, text)))

    def test_missing(self) -> None:
        """A container without /etc/machine-id is told what to give."""
        message = str(self.assertRaises(ConfigError, machine_id, None, Path("/nowhere/machine-id")))
        self.assertIn("/nowhere/machine-id: the machine id cannot be read", message)


class HostnameTests(SynchronousTestCase):
    """Clients are sent to names that they can look up."""

    def test_sources(self) -> None:
        """The option, else the system's name, else localhost."""

        def broken() -> str:
            raise OSError(1, os.strerror(1))

        self.assertEqual(host_name("node1.example.org", lambda: "other"), "node1.example.org")
        self.assertEqual(host_name(None, lambda: "node2"), "node2")
        self.assertEqual(host_name(None, lambda: " \n"), "localhost")
        self.assertEqual(host_name(None, broken), "localhost")

    def test_forms(self) -> None:
        """Names, with underscores too, and addresses are fine."""
        for name in ("a", "my_node-1", "node.example.org.", "127.0.0.2", "::1", "a" * 253):
            self.assertEqual(host_name(name), name)

    def test_bad(self) -> None:
        """Anything else is refused before others hear of it."""
        for name in ("", "a b", "-a", "a-", "a/b", "a\n", "é", "a:24783", "a" * 254, "\x1b[2J"):
            self.assertRaises(ConfigError, host_name, name)
        self.assertIn("the host name of this system", str(self.assertRaises(ConfigError, host_name, None, lambda: "a b")))
