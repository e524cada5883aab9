"""Hooks, modes and groups in a config: what is meant, and what is refused in words that help."""

from __future__ import annotations

import os
from pathlib import Path

from ciruela.model.config import Modes
from ciruela.model.hooks import CommandHook, Webhook
from tests.daemon.test_config import MINIMAL, ConfigCase
from tests.proof import shows

ROOT = os.geteuid() == 0


class HookRuleTests(ConfigCase):
    """An operator writes what is to run."""

    def setUp(self) -> None:
        super().setUp()
        self.bin = self.top.parent / "bin"
        self.bin.mkdir()
        self.bin.chmod(0o755)
        self.program = self.bin / "announce"
        self.program.write_text("#!/bin/sh\n")
        self.program.chmod(0o755)

    def refused(self, text: str, *parts: str, line: int = 4) -> None:
        (error,) = self.errors(MINIMAL + text.replace("{program}", str(self.program)))
        self.assertTrue(error.startswith(f"app.yaml:{line}: "), error)
        for part in parts:
            self.assertIn(part, error)

    def test_all_of_it(self) -> None:
        """What the documentation shows would not do what it says."""
        config = self.one(
            MINIMAL
            + f"check-before-commit: {{command: [{self.program}, --strict], timeout: 1min}}\n"
            + f"on-commit:\n  command: [{self.program}, now]\n  timeout: 5s\n  retries: 7\n  backoff: 1s\n"
            + "webhook: {url: 'https://deploy.example.org/came/5f3a', timeout: 1s, retries: 0}\n"
            + "dir-mode: '0750'\nfile-mode: '640'\n"
        )
        self.assertEqual(config.check_before_commit, CommandHook((str(self.program), "--strict"), 60_000))
        self.assertEqual(config.on_commit, CommandHook((str(self.program), "now"), 5000, 7, 1000))
        self.assertEqual(config.webhook, Webhook("https://deploy.example.org/came/5f3a", 1000, 0, 3000))
        self.assertEqual(config.modes, Modes(0o750, 0o640, None))
        self.assertEqual([config.modes.of_file(x) for x in (False, True)], [0o640, 0o750])

    def test_short_forms_and_nothing(self) -> None:
        """A list or an address is enough; a setting without a value is one that is not there."""
        config = self.one(
            MINIMAL + f"check_before_commit: [{self.program}]\non-commit: [{self.program}]\nwebhook: http://10.0.0.1:8080/x\n"
        )
        self.assertEqual(config.check_before_commit, CommandHook((str(self.program),)))
        self.assertEqual(config.on_commit, CommandHook((str(self.program),), 30_000, 3, 3000))
        self.assertEqual(config.webhook, Webhook("http://10.0.0.1:8080/x", 10_000, 3, 3000))
        config = self.one(MINIMAL + "check-before-commit:\non-commit: null\nwebhook: ~\ngroup:\n")
        self.assertEqual((config.check_before_commit, config.on_commit, config.webhook, config.modes), (None, None, None, Modes()))

    def test_commands(self) -> None:
        """A line for a shell would be taken for a program, or a mistake show only when a release has come."""
        self.refused("on-commit: restart the shop\n", '"restart the shop" is not a hook', "{command: [")
        self.refused("on-commit: {command: restart the shop}\n", "command: a command is a list", "no shell")
        self.refused("on-commit: [announce]\n", '"announce" is not the absolute path of a program', "write out where")
        self.refused("on-commit: []\n", "1 to 64 parts")
        self.refused("on-commit:\n  timeout: 5s\n", "on-commit: command: this setting is required", line=5)
        self.refused("on-commit:\n  command: [{program}]\n  timeuot: 5s\n", '"timeuot" is not a setting (try "timeout")', line=6)
        self.refused("check-before-commit: {command: [{program}], retries: 1}\n", '"retries" is not a setting')
        self.refused("on-commit: {command: [{program}], timeout: 5}\n", "on-commit: timeout:", "a unit is missing")

    @shows("W2")
    def test_a_program_that_is_there_is_proposed(self) -> None:
        """The proposal was a path that does not exist: whoever followed it got the next mistake."""
        self.patch(os, "environ", {"PATH": str(self.bin)})
        self.refused("on-commit: [announce, now]\n", f"(try {self.program})")
        self.refused("on-commit: [no-such-program]\n", "(try to write out where the program is)")

    def test_all_mistakes_at_once(self) -> None:
        """An operator would mend one mistake, restart, and find the next."""
        found = self.errors(MINIMAL + "on-commit:\n  command: x\n  retries: many\nwebhook: ftp://x\n")
        self.assertEqual([line.split(": ")[0] for line in found], ["app.yaml:5", "app.yaml:6", "app.yaml:7"])

    @shows("A48")
    def test_programs(self) -> None:
        """Somebody else could decide what the daemon runs, or nothing would run at all."""
        self.refused("on-commit: [/no/such/program]\n", "No such file or directory")
        self.refused(f"on-commit: [{self.bin}]\n", "is not a file")
        self.program.chmod(0o644)
        self.refused("on-commit: [{program}]\n", "cannot be executed", "chmod +x")
        self.program.chmod(0o757)
        self.refused("check-before-commit: [{program}]\n", "could be changed by others", "everybody may write to it")
        self.program.chmod(0o755)
        self.bin.chmod(0o777)
        self.refused("on-commit: [{program}]\n", "could be changed by others", f"{self.bin}: everybody may write")
        self.bin.chmod(0o755)
        self.one(MINIMAL + f"on-commit: [{self.program}]\n")
        link = self.bin / "link"
        link.symlink_to(self.elsewhere())
        self.refused(f"on-commit: [{link}]\n", "could be changed by others")

    def elsewhere(self) -> Path:
        """A program in a directory where everybody may write."""
        directory = self.top.parent / "open"
        directory.mkdir()
        program = directory / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        directory.chmod(0o777)
        return program

    def test_addresses(self) -> None:
        """A mistake in an address would show only when a release has come; a password in one would be in a log."""
        for wrong in ("deploy.example.org", "file:///etc/passwd", "https://", "https://x:0/", "https://x/#part", "'https://x/a b'"):
            self.refused(f"webhook: {wrong}\n", "is not a web address", "https://deploy.example.org/hook")
        self.refused("webhook: {url: 'https://me:secret@x/'}\n", "a user or a password is not allowed")
        self.refused("webhook: [https://x]\n", "a list is not a web address")
        self.refused("webhook: 'http://[::1]:8080/x'\n", "an IPv6 address in a web address is not supported")

    def test_modes(self) -> None:
        """An image would be writable for all, run with the rights of its owner, or be closed to the daemon itself."""
        for wrong, why in (
            ("dir-mode: rwxr-x---", "octal digits"),
            ("dir-mode: '0757'", "lets everybody write"),
            ("dir-mode: '2755'", "setuid, setgid or sticky"),
            ("dir-mode: '0550'", "into its own directories"),
            ("dir-mode: '0740'", "cannot enter"),
            ("file-mode: '0646'", "lets everybody write"),
            ("file-mode: '4644'", "setuid, setgid or sticky"),
            ("file-mode: '0755'", "makes every file executable"),
            ("file-mode: '0240'", "read its own files"),
            ("file-mode: '0600'", "still being written"),
            ("group: no-such-group-here", "is not a group of this host"),
        ):
            self.refused(f"{wrong}\n", why)

    def test_group(self) -> None:
        """Every upload would fail on a node that may not give files to that group."""
        self.assertEqual(self.one(MINIMAL + f"group: '{os.getegid()}'\n").modes.gid, os.getegid())
        self.patch(os, "geteuid", lambda: 12345)
        self.patch(os, "getgroups", list)
        self.patch(os, "getegid", lambda: 7)
        from ciruela.daemon.config import group
        from ciruela.daemon.rules import Scalar

        self.assertEqual(group(Scalar("7", 1, plain=True)), 7)
        with self.assertRaises(ValueError) as caught:
            group(Scalar("8", 1, plain=True))
        self.assertIn("not in group", str(caught.exception))
