"""Which keys of other people a command trusts, and whether it goes on where they prove nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trusting:
    """``files`` hold trusted keys besides the usual one; ``unverified``: sign also what no trusted key signed before."""

    files: tuple[str, ...] = ()
    unverified: bool = False


NOBODY_ELSE = Trusting()
"""Only the user's own keys, and those of the usual file."""


def add_trust(parser: argparse.ArgumentParser, *, signs: bool) -> None:
    """Let ``parser`` take trusted keys and, where the command ``signs`` what a server shows, that this need not be proved."""
    trust = parser.add_argument_group("whose signatures are believed (yours, and those of ~/.config/ciruela/trusted_keys)")
    trust.add_argument(
        "--trusted-keys",
        action="append",
        default=[],
        metavar="FILE",
        help="public keys that are trusted as well, as in authorized_keys (may be repeated)",
    )
    if signs:
        trust.add_argument(
            "--unverified", action="store_true", help="go on although no trusted key signed what the server shows: you vouch for it"
        )


def trusting_of(found: argparse.Namespace) -> Trusting:
    """What was found of them."""
    return Trusting(tuple(found.trusted_keys), getattr(found, "unverified", False))
