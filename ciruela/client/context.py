"""Context of every command: what the process gives it, and what it makes of that: a display, keys, connections."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any

from twisted.internet.defer import Deferred

from ciruela.client.contacts import Resolve, RunContext
from ciruela.client.identities import AskPassphrase, Identities, exposed, load_identities, read_key_file, terminal
from ciruela.client.options.common import Common
from ciruela.client.options.signing import Keys
from ciruela.client.progress import Block, Display, wants_live
from ciruela.client.report import Report
from ciruela.interfaces import InThread, NowMs
from ciruela.model.errors import BadKey
from ciruela.model.values import dataclass
from ciruela.net.agent import AgentKeys
from ciruela.net.outgoing import CLIENT_HOST, connect
from ciruela.net.resolve import resolver


@dataclass(frozen=True, slots=True)
class AppContext:
    """Context of a command: everything from the process that is not in its options.

    ``in_thread`` reads and hashes, ``look_up_in_thread`` waits for names; they are two pools, so that neither holds up the other.
    ``report`` writes what programs read, where they asked for it. ``terminal`` gives what asks for a passphrase.
    """

    reactor: Any
    now_ms: NowMs
    rng: random.Random
    environ: Mapping[str, str]
    stdout: IO[str]
    stderr: IO[str]
    in_thread: InThread
    look_up_in_thread: InThread
    report: Report | None = None
    terminal: Callable[[], AskPassphrase | None] = terminal


def make_display(common: Common, around: AppContext, lines_every_s: float | None) -> Display:
    """The display that the options ask for. Results go to stdout, unless that is for a report."""
    live = wants_live(common.progress, around.stderr, around.environ)
    plain = lines_every_s is not None and not live and common.progress.value != "none"
    return Display(
        clock=around.reactor,
        now_ms=around.now_ms,
        out=around.stdout if around.report is None else around.stderr,
        err=around.stderr,
        block=_live_block(around) if live else None,
        lines_every_s=lines_every_s if plain else None,
        verbosity=common.verbosity,
    )


def _live_block(around: AppContext) -> Block:
    from ciruela.client.live import TerminalBlock  # here, because only a terminal needs it

    return TerminalBlock(around.stderr, around.environ)


def agent_keys(reactor: Any, socket_path: str, timeout_s: float) -> Deferred[AgentKeys]:
    """As ``net.agentclient.agent_keys``, which is loaded where there is an agent."""
    from ciruela.net import agentclient

    return agentclient.agent_keys(reactor, socket_path, timeout_s)


async def identities_of(keys: Keys, around: AppContext, display: Display) -> Identities:
    """The keys that sign, told to the user. Raises BadKey, also when there is none: servers refuse what nobody signed."""
    found = await load_identities(
        keys.files,
        keys.variables,
        environ=around.environ,
        home=around.environ.get("HOME"),
        read_file=read_key_file,
        ask_passphrase=around.terminal(),
        agent=partial(agent_keys, around.reactor),
        in_thread=around.in_thread,
        exposed=exposed,
    )
    if not found.keys:
        raise BadKey("; ".join(found.notes) or "there is no key to sign with (name one with -i)")
    for note in found.notes:
        display.problem("", note)
    for line in found.describe():
        display.say(f"Signing with {line}")
    return found


def real_names(port: int, in_thread: InThread) -> Resolve:
    """The names of the system's resolver, at ``port`` where they have none of their own."""
    resolve = resolver(in_thread)
    return lambda name: resolve(name, port)


def over_reactor(reactor: Any, rng: random.Random, resolve: Resolve) -> RunContext:
    """Real connections."""
    return RunContext(reactor, rng, lambda address, counterpart: connect(reactor, address, counterpart, CLIENT_HOST), resolve)


def real_world(common: Common, around: AppContext) -> RunContext:
    """Real connections and names."""
    return over_reactor(around.reactor, around.rng, real_names(common.port, around.look_up_in_thread))
