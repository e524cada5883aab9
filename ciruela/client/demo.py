"""``ciruela demo``: a cluster on this machine, a real upload, a real verification, and nothing left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred

import twisted
from ciruela.client import commands
from ciruela.client.book import EXIT_DONE, EXIT_NETWORK, Rule
from ciruela.client.hashes import OURS
from ciruela.client.nodes import Node, Nodes
from ciruela.client.options.demo import DemoOptions
from ciruela.client.options.signing import ClusterNames, Keys
from ciruela.client.options.sync import Mode, SyncOptions, Wish
from ciruela.client.orders import check_directory
from ciruela.client.progress import Display
from ciruela.client.surroundings import Surroundings, make_display
from ciruela.client.sync import Row
from ciruela.client.text import count, short_id
from ciruela.disk.scan import scan
from ciruela.model.errors import CiruelaError
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.seams import DEFAULT_PORT

FIRST = VPath(("demo", "v1"))
SECOND = VPath(("demo", "v2"))

MOST_FILES = 20_000
MOST_BYTES = 256 * 1024 * 1024
"""Limits for the directory that is chosen when none is named: a demo should take seconds, and its copies should fit anywhere."""

DEADLINE_S = 900.0

LINE = 76
"""Columns of a line that is to be pasted, the backslash at its end included, where its words allow that."""


def default_directory(nodes: int) -> str:
    """A real directory of some thousand files: the installed packages, or only Twisted's when these are too much. Blocking."""
    package = Path(twisted.__file__).parent
    files = total = 0
    for folder, _, names in os.walk(package.parent):
        files += len(names)
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
        if files > MOST_FILES or total > MOST_BYTES:
            return str(package)
    fits = total * (nodes + 1) < shutil.disk_usage(tempfile.gettempdir()).free
    return str(package.parent if fits else package)


def script(name: str = "ciruela-sync") -> str:
    """How to call the script from a shell: by its bare name if that finds the one which was installed with this program."""
    ours = os.path.join(os.path.dirname(sys.executable), name)
    return ours if os.path.exists(ours) and shutil.which(name) != ours else name


def next_line(directory: str, key: Path, port: int) -> str:
    """What to type next, in another terminal."""
    words = [script(), "-i", str(key), "--append", f"{os.path.abspath(directory)}:{SECOND}"]
    if port != DEFAULT_PORT:
        words += ["--port", str(port)]
    return shlex.join([*words, "127.0.0.1"])


def folded(command: str) -> list[str]:
    """The lines of a command that can be pasted as they are. Words are not broken, so a long path makes a long line."""
    lines = [" "]
    for word in map(shlex.quote, shlex.split(command)):
        if len(lines[-1]) + len(word) >= LINE and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return lines


async def demo(options: DemoOptions, around: Surroundings) -> int:
    """Run it. Gives 0 when all copies are right; otherwise the exit code of the upload, or 3 when a copy differs.

    Whatever happens, also when it is cancelled, the daemons are stopped and the temporary directory is removed.
    """
    display = make_display(options.common, around, None)
    if options.directory is not None:
        check_directory(options.directory)
    directory = options.directory if options.directory is not None else await around.in_thread(default_directory, options.nodes)
    sys.dont_write_bytecode = True  # the directory may be the packages that this very program imports
    top = Path(tempfile.mkdtemp(prefix="ciruela-demo-"))
    nodes: Nodes | None = None
    try:
        nodes = Nodes(around.reactor, around.environ, top, options.nodes, lambda node: _ended(display, node), options.common.port)
        return await _story(options, around, display, nodes, directory)
    finally:
        display.say("Stopping the nodes and removing everything")
        if nodes is not None:
            await nodes.stop()
        await around.in_thread(shutil.rmtree, top)


def _ended(display: Display, node: Node) -> None:
    display.problem(node.name, f"ended: {node.gone}; its log is {node.log}")


async def _story(options: DemoOptions, around: Surroundings, display: Display, nodes: Nodes, directory: str) -> int:
    await around.in_thread(nodes.write)
    display.say(f"Starting {count(len(nodes.nodes), 'node')}: {', '.join(node.host for node in nodes.nodes)}, port {nodes.port}")
    await nodes.start()
    rows: list[Row] = []
    upload = SyncOptions(
        common=replace(options.common, port=nodes.port),
        wishes=(Wish(Mode.APPEND, directory, FIRST),),
        clusters=(ClusterNames((nodes.nodes[0].host,)),),
        keys=Keys((str(nodes.key),)),
        rule=Rule(early_hosts=len(nodes.nodes), early_fraction=1.0, deadline_s=DEADLINE_S),
        print_progress_s=5.0,
        cache=False,  # a demo leaves nothing behind
    )
    code = await commands.sync(upload, around, ended=rows.extend)
    if code != EXIT_DONE:
        for node in nodes.nodes:
            display.problem(node.name, f"the end of {node.log}:")
            for line in node.tail().splitlines():
                display.problem(node.name, line)
        return code
    if not await _verified(around, options, display, nodes, rows[0].image):
        return EXIT_NETWORK
    if options.once:
        return EXIT_DONE
    display.result("")
    display.result(f"Status        {nodes.nodes[0].url}/status/")
    display.result(f"Copies        {nodes.nodes[0].top.parent}/node*/data/{FIRST.name}")
    display.result("Try next, in another terminal:")
    for line in folded(next_line(directory, nodes.key, nodes.port)):
        display.result(line)
    display.result("Ctrl-C ends the nodes and removes everything.")
    try:
        await Deferred[None]()
    except CancelledError:
        return EXIT_DONE
    return EXIT_DONE


async def _verified(around: Surroundings, options: DemoOptions, display: Display, nodes: Nodes, image: ImageId) -> bool:
    """Index every copy anew and compare it with what was uploaded."""
    good = True
    for node in nodes.nodes:
        copy = node.data / FIRST.name
        try:
            found = await scan(str(copy), options.common.hash or OURS, around.in_thread, lambda _: None)
        except CiruelaError as error:
            good = False
            display.problem(node.name, f"{copy} cannot be verified: {error}")
            continue
        same = found.image == image
        good = good and same
        text = f"{node.name} {node.host}  {FIRST}  {count(found.files, 'file')} read again, id {short_id(found.image)}"
        if same:
            display.result(f"{text}  identical")
        else:
            display.problem(node.name, f"{text}  DIFFERS from {short_id(image)}")
    return good
