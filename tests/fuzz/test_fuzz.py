"""A sample of the campaign, every input that was once a finding, and the proof that the campaign would notice."""

from __future__ import annotations

import dataclasses
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import bombs, campaign
from tests.fuzz.campaign import FINDINGS, Finding, fuzz, mutator, replay
from tests.fuzz.targets import BY_NAME, INPUTS, TARGETS, Target
from tests.measure import UnmeasuredTestCase
from tests.proof import shows

SAMPLE = 500


class SampleTests(UnmeasuredTestCase):
    """Each decoder against some inputs; the others are for ``python -m tests.campaigns fuzz``."""

    @shows("I8", "A1", "A23", "F13")
    def test_seeds(self) -> None:
        """What a decoder is made for would be refused, or a bomb let in."""
        for target in TARGETS:
            results = [target.check(seed) for seed in target.seeds]
            self.assertIn(True, results, target.name)

    @shows("I8", "A4", "A5", "A22", "A23", "A24", "A45", "A47", "F1", "F13", "F14", "F18")
    def test_bent(self) -> None:
        """Somebody who bends a message, a file or a frame would find a decoder that falls over."""
        for target in TARGETS:
            done, _ = fuzz(target, "sample", SAMPLE, keep=False)
            self.assertEqual(done, SAMPLE)

    def test_findings(self) -> None:
        """A fault that was found and mended would come back unseen."""
        for path in sorted(FINDINGS.glob("*.bin")):
            replay(path)

    @given(st.sampled_from([target.name for target in TARGETS]), st.binary(max_size=200))
    @settings(derandomize=True, deadline=None, database=None, max_examples=150)
    def test_anything(self, name: str, data: bytes) -> None:
        """Bytes that look like nothing at all."""
        BY_NAME[name].check(data)

    def test_counts(self) -> None:
        """A decoder could be left out of the long run by a small number."""
        few = {target.name: target.inputs for target in TARGETS if target.inputs < INPUTS}
        links = dict.fromkeys(("server-link", "client-link", "bulk"), INPUTS // 2)
        own = dict.fromkeys(("due", "modes", "kept", "peer-cache"), 50_000)
        self.assertEqual(few, {"talk": 50_000, "http-port": 10_000, **links, **own})

    @shows("A5", "A6", "F6", "I6")
    def test_bombs(self) -> None:
        """An index that declares 2**63 bytes, or ten thousand million blocks, would take all memory of the host."""
        self.assertGreater(bombs.run_limited("indexes"), 5)

    @shows("A21", "I6")
    def test_packed_bombs(self) -> None:
        """A part of a few kilobytes that holds a gigabyte would take all memory of the host."""
        self.assertGreater(bombs.run_limited("frames"), 5)


class NoticeTests(UnmeasuredTestCase):
    """The campaign itself."""

    def bad(self, check: object) -> Target:
        return dataclasses.replace(BY_NAME["cbor"], check=check)  # type: ignore[arg-type]

    def test_foreign_exception(self) -> None:
        """An exception that no caller expects would pass for a refusal."""

        def check(data: bytes) -> bool:
            return data[0] > 300  # IndexError for an empty input

        with self.assertRaises(Finding) as caught:
            fuzz(self.bad(check), 1, 5000, keep=False)
        self.assertIn("IndexError", str(caught.exception))

    def test_slow(self) -> None:
        """An input that holds up the reactor would pass."""
        self.patch(campaign, "MOST_S", 0.01)

        def check(data: bytes) -> bool:
            if data.endswith(b"\x00"):
                until_s = time.process_time() + 0.02
                while time.process_time() < until_s:
                    pass
            return False

        with self.assertRaises(Finding) as caught:
            fuzz(self.bad(check), 1, 5000, keep=False)
        self.assertIn("it took 2", str(caught.exception))

    def test_repeatable(self) -> None:
        """A finding on one machine could not be made again on another."""
        target = BY_NAME["requests"]
        first, again = mutator(target, 7), mutator(target, 7)
        self.assertEqual([first.next() for _ in range(200)], [again.next() for _ in range(200)])
