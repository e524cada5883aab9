"""What has to hold for formats of text: indexes, paths, key files, YAML."""

from __future__ import annotations

import base64

from ciruela.daemon import config, plan
from ciruela.daemon.rules import MAX_DEPTH, Items, Mistake, Scalar, Table, Value, read_yaml
from ciruela.index import names
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.names import MAX_LISTING_BYTES
from ciruela.index.parse import image_id_of, parse
from ciruela.index.tree import File, Index, Symlink
from ciruela.keys.authorized import parse_authorized
from ciruela.keys.public import PassphraseNeeded, parse_private, put_string, take_string
from ciruela.model.errors import BadIndex, BadKey
from ciruela.model.ids import ImageId
from ciruela.model.vpath import MAX_COMPONENT_BYTES, MAX_LEVELS, MAX_PATH_BYTES, VPath
from tests.fuzz.wire import refusal
from tests.index.examples import FEATURES, LIBRARY, SMALLEST, body_of, sealed
from tests.keys import samples as keys

# -- indexes ------------------------------------------------------------------------------------------------------------------

HOSTILE_LINES = (
    b"/..\n",
    b"/a/../b\n",
    b"/.\n",
    b"//\n",
    b"/a//b\n",
    b"/a/\n",
    b"  .. f 0\n",
    b"  . f 0\n",
    b"  ../x f 0\n",
    b"  /x f 0\n",
    b"  a/b f 0\n",
    b"  \\x2e\\x2e f 0\n",
    b"  a\\x2fb f 0\n",
    b"  a\\x00b f 0\n",
    b"  \\xff f 0\n",
    b"  a\\xC3\\xBC f 0\n",
    b"  a s \n",
    b"  a s " + b"t" * 4096 + b"\n",
    b"  a s /etc/passwd\n",
    b"  a s ../../..\n",
    b"  " + b"n" * 256 + b" f 0\n",
    b"/" + b"/".join([b"d" * 250] * 17) + b"\n",
    b"/" + b"/".join([b"d"] * 65) + b"\n",
    b"  a f 9223372036854775807\n",
    b"  a f 9223372036854775808 " + b"0" * 64 + b"\n",
    b"  a f 18446744073709551616\n",
    b"  a f 99999999999999999999999999999999\n",
    b"  a f 32768000000000 " + b"0" * 64 + b"\n",
    b"  a f -1\n",
    b"  a f +1 " + b"0" * 64 + b"\n",
    b"  a f 01 " + b"0" * 64 + b"\n",
    b"  a f 1 " + b"A" * 64 + b"\n",
    b"  a f 1  " + b"0" * 64 + b"\n",
    b"  a f 1 " + b"0" * 64 + b"\r\n",
    b"  a f 1 " + b"0" * 63 + b"\n",
    b"  a f 0 \n",
    b"  a d 0\n",
    b"  a p 0\n",
    b"\n",
    b" a f 0\n",
    b"   a f 0\n",
)
"""Lines that no index may have: paths that leave the image, numbers that promise too much, other spellings (threats A1 to A5)."""

TOKENS_INDEX = (*HOSTILE_LINES, b"..", b"\\x", b"\\x2f", b"\\x00", b" f ", b" x ", b" s ", b" 32768 ", b" 32769 ", b"0" * 64, b"\r")
_KINDS = tuple(HashKind)


def index_samples() -> tuple[bytes, ...]:
    """The worked examples of the format, and one whose lines are longer."""
    big = b"/\n  big f %d " % (40 * BLOCK_BYTES) + b" ".join([b"%064x" % number for number in range(40)]) + b"\n"
    return LIBRARY, FEATURES, SMALLEST, sealed(big)[0], sealed(body_of(FEATURES), HashKind.SHA512_256)[0]


def lines_of(data: bytes) -> bytes:
    """The lines between header and footer."""
    return body_of(data)


def check_index(data: bytes) -> bool:
    """Whole indexes as they arrive; what is accepted has the id in its footer, and so does what is written of it."""
    try:
        image = image_id_of(data)
    except BadIndex as fault:
        try:
            parse(data, ImageId(bytes(32)))
        except BadIndex:
            return refusal(fault)
        raise AssertionError("parsed, with a footer that was refused") from None
    try:
        parse(data, ImageId(bytes(32)))
    except BadIndex:
        return _parsed(data, image)
    raise AssertionError("accepted for an image that it is not")


def check_index_lines(data: bytes) -> bool:
    """The lines between header and footer. Each input is sealed with a hash that fits, so that the parser itself has to find the fault."""
    kind = _KINDS[len(data) % 3]
    whole, image = sealed(data, kind)
    return _parsed(whole, image)


def _parsed(data: bytes, image: ImageId) -> bool:
    try:
        index = parse(data, image)
    except BadIndex as fault:
        return refusal(fault)
    _safe(index, len(data))
    assert emit(index.kind, index.directories) == (image, data), "it is written differently than it was read"
    return True


def _safe(index: Index, size: int) -> None:
    seen: set[str] = set()
    listed = 0
    for directory in index.directories:
        here = names.components(directory.path)
        assert directory.path not in seen, directory.path
        seen.add(directory.path)
        assert "/" + "/".join(here[:-1]) in seen, "a directory before its parent"
        for entry in directory.entries:
            parts = names.components(entry.path)
            assert parts[:-1] == here, entry.path
            assert entry.path not in seen, entry.path
            seen.add(entry.path)
            listed += len(entry.path)
            if isinstance(entry, Symlink):
                assert 0 < len(entry.target.encode()) <= names.MAX_TARGET_BYTES
                assert "\0" not in entry.target
            else:
                assert isinstance(entry, File)
                assert 0 <= entry.size < 1 << 63
                assert entry.block_count == -(-entry.size // BLOCK_BYTES)
    assert ".." not in {part for path in seen for part in path.split("/")}
    assert listed <= MAX_LISTING_BYTES
    assert sum(len(file.hashes) for file in index.files) <= size


# -- paths --------------------------------------------------------------------------------------------------------------------

TOKENS_PATH = (
    b"..",
    b"/..",
    b"../",
    b"/../../etc/passwd",
    b"/./",
    b"//",
    b"\x00",
    b"\n",
    b"\x1b[2J",
    b"\x7f",
    b"\xc2\x85",
    b".new",
    b".tmp.x",
    b"/.ciruela~x",
    b"\\x2e\\x2e",
    b"\\x2f",
    b"\\x5c",
    b"\xef\xbc\x8f",
    b"\xed\xa0\x80",
    b"\xc0\xae",
    "e\u0301".encode(),
    "\u202e".encode(),
    b"a" * 256,
    b"/a" * 20,
    b"\xf0\x9f\x98\x80" * 64,
)


def path_samples() -> tuple[bytes, ...]:
    """Virtual paths, and names as an index spells them."""
    spelled = (b"a\\x20b", b"\\xc3\\xbc", b"back\\x5cslash", b"plain", b"/sub/dir\\x20x/file")
    return (b"/a", b"/dir1/a/v1", b"/app/web/2024-01-01", "/ü/ß".encode(), b"/" + b"/".join([b"x" * 200] * 5), *spelled)


def check_path(data: bytes) -> bool:
    """Virtual paths and the names of an index: what is accepted has one spelling, and no part that leads anywhere else."""
    text = data.decode("utf-8", "surrogateescape")
    accepted = False
    try:
        path = VPath.parse(text)
    except ValueError as fault:
        assert len(str(fault)) < 1000, len(str(fault))
    else:
        accepted = True
        assert str(path) == text
        assert len(text.encode()) <= MAX_PATH_BYTES
        assert len(path.parts) <= MAX_LEVELS + 1
        for part in path.parts:
            assert part not in ("", ".", ".."), part
            assert not part.startswith(".")
            assert not part.endswith(".new")
            assert not set(part) & _FORBIDDEN
            assert len(part.encode()) <= MAX_COMPONENT_BYTES
        assert path.base.image_at(path.entry) == path
    try:
        plain = names.unescape(text)
    except ValueError as fault:
        assert len(str(fault)) < 1000, len(str(fault))
        return accepted
    assert names.escape(plain) == text
    try:
        parts = names.components(plain)
    except ValueError as fault:
        assert len(str(fault)) < 1000, len(str(fault))
        return accepted
    assert "/" + "/".join(parts) == plain
    assert not {"", ".", ".."} & set(parts)
    return True


_FORBIDDEN = frozenset("/\0" + "".join(map(chr, range(32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))))

# -- keys ---------------------------------------------------------------------------------------------------------------------

NOW_UTC = "20260101000000"
TOKENS_KEYS = (
    b"ssh-ed25519 ",
    b"ssh-rsa ",
    b'expiry-time="20300101Z" ',
    b'expiry-time="20200101Z" ',
    b"restrict,no-pty ",
    b'command="x\\"y" ',
    b'from="*" ',
    b"-----BEGIN OPENSSH PRIVATE KEY-----",
    b"-----END OPENSSH PRIVATE KEY-----",
    b"-----BEGIN RSA PRIVATE KEY-----",
    b"\t",
    b"\n",
    b"#",
    b"\xef\xbb\xbf",
    b"\x1b[31m",
    "\u202e".encode(),
    b"AAAAC3NzaC1lZDI1NTE5",
)


def authorized_samples() -> tuple[bytes, ...]:
    """Key files of a server: one line, several, with options, and what people put there by mistake."""
    plain = keys.sample("plain.pub").encode().strip()
    many = b"# team\n\n" + plain + b"\n" + b'restrict,expiry-time="20300101Z" ' + plain + b"\n" + keys.sample("rsa.pub").encode()
    return plain + b"\n", many, b'command="a" ' + plain + b"\n", keys.sample("plain").encode() + plain + b"\n"


def check_authorized(data: bytes) -> bool:
    """Whatever a key file holds: every line gives a key or a reason, and a key that is accepted is written in it, on an active line."""
    text = data.decode("utf-8", "replace")
    found, problems = parse_authorized(text, "k", NOW_UTC)
    lines = [line.strip() for line in text.split("\n")]
    assert len(found) + len(problems) <= len(lines)
    for key in found:
        assert len(key.raw) == 32
        assert key.comment.isprintable()
        assert any(base64.b64encode(key.blob).decode() in line for line in lines if not line.startswith("#"))
    for problem in problems:
        assert problem.startswith("k:")
        refusal(BadKey(problem))
    return bool(found)


def private_samples() -> tuple[bytes, ...]:
    """Inner bytes of private keys in OpenSSH's form: in clear, and locked."""
    return tuple(_inner(keys.sample(name)) for name in ("plain", "appendix-c", "locked", "locked-gcm", "dsa", "ecdsa", "rsa"))


def _inner(text: str) -> bytes:
    return base64.b64decode("".join(line for line in text.splitlines() if not line.startswith("-----")))


def cut_strings(data: bytes) -> list[tuple[int, int]]:
    """The length-prefixed strings of a private key, and those inside of them."""
    spans: list[tuple[int, int]] = []

    def strings(at: int, end: int, depth: int) -> None:
        while at + 4 <= end and len(spans) < 60:
            size = int.from_bytes(data[at : at + 4], "big")
            if size == 1:
                at += 4
                continue
            if at + 4 + size > end:
                return
            spans.append((at, at + 4 + size))
            if depth < 2:
                strings(at + 4, at + 4 + size, depth + 1)
            at += 4 + size

    strings(15, len(data), 0)
    return spans


TOKENS_PRIVATE = (
    put_string(b"ssh-ed25519"),
    put_string(b"ssh-rsa"),
    put_string(b"none"),
    put_string(b"bcrypt"),
    put_string(b""),
    b"\0\0\0\1",
)


def check_private(data: bytes) -> bool:
    """A private key in its armor, without a passphrase: a locked one is only named. What is accepted signs for the key that it names."""
    for text in (_armored(data), data.decode("utf-8", "replace")):
        try:
            key = parse_private(text)
        except PassphraseNeeded as fault:
            assert len(fault.public.raw) == 32
            refusal(fault)
        except BadKey as fault:
            refusal(fault)
        else:
            blob = key.public.blob
            assert put_string(blob) in data, "the key is not the one that the file names"
            assert take_string(blob, 0)[0] == b"ssh-ed25519"
            return True
    return False


def _armored(data: bytes) -> str:
    return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{base64.b64encode(data).decode()}\n-----END OPENSSH PRIVATE KEY-----\n"


# -- YAML ---------------------------------------------------------------------------------------------------------------------

TOKENS_YAML = (
    b"&a ",
    b"*a ",
    b"!!python/name:os.system ",
    b"!x ",
    b"<<: ",
    b"- ",
    b"? ",
    b": ",
    b"[",
    b"]",
    b"{",
    b"}",
    b"|\n  ",
    b">-\n  ",
    b'"\\x1b"',
    b"'",
    b'"',
    b"#",
    b"---\n",
    b"...\n",
    b"%YAML 1.1\n",
    b"\t",
    b"\n",
    b"\xef\xbb\xbf",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\x00",
    b"[" * 40,
    b"- " * 40,
    b"? " * 40,
    b"directory: /a\n",
    b"num-levels: ",
    b"99999999999999999999999",
    b"0x" + b"f" * 30,
    b"2 days",
    b"true",
    b"~",
)


def yaml_samples() -> tuple[bytes, ...]:
    """Small files: what they mean does not grow with them, and reading YAML is slow."""
    return (
        b"directory: /a\nupload-keys: [a, b]\n",
        b"append-only: true\nkeep-recent: 2 days\n",
        b"num-levels: 0x1\n_x:\n  - y\n",
        b"a: {b: [c]}\n",
        b'"q": |\n  t\n',
    )


_RULES = (*config._RULES.values(), *plan.RULES.values())


def check_yaml(data: bytes) -> bool:
    """Configuration: the mistake has a line of the file; what is read is shallow; each setting takes a value or says what is wrong."""
    lines = data.count(b"\n") + data.count(b"\r") + data.count(b"\xc2\x85") + data.count(b"\xe2\x80") + 1
    try:
        value = read_yaml(data)
    except Mistake as mistake:
        assert 1 <= mistake.line <= lines + 1, mistake.line
        return refusal(mistake)
    _shallow(value, 0, lines)
    parts = [part for _, part in value.entries.values()] if isinstance(value, Table) else [value]
    for part in parts[:3]:
        for rule in _RULES:
            try:
                rule.read(part)
            except ValueError as fault:
                assert len(str(fault)) < 1000, len(str(fault))
    return True


def _shallow(value: Value, depth: int, lines: int) -> None:
    assert 1 <= value.line <= lines + 1, value.line
    if isinstance(value, Scalar):
        return
    assert depth < MAX_DEPTH, depth
    for inner in value.values if isinstance(value, Items) else [part for _, part in value.entries.values()]:
        _shallow(inner, depth + 1, lines)
