"""The keys in ``tests/vectors/keys``, for tests of several rooms. They protect nothing; see the README there."""

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "vectors" / "keys"
PASSPHRASE = b"open sesame"


def sample(name: str) -> str:
    """The text of one file."""
    return (FOLDER / name).read_text(encoding="ascii")
