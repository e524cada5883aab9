"""States as they come from other nodes."""

import cbor2
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import FormatError
from ciruela.proto import messages as m
from ciruela.proto.table import FORMS
from tests.proof import shows


def state(*stamps):
    return {"image": bytes(32), "signatures": [[stamp, ["ssh-ed25519", bytes(64)]] for stamp in stamps]}


class StatesTests(SynchronousTestCase):
    """What one entry lacks costs that entry."""

    @shows("K3.6")
    def test_too_many_signatures(self):
        """A node that joins would never learn of anything in a directory with an image that was uploaded 18 times."""
        for count in (18, 800):
            found = m.STATE.read(state(*range(1, count + 1)), "dirs")
            self.assertEqual([one.timestamp_ms for one in found.signatures], [1, *range(count - 14, count + 1)])

    @shows("K3.6")
    def test_bad_entry(self):
        """One entry that is not well made would hide all others."""
        dirs = {"good": state(5), "bad": {"image": b"short", "signatures": []}, "many": state(*range(30)), "x" * 300: state(1), 7: state(1)}
        data = FORMS[m.BaseDirData].read({"config_hash": bytes(32), "keep_list_hash": bytes(32), "dirs": dirs})
        self.assertEqual(set(data.dirs), {"good", "many"})

    def test_no_list(self):
        """What is no list at all is refused as before."""
        with self.assertRaises(FormatError):
            FORMS[m.BaseDirData].read({"config_hash": bytes(32), "keep_list_hash": bytes(32), "dirs": [cbor2.dumps(1)]})
