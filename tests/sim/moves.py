"""What may happen to a cluster: each move does one thing to a universe and says in a few words what it did."""

from __future__ import annotations

import random
from collections.abc import Callable

from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from tests.sim.people import Forger, Syncer, Uploader
from tests.sim.universe import KEYS, PICTURES, STRANGER, Host, Universe

DAY_MS = 24 * 3600 * 1000


def _up(universe: Universe, rng: random.Random) -> Host | None:
    ready = [host for host in universe.ready() if host.state == "up"]
    return rng.choice(ready) if ready else None


def _targets(universe: Universe, rng: random.Random) -> list[Host]:
    hosts = universe.everybody()
    return rng.sample(hosts, min(3, len(hosts)))


def upload(universe: Universe, rng: random.Random) -> str:
    """A client appends or replaces at up to three hosts; it stays, leaves soon, or does not give anything."""
    vpath = rng.choice(universe.vpaths)
    replace = vpath.key != "logs" and rng.random() < 0.7
    picture = rng.choice(PICTURES)
    key = rng.choices((*KEYS, STRANGER), (10, 5, 1))[0]
    stamp = universe.now_ms() + rng.choice((0, 0, 0, -1000, 200_000, 400_000, -2 * DAY_MS))
    old: ImageId | None = None
    host = _up(universe, rng)
    if replace and host is not None and rng.random() < 0.3:
        state = host.node.ledger.committed(vpath)
        old = None if state is None else state.image
    wish = universe.wish(str(vpath), picture, key, replace=replace, stamp=stamp, old=old)
    targets = _targets(universe, rng)
    client = Uploader(universe, wish, [one.address for one in targets], rng.random() < 0.95, rng.choice((0.0, 0.0, 0.05)))
    universe.come(client)
    if rng.random() < 0.4:
        universe.clock.callLater(rng.choice((0.01, 0.1, 1.0, 5.0)), client.leave)
    return f"{'replace' if replace else 'append'} {picture.id.hex()[:6]} at {vpath} by n{', n'.join(str(one.number) for one in targets)}"


def sync(universe: Universe, rng: random.Random) -> str:
    """The real client."""
    vpath = rng.choice(universe.vpaths)
    picture = rng.choice(PICTURES)
    wish = universe.wish(str(vpath), picture, KEYS[0], replace=vpath.key != "logs", stamp=universe.now_ms())
    names = [universe.known[host.address] for host in _targets(universe, rng)]
    universe.come(Syncer(universe, wish, picture, names))
    return f"sync {picture.id.hex()[:6]} to {vpath} by {', '.join(names)}"


def clash(universe: Universe, rng: random.Random) -> str:
    """Two clients, two hosts, one path, at the same millisecond."""
    vpath = rng.choice(universe.vpaths)
    stamp = universe.now_ms()
    chosen = rng.sample(PICTURES, 2)
    hosts = rng.sample(universe.everybody(), 2)
    for picture, host in zip(chosen, hosts, strict=True):
        wish = universe.wish(str(vpath), picture, KEYS[0], replace=vpath.key != "logs", stamp=stamp + rng.choice((0, 0, 1)))
        universe.come(Uploader(universe, wish, [host.address]))
    return f"two images at {vpath}, by n{hosts[0].number} and n{hosts[1].number}"


def replay(universe: Universe, rng: random.Random) -> str:
    """Requests that somebody recorded, anywhere."""
    for wish in rng.sample(universe.captured, min(4, len(universe.captured))):
        universe.come(Uploader(universe, wish, [host.address for host in _targets(universe, rng)], rng.random() < 0.5))
    return "requests of before, again"


def delete(universe: Universe, rng: random.Random) -> str:
    """A rule deletes an image on one host."""
    host = _up(universe, rng)
    if host is None:
        return "nothing"
    held = [vpath for base in host.node.ledger.base_hashes() for vpath, _ in host.node.ledger.committed_in(base)]
    if not held:
        return "nothing"
    vpath: VPath = rng.choice(sorted(held))
    return f"n{host.number} deletes {vpath}: {host.delete(vpath)}"


def kill(universe: Universe, rng: random.Random) -> str:
    """SIGKILL of a daemon."""
    host = rng.choice(universe.everybody())
    host.kill()
    return f"kill n{host.number}"


def power_cut(universe: Universe, rng: random.Random) -> str:
    """A machine, or all of them, lose power."""
    hosts = universe.everybody() if rng.random() < 0.2 else [rng.choice(universe.everybody())]
    for host in hosts:
        host.power_cut()
    return f"power cut of n{', n'.join(str(host.number) for host in hosts)}"


def start(universe: Universe, rng: random.Random) -> str:
    """Everything that is down starts, or one of them."""
    hosts = [host for host in universe.everybody() if host.state in ("down", "liar")]
    for host in hosts if rng.random() < 0.5 else hosts[:1]:
        host.start()
    return f"start of {len(hosts)} at most"


def wipe(universe: Universe, rng: random.Random) -> str:
    """A machine comes back with an empty disk."""
    host = rng.choice(universe.everybody())
    if host.state in ("up", "down"):
        host.wipe()
        host.start()
        return f"n{host.number} is new"
    return "nothing"


def lie(universe: Universe, rng: random.Random) -> str:
    """A peer turns bad."""
    host = rng.choice(universe.everybody())
    host.lie()
    return f"n{host.number} lies"


def partition(universe: Universe, rng: random.Random) -> str:
    """Halves, one alone, a ring, or a bridge."""
    hosts = universe.everybody()
    rng.shuffle(hosts)
    half = len(hosts) // 2
    kind = rng.choice(("halves", "one", "ring", "bridge"))
    addresses = [host.address for host in hosts]
    if kind == "halves":
        universe.hub.partition([addresses[:half], addresses[half:]])
    elif kind == "one":
        universe.hub.partition([addresses[:1], addresses[1:]])
    elif kind == "ring":
        count = len(addresses)
        near = {frozenset((addresses[at], addresses[(at + 1) % count])) for at in range(count)}
        universe.hub.sever(
            (one, other) for at, one in enumerate(addresses) for other in addresses[at + 1 :] if frozenset((one, other)) not in near
        )
    else:
        universe.hub.sever((one, other) for one in addresses[:half] for other in addresses[half:-1])
    return f"partition: {kind}"


def heal(universe: Universe, rng: random.Random) -> str:
    """The network is whole again."""
    universe.hub.heal()
    return "heal"


def silence(universe: Universe, rng: random.Random) -> str:
    """One direction between two hosts carries nothing."""
    one, other = rng.sample(universe.everybody(), 2)
    universe.hub.silence(one.address, other.address)
    return f"n{one.number} is not heard by n{other.number}"


def snap(universe: Universe, rng: random.Random) -> str:
    """A connection breaks."""
    return f"a connection breaks: {universe.hub.snap(rng.randrange)}"


def clock_step(universe: Universe, rng: random.Random) -> str:
    """Somebody sets a clock."""
    host = rng.choice(universe.everybody())
    host.skew_ms = rng.choice((0, 0, 1000, -1000, 3_600_000, -3_600_000, 365 * DAY_MS, -365 * DAY_MS))
    return f"the clock of n{host.number} is off by {host.skew_ms} ms"


def pause(universe: Universe, rng: random.Random) -> str:
    """SIGSTOP, or SIGCONT of all that are stopped."""
    stopped = [host for host in universe.everybody() if host.state == "paused"]
    if stopped:
        for host in stopped:
            host.resume()
        return "resume"
    host = rng.choice(universe.everybody())
    host.pause()
    return f"pause n{host.number}"


def rot(universe: Universe, rng: random.Random) -> str:
    """A bit of a visible file flips, or the file is cut off."""
    host = rng.choice(universe.everybody())
    vpaths = [vpath for vpath in host.high if host.shelf.tree(vpath) is not None]
    if not vpaths:
        return "nothing"
    vpath = rng.choice(sorted(vpaths))
    return f"n{host.number} {vpath} rots: {host.shelf.damage(vpath, rng, truncate=rng.random() < 0.3)}"


def fill(universe: Universe, rng: random.Random) -> str:
    """A disk is nearly full."""
    host = rng.choice(universe.everybody())
    host.shelf.fill(rng.choice((0, 1, 5, 20)))
    return f"the disk of n{host.number} is full"


def free(universe: Universe, rng: random.Random) -> str:
    """There is room again everywhere."""
    for host in universe.everybody():
        host.shelf.free()
    return "room on all disks"


def keys(universe: Universe, rng: random.Random) -> str:
    """The second key is taken out of a host's configuration, or put back."""
    host = rng.choice(universe.everybody())
    host.keys ^= {KEYS[1]}
    return f"n{host.number} has {len(host.keys)} keys"


def leave(universe: Universe, rng: random.Random) -> str:
    """A client goes away, or comes back."""
    if not universe.clients:
        return "nothing"
    client = rng.choice(universe.clients)
    if isinstance(client, Uploader) and not client.links:
        client.come()
        return "a client comes back"
    client.leave()
    return "a client leaves"


def remove(universe: Universe, rng: random.Random) -> str:
    """The real client removes what a host has."""
    host = _up(universe, rng)
    held = [] if host is None else [one for base in host.node.ledger.base_hashes() for one in host.node.ledger.committed_in(base)]
    if not held:
        return "nothing"
    vpath, state = rng.choice(sorted(held, key=lambda one: one[0]))
    wish = universe.removal(str(vpath), state.image, max(universe.now_ms(), state.version.timestamp_ms + 1))
    names = [universe.known[one.address] for one in _targets(universe, rng)]
    universe.come(Syncer(universe, wish, universe.pictures[state.image], names))
    return f"remove {state.image.hex()[:6]} from {vpath} by {', '.join(names)}"


def lose(universe: Universe, rng: random.Random) -> str:
    """A daemon is down, and something that it remembers is lost or bent; then it starts."""
    host, how = rng.choice(universe.everybody()), rng.choices(("record", "bit", "db"), (4, 4, 1))[0]
    if host.state not in ("up", "down"):
        return "nothing"
    lost = host.lose_memory(how)
    host.start()
    return f"n{host.number} loses a {how}: {lost}"


def back_up(universe: Universe, rng: random.Random) -> str:
    """A snapshot of a disk is taken."""
    host = rng.choice(universe.everybody())
    host.back_up()
    return f"snapshot of n{host.number}"


def roll_back(universe: Universe, rng: random.Random) -> str:
    """A snapshot is restored, if there is one, and the daemon starts on it."""
    hosts = [host for host in universe.everybody() if host.snapshot is not None and host.state in ("up", "down")]
    if not hosts:
        return "nothing"
    host = rng.choice(hosts)
    restored = host.roll_back()
    host.start()
    return f"n{host.number} is as it was: {restored}"


def close_udp(universe: Universe, rng: random.Random) -> str:
    """A firewall closes UDP: to a host, from it, or everywhere."""
    host, how = rng.choice(universe.everybody()), rng.choice(("in", "out", "both", "all"))
    address = None if how == "all" else host.address
    if how != "out":
        universe.hub.close_udp(None, address)
    if how != "in":
        universe.hub.close_udp(address, None)
    return f"UDP {how} of n{host.number} is closed"


def twin(universe: Universe, rng: random.Random) -> str:
    """A host comes back with the machine id of another: its disk was cloned."""
    host, other = rng.sample(universe.everybody(), 2)
    if host.state not in ("up", "down"):
        return "nothing"
    host.kill()
    host.machine = other.machine
    host.start()
    return f"n{host.number} speaks with the id of n{other.number}"


def forge(universe: Universe, rng: random.Random) -> str:
    """Datagrams with a peer's address that this peer never sent."""
    victim = rng.choice(universe.everybody())
    Forger(universe, rng).forge(victim, [host for host in universe.everybody() if host is not victim])
    return f"forged words of n{victim.number}"


MOVES: dict[Callable[[Universe, random.Random], str], int] = {
    upload: 10,
    sync: 3,
    clash: 3,
    replay: 3,
    delete: 2,
    kill: 3,
    power_cut: 3,
    start: 6,
    wipe: 1,
    lie: 1,
    partition: 2,
    heal: 3,
    silence: 1,
    snap: 2,
    clock_step: 1,
    pause: 2,
    rot: 1,
    fill: 1,
    free: 2,
    keys: 1,
    leave: 2,
    remove: 2,
    lose: 2,
    back_up: 1,
    roll_back: 1,
    close_udp: 1,
    twin: 1,
    forge: 1,
}
"""Each move, and how often it comes up."""
