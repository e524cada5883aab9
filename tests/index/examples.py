"""Indexes to test with: the worked examples of the format (protocol section 1.5), and trees from hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.parse import HEADERS
from ciruela.index.tree import Directory, File, Symlink
from ciruela.model.ids import ImageId

LIBRARY = rb"""DIRSIGNATURE.v1 blake2b/256 block_size=32768
/
  file2.txt f 18 3ae02016c534f640b87b21d5bb94bf39a29c4cfa8e1bcdfcdea28993301255f9
/sub2
  hello.txt f 6 1bb580f57655aff3424d7832686c80195b61b5f228702e426c5332941211aff8
/subdir
  bigdata.bin f 81920 e9334020344bcb418f16c532a4fad5465ef530cff3eaaee6411bddf59e210e50 e9334020344bcb418f16c532a4fad5465ef530cff3eaaee6411bddf59e210e50 087e8b8bdc8b93f4f83212c1d6c01af4c55d3c1d3412da45112e903df797c1cd
  file3.txt f 12 47fc3debf75989703259c26b1c7f7dec735fd7f80b5d02f5c7f07e7794433e18
2a74fd7919473f3dde830ee4a8e3e108a6954731a319e9198ef483f9c9e82992
"""  # noqa: E501  the format has no line breaks within a file
"""The example of the format's own library; its image id comes from there."""

FEATURES = rb"""DIRSIGNATURE.v1 blake2b/256 block_size=32768
/
  README f 6 93becc6e9882211c3ec3708c95bcd69baab7bb59c7f4bc84ce637b88a534b783
  dangling s no\x20such\x20target
  run.sh x 18 c5f26367f249d0e4b6e71e196d62d6b04aed6d2025965e776039058095c8647e
  zero f 0
/a
  big.bin f 40960 c3e6c45e9ba7c00a92593d3c8a4ed297280751fa5c9ff4bdb545d6ef60a41aa6 5facd7ce6f94c793e0c9df345cccc272ada6e32ea17be996e512f346eef30652
  link s ../README
/a/b
  back\x5cslash f 1 d161d71145abeec5ef15abcf0459cec60a27321e2f0ac0ef7ace5254f5944476
/a-b
  sp\x20ace f 1 affab3912ecb865f83fd76b3a4bf2a9fc5692d635a54444f45435cbf4ac9b84b
  \xc3\xbcml f 1 7ba97c220a8825c880d05a9b5e535e1681e4d6100f6dcb1b4d4066343833a818
/empty
a1ba01ceea5ef43ea1eed20989eafdff9a4b13f7efd2df5947c758d1055936fa
"""  # noqa: E501
"""One of everything."""

SMALLEST = b"""DIRSIGNATURE.v1 blake2b/256 block_size=32768
/
e0020ea89546e44b42c04add7cdd21b99873f8147004710105333daaf5ae49c2
"""
"""An empty directory."""

KIND = HashKind.BLAKE2B
BIG = bytes(range(256)) * 160


def block(data: bytes, kind: HashKind = KIND) -> bytes:
    """The concatenated block hashes of ``data``."""
    return b"".join(kind.block(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES))


def file(path: str, data: bytes, *, executable: bool = False, kind: HashKind = KIND) -> File:
    """A file with the content ``data``."""
    return File(path, executable, len(data), block(data, kind))


FEATURES_TREE = (
    Directory(
        "/",
        (
            file("/README", b"hello\n"),
            Symlink("/dangling", "no such target"),
            file("/run.sh", b"#!/bin/sh\necho hi\n", executable=True),
            file("/zero", b""),
        ),
    ),
    Directory("/a", (file("/a/big.bin", BIG), Symlink("/a/link", "../README"))),
    Directory("/a/b", (file("/a/b/back\\slash", b"x"),)),
    Directory("/a-b", (file("/a-b/sp ace", b"y"), file("/a-b/üml", b"z"))),
    Directory("/empty", ()),
)
"""What ``FEATURES`` lists."""


def footer_of(data: bytes) -> ImageId:
    """The id that the last line claims."""
    return ImageId(bytes.fromhex(data[-65:-1].decode()))


def sealed(body: bytes, kind: HashKind = KIND) -> tuple[bytes, ImageId]:
    """An index with the lines ``body`` and a footer that fits them, and its id: the parser proper has to find what is wrong."""
    digest = kind.hash(body)
    return HEADERS[kind] + body + digest.hex().encode() + b"\n", ImageId(digest)


def body_of(data: bytes) -> bytes:
    """The lines between header and footer."""
    return data[data.index(b"\n") + 1 : -65]


names = st.one_of(
    st.text(st.sampled_from("ab-./ \n\t\\x20'\"ü¢😀\x7f\x80\x01"), min_size=1, max_size=12),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
).filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name)
"""Names that a directory can have, odd ones often."""


@st.composite
def trees(draw: st.DrawFn) -> tuple[HashKind, tuple[Directory, ...]]:
    """A hash kind and a small tree in canonical order."""
    kind = draw(st.sampled_from(HashKind))
    directories: list[Directory] = []
    waiting: list[tuple[str, int]] = [("/", 0)]
    while waiting:
        path, depth = waiting.pop()
        prefix = path if path == "/" else path + "/"
        found = sorted(draw(st.sets(names, max_size=5)))
        entries: list[File | Symlink] = []
        below: list[str] = []
        for name in found:
            what = draw(st.sampled_from("fxsd" if depth < 3 and len(directories) + len(waiting) < 12 else "fxs"))
            if what == "d":
                below.append(prefix + name)
            elif what == "s":
                target = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
                entries.append(Symlink(prefix + name, target))
            else:
                size = draw(st.sampled_from((0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES)))
                count = -(-size // BLOCK_BYTES)
                hashes = draw(st.binary(min_size=32, max_size=32)) * count
                entries.append(File(prefix + name, what == "x", size, hashes))
        directories.append(Directory(path, tuple(entries)))
        waiting.extend((path, depth + 1) for path in reversed(below))
    return kind, tuple(directories)
