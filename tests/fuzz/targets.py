"""The decoders that are fuzzed: where each begins, how it is bent, and what has to hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz import connections, places, records, talks, texts, wire
from tests.fuzz.mutate import Cut, cut_cbor, cut_evenly, cut_words
from tests.proto.samples import VECTORS

INPUTS = 200_000
"""Inputs for one target and whole campaign (threats 5.2)."""

OWN = 50_000
"""The same for small notes of which only this program and the file system decide what is in them."""

ROLE = 100_000
"""The same for frames of a websocket at one of its two ends."""

TALKS = 50_000
"""The same for conversations, of up to nine moves each."""


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder.

    ``check`` gets one input: True when the decoder accepted it, False when it refused it as documented; whatever it raises is a finding.
    ``inputs`` is how many a campaign makes.
    """

    name: str
    check: Callable[[bytes], bool]
    seeds: Sequence[bytes]
    cut: Cut = cut_cbor
    tokens: Sequence[bytes] = ()
    longest: int = 4096
    inputs: int = INPUTS


def _cut_content(data: bytes) -> Sequence[tuple[int, int]]:
    """The items of a datagram behind its envelope."""
    return [(begin + 7, end + 7) for begin, end in cut_cbor(data[7:])]


_GOSSIP = wire.gossip_samples()

TARGETS = (
    Target("cbor", wire.check_cbor, (*VECTORS.values(), wire.MANY), tokens=wire.TOKENS),
    Target("notifications", wire.check_message, wire.of_kind(0), tokens=wire.TOKENS),
    Target("requests", wire.check_message, wire.of_kind(1), tokens=wire.TOKENS),
    Target("responses", wire.check_message, wire.of_kind(2), tokens=wire.TOKENS),
    Target("packed", wire.check_packed, wire.packed_samples(), cut_evenly, longest=8192),
    Target("talk", talks.check_talk, talks.talk_samples(), talks.cut_moves, longest=2 * talks.MOST_MOVES, inputs=TALKS),
    Target("index", texts.check_index, texts.index_samples(), cut_words, texts.TOKENS_INDEX, 8192),
    Target("index-lines", texts.check_index_lines, tuple(map(texts.lines_of, texts.index_samples())), cut_words, texts.TOKENS_INDEX, 8192),
    Target("paths", texts.check_path, texts.path_samples(), cut_words, texts.TOKENS_PATH),
    Target("envelope", wire.check_envelope, tuple(map(wire.sealed, _GOSSIP)), _cut_content, wire.TOKENS, 1500),
    Target("gossip", wire.check_gossip, _GOSSIP, tokens=wire.TOKENS, longest=1500),
    Target(
        "server-link",
        connections.check_server_link,
        connections.frame_samples(True),
        connections.cut_frames,
        connections.frame_tokens(True),
        inputs=ROLE,
    ),
    Target(
        "client-link",
        connections.check_client_link,
        connections.frame_samples(False),
        connections.cut_frames,
        connections.frame_tokens(False),
        inputs=ROLE,
    ),
    Target(
        "bulk",
        connections.check_bulk,
        (*connections.bulk_samples(), *connections.frame_samples(True), *connections.frame_samples(False)),
        connections.cut_frames,
        connections.frame_tokens(True),
        inputs=ROLE,
    ),
    Target("authorized-keys", texts.check_authorized, texts.authorized_samples(), cut_words, texts.TOKENS_KEYS, 1500),
    Target("private-key", texts.check_private, texts.private_samples(), texts.cut_strings, texts.TOKENS_PRIVATE),
    Target("state", wire.check_state, wire.state_samples(), tokens=wire.TOKENS),
    Target("tombstones", records.check_tombstones, records.tombstone_samples(), tokens=wire.TOKENS),
    Target("due", records.check_due, records.due_samples(), tokens=wire.TOKENS, inputs=OWN),
    Target("modes", records.check_modes, records.modes_samples(), tokens=wire.TOKENS, inputs=OWN),
    Target("kept", records.check_kept, records.kept_samples(), tokens=wire.TOKENS, inputs=OWN),
    Target("base", records.check_base, records.base_samples(), tokens=wire.TOKENS),
    Target("keep-list", records.check_keep_list, records.keep_list_samples(), cut_words, texts.TOKENS_PATH),
    Target("hash-cache", records.check_hash_cache, records.hash_cache_samples(), cut_evenly, wire.TOKENS),
    Target("journal", wire.check_journal, wire.journal_samples(), tokens=wire.TOKENS),
    Target("yaml", texts.check_yaml, texts.yaml_samples(), cut_words, texts.TOKENS_YAML, 400),
    Target("peer-list", places.check_list, places.list_samples(), cut_words, places.TOKENS),
    Target("consul", places.check_consul, places.consul_samples(), cut_words, places.TOKENS),
    Target("peer-cache", places.check_cache, places.cache_samples(), cut_words, places.TOKENS, inputs=OWN),
    Target("http-head", connections.check_head, connections.head_samples(), cut_words, connections.TOKENS_HEAD, 20_000),
    Target("http-port", connections.check_port, connections.head_samples(), cut_evenly, connections.TOKENS_HEAD, 8192, inputs=10_000),
)

BY_NAME = {target.name: target for target in TARGETS}
