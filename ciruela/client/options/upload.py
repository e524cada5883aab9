"""The options of ``ciruela upload``, the old name of ``ciruela sync`` (protocol section 7.1)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ciruela.client.options.common import Common, add_cache, add_common, common_of, vpath_of
from ciruela.client.options.signing import Keys, check_entry_point, check_no_scheme
from ciruela.client.options.sync import Mode
from ciruela.model.vpath import VPath


@dataclass(frozen=True, slots=True)
class Target:
    """``HOST:/VPATH``."""

    name: str
    vpath: VPath


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """``ciruela upload``."""

    common: Common
    source: str
    mode: Mode
    targets: tuple[Target, ...]
    keys: Keys
    cache: bool


def split_target(text: str) -> Target:
    """What ``HOST:/VPATH`` spells; HOST may have a port. Raises ValueError."""
    check_no_scheme(text)
    name, mark, rest = text.partition(":/")
    if not mark or not name:
        raise ValueError(f"{text[:200]!r} is not HOST:/VPATH")
    check_entry_point(name)
    return Target(name, vpath_of("/" + rest))


def add_upload(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela upload``."""
    parser.usage = f"{parser.prog} [options] -d DIR HOST:/VPATH ..."
    parser.description = "Deprecated: use ciruela sync. Put a directory on every server of some clusters."
    parser.epilog = "Exit codes: 0 done, 1 some target failed, 2 nothing was sent."
    parser.add_argument("targets", nargs="*", metavar="HOST:/VPATH", help="any node, and the virtual path there")
    parser.add_argument("-d", "--directory", required=True, metavar="DIR", help="the local directory")
    parser.add_argument("--replace", action="store_true", help="put it in place of what is there")
    parser.add_argument("-x", "--no-fail-on-conflict", action="store_true", help="other content at VPATH counts as success")
    keys = parser.add_argument_group("keys (default: as ciruela sync)")
    keys.add_argument("-i", "--identity", action="extend", nargs="+", default=[], metavar="FILE", help="private key files")
    keys.add_argument(
        "-k", "--key-from-env", action="extend", nargs="+", default=[], metavar="VAR", help="variables that hold a private key"
    )
    add_cache(parser)
    add_common(parser)


def upload_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> UploadOptions:
    """What ``ciruela upload`` was told.

    ``-i`` and ``-k`` take all words that follow; the reference takes targets for keys, too, here they stay targets.
    """
    words = [*found.targets, *(found.after or ())]
    for taken in (found.identity, found.key_from_env):
        words += [word for word in taken if ":/" in word]
    keys = Keys(*(tuple(word for word in taken if ":/" not in word) for taken in (found.identity, found.key_from_env)))
    try:
        targets = tuple(dict.fromkeys(map(split_target, words)))
    except ValueError as error:
        parser.error(str(error))
    if not targets:
        parser.error("no HOST:/VPATH: name at least one host, and where to put the directory there")
    if found.replace and found.no_fail_on_conflict:
        parser.error("--replace and -x do not go together: what is replaced is in no conflict")
    mode = Mode.REPLACE if found.replace else Mode.APPEND_WEAK if found.no_fail_on_conflict else Mode.APPEND
    return UploadOptions(common_of(found), found.directory, mode, targets, keys, found.cache)
