"""Public ed25519 keys in OpenSSH's forms, and checking a signature with one."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from ciruela.model.errors import BadKey

KEY_TYPE = "ssh-ed25519"
KEY_BYTES = 32
SIGNATURE_BYTES = 64

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class PublicKey:
    """32 raw bytes of an ed25519 key. The comment is for people: two keys that differ only in it are equal."""

    raw: bytes
    comment: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise BadKey(f"an ed25519 public key has {KEY_BYTES} bytes, this one has {len(self.raw)}")

    @property
    def blob(self) -> bytes:
        """The key as ssh-agent and the base64 of a key file have it."""
        return put_string(KEY_TYPE.encode()) + put_string(self.raw)

    def fingerprint(self) -> str:
        """``SHA256:...``, as ``ssh-keygen -l`` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def authorized_line(self) -> str:
        """The line that goes into a server's key file, without a newline."""
        return f"{KEY_TYPE} {base64.b64encode(self.blob).decode()} {self.comment}".rstrip()


def put_string(data: bytes) -> bytes:
    """``data`` with its length before it (RFC 4251, section 5)."""
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def take_string(data: bytes, start: int) -> tuple[bytes, int]:
    """The length-prefixed string at ``start`` and the position behind it (RFC 4251, section 5). Raises BadKey at a cut."""
    begin = start + _LENGTH_BYTES
    end = begin + int.from_bytes(data[start:begin], "big")
    if begin > len(data) or end > len(data):
        raise BadKey("the key data is cut off")
    return data[begin:end], end


def blob_type(blob: bytes) -> str:
    """The key type that a public key blob names, at most 80 characters. Raises BadKey."""
    return visible(take_string(blob, 0)[0].decode("ascii", "replace"))[:80]


def parse_blob(blob: bytes, comment: str = "") -> PublicKey:
    """The key in a public key blob. Raises BadKey for other types and for data that is not exactly one key."""
    kind = blob_type(blob)
    if kind != KEY_TYPE:
        raise BadKey(f"it is {describe_type(kind)}, only {KEY_TYPE} keys are used")
    _, position = take_string(blob, 0)
    raw, end = take_string(blob, position)
    if end != len(blob):
        raise BadKey("there is data behind the key")
    return PublicKey(raw, visible(comment))


def parse_public(line: str) -> PublicKey:
    """The key in a line ``TYPE BASE64 [COMMENT]``, without options. Raises BadKey with the reason."""
    kind, _, rest = line.strip().partition(" ")
    encoded, _, comment = rest.strip().partition(" ")
    if not looks_public(kind):
        raise BadKey(f'"{visible(kind)[:40]}" is not a key type (a line is "{KEY_TYPE} BASE64 COMMENT")')
    if kind != KEY_TYPE:
        raise BadKey(f"it is {describe_type(kind)}, only {KEY_TYPE} keys are used")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadKey("the base64 of the key is damaged (copy the whole line again)") from None
    if not blob:
        raise BadKey(f'there is no key after "{KEY_TYPE}"')
    return parse_blob(blob, comment.strip())


def looks_public(word: str) -> bool:
    """Whether a line that begins with ``word`` is meant to be a public key."""
    return word.startswith(("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")) and word.isascii() and word.isprintable()


def describe_type(kind: str) -> str:
    """A key type in words, for messages: ``an RSA key``."""
    if "-cert-" in kind:
        return f"a certificate ({visible(kind)[:40]})"
    if kind.startswith("sk-"):
        return f"a FIDO security key ({visible(kind)[:40]}), whose signatures cover more than the upload"
    for begin, words in (("ssh-rsa", "an RSA key"), ("ssh-dss", "a DSA key"), ("ecdsa-", "an ECDSA key")):
        if kind.startswith(begin):
            return words
    return f"a key of type {visible(kind)[:40]}"


def visible(text: str) -> str:
    """``text`` with a question mark for each character that a terminal would not print."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def verify(public: PublicKey, signed: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``public``'s ed25519 signature over ``signed``. Never raises, whatever the signature is."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public.raw).verify(signed, signature)
    except BadSignatureError:
        return False
    return True
