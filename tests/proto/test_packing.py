"""Blocks that travel compressed."""

from __future__ import annotations

import random
import threading

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import FormatError
from ciruela.proto import compression
from ciruela.proto.compression import LEAST_BYTES, SAMPLE_BYTES, WORTH, index, pack, part, unpack, unpack_index
from ciruela.proto.messages import BlockPart, IndexData
from tests.proof import shows

TEXT = b"".join(b"line %d of a text\n" % number for number in range(10_000))
NOISE = random.Random(1).randbytes(200_000)


class PackTests(SynchronousTestCase):
    """What is packed."""

    @settings(derandomize=True, deadline=None, database=None, max_examples=60)
    @given(st.binary(max_size=40), st.integers(0, 5000))
    def test_round_trip(self, unit: bytes, times: int) -> None:
        """Others would get something else than what was packed."""
        data = unit * times
        packed = pack(data)
        if packed is not None:
            self.assertLess(len(packed), WORTH * len(data))
            self.assertEqual(unpack(packed, len(data)), data)

    def test_text(self) -> None:
        """Text would travel in its full length."""
        for size in (LEAST_BYTES, 5000, 4 * SAMPLE_BYTES + 1, len(TEXT)):
            packed = pack(TEXT[:size])
            assert packed is not None
            self.assertLess(len(packed), size * 0.6)
            self.assertEqual(unpack(packed, size), TEXT[:size])

    def test_incompressible(self) -> None:
        """Time would be spent on both sides to save nothing."""
        for size in (LEAST_BYTES, 3 * SAMPLE_BYTES, len(NOISE)):
            self.assertTrue(pack(NOISE[:size]) is None)
        self.assertTrue(pack(TEXT[: LEAST_BYTES - 1]) is None, "a frame and a look into it cost more than what is saved")

    def test_a_sample_decides(self) -> None:
        """What is compressed already would be compressed again as a whole, to find that out."""
        self.assertTrue(pack(TEXT[: 4 * SAMPLE_BYTES] + NOISE[:SAMPLE_BYTES] + TEXT[: 3 * SAMPLE_BYTES]) is None)
        self.assertTrue(pack(NOISE[:1000] + TEXT[: 8 * SAMPLE_BYTES] + NOISE[:1000]) is not None)
        compressed: list[int] = []

        class Watched:
            def compress(self, data: bytes) -> bytes:
                compressed.append(len(data))
                return bytes(data)

        self.patch(compression._own, "compressor", Watched())
        pack(NOISE)
        self.assertEqual(compressed, [SAMPLE_BYTES])

    def test_part(self) -> None:
        """Who did not ask for compressed parts could not read them."""
        self.assertEqual(part(TEXT, may_pack=False), BlockPart(TEXT))
        self.assertEqual(part(NOISE, may_pack=True), BlockPart(NOISE))
        packed = part(TEXT, may_pack=True)
        self.assertTrue(packed.packed)
        self.assertEqual(unpack(packed.data, len(TEXT)), TEXT)

    def test_threads(self) -> None:
        """Two threads would write into one frame."""
        found: list[bool] = []

        def work(number: int) -> None:
            data = b"%d" % number * 50_000
            found.append(all(unpack(pack(data) or b"", len(data)) == data for _ in range(50)))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [True] * 4)

    def test_index(self) -> None:
        """An index, half of which are hex digits, would travel in its full length; or to one who cannot read it so."""
        self.assertEqual(index(TEXT, may_pack=False), IndexData(TEXT))
        packed = index(TEXT, may_pack=True)
        self.assertTrue(packed.packed)
        self.assertEqual(unpack_index(packed.data, len(TEXT)), TEXT)
        self.assertEqual(index(NOISE, may_pack=True), IndexData(NOISE))


class UnpackTests(SynchronousTestCase):
    """What comes is not believed."""

    def refused(self, packed: bytes, size: int) -> str:
        with self.assertRaises(FormatError) as caught:
            unpack(packed, size)
        return str(caught.exception)

    @shows("A7")
    def test_damaged(self) -> None:
        """A damaged answer would end the download, not cost its source."""
        packed = pack(TEXT)
        assert packed is not None
        for bad in (b"", b"x", packed[:3], packed[:20], packed[:-1], b"\0" * 100, TEXT):
            self.refused(bad, len(TEXT))
        rng = random.Random(3)
        for _ in range(300):
            bent = bytearray(packed)
            bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
            try:
                self.assertEqual(len(unpack(bytes(bent), len(TEXT))), len(TEXT))
            except FormatError:
                continue

    @shows("A21")
    def test_another_size(self) -> None:
        """What is longer or shorter than the blocks would be put where they belong."""
        packed = pack(TEXT)
        assert packed is not None
        for size in (0, 1, len(TEXT) - 1, len(TEXT) + 1, 1 << 40):
            self.assertIn("does not hold", self.refused(packed, size))

    @shows("A21")
    def test_index_bomb(self) -> None:
        """An index of a few bytes would fill the memory."""
        packed = pack(TEXT)
        assert packed is not None
        self.assertEqual(unpack_index(packed, len(TEXT)), TEXT)
        nameless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
        for bad, most in (
            (packed, len(TEXT) - 1),
            (nameless, 1 << 30),
            (lying(1 << 24, 32_768), 1 << 20),
            (b"", 10),
            (packed[:-1], len(TEXT)),
        ):
            self.assertRaises(FormatError, unpack_index, bad, most)

    @shows("A21")
    def test_no_size(self) -> None:
        """A frame that does not say how much is in it would have to be unpacked to find that out."""
        nameless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
        self.assertIn("does not hold", self.refused(nameless, 1 << 20))

    @shows("A21")
    def test_more_than_it_says(self) -> None:
        """A frame of a few bytes that says it holds a block, and holds a gigabyte, would fill the memory."""
        self.refused(lying(1 << 24, 32_768), 32_768)
        self.refused(lying(1000, 32_768), 32_768)
        packed = pack(TEXT)
        assert packed is not None
        self.refused(packed + packed, len(TEXT))
        self.refused(packed + b"\0", len(TEXT))


def lying(holds: int, says: int) -> bytes:
    """A frame with ``holds`` zeros that says it has ``says`` bytes."""
    frame = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(holds))
    parameters = zstandard.get_frame_parameters(frame)
    single = frame[4] >> 5 & 1
    width = (1 if single else 0, 2, 4, 8)[frame[4] >> 6]
    body = frame[5 + (not single) + width :]
    assert parameters.content_size == holds
    return frame[:4] + bytes([0x80 | 0x20]) + says.to_bytes(4, "little") + body
