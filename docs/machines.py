"""Draws the state machines as they are in the code.

``python docs/machines.py`` writes ``docs/explanation/machines.txt``, to be committed.
"""

from collections import defaultdict
from pathlib import Path

from ciruela.client.uploadrun import RequestMachine
from ciruela.download.machine import DownloadMachine, RepairMachine
from ciruela.net.outgoing import ConnectionMachine

FILE = Path(__file__).parent / "explanation" / "machines.txt"
MACHINES = {
    "A download": DownloadMachine,
    "A repair": RepairMachine,
    "A connection to another node": ConnectionMachine,
    "A client's request for an upload, at one node": RequestMachine,
}

ENDS = ("failed", "stop", "let_go")
"""The inputs that end every step alike."""


def drawn(machine):
    """Lines of text: the way from the first state on, then what ends every step on it. What changes nothing is left out."""
    automaton = machine.__automat_automaton__
    ways, ends = defaultdict(set), defaultdict(set)
    for source, event, target, _ in automaton.allTransitions():
        if event in ENDS and source is not target:
            ends[event, target.name].add(source.name)
        elif source is not target:
            ways[source.name].add((event, target.name))
    rows, states = [], [automaton.initialState.name]
    for state in states:  # which grows
        for event, target in sorted(ways[state]):
            rows.append((state, event, target))
            if target not in states:
                states.append(target)
    active = {source for source, _, _ in rows} - {states[0]}
    for (event, target), sources in sorted(ends.items(), key=lambda one: ENDS.index(one[0][0])):
        every = "any step under way" if sources == active else "any state" if sources == active | {states[0]} else ""
        rows.append((every or ", ".join(sorted(sources)), event, target))
    return [f"   {source:<18} -- {event + ' ':-<16}-> {target}" for source, event, target in rows]


def text():
    """The whole file."""
    return "\n\n".join("\n".join([name, "", *drawn(machine)]) for name, machine in MACHINES.items()) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
