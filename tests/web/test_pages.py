"""The routes of the status pages."""

import json

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from ciruela.web.pages import Pages
from tests.proof import shows


class Words:
    """A node that answers each page with the page's name."""

    well = True

    def health(self):
        return self.well, {"status": "ok" if self.well else "starting"}

    def list_dir(self, path):
        return {"asked": path}

    def cluster(self, topic):
        return {"topic": topic} if topic == "dirs" else None

    def __getattr__(self, name):
        return lambda: {"page": name}


class PagesTests(SynchronousTestCase):
    """A dashboard made for the reference keeps working."""

    def get(self, path, method=b"GET", words=None):
        request = DummyRequest([])
        request.method, request.path = method, path
        body = Pages(words or Words()).render(request)
        return request, body

    def test_named_pages(self):
        """Each of the reference's pages answers under its path, as JSON."""
        for path, name in [
            (b"/status/", "status"),
            (b"/downloading/", "downloading"),
            (b"/base-dirs/", "base_dirs"),
            (b"/configs/", "configs"),
            (b"/deleted/", "deleted"),
            (b"/watching/", "watching"),
            (b"/watched/", "watched"),
            (b"/peers/", "peers"),
        ]:
            request, body = self.get(path)
            self.assertEqual(json.loads(body), {"page": name})
            self.assertEqual(request.responseHeaders.getRawHeaders("content-type"), ["application/json"])

    @shows("F3")
    def test_exact(self):
        """A path without its slash is another path, as in the reference."""
        request, _ = self.get(b"/status")
        self.assertEqual(request.responseCode, 404)

    def test_list_dir(self):
        """A base dir is named by the rest of the path, percent-encoded or not."""
        self.assertEqual(json.loads(self.get(b"/list-dir/apps/%C3%BCml")[1]), {"asked": "/apps/üml"})
        self.assertEqual(json.loads(self.get(b"/list-dir/apps/")[1]), {"asked": "/apps"})

    def test_cluster(self):
        """Cluster pages by topic; an unknown topic is not found and says what there is."""
        self.assertEqual(json.loads(self.get(b"/cluster/dirs/")[1]), {"topic": "dirs"})
        request, body = self.get(b"/cluster/nothing/")
        self.assertEqual(request.responseCode, 404)
        self.assertIn("/cluster/dirs/", json.loads(body)["pages"])

    def test_health(self):
        """A load balancer sees a starting node as unavailable."""
        words = Words()
        self.assertEqual(self.get(b"/healthz", words=words)[0].responseCode, 200)
        words.well = False
        self.assertEqual(self.get(b"/healthz", words=words)[0].responseCode, 503)

    @shows("F3")
    def test_read_only(self):
        """Only GET and HEAD are answered, HEAD without a body."""
        self.assertEqual(self.get(b"/status/", b"POST")[0].responseCode, 405)
        request, body = self.get(b"/status/", b"HEAD")
        self.assertEqual((request.responseCode, body), (200, b""))

    @shows("F3", "I8")
    def test_not_utf8(self):
        """Bytes that are no text are answered, not crashed on."""
        self.assertEqual(self.get(b"/list-dir/%ff%fe")[0].responseCode, 404)
