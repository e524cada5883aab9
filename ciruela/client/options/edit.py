"""The options of the commands that change one file of an image: ``ciruela edit`` and ``ciruela put-file`` (protocol section 7.1)."""

from __future__ import annotations

import argparse

from ciruela.client.options.common import Common, add_common, checked, common_of, vpath_of
from ciruela.client.options.signing import (
    NOBODY_ELSE,
    ClusterNames,
    Keys,
    Trusting,
    add_keys,
    add_trust,
    add_when,
    add_where,
    clusters_of,
    keys_of,
    rule_of,
    trusting_of,
)
from ciruela.client.tracker import CompletionRule
from ciruela.index.names import components
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath


@dataclass(frozen=True, slots=True)
class What:
    """The ``file``, a path inside the image at ``path``, of each cluster. Intervals in seconds."""

    common: Common
    path: VPath
    file: str
    clusters: tuple[ClusterNames, ...]
    keys: Keys
    rule: CompletionRule
    print_progress_s: float
    trusting: Trusting = NOBODY_ELSE


@dataclass(frozen=True, slots=True)
class EditOptions:
    """``ciruela edit``."""

    what: What
    editor: str | None

    @property
    def common(self) -> Common:
        """The options of every command."""
        return self.what.common


@dataclass(frozen=True, slots=True)
class PutFileOptions:
    """``ciruela put-file``. ``executable`` is None to leave that as it is."""

    what: What
    source: str
    executable: bool | None

    @property
    def common(self) -> Common:
        """The options of every command."""
        return self.what.common


def file_path(text: str) -> str:
    """The path of a file inside an image. Raises ValueError."""
    if not components(text):
        raise ValueError("/ is the directory itself, name a file in it")
    return text


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("which file")
    what.add_argument(
        "-d", "--directory", type=checked(vpath_of), required=True, metavar="VPATH", help="virtual path of the directory, as /KEY/NAME"
    )
    what.add_argument(
        "-f",
        "--file",
        type=checked(file_path),
        required=True,
        metavar="/FILE",
        help="path of the file inside it, with a slash at the front",
    )


def _add_rest(parser: argparse.ArgumentParser) -> None:
    add_where(parser)
    add_keys(parser)
    add_trust(parser, signs=True)
    add_when(parser)
    add_common(parser)


def _what_of(parser: argparse.ArgumentParser, found: argparse.Namespace) -> What:
    if found.hash is not None:
        parser.error("--hash does not go with this command: what is changed keeps the hash that it has")
    return What(
        common=common_of(found),
        path=found.directory,
        file=found.file,
        clusters=clusters_of(parser, found),
        keys=keys_of(found),
        rule=rule_of(found),
        print_progress_s=found.print_progress,
        trusting=trusting_of(found),
    )


def add_edit(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela edit``."""
    parser.usage = f"{parser.prog} [options] -d VPATH -f /FILE ENTRY_POINT ..."
    parser.description = "Edit one file of a directory, on every server of a cluster."
    parser.epilog = (
        "Exit codes: as ciruela sync; 6 when somebody else changed the directory meanwhile. Your text is kept unless it was uploaded."
    )
    _add_what(parser)
    parser.add_argument(
        "--editor",
        metavar="COMMAND",
        help="editor to run, with options (default: $CIRUELA_EDITOR, $VISUAL, $EDITOR, or the first of vim, vi, nano, editor)",
    )
    _add_rest(parser)


def edit_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> EditOptions:
    """Builds the options of ``ciruela edit``."""
    return EditOptions(_what_of(parser, found), found.editor)


def add_put_file(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela put-file``."""
    parser.usage = f"{parser.prog} [options] -d VPATH -f /FILE -s LOCAL ENTRY_POINT ..."
    parser.description = "Put one local file into a directory, on every server of a cluster."
    parser.epilog = "Exit codes: as ciruela sync; 6 when somebody else changed the directory meanwhile."
    _add_what(parser)
    parser.add_argument("-s", "--source-file", required=True, metavar="LOCAL", help="the local file, of any size")
    parser.add_argument(
        "--executable",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the file is executable (default: as it was; for a new file as LOCAL is)",
    )
    _add_rest(parser)


def put_file_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> PutFileOptions:
    """Builds the options of ``ciruela put-file``."""
    return PutFileOptions(_what_of(parser, found), found.source_file, found.executable)
