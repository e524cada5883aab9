"""Signatures of refused orders count in no other form."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId
from ciruela.model.upload import Command, Origin, UploadRequest
from ciruela.model.versions import SigEntry
from ciruela.model.vpath import VPath
from ciruela.proto.messages import MOST_REFUSED, REFUSED_BYTES
from ciruela.uploads import rejections
from ciruela.uploads.rejections import RefusedOrders, in_other_form
from tests.proof import shows

A, B = (ImageId(bytes([number]) * 32) for number in (1, 2))
V1 = VPath.parse("/app/v1")
ENTRY = SigEntry(1000, bytes(64))


def order(command=Command.APPEND, old=None, vpath=V1):
    return UploadRequest(command, vpath, A, old, (ENTRY,), Origin.CLIENT)


class RefusedTests(SynchronousTestCase):
    """What a signature was made for is all that it is good for."""

    @shows("S2")
    def test_forms(self):
        """The append that was refused would be granted as a replace, a replace without its old image."""
        forms = [order(), order(Command.REPLACE), order(Command.REPLACE, A), order(Command.REPLACE, B)]
        for meant in forms:
            memory = RefusedOrders()
            memory.note(meant, meant.signatures, 500)
            for sent in forms:
                self.assertIs(in_other_form(sent, [ENTRY], memory.at(V1, 1000)), sent != meant)
                self.assertFalse(in_other_form(sent, [SigEntry(1001, bytes([1]) * 64)], memory.at(V1, 1000)))

    @shows("S2")
    def test_first_form_counts(self):
        """Whoever replays would replace the memory of what was meant by his own."""
        memory = RefusedOrders()
        memory.note(order(), [ENTRY], 500)
        memory.note(order(Command.REPLACE), [ENTRY], 500)
        self.assertTrue(in_other_form(order(Command.REPLACE), [ENTRY], memory.at(V1, 1000)))

    def test_life(self):
        """What no signature can be used for any more would be told for ever."""
        memory = RefusedOrders()
        memory.note(order(), [ENTRY], 500)
        self.assertEqual(len(memory.at(V1, 1500)), 1)
        self.assertEqual(memory.at(V1, 1501), ())
        self.assertEqual(memory.at(V1, 1000), ())

    @shows("S2", "I6")
    def test_bounded(self):
        """Orders that are refused again and again would fill the memory, and an answer with them."""
        self.patch(rejections, "MOST", 100)
        memory = RefusedOrders()
        for number in range(150):
            memory.note(order(), [SigEntry(number, number.to_bytes(64, "big"))], 10_000)
        found = memory.at(V1, 0)
        self.assertEqual((len(found), {len(one) for one in found}), (MOST_REFUSED, {REFUSED_BYTES}))
        other = VPath.parse("/app/v2")
        for number in range(150, 250):
            memory.note(order(vpath=other), [SigEntry(number, number.to_bytes(64, "big"))], 10_000)
        self.assertEqual(memory.at(V1, 0), ())
