"""Links that protect images, and the reasons that are told to people."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.cleanup.health import Cause, dir_faults, outlooks
from ciruela.cleanup.rules import RetentionRule, rulings
from ciruela.disk.trust import HostLinks, protected
from ciruela.model.errors import DiskError
from ciruela.model.vpath import VPath
from tests.cleanup.test_doubts import WELL
from tests.cleanup.test_rules import DAY_MS, HOUR_MS, NOW_MS, WEEK_MS, aged, config
from tests.disk.trees import in_place
from tests.proof import shows


class LinkTests(SynchronousTestCase):
    """Symlinks of a real file system."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.srv = self.top / "srv"
        for name in ("web/v1/public", "web/v2", "api/v1"):
            (self.srv / name).mkdir(parents=True)

    def link(self, target: Path | str) -> str:
        """A symlink outside of the directory."""
        path = self.top / f"link{len(list(self.top.iterdir()))}"
        path.symlink_to(target)
        return str(path)

    def test_leads_to(self) -> None:
        """The release that runs would be removed because nobody uploaded another one for long."""
        chain = self.link(self.srv / "web/v1")
        links = [self.link(Path(chain).name), self.link(self.srv / "web/v1/public"), self.link(self.srv / "api"), self.link(self.srv)]
        self.assertEqual(protected(links[:1], str(self.srv)), {("web", "v1")})
        self.assertEqual(protected(links[1:3], str(self.srv)), {("web", "v1", "public"), ("api",)})
        self.assertEqual(protected(links[3:], str(self.srv)), {()})
        self.assertEqual(protected([self.link("/"), self.link(str(self.srv) + "/../srv/../../")], str(self.srv)), set())
        alias = self.link(self.srv)
        self.assertEqual(protected([chain], alias), {("web", "v1")})
        sibling = self.top / "srv2"
        sibling.mkdir()
        self.assertEqual(protected([self.link(sibling)], str(self.srv)), set())

    def test_unsure(self) -> None:
        """A link that dangles for a moment, while somebody changes it, would protect nothing for that moment."""
        loop = self.top / "loop"
        os.symlink("loop", loop)
        (self.srv / "file").write_text("")
        for bad in (self.link(self.srv / "web/v3"), str(loop), str(self.top / "nothing"), self.link(self.srv / "file")):
            with self.assertRaises(DiskError) as caught:
                protected([bad], str(self.srv))
            self.assertIn("it must lead to a directory that is there", str(caught.exception))
        with self.assertRaises(DiskError):
            protected([self.link(self.srv)], str(self.top / "unmounted"))

    def test_as_configured(self) -> None:
        """The links of a directory would not be looked at, or a directory without any would be in doubt."""
        links = HostLinks(in_place)
        one = replace(config(1, 2, DAY_MS), directory=str(self.srv))
        self.assertEqual(self.successResultOf(links.follow(one)), frozenset())
        linked = replace(one, protect=(self.link(self.srv / "web/v2"),))
        self.assertEqual(self.successResultOf(links.follow(linked)), {("web", "v2")})
        self.failureResultOf(links.follow(replace(one, protect=("/nowhere/at/all",))), DiskError)

    @shows("K5.5", "I9")
    def test_into_an_image(self) -> None:
        """A link into a release, or to the directory above it, would protect nothing."""
        links = HostLinks(in_place)
        one = replace(config(1, 2, DAY_MS), directory=str(self.srv))
        v1, v2 = VPath(("web", "web", "v1")), VPath(("web", "web", "v2"))
        for target, led in (("web/v1/public", {v1}), ("web/v1", {v1}), ("web", {v1, v2}), ("api", set())):
            link = self.link(self.srv / target)
            linked = replace(one, protect=(link,))
            found = {vpath: self.successResultOf(links.leading(linked, vpath)) for vpath in (v1, v2)}
            self.assertEqual(found, {vpath: link if vpath in led else None for vpath in (v1, v2)})

    def test_doubt_is_told(self) -> None:
        """Nobody would see why nothing is removed any more."""
        (fault,) = dir_faults(replace(WELL, protected="the protected link /srv/current: No such file or directory"))
        self.assertEqual((fault.cause, fault.cause.passes), (Cause.PROTECT, False))


class ReasonTests(SynchronousTestCase):
    """When an image goes, at the earliest."""

    def test_protected(self) -> None:
        """An image that a link leads to would be removed because it is old."""
        entries = aged({"a": HOUR_MS, "b": WEEK_MS, "c": WEEK_MS + 1, "d": WEEK_MS + 2})
        found = {one.entry: one.rule for one in rulings(entries, config(1, 2, DAY_MS), ("c",), (), NOW_MS, ("c", "d"))}
        self.assertEqual(
            found, {"a": RetentionRule.RECENT, "b": RetentionRule.OLD, "c": RetentionRule.PROTECTED, "d": RetentionRule.PROTECTED}
        )

    def test_times(self) -> None:
        """Somebody would look for an image on the day after it went, or wait for one to go that stays."""
        ages: dict[str, int | None] = {f"o{number}": WEEK_MS + number for number in range(5)} | {"new": HOUR_MS, "soon": DAY_MS - 10}
        rules = config(1, 10, DAY_MS)
        found = rulings(aged(ages), rules, ("o0",), (), NOW_MS)
        when = {one.ruling.entry: one.not_before_ms for one in outlooks(found, rules, NOW_MS + 1000, HOUR_MS)}
        first, second = NOW_MS + 1000, NOW_MS + 1000 + HOUR_MS
        expected = {"new": NOW_MS + DAY_MS - HOUR_MS, "soon": first, "o0": None, "o4": first, "o3": first, "o2": second, "o1": second}
        self.assertEqual(when, expected)
