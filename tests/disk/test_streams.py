"""The standard streams of a process: a write that fails is nobody else's fault."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.streams import EXIT_OUTPUT, EXIT_PIPE, Standard, _Descriptor, _text, hold_descriptors
from tests.proof import shows


class DescriptorTests(SynchronousTestCase):
    """The raw end of a stream."""

    def pipe(self) -> tuple[int, int]:
        """A pipe; both ends are closed in the end, unless the test did."""
        ends = os.pipe()
        self.addCleanup(lambda: [self.close(end) for end in ends])
        return ends

    def close(self, end: int) -> None:
        try:
            os.close(end)
        except OSError as error:
            self.assertEqual(error.errno, errno.EBADF)

    @shows("K8.2")
    def test_the_reader_is_gone(self) -> None:
        """The error would come up in a callback, and be told as a notification of a server that was not understood."""
        read, write = self.pipe()
        failures: list[int | None] = []
        out = _text(_Descriptor(write, lambda error: failures.append(error.errno)), None)
        out.write("one\n")
        self.assertEqual(os.read(read, 10), b"one\n")
        os.close(read)
        for _ in range(3):
            out.write("two\n")
            out.flush()
        self.assertEqual(failures, [errno.EPIPE])

    @shows("K8.2")
    def test_somebody_made_it_non_blocking(self) -> None:
        """Half of the results would be lost without a word: ssh and some terminals share such a descriptor."""
        read, write = self.pipe()
        os.set_blocking(write, False)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        out = _text(_Descriptor(write, lambda error: self.fail(str(error))), None)
        found: list[bytes] = []

        def drain() -> None:
            while sum(map(len, found)) < 100_000:
                found.append(os.read(read, 1000))

        reader = threading.Thread(target=drain)
        reader.start()
        out.write("x" * 100_000)
        out.flush()
        reader.join(20)
        self.assertEqual(sum(map(len, found)), 100_000)


class HoldTests(SynchronousTestCase):
    """Descriptors 0, 1 and 2 are never free."""

    @shows("K8.1")
    def test_closed_ones_are_opened(self) -> None:
        """The first socket would be descriptor 2, and be sent what is meant for people."""
        null = os.stat(os.devnull)
        for closed in ((0,), (1,), (2,), (0, 1, 2), ()):
            child = os.fork()
            if child == 0:
                try:
                    before = [os.fstat(number).st_ino for number in range(3)]
                    for number in closed:
                        os.close(number)
                    hold_descriptors()
                    after = [os.fstat(number).st_ino for number in range(3)]
                    good = after == [null.st_ino if number in closed else before[number] for number in range(3)]
                    good = good and all(os.get_inheritable(number) for number in closed)
                    os._exit(0 if good and os.open(os.devnull, os.O_RDONLY) > 2 else 1)
                except BaseException:  # noqa: BLE001  a child must never go on as the test
                    os._exit(2)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0, closed)


class StandardTests(SynchronousTestCase):
    """What becomes of the exit code; the streams themselves are looked at in ``tests.real.test_streams``."""

    def standard(self, number: int | None) -> tuple[Standard, list[int]]:
        """One whose stdout failed with ``number``, and how often it told of that."""
        told: list[int] = []
        standard = Standard.__new__(Standard)
        standard.failure = None
        standard.broken = lambda: told.append(1)
        standard._err = _Descriptor(2, lambda _: None)
        if number is not None:
            standard._failed(OSError(number, os.strerror(number)))
        return standard, told

    @shows("K8.2")
    def test_exit_codes(self) -> None:
        """A script would take a result that was never written for one that was."""
        self.assertEqual(self.standard(None)[0].exit_code(6), 6)
        gone, told = self.standard(errno.EPIPE)
        self.assertEqual((gone.exit_code(0), told, gone._err.silent), (EXIT_PIPE, [1], True))
        full, told = self.standard(errno.ENOSPC)
        self.assertEqual((EXIT_PIPE, EXIT_OUTPUT), (141, 1))
        self.assertEqual((full._err.silent, told), (False, [1]))
