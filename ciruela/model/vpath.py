"""Virtual paths: ``/KEY/c1/../cN``, the names under which images are uploaded.

Only the canonical spelling exists here: one slash between components, none at the end. What the reference tolerates
beyond that (``//a``, ``/a/./b``) is refused, because it signs the raw text and never replicates it (protocol section 12, C2).
"""

from __future__ import annotations

import unicodedata

from ciruela.model.values import dataclass

MAX_PATH_BYTES = 1024
"""Longest virtual path: a gossip item must fit into one datagram (threats A35)."""

MAX_COMPONENT_BYTES = 255
"""Longest component: NAME_MAX of Linux file systems."""

MAX_LEVELS = 16
"""Most components after KEY: the reference's limit of ``num-levels`` (protocol section 9.1)."""

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})  # guard: S14, "Cf", "Zl" -> "Zl"
"""Unicode categories that steer how the text around them is shown: control characters, bidi and other format characters, line ends."""


def check_component(name: str) -> None:
    """Raise ValueError unless ``name`` may stand in a virtual path.

    Names that begin with a dot are hidden from the reference's scans, ``.new`` is how it marks pending states
    (protocol section 12, C11): neither can name an image.
    """
    if name in ("", ".", ".."):  # guard: A17 F1
        raise ValueError(f"{name[:80]!r} cannot be a component of a path")
    if "/" in name or not _INVISIBLE.isdisjoint(map(unicodedata.category, name)):  # guard: A17 F1, without 1; A17 A27, without 2
        raise ValueError(f"{name[:80]!r} contains a slash, a control character or one that nobody can see")
    if name.startswith("."):  # guard: A17
        raise ValueError(f"{name[:80]!r} begins with a dot, such names are reserved")
    if name.endswith(".new"):  # guard: A17
        raise ValueError(f"{name[:80]!r} ends with .new, such names are reserved")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise ValueError(f"{name[:80]!r} is not valid Unicode") from None
    if size > MAX_COMPONENT_BYTES:  # guard: A17
        raise ValueError(f"a component has {size} bytes, at most {MAX_COMPONENT_BYTES} are allowed")


@dataclass(frozen=True, slots=True, order=True)
class VPath:
    """A canonical virtual path. Order and equality are by components (protocol, "Virtual paths")."""

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> VPath:
        """The path that ``text`` spells. Raises ValueError with the reason unless it is canonical."""
        if not text.startswith("/"):  # guard: A17
            raise ValueError(f"{text[:80]!r} does not begin with a slash")
        if len(text) > MAX_PATH_BYTES or len(text.encode("utf-8", "replace")) > MAX_PATH_BYTES:  # guard: A17 A35
            raise ValueError(f"the path is longer than {MAX_PATH_BYTES} bytes")
        parts = tuple(text[1:].split("/"))
        if len(parts) > MAX_LEVELS + 1:  # guard: A17
            raise ValueError(f"the path has more than {MAX_LEVELS + 1} components")
        if "" in parts:
            raise ValueError(f"{text[:80]!r} has two slashes in a row, or one at its end")
        for part in parts:
            check_component(part)
        return cls(parts)

    def __str__(self) -> str:
        return "/" + "/".join(self.parts)

    @property
    def key(self) -> str:
        """The first component: the name of a directory config."""
        return self.parts[0]

    @property
    def level(self) -> int:
        """Number of components after the key."""
        return len(self.parts) - 1

    @property
    def name(self) -> str:
        """The last component."""
        return self.parts[-1]

    def child(self, name: str) -> VPath:
        """The path one level below. Raises ValueError for a bad name."""
        check_component(name)
        return VPath((*self.parts, name))

    @property
    def base(self) -> VPath:
        """The base dir that gossip and reconciliation use for an image here.

        It is the parent; for an image of level 0 (``num-levels: 0``, the configured directory itself) the path is its own base dir.
        """
        return VPath(self.parts[:-1]) if len(self.parts) > 1 else self

    @property
    def entry(self) -> str:
        """The name of this image within :attr:`base`: the last component, or ``""`` at level 0."""
        return self.parts[-1] if len(self.parts) > 1 else ""

    def image_at(self, entry: str) -> VPath:
        """The inverse of :attr:`base` and :attr:`entry`. Raises ValueError for a bad name."""
        return self.child(entry) if entry else self


def leads_to(link: tuple[str, ...], image: tuple[str, ...]) -> bool:
    """Tells whether a link to ``link`` leads to, into or above ``image``, both by their components below one directory."""
    return all(one == other for one, other in zip(link, image, strict=False))  # guard: K5.5 I9, -> link == image[:len(link)]
