"""Bends inputs: bits and bytes, lengths, pieces of the format's own grain, pieces of other inputs. Repeatable for one ``rng``."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""Begin and end of a piece that means something by itself."""

Cut = Callable[[bytes], Sequence[Span]]

MOST_SPANS = 400
MOST_KEPT = 200
"""Accepted inputs that are bent further, beside the seeds."""

INTERESTING = tuple(
    number.to_bytes(width, "big")
    for width in (1, 2, 4, 8)
    for number in sorted(
        {
            value & (1 << 8 * width) - 1
            for value in (0, 1, 16, 23, 24, 31, 32, 64, 100, 125, 126, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536)
        }
        | {(1 << 8 * width - 1) - 1, 1 << 8 * width - 1, (1 << 8 * width) - 1, (1 << 8 * width) - 2}
    )
)
"""Numbers at which lengths, sizes and signs change their spelling or their meaning."""

_WORDS = re.compile(rb"[^\s,:/=\"']+|\n[^\n]*")


def cut_words(data: bytes) -> list[Span]:
    """Words and lines of a text."""
    return [match.span() for match in _WORDS.finditer(data)][:MOST_SPANS]


def cut_evenly(data: bytes) -> list[Span]:
    """Pieces of eight bytes."""
    return [(at, at + 8) for at in range(0, len(data), 8)][:MOST_SPANS]


def cut_cbor(data: bytes) -> list[Span]:
    """Every item of some CBOR, with what it contains. Stops at the first byte that makes no sense."""
    spans: list[Span] = []

    def item(at: int, depth: int) -> int:
        head = data[at]
        major, size, end = head >> 5, head & 31, at + 1
        if 24 <= size <= 27:
            width = 1 << size - 24
            size = int.from_bytes(data[end : end + width], "big")
            end += width
        if major in (2, 3):
            end += size
        elif major in (4, 5):
            for _ in range(size if major == 4 else 2 * size):
                if depth > 20 or len(spans) > MOST_SPANS:
                    raise IndexError
                end = item(end, depth + 1)
        if end > len(data):
            raise IndexError
        spans.append((at, end))
        return end

    at = 0
    try:
        while at < len(data):
            at = item(at, 0)
    except IndexError:
        return spans
    return spans


@dataclass(frozen=True, slots=True)
class _Sample:
    data: bytes
    spans: Sequence[Span]

    def piece(self, chance: float) -> bytes:
        """One of its pieces; all of it when it has none."""
        if not self.spans:
            return self.data
        begin, end = self.spans[int(chance * len(self.spans))]
        return self.data[begin:end]


class Mutator:
    """Endless inputs that are almost ``seeds``. ``tokens`` are put in as they are: words of the format, and known bombs."""

    def __init__(
        self, seeds: Sequence[bytes], rng: random.Random, cut: Cut = cut_evenly, tokens: Sequence[bytes] = (), longest: int = 4096
    ):
        self._rng = rng
        self._cut = cut
        self._tokens = (*tokens, *INTERESTING)
        self._longest = longest
        self._samples = [_Sample(seed, cut(seed)) for seed in seeds]
        self._first = len(self._samples)

    def keep(self, data: bytes) -> None:
        """``data`` was accepted: it is worth bending again."""
        sample = _Sample(data, self._cut(data))
        if len(self._samples) < self._first + MOST_KEPT:
            self._samples.append(sample)
        else:
            self._samples[self._first + int(self._rng.random() * MOST_KEPT)] = sample

    def next(self) -> bytes:
        """One more input."""
        chance = self._rng.random
        sample = self._samples[int(chance() * len(self._samples))]
        if sample.spans and chance() < 0.5:
            data = self._bend_pieces(sample)
            if chance() < 0.5:
                return bytes(data[: self._longest])
        else:
            data = bytearray(sample.data)
        for _ in range(1 + int(chance() ** 2 * 4)):
            self._bend_bytes(data)
        return bytes(data[: self._longest])

    def _bend_pieces(self, sample: _Sample) -> bytearray:
        """Replace, remove, repeat or exchange pieces; what contains them is not told."""
        chance = self._rng.random
        data = bytearray(sample.data)
        begin, end = sample.spans[int(chance() * len(sample.spans))]
        what = int(chance() * 6)
        if what == 0:
            data[begin:end] = self._samples[int(chance() * len(self._samples))].piece(chance())
        elif what == 1:
            data[begin:end] = self._tokens[int(chance() * len(self._tokens))]
        elif what == 2:
            del data[begin:end]
        elif what == 3:
            data[end:end] = data[begin:end] * (1 + int(chance() ** 4 * 60))
        elif what == 4:
            data[begin:begin] = self._tokens[int(chance() * len(self._tokens))]
        else:
            left, right = sample.spans[int(chance() * len(sample.spans))]
            if end <= left:
                data[begin:right] = data[left:right] + data[end:left] + data[begin:end]
        return data

    def _bend_bytes(self, data: bytearray) -> None:
        chance = self._rng.random
        size = len(data)
        if not size:
            data += self._rng.randbytes(1 + int(chance() * 8))
            return
        at = int(chance() * size)
        what = int(chance() * 10)
        if what == 0:
            data[at] ^= 1 << int(chance() * 8)
        elif what == 1:
            data[at] = int(chance() * 256)
        elif what == 2:
            data[at] = (data[at] + (1 if chance() < 0.5 else 255)) & 255
        elif what == 3:
            number = INTERESTING[int(chance() * len(INTERESTING))]
            data[at : at + len(number)] = number
        elif what == 4:
            del data[at : at + 1 + int(chance() ** 3 * 40)]
        elif what == 5:
            del data[at:]
        elif what == 6:
            data[at:at] = data[at : at + 1 + int(chance() * 20)] * (1 + int(chance() ** 4 * 50))
        elif what == 7:
            data[at:at] = self._rng.randbytes(1 + int(chance() * 4))
        elif what == 8:
            data[at:at] = self._tokens[int(chance() * len(self._tokens))]
        else:
            other = self._samples[int(chance() * len(self._samples))].data
            data[at:] = other[int(chance() * len(other)) :]
