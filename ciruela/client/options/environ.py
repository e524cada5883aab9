"""Every option of every command also as a variable: ``--early-timeout`` is ``CIRUELA_EARLY_TIMEOUT``. The command line wins.

Only options that stand in a variable are touched, so that without variables a command line is read as argparse reads it.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ciruela.model.values import dataclass

PREFIX = "CIRUELA_"

SPECIAL = frozenset({"CIRUELA_KEY", "CIRUELA_EDITOR", "CIRUELA_WARM"})
"""Variables that are meant to be there whatever the command: a private key, an editor, for how long a process waits for work."""

_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")
_SEPARATORS = re.compile(r"[;\n]")
"""Between the values of an option that may be repeated: what hardly ever stands in a path or a pattern."""


@dataclass(frozen=True, slots=True)
class _FromVariable:
    """An option that stands in a variable."""

    action: argparse.Action
    variable: str
    text: str

    @property
    def problem(self) -> str:
        """Beginning of a message about this variable."""
        return f"the environment variable {self.variable}"


def variable_of(action: argparse.Action) -> str | None:
    """The variable of an option; None for what is no long option, and for those that only tell something."""
    long = next((name for name in action.option_strings if name.startswith("--")), None)
    if long is None or action.dest in ("help", "version"):
        return None
    return PREFIX + long[2:].replace("-", "_").upper()


def variables(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """All variables that ``parser`` reads."""
    return {name: action for action in parser._actions if (name := variable_of(action)) is not None}


def read(parser: argparse.ArgumentParser, environ: Mapping[str, str], parse: Callable[[], argparse.Namespace]) -> argparse.Namespace:
    """Gives what ``parse`` finds on the command line, and what variables say of the rest. An empty variable says nothing.

    Ends with usage for a value that cannot be, and names its variable.
    """
    given = [_FromVariable(action, name, environ[name]) for name, action in variables(parser).items() if environ.get(name)]
    if not given:
        return parse()
    dests = {one.action.dest for one in given}
    shared = [action for action in parser._actions if action.dest in dests]
    defaults = [(action.dest, action.default) for action in shared]
    for action in shared:
        action.default = argparse.SUPPRESS
    for one in given:
        one.action.required = False
    found = parse()
    said = {name for name in dests if hasattr(found, name)}
    for dest, default in defaults:
        if not hasattr(found, dest):
            setattr(found, dest, copy.copy(default))
    _apply(parser, [one for one in given if one.action.dest not in said], said | _said_elsewhere(parser, found), found)
    return found


def _said_elsewhere(parser: argparse.ArgumentParser, found: argparse.Namespace) -> set[str]:
    """Options without a variable that were given: flags that are not as they are by themselves."""
    return {
        action.dest
        for group in parser._mutually_exclusive_groups
        for action in group._group_actions
        if action.default is not argparse.SUPPRESS and getattr(found, action.dest, action.default) != action.default
    }


def _apply(parser: argparse.ArgumentParser, given: Iterable[_FromVariable], said: Collection[str], found: argparse.Namespace) -> None:
    taken: list[_FromVariable] = []
    for one in given:
        rivals = _rivals(parser, one.action)
        if any(action.dest in said for action in rivals):
            continue
        if one.action.nargs == 0:
            if not _truth(parser, one):
                continue
            other = next((before for before in taken if before.action in rivals), None)
            if other is not None:
                parser.error(f"{one.problem}: not allowed with {other.variable}")
            one.action(parser, found, [], one.action.option_strings[-1])
        else:
            _set_values(parser, one, found)
        taken.append(one)


def _rivals(parser: argparse.ArgumentParser, action: argparse.Action) -> list[argparse.Action]:
    """Options that exclude this one."""
    return [
        other
        for group in parser._mutually_exclusive_groups
        if action in group._group_actions
        for other in group._group_actions
        if other is not action
    ]


def _truth(parser: argparse.ArgumentParser, one: _FromVariable) -> bool:
    word = one.text.strip().lower()
    if word not in (*_TRUE, *_FALSE):
        parser.error(f"{one.problem}: {one.text[:40]!r} is not one of {', '.join((*_TRUE, *_FALSE))}")
    return word in _TRUE


def _set_values(parser: argparse.ArgumentParser, one: _FromVariable, found: argparse.Namespace) -> None:
    action = one.action
    many = not isinstance(action, argparse._StoreAction)
    texts = [text.strip() for text in _SEPARATORS.split(one.text)] if many else [one.text.strip()]
    for text in filter(None, texts):
        try:
            value: Any = action.type(text) if callable(action.type) else text
        except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
            parser.error(f"{one.problem}: {error}")
        if action.choices is not None and value not in action.choices:
            parser.error(f"{one.problem}: {text[:40]!r} is not one of {', '.join(map(str, action.choices))}")
        action(parser, found, [value] if action.nargs == "+" else value, action.option_strings[-1])


def unknown(environ: Mapping[str, str], known: Collection[str]) -> list[str]:
    """A sentence for each variable that looks like one of ours and is none: a misspelt one would silently do nothing."""
    import difflib

    told = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in SPECIAL:
            given = name.removeprefix(PREFIX)
            near = difflib.get_close_matches(given, sorted(one.removeprefix(PREFIX) for one in {*known, *SPECIAL}), 5)
            near.sort(key=lambda one: sorted(one) != sorted(given))  # letters that changed places come first
            told.append(f"the environment variable {name} is not known" + (f"; did you mean {PREFIX}{near[0]}?" if near else ""))
    return told
