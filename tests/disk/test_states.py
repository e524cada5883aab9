"""State files and the commit journal as bytes."""

from __future__ import annotations

from pathlib import Path

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import states
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import CommitPhase, Journal, decode_journal, decode_state, encode_journal, encode_state
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State
from tests.proof import shows

STATE = State(ImageId(b"\x11" * 32), (SigEntry(1_700_000_000_123, b"\x55" * 64),))

VECTOR = bytes.fromhex(
    "a265696d61676558201111111111111111111111111111111111111111111111111111111111111111"
    "6a7369676e61747572657381821b0000018bcfe5687b826b7373682d65643235353139584055555555" + "55" * 60
)
"""``StateFile`` of appendix A of the protocol."""


def _never(state: State) -> State:
    """Nobody vouches for a record without a checksum."""
    raise FormatError("no checksum")


signatures = st.lists(st.builds(SigEntry, st.integers(0, 2**64 - 1), st.binary(min_size=64, max_size=64)), min_size=1, max_size=4)
some_states = st.builds(
    lambda image, entries: State(ImageId(image), ()).merged(tuple(entries)), st.binary(min_size=32, max_size=32), signatures
)
some_journals = st.one_of(
    st.builds(Journal, some_states, st.sampled_from([*Command, None])),
    st.builds(
        Journal,
        some_states,
        st.sampled_from([*Command, None]),
        st.just(CommitPhase.READY),
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    ),
)


class Format(SynchronousTestCase):
    def test_vector(self) -> None:
        """The reference could not read our db directory, nor we its."""
        self.assertEqual(encode_state(STATE)[1 : len(VECTOR)], VECTOR[1:])
        self.assertEqual(list(cbor2.loads(encode_state(STATE))), ["image", "signatures", "ciruela"])
        self.assertEqual(decode_state(VECTOR), STATE)
        self.assertEqual(decode_journal(VECTOR), Journal(STATE, None))

    @shows("K3.6")
    def test_one_signature_for_each_upload(self) -> None:
        """An earlier version kept them all: with 800 of them a restart would forget the image."""
        signatures = [[stamp, ["ssh-ed25519", stamp.to_bytes(64, "big")]] for stamp in range(1, 2001)]
        found = decode_state(cbor2.dumps({"image": bytes(32), "signatures": signatures}))
        self.assertEqual((len(found.signatures), found.claim().timestamp_ms, found.version.timestamp_ms), (16, 1, 2000))

    def test_reference_reads_the_journal(self) -> None:
        """The reference could not read what we have pending: the fields it knows must be there, and first."""
        data = encode_journal(Journal(STATE, Command.REPLACE, CommitPhase.READY, (1, 2)))
        fields = cbor2.loads(data)
        self.assertEqual(list(fields), ["image", "signatures", "ciruela"])
        self.assertEqual(data[1 : len(VECTOR)], VECTOR[1:])
        self.assertEqual(len(fields["ciruela"].pop("sum")), 16)
        self.assertEqual(fields["ciruela"], {"command": "replace", "phase": "ready", "staging": [1, 2]})
        self.assertEqual(decode_state(data), STATE)

    @settings(derandomize=True, deadline=None, database=None, max_examples=100)
    @given(some_journals)
    def test_round_trip(self, journal: Journal) -> None:
        """A restart would read something else than what was written."""
        self.assertEqual(decode_journal(encode_journal(journal)), journal)
        self.assertEqual(decode_state(encode_state(journal.state)), journal.state)

    def test_command_of_the_reference(self) -> None:
        """A pending upload of the reference would take the wrong way into its path."""
        self.assertEqual(Journal(STATE, None).resolved(None), Command.APPEND)
        self.assertEqual(Journal(STATE, None).resolved(STATE), Command.REPLACE)
        self.assertEqual(Journal(STATE, Command.APPEND).resolved(STATE), Command.APPEND)

    def test_disorder(self) -> None:
        """Signatures written in another order, or twice, would make states differ that are the same."""
        entries = [[2, ["ssh-ed25519", b"b" * 64]], [1, ["ssh-ed25519", b"a" * 64]], [2, ["ssh-ed25519", b"b" * 64]]]
        found = decode_state(cbor2.dumps({"image": b"i" * 32, "signatures": entries, "more": None}))
        self.assertEqual(found.signatures, (SigEntry(1, b"a" * 64), SigEntry(2, b"b" * 64)))

    @shows("A45", "F39")
    def test_bad(self) -> None:
        """A damaged state would be believed."""
        entry = [1, ["ssh-ed25519", b"a" * 64]]
        bad: list[object] = [
            None,
            [],
            {},
            {"image": b"i" * 32},
            {"image": b"i" * 31, "signatures": [entry]},
            {"image": "i" * 32, "signatures": [entry]},
            {"signatures": [entry]},
            {"image": b"i" * 32, "signatures": []},
            {"image": b"i" * 32, "signatures": {}},
            {"image": b"i" * 32, "signatures": [[1]]},
            {"image": b"i" * 32, "signatures": [[True, entry[1]]]},
            {"image": b"i" * 32, "signatures": [[-1, entry[1]]]},
            {"image": b"i" * 32, "signatures": [[2**64, entry[1]]]},
            {"image": b"i" * 32, "signatures": [[1.5, entry[1]]]},
            {"image": b"i" * 32, "signatures": [[1, ["ssh-rsa", b"a" * 64]]]},
            {"image": b"i" * 32, "signatures": [[1, ["ssh-ed25519", b"a" * 63]]]},
            {"image": b"i" * 32, "signatures": [[1, ["ssh-ed25519", b"a" * 64, 0]]]},
            {"image": b"i" * 32, "signatures": [entry] * 20_000},
        ]
        for value in bad:
            self.assertRaises(FormatError, decode_state, cbor2.dumps(value))
        for data in (b"", VECTOR[:-1], VECTOR + b"\0", b"\xff", b"\x9f"):
            self.assertRaises(FormatError, decode_state, data)

    @shows("A45", "F39")
    def test_bad_journal(self) -> None:
        """A damaged journal would make a restart take any directory for the new image."""
        plain = {"image": STATE.image, "signatures": [[1, ["ssh-ed25519", b"a" * 64]]]}
        bad: list[object] = [
            1,
            [],
            {},
            {"phase": "done"},
            {"phase": "ready"},
            {"phase": "ready", "staging": [1]},
            {"phase": "ready", "staging": "12"},
            {"phase": "ready", "staging": [True, 2]},
            {"phase": "ready", "staging": [1, False]},
            {"phase": "ready", "staging": [1, -2]},
            {"phase": "ready", "staging": [-1, 2]},
            {"phase": "download", "staging": [1, 2]},
            {"phase": "download", "command": "delete"},
            {"phase": ["download"]},
            {"phase": "download", "command": {}},
        ]
        for own in bad:
            self.assertRaises(FormatError, decode_journal, cbor2.dumps({**plain, "ciruela": own}))

    @shows("K3.3", "K3.4", "A45")
    def test_every_bit(self) -> None:
        """One flipped bit would make another time, image or signature of what is committed or on its way, and be believed."""
        journal = Journal(STATE, Command.REPLACE, CommitPhase.READY, (1, 2), aside=True)
        for data, decode, known in ((encode_state(STATE), decode_state, STATE), (encode_journal(journal), decode_journal, journal)):
            self.assertEqual(decode(data), known)
            for bit in range(8 * len(data)):
                bent = bytearray(data)
                bent[bit // 8] ^= 1 << bit % 8
                try:
                    self.assertEqual(decode(bytes(bent), _never), known)
                except FormatError:
                    continue

    @shows("A45", "F39")
    @settings(derandomize=True, deadline=None, database=None, max_examples=200)
    @given(st.integers(0, len(VECTOR) - 1), st.integers(0, 255))
    def test_one_byte(self, at: int, value: int) -> None:
        """One flipped byte would end the start of the daemon."""
        data = bytearray(VECTOR)
        data[at] = value
        try:
            decode_journal(bytes(data))
        except FormatError:
            return


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.mkdir()
        self.directory = SafeDir.at(str(self.path))
        self.addCleanup(self.directory.close)

    @shows("S14")
    def test_mode(self) -> None:
        """Everybody on the host could read who signed what; files of earlier versions would stay as open as they are."""
        (self.path / "v1.state").write_bytes(VECTOR)
        (self.path / "v1.state").chmod(0o644)
        states.write_state(self.directory, "v1", STATE)
        self.assertEqual((self.path / "v1.state").stat().st_mode & 0o7777, 0o640)

    @shows("A43", "I11")
    def test_half_written_before(self) -> None:
        """A temporary file that a kill left would block the state for ever, or be written through if it is a symlink."""
        (self.path / ".tmp.v1.state").symlink_to("elsewhere")
        states.write_state(self.directory, "v1", STATE)
        self.assertEqual([path.name for path in self.path.iterdir()], ["v1.state"])
        self.assertEqual(states.read_state(self.directory, "v1"), STATE)

    def test_longest_names(self) -> None:
        """Images with long names could not be recorded, though their state files have room."""
        name = "n" * (255 - len(".new.state"))
        states.write_journal(self.directory, name, Journal(STATE, Command.APPEND))
        states.write_state(self.directory, name, STATE)
        self.assertEqual(states.read_journal(self.directory, name), Journal(STATE, Command.APPEND))
        self.assertEqual(states.read_state(self.directory, name), STATE)
        self.assertTrue(states.temporary_name(name + ".new.state").endswith(".state"))

    @shows("A45")
    def test_too_large(self) -> None:
        """A huge file in place of a state would fill the memory."""
        (self.path / "v1.state").write_bytes(VECTOR + bytes(states.MAX_STATE_BYTES))
        self.assertIsNone(states.read_state(self.directory, "v1"))
        self.assertTrue((self.path / ".v1.state.backup").exists())

    def test_cannot_be_set_aside(self) -> None:
        """A bad state on a read-only disk would end the start."""
        (self.path / "v1.state").write_bytes(b"bad")
        (self.path / ".v1.state.backup" / "x").mkdir(parents=True)
        self.assertIsNone(states.read_state(self.directory, "v1"))
        self.assertEqual((self.path / "v1.state").read_bytes(), b"bad")
