"""Uploads in a fork of a process that has everything loaded, beside uploads that are started as usual."""

from __future__ import annotations

import os
import pty
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import ciruela
from tests.keys.samples import PASSPHRASE, sample
from tests.proof import shows
from tests.real.daemons import environment, program, until

NOBODY = ("--port", "9", "--append")
SOON = ("--connect-timeout", "100ms")
LATE = ("--connect-timeout", "60s")


class WarmCase(SynchronousTestCase):
    """A user with a key, a directory, and nobody to send it to; what waits for work is ended after each test."""

    idle_s = 60

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.run_ = self.top / "run"
        (self.top / "dist").mkdir(parents=True)
        self.run_.mkdir(mode=0o700)
        (self.top / "dist" / "service.conf").write_text("port = 80\n")
        for name in ("plain", "locked"):
            (self.top / name).write_text(sample(name))
            (self.top / name).chmod(0o600)
        self.environ = environment(self.top) | {"XDG_RUNTIME_DIR": str(self.run_), "CIRUELA_WARM": str(self.idle_s)}
        self.addCleanup(self.end)
        self.wish = ("-i", "plain", *SOON, *NOBODY, "dist:/app/v1", "127.0.0.1")

    def end(self) -> None:
        for pid in self.servers():
            os.kill(pid, signal.SIGKILL)

    def servers(self) -> list[int]:
        """The processes that wait for work."""
        found = []
        for place in self.run_.glob("ciruela-warm-*"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                here = os.open(self.run_, os.O_RDONLY)
                try:
                    link.connect(f"/proc/self/fd/{here}/{place.name}")
                except OSError:
                    continue
                finally:
                    os.close(here)
                found.append(struct.unpack("=iII", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        return found

    def begin(self, *words: str, **how: object) -> subprocess.Popen[bytes]:
        settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "cwd": self.top}
        running = subprocess.Popen([program("ciruela-sync"), *words], env=self.environ, **(settings | how))  # type: ignore[call-overload]
        self.addCleanup(self.reap, running)
        return running  # type: ignore[no-any-return]

    def reap(self, running: subprocess.Popen[bytes]) -> None:
        if running.poll() is None:
            running.kill()
        running.wait()
        for stream in (running.stdout, running.stderr, running.stdin):
            if stream is not None:
                stream.close()

    def sync(self, *words: str, **how: object) -> tuple[int, str, str]:
        """Exit code, and what was said on stdout and stderr."""
        running = self.begin(*words, **how)
        out, err = running.communicate(timeout=60)
        return running.returncode, (out or b"").decode(), (err or b"").decode()

    def cold(self, *words: str, **how: object) -> tuple[int, str, str]:
        kept, self.environ = self.environ, {name: value for name, value in self.environ.items() if name != "CIRUELA_WARM"}
        try:
            return self.sync(*words, **how)
        finally:
            self.environ = kept

    def warm_up(self) -> int:
        """Has a process wait for work. Gives its id."""
        _, _, err = self.sync("-v", *self.wish)
        self.assertIn("no warm start: ", err)
        until(lambda: bool(self.servers()), "nobody waits for work")
        (pid,) = self.servers()
        return pid

    def forks(self, server: int) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]

    def at_work(self, server: int, *words: str, **how: object) -> tuple[subprocess.Popen[bytes], int]:
        """A command that does not end by itself, and the fork that it runs in, which has begun to try."""
        running = self.begin("-i", "plain", *LATE, *NOBODY, *words, "dist:/app/v1", "127.0.0.1", **how)
        assert running.stderr is not None
        for line in running.stderr:
            if b"trying again" in line:
                break
        (fork,) = self.forks(server)
        return running, fork


class AsUsual(WarmCase):
    """Nobody sees from what a command does where it ran."""

    def test_same(self) -> None:
        """A warm start would read another directory, other options or variables, or say something else."""
        self.environ["CIRUELA_DEADLINE"] = "90s"
        cold = self.cold(*self.wish)
        self.assertEqual(cold[0], 3)
        server = self.warm_up()

        def plain(said: tuple[int, str, str]) -> tuple[int, str, str]:
            return said[0], said[1], re.sub(r"in \d+\.\d s", "", said[2])

        for words in (self.wish, ("--help",), ("--version",), ("--nonsense",), ("-i", "nowhere", *self.wish)):
            self.assertEqual(plain(self.sync(*words)), plain(self.cold(*words)), words)
        self.environ["CIRUELA_DEADLINE"] = "nonsense"
        self.assertEqual(self.sync(*self.wish), self.cold(*self.wish))
        del self.environ["CIRUELA_DEADLINE"]
        code, _, err = self.sync("-v", *self.wish)
        self.assertEqual((code, "no warm start" in err), (3, False), err)
        self.assertEqual(self.servers(), [server])

    def test_signals(self) -> None:
        """Ctrl-C and a service manager would end nothing, or the process that waits for work."""
        server = self.warm_up()
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            running, fork = self.at_work(server)
            running.send_signal(number)
            self.assertEqual(running.wait(60), code)
            until(lambda fork=fork: fork not in self.forks(server), "the fork is there")
        running, fork = self.at_work(server)
        running.send_signal(signal.SIGUSR1)
        self.assertEqual(running.wait(60), -signal.SIGUSR1)
        self.assertEqual(self.servers(), [server])

    def test_killed(self) -> None:
        """A command that is killed would go on where nobody sees it; so would one of which the waiting process is."""
        server = self.warm_up()
        running, fork = self.at_work(server)
        running.kill()
        until(lambda: not Path(f"/proc/{fork}").exists(), "the fork is there")
        running, fork = self.at_work(server)
        os.kill(server, signal.SIGKILL)
        self.assertEqual(running.wait(60), 1)
        until(lambda: not Path(f"/proc/{fork}").exists(), "the fork is there")

    def test_stopped(self) -> None:
        """Ctrl-Z would stop what waits for the upload, and not the upload."""
        server = self.warm_up()
        running, fork = self.at_work(server)

        def state(pid: int) -> str:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

        running.send_signal(signal.SIGTSTP)
        until(lambda: (state(running.pid), state(fork)) == ("T", "T"), "both are stopped")
        running.send_signal(signal.SIGCONT)
        until(lambda: "T" not in (state(running.pid), state(fork)), "both go on")
        running.terminate()
        self.assertEqual(running.wait(60), 143)

    @shows("K8.1", "K8.2")
    def test_streams(self) -> None:
        """A full disk, or a reader that has gone, would go unnoticed."""
        self.warm_up()

        def closed() -> int:
            reader, writer = os.pipe()
            os.close(reader)
            return writer

        def ends(run: Callable[..., tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
            for make in (closed, lambda: os.open("/dev/full", os.O_WRONLY)):
                stdout = make()
                yield run("--help", stdout=stdout)
                os.close(stdout)
            for number in (0, 1, 2):
                yield run("--version", preexec_fn=partial(os.close, number))

        warm = list(ends(self.sync))
        self.assertEqual(warm, list(ends(self.cold)))
        self.assertEqual([code for code, _, _ in warm], [141, 1, 0, 0, 0])

    def test_process(self) -> None:
        """Limits, masks and ignored signals of the caller would not count, or descriptors of another command stay open."""
        server = self.warm_up()

        def before() -> None:
            os.umask(0o027)
            resource.setrlimit(resource.RLIMIT_NOFILE, (400, 500))
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

        running, fork = self.at_work(server, preexec_fn=before)
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{fork}/status").read_text().splitlines())
        self.assertEqual(int(fields["Umask"], 8), 0o027)
        self.assertTrue(int(fields["SigIgn"], 16) >> (signal.SIGHUP - 1) & 1)
        self.assertTrue(int(fields["SigBlk"], 16) >> (signal.SIGUSR2 - 1) & 1)
        self.assertRegex(Path(f"/proc/{fork}/limits").read_text(), r"Max open files +400 +500 ")
        self.assertEqual(os.readlink(f"/proc/{fork}/cwd"), str(self.top))
        for number in (0, 1, 2):
            self.assertEqual(os.readlink(f"/proc/{fork}/fd/{number}"), os.readlink(f"/proc/{running.pid}/fd/{number}"))
        left = [os.readlink(f"/proc/{fork}/fd/{number}") for number in os.listdir(f"/proc/{fork}/fd") if int(number) > 2]
        self.assertEqual([name for name in left if "ciruela" in name or name.startswith("/memfd")], [])
        self.assertEqual(len(os.listdir(f"/proc/{server}/fd")), 8)  # 0 to 2, directory, listener, events, the link, the fork

    def test_passphrase(self) -> None:
        """A locked key would be refused, or its passphrase be asked for on a terminal that the fork does not have."""
        server = self.warm_up()
        words = ("-i", "locked", *self.wish[2:])
        self.assertEqual(self.sync(*words, start_new_session=True), self.cold(*words, start_new_session=True))
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.top)
            os.execve(program("ciruela-sync"), ["ciruela-sync", *words], self.environ)
        said = b""
        while b"Passphrase of locked: " not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, PASSPHRASE + b"\n")
        while b"Signing with" not in said:
            said += os.read(terminal, 1000)
        os.close(terminal)
        os.waitpid(pid, 0)
        self.assertEqual(said.count(b"Passphrase"), 1)
        self.assertEqual(self.servers(), [server])


class Guarded(WarmCase):
    """Nobody else is asked, and nothing is left behind."""

    def said(self) -> str:
        """The reason why there was no warm start."""
        code, _, err = self.sync("-v", *self.wish)
        self.assertEqual(code, 3)
        return err.splitlines()[0] if "no warm start" in err else ""

    @shows("A48")
    def test_directory_of_others(self) -> None:
        """Others could put a socket there, and get the user's keys."""
        self.run_.chmod(0o750)
        self.assertIn("is not this user's alone", self.said())
        self.assertEqual(list(self.run_.iterdir()), [])
        self.run_.chmod(0o700)
        (self.top / "link").symlink_to(self.run_)
        for name in (str(self.top / "link"), str(self.top / "nowhere"), "run", ""):
            self.environ["XDG_RUNTIME_DIR"] = name
            self.assertIn("no warm start", self.said())
        self.assertEqual(list(self.run_.iterdir()), [])

    @shows("A48")
    def test_socket_of_others(self) -> None:
        """A socket that another user may write would do; one that another user made gets what is in the environment."""
        self.warm_up()
        (place,) = self.run_.iterdir()
        place.chmod(0o660)
        self.assertIn("is not this user's alone", self.said())
        place.chmod(0o600)
        if os.geteuid():
            raise SkipTest("only root can give a socket away")
        os.chown(place, 65534, 65534)
        self.assertIn("is not this user's alone", self.said())

    @shows("A48")
    def test_process_of_others(self) -> None:
        """A process of another user would get the keys, or run what another user wants, whatever the socket looks like."""
        if os.geteuid():
            raise SkipTest("only root can be another user")
        server = self.warm_up()
        (place,) = self.run_.iterdir()
        code = f"import os, socket; here = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); os.chdir({str(self.run_)!r})\n"
        asking = f"os.setgid(65534); os.setuid(65534); here.connect({place.name!r}); print(here.recv(4))"
        self.top.chmod(0o755)
        self.run_.chmod(0o777)
        place.chmod(0o777)
        done = subprocess.run([sys.executable, "-c", code + asking], capture_output=True, text=True, timeout=60, check=False)
        self.assertIn("b''", done.stdout, done.stderr)
        self.assertEqual(self.forks(server), [])
        place.unlink()
        waiting = f"os.setgid(65534); os.setuid(65534); here.bind({place.name!r}); here.listen(); print('here', flush=True); here.accept()"
        with subprocess.Popen([sys.executable, "-c", code + waiting], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            self.assertEqual(other.stdout.readline(), b"here\n")
            self.run_.chmod(0o700)
            place.chmod(0o600)
            os.chown(place, 0, 0)
            self.assertIn("another user waits for work there", self.said())
            other.kill()

    def test_stale(self) -> None:
        """A socket that a killed process left would keep every command from a warm start, or from any."""
        os.kill(self.warm_up(), signal.SIGKILL)
        time.sleep(0.1)
        self.assertIn("nobody waits for work", self.said())
        until(lambda: bool(self.servers()), "nobody waits for work")
        self.assertEqual(self.said(), "")

    def test_new_version(self) -> None:
        """The version before would go on working after the program was brought up to date."""
        copy = self.top / "packages" / "ciruela"
        shutil.copytree(Path(ciruela.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        self.environ |= {"PYTHONPATH": str(copy.parent), "PYTHONSAFEPATH": "1"}
        self.warm_up()
        (copy / "_version.py").write_text('"""Newer."""\n\n__version__ = "99.9"\n')
        self.assertEqual(self.sync("--version")[1], "ciruela 99.9\n")
        self.assertIn("nobody waits for work", self.said() or "nobody waits for work")

    @shows("A48")
    def test_no_key(self) -> None:
        """Whoever reads the memory of a process that waits for an hour would find the keys of all that was signed."""
        server = self.warm_up()
        self.environ["CIRUELA_KEY"] = sample("plain")
        self.assertEqual(self.sync(*self.wish[2:])[0], 3)
        secret = sample("plain").splitlines()[3].encode()
        self.assertNotIn(b"CIRUELA_KEY", Path(f"/proc/{server}/environ").read_bytes())
        looked = 0
        with open(f"/proc/{server}/maps") as maps, open(f"/proc/{server}/mem", "rb") as memory:
            for line in maps:
                span, rights, *_ = line.split()
                first, last = (int(one, 16) for one in span.split("-"))
                if rights.startswith("rw"):
                    memory.seek(first)
                    content = memory.read(last - first)
                    looked += len(content)
                    self.assertNotIn(secret, content)
        self.assertGreater(looked, 10_000_000)

    def test_mistyped(self) -> None:
        """A user would believe that a process waits for work."""
        for wrong in ("yes", "0", "-1", "1e3", "999999"):
            self.environ["CIRUELA_WARM"] = wrong
            self.assertIn("CIRUELA_WARM is not a number of seconds", self.sync(*self.wish)[2])
        self.assertEqual(list(self.run_.iterdir()), [])


class Short(WarmCase):
    idle_s = 1

    def test_ends(self) -> None:
        """A process would stay for ever."""
        server = self.warm_up()
        until(lambda: not Path(f"/proc/{server}").exists(), "it waits for work")
        self.assertEqual(list(self.run_.iterdir()), [])
