"""The how-tos, as printed: their files on real nodes, their scripts, and their commands in their order.

Only names that cannot be the same are replaced: host names, ``/etc/ciruela``, and directories of the host.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import RealCluster, RealNode, make_key, program

HOWTOS = Path(__file__).parent.parent.parent / "docs" / "howto"

BLOCK = re.compile(r"^\.\. code-block:: (yaml|sh|console)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
PLACE = re.compile(r"^``(/(?:etc/ciruela|usr/local/bin)/[^`]+)``", re.MULTILINE)

NOT_RUN = ("ansible", "ciruela verify")
"""What needs a tool that is not ours, or an id that only the reader has."""


@dataclass(slots=True)
class HowTo:
    """What one page says: files by their places, lines to type, and a script that has no place."""

    files: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    script: str = ""

    @classmethod
    def read(cls, name: str) -> HowTo:
        """A page of the documentation. A file is named at the beginning of the paragraph before it."""
        found = cls()
        text = (HOWTOS / f"{name}.rst").read_text(encoding="utf-8")
        before = 0
        for block in BLOCK.finditer(text):
            body = re.sub(r"(?m)^   ", "", block[2]).strip() + "\n"
            if block[1] == "console":
                typed = [line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ ")]
                found.lines += [line for line in typed if not line.startswith(NOT_RUN)]
            elif places := PLACE.findall(text, before, block.start()):
                found.files.setdefault(places[-1], body)
            elif block[1] == "sh":
                found.script = body
            before = block.end()
        return found


class HowToTests(SynchronousTestCase):
    """Somebody who follows a page would have to find out what is wrong with it."""

    def setUp(self) -> None:
        self.pages = {name: HowTo.read(name) for name in ("deploy-an-application", "service-configuration", "model-files")}
        self.cluster = RealCluster(self, 2, {}, down=[0, 1])
        self.home = self.cluster.home
        (self.home / ".ssh").mkdir(mode=0o700)
        public = make_key(self.home / ".ssh" / "id_ed25519")
        for node in self.cluster.nodes:
            (node.config / "keys").mkdir(mode=0o755)
            for page in self.pages.values():
                for place, text in page.files.items():
                    self.plant(node, place, text)
            for name in ("deploy", "web-admins", "research"):
                self.put(node.config / "keys" / f"{name}.key", public)
            self.put(node.config / "master.key", "")
            self.tools(node)
        self.cluster.start(0, 1)

    def put(self, path: Path, text: str, mode: int = 0o644) -> None:
        """Write a file that only its owner may change."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    def on_host(self, node: RealNode, text: str) -> str:
        """``text`` with the directories of a host replaced by those of ``node``."""
        places = {"/etc/ciruela": node.config, "/usr/local/bin": node.top / "bin", "/usr/bin/sudo": node.top / "bin" / "sudo"}
        places |= {"/usr/sbin/nginx": node.top / "bin" / "nginx", "/srv": node.data, "/data/models": node.data / "models"}
        for old, new in places.items():
            text = re.sub(rf"(?<![\w/]){old}\b", str(new), text)
        return text.replace("sudo /usr", f"{node.top}/bin/sudo /usr").replace("50Gi", "1Mi")

    def plant(self, node: RealNode, place: str, text: str) -> None:
        """A file of a page, and the directories that it needs."""
        path = Path(self.on_host(node, place))
        self.put(path, self.on_host(node, text), 0o755 if path.parent.name == "bin" else 0o644)
        for directory in re.findall(r"^directory: (\S+)", self.on_host(node, text), re.MULTILINE):
            Path(directory).mkdir(parents=True, exist_ok=True)

    def tools(self, node: RealNode) -> None:
        """What a server has: nginx, sudo, and the directory of links."""
        self.put(node.top / "bin" / "sudo", f'#!/bin/sh\necho "$@" >>{node.top}/sudo.log\n', 0o755)
        self.put(node.top / "bin" / "nginx", '#!/bin/sh\nwhile [ "$1" != -c ]; do shift; done\ngrep -q include "$2"\n', 0o755)
        (node.data / "current").mkdir(exist_ok=True)

    def typed(self, line: str, code: int = 0) -> str:
        """Type a line of a page at the host of the user."""
        line = re.sub(r"\b[a-z]+\.example\.org", "127.0.0.1", line).replace("/tmp/", f"{self.home}/")
        if line.startswith(("ciruela rollback", "ciruela remove")):
            line += " --yes"  # there is no terminal to ask
        script = f"PATH={Path(program('ciruela')).parent}:$PATH; export CIRUELA_PORT={self.cluster.port} CIRUELA_EDITOR=true\n{line}"
        return self.cluster.expect(self.cluster.run(["sh", "-c", script]), code)

    def links(self) -> list[str]:
        """What runs on each node."""
        return [(node.data / "current" / "shop").resolve().name for node in self.cluster.nodes]

    @shows("W5")
    def test_as_printed(self) -> None:
        """Each line of each page does what the page says, the first time too."""
        build = self.home / "build" / "bin"
        build.mkdir(parents=True)
        self.put(build / "shop", "#!/bin/sh\nexit 0\n", 0o755)
        self.typed("ciruela sync --require all --append ./build:/apps/shop/v41 shop.example.org")
        self.assertEqual(self.links(), ["v41", "v41"])
        for line in self.pages["deploy-an-application"].lines:
            if line.startswith("mkdir release"):
                self.assertEqual(self.links(), ["v42", "v42"])
            self.typed(line)
            if "put-file" in line:
                self.assertEqual(self.links(), ["v42", "v42"])
            if "rollback" in line:
                self.assertEqual(self.links(), ["v41", "v41"])
        self.assertEqual([path.name for path in (self.cluster.nodes[0].data / "apps" / "shop").iterdir()], ["v41"])

        self.put(self.home / "nginx" / "nginx.conf", "include sites/*.conf;\n")
        self.put(self.home / "nginx" / "sites" / "shop.conf", "server {}\n")
        self.put(self.home / "blocked.conf", "deny all;\n")
        for line in self.pages["service-configuration"].lines:
            self.typed(line, 1 if line.startswith("ciruela diff") and "blocked" in line else 0)
        self.assertFalse((self.cluster.nodes[1].data / "conf" / "site" / "blocked.conf").exists(), "that was rolled back")
        self.assertIn("systemctl reload nginx", (self.cluster.nodes[0].top / "sudo.log").read_text())

        job = HowTo.read("continuous-integration")
        self.typed(job.lines[0])
        for node in self.cluster.nodes:
            with open(node.config / "keys" / "deploy.key", "a", encoding="ascii") as keys:
                keys.write((self.home / "ci-shop.pub").read_text())
        (self.home / "dist").symlink_to("build")
        self.typed(f"CI_SHOP_KEY=$(cat ci-shop); rm ci-shop ci-shop.pub; VERSION=v43\n{job.script}")
        self.assertEqual(json.loads((self.home / "sync.jsonl").read_text().splitlines()[-1])["outcome"], "done")

        model = self.home / "llama-70b-q4"
        self.put(model / "weights", "x" * 100_000)
        for line in self.pages["model-files"].lines:
            self.typed(line)
        self.assertEqual((self.home / "model" / "weights").stat().st_size, 100_000)
        shutil.rmtree(self.home / "model")
