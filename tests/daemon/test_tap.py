"""The command line of the daemon."""

import contextlib
import errno
import io
import os
import sys
import time

from twisted.application.service import IServiceMaker
from twisted.internet import reactor
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from ciruela import __version__
from ciruela.daemon import tap
from ciruela.daemon.plan import DEFAULTS, CommandLine
from ciruela.daemon.service import Daemon
from ciruela.daemon.status import NodeStatus
from ciruela.daemon.tap import EXIT_CONFIG, EXIT_DB, Options, makeService
from ciruela.model.config import Fsync, Tuning
from ciruela.model.errors import ConfigError, DiskError
from tests.proof import shows


class TapTests(SynchronousTestCase):
    """A mistake is told at once, with what to do, and an exit code that tells its kind."""

    def setUp(self):
        self.dir = self.mktemp()
        os.makedirs(f"{self.dir}/etc/configs", mode=0o755)
        os.makedirs(f"{self.dir}/db")
        self.bound = []
        self.failing = None
        self.patch(tap.socket, "socket", self.socket)
        self.errors = io.StringIO()
        self.patch(sys, "stderr", self.errors)
        self.patch(reactor, "seconds", reactor.seconds)

    def socket(self, family, kind):
        """A socket that binds to nothing, or fails as :attr:`failing` says."""
        test = self

        class Fake(contextlib.nullcontext):
            def setsockopt(self, *_):
                pass

            def bind(self, address):
                if test.failing is not None:
                    raise OSError(test.failing, os.strerror(test.failing))
                test.bound.append(address)

        fake = Fake()
        fake.enter_result = fake
        return fake

    def test_taken_port(self):
        """A port that is in use is told on the terminal, before the daemon leaves it, and the db directory is free again."""
        self.failing = errno.EADDRINUSE
        self.assertIn("cannot listen on 0.0.0.0:4711: Address already in use (is another daemon", self.exits(EXIT_CONFIG, "--port", "4711"))
        self.failing = errno.EADDRNOTAVAIL
        self.assertIn("not an address of this machine", self.exits(EXIT_CONFIG, "--port", "4711"))
        self.failing = None
        self.make()

    def look(self, *words):
        """What ``--check-config`` finds."""
        return tap.check_start(self.options(*words).given(), beside=True)

    @shows("K5.2")
    def test_check_config_checks_what_the_start_checks(self):
        """An operator would see OK, restart, and have no daemon."""
        self.assertEqual((self.look().lock, self.look().taken), (None, ()))
        self.assertEqual(os.listdir(f"{self.dir}/db"), [])
        self.assertRaises(DiskError, self.look, "--db-dir", f"{self.dir}/nothing")
        with open(f"{self.dir}/db/.version", "w", encoding="ascii") as file:
            file.write("format 999, written by ciruela 99.0\n")
        self.assertIn("format 999", str(self.assertRaises(DiskError, self.look)))
        os.unlink(f"{self.dir}/db/.version")
        self.failing = errno.EADDRINUSE
        self.assertIn("Address already in use", str(self.assertRaises(ConfigError, self.look)))
        self.failing = errno.EADDRNOTAVAIL
        self.assertIn("not an address of this machine", str(self.assertRaises(ConfigError, self.look)))

    @shows("K5.2")
    def test_check_config_beside_a_daemon(self):
        """Each reload of the systemd unit checks first: what the daemon itself holds would forbid every one."""
        self.make()
        self.failing = errno.EADDRINUSE
        self.assertEqual(self.look().taken, (f"the db directory {self.dir}/db", "0.0.0.0:24783"))
        self.failing = errno.EADDRNOTAVAIL
        self.assertRaises(ConfigError, self.look)

    @shows("K5.2")
    def test_check_config_of_a_directory_that_cannot_be_written(self):
        """OK for a user who could not start a daemon there."""
        self.patch(tap.os, "access", lambda path, mode: False)
        self.assertIn("cannot write", str(self.assertRaises(DiskError, self.look)))

    def options(self, *words):
        options = Options()
        options.parseOptions(["--config", f"{self.dir}/etc", "--db-dir", f"{self.dir}/db", "--override-machine-id", "ab" * 16, *words])
        return options

    def make(self, *words):
        service = makeService(self.options(*words))
        self.addCleanup(service._settings.lock.close)
        return service

    def exits(self, code, *words):
        stopped = self.assertRaises(SystemExit, makeService, self.options(*words))
        self.assertEqual(stopped.code, code)
        return self.errors.getvalue()

    def test_plugin(self):
        """Twistd knows the service."""
        self.assertIn("ciruela", [plugin.tapname for plugin in getPlugins(IServiceMaker)])

    def test_service(self):
        """With a good configuration there is a service, and nothing listens yet."""
        service = self.make("--override-hostname", "node7", "--port", "5000")
        self.assertIsInstance(service, Daemon)
        self.assertEqual((service.node.context.hostname, service.node.context.me), ("node7", bytes.fromhex("ab" * 16)))

    @shows("A42", "F44")
    def test_steady_clock(self):
        """A wall clock that is set back by an hour would stop gossip, timeouts and retries for an hour."""
        self.make()
        call = reactor.callLater(60, int)
        self.assertLess(abs(call.getTime() - time.monotonic() - 60), 30)
        call.cancel()

    def test_defaults(self):
        """The defaults of the reference."""
        options = Options()
        options.parseOptions([])
        self.assertEqual(options.given(), CommandLine("/etc/ciruela", {}))
        self.assertEqual((DEFAULTS["db-dir"], DEFAULTS["host"], DEFAULTS["port"]), ("/var/lib/ciruela", "0.0.0.0", 24783))

    def test_bad_numbers(self):
        """Numbers out of range are refused by the parser."""
        for words in (["--port", "0"], ["--port", "65536"], ["--port", "x"], ["--disk-threads", "0"], ["--max-connections", "-1"]):
            self.assertRaises(UsageError, self.options, *words)

    def test_no_config_directory(self):
        """A config directory that is not there is an error, not an empty configuration."""
        os.rmdir(f"{self.dir}/etc/configs")
        os.rmdir(f"{self.dir}/etc")
        self.assertIn("there is no such config directory", self.exits(EXIT_CONFIG))

    def test_config_mistake(self):
        """A mistake in a file is told with file and line."""
        with open(f"{self.dir}/etc/configs/app.yaml", "w", encoding="ascii") as file:
            file.write("directory: /srv/app\nappend-only: perhaps\nnum-levels: 1\n")
        os.chmod(f"{self.dir}/etc/configs/app.yaml", 0o644)
        self.assertIn("app.yaml:2", self.exits(EXIT_CONFIG))

    def test_own_settings(self):
        """What ciruela.yaml says holds, unless the command line says otherwise; a mistake in it ends the start."""
        path = f"{self.dir}/etc/ciruela.yaml"
        with open(path, "w", encoding="ascii") as file:
            file.write("max-connections: 7\nfsync: none\n")
        os.chmod(path, 0o644)
        for words, expected in (((), 7), (("--max-connections", "5"), 5)):
            service = self.make(*words)
            self.assertEqual(service._settings.plan.tuning, Tuning(fsync=Fsync.NONE, max_connections=expected))
            self.assertEqual(service.node.context.tuning, service._settings.plan.tuning)
            self.assertEqual(NodeStatus(service.node, list).status()["durability"], "none")
            service._settings.lock.close()
        with open(path, "a", encoding="ascii") as file:
            file.write("max-conections: 9\n")
        self.assertIn('ciruela.yaml:3: "max-conections" is not a setting (try "max-connections")', self.exits(EXIT_CONFIG))

    def test_bad_machine_id(self):
        """A machine id that is none is refused."""
        self.assertIn("machine", self.exits(EXIT_CONFIG, "--override-machine-id", "xyz"))

    def test_db_directory(self):
        """A db directory that is missing, or in use by another daemon, ends the start with its own code."""
        self.assertIn("cannot be used", self.exits(EXIT_DB, "--db-dir", f"{self.dir}/nothing"))
        self.make()
        self.assertIn("another daemon uses the db directory", self.exits(EXIT_DB))

    def test_version(self):
        """--version prints the version."""
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        self.assertRaises(SystemExit, Options().parseOptions, ["--version"])
        self.assertEqual(out.getvalue(), f"ciruela {__version__}\n")
