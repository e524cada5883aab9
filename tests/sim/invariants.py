"""What has to hold after each move, and in the end. Each function is named for its row and yields what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ciruela.model.ids import ImageId
from ciruela.model.state import Version
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import MAX_ABORTS
from ciruela.tracking.watches import MAX_PER_LINK
from tests.sim.universe import Host, Universe

MOST_TIMERS = 2_000
"""Timers of one node: a few duties, a few for each connection and request."""


def i1_whole(host: Host) -> Iterator[str]:
    """A visible directory is an image that stood there by right, and nothing else."""
    for vpath in host.universe.vpaths:
        if vpath.key not in host.shelf.configs:
            continue
        seen = host.shelf.tree(vpath)
        if seen is None:
            continue
        tree, damaged = seen
        images = [host.universe.pictures[image] for image in host.images.get(vpath, ())]
        if not any(_same(tree, picture.tree, damaged) for picture in images):
            yield f"{vpath} is none of the {len(images)} images that were committed there: {sorted(tree)[:6]}"


def _same(tree: dict[str, bytes], wanted: dict[str, bytes], damaged: frozenset[str]) -> bool:
    if tree.keys() - {"", "/"} != wanted.keys() - {"", "/"}:
        return False
    return all(tree[at] == content or at in damaged for at, content in wanted.items() if at != "/")


def i2_acked(host: Host) -> Iterator[str]:
    """What was committed is still recorded, or something newer."""
    if not host.ready:
        return
    for vpath, version in host.high.items():
        state = host.node.ledger.committed(vpath)
        pending = host.node.ledger.pending(vpath)
        found = max((one.version for one in (state, pending and pending.state) if one is not None), default=None)
        if found is None or found < version:
            yield f"{vpath}: {version.image.hex()[:8]} was committed, and now there is {found and found.image.hex()[:8]}"


def i4_signed(host: Host) -> Iterator[str]:
    """Each state has a signature that a key of this host made when it was shown."""
    if not host.ready:
        return
    for base in host.node.ledger.base_hashes():
        for vpath, state in host.node.ledger.committed_in(base):
            if not any((vpath, state.image, entry) in host.blessed for entry in state.signatures):
                yield f"{vpath}: no key of this host made a signature of {state.image.hex()[:8]}"


def i6_bounded(host: Host) -> Iterator[str]:
    """Nothing grows without an end."""
    if not host.ready:
        return
    node = host.node
    links = {link for vpath in node.watches.paths() for link in node.watches.interested(vpath, ImageId(bytes(32)))}
    sizes = {
        "aborts": (len(node.ledger.abandoned()), MAX_ABORTS),
        "watches": (len(node.watches.paths()), MAX_PER_LINK * max(1, len(links))),
        "downloads": (len(node.downloads.running()), len(host.universe.vpaths)),
        "timers": (sum(1 for timer in host.timers.getDelayedCalls()), MOST_TIMERS),
    }
    for what, (size, most) in sizes.items():
        if size > most:
            yield f"{size} {what}, at most {most}"


def i11_clean(host: Host) -> Iterator[str]:
    """Beside the images stands nothing that no upload needs."""
    if host.ready:
        pendings = {pending.vpath: pending.state.image for pending in host.node.ledger.pendings()}
        yield from host.shelf.debris(pendings)


ALWAYS: dict[str, Callable[[Host], Iterator[str]]] = {"I1": i1_whole, "I2": i2_acked, "I4": i4_signed, "I6": i6_bounded}
IN_THE_END: dict[str, Callable[[Host], Iterator[str]]] = {"I11": i11_clean}


def check(universe: Universe, *, end: bool = False) -> None:
    """Note every invariant that does not hold now."""
    for host in universe.everybody():
        for row, look in (ALWAYS | IN_THE_END if end else ALWAYS).items():
            for what in look(host):
                universe.violated(row, f"n{host.number} {what}")
    for text in universe.ear.unexpected:
        universe.violated("I8", f"logged: {text}")
    universe.ear.unexpected.clear()


def views(universe: Universe) -> dict[str, dict[int, dict[VPath, Version]]]:
    """What each host with the directory holds, by key and number.

    Left out everywhere are paths where one host deleted something, for each node may clean on its own, and those where something is on its
    way: an upload that nobody can give any more is waited for, for an hour.
    """
    gone = {vpath for host in universe.everybody() for vpath in host.buried}
    gone |= {pending.vpath for host in universe.ready() for pending in host.node.ledger.pendings()}
    found: dict[str, dict[int, dict[VPath, Version]]] = {}
    for host in universe.ready():
        for key in host.shelf.configs:
            held = {}
            for base in host.node.ledger.base_hashes():
                for vpath, state in host.node.ledger.committed_in(base):
                    if vpath.key == key and vpath not in gone:
                        held[vpath] = state.version
            found.setdefault(key, {})[host.number] = held
    return found


def agree(universe: Universe) -> bool:
    """I5: all that take a directory hold the same versions, and nothing is on its way that somebody could give."""
    for key, by_host in views(universe).items():
        if universe.freezes and key == "logs":
            continue
        first, *others = by_host.values()
        if any(other != first for other in others):
            return False
    return True
