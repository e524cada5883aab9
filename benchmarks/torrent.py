"""What a BitTorrent swarm needs besides its program: torrents, a tracker, and a program around libtorrent. Runs on the benchmark's hosts.

``python -m benchmarks.torrent make|tracker|node|seed ...``; ``benchmarks.systems`` starts it.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PIECE_BYTES = 256 * 1024
PORT = 6881
NEWS_PORT = 6900
"""Where a node of libtorrent waits for the torrent."""

UNPACK = 'mkdir "$2.part" && zstd -dcq "$1" | tar -x -C "$2.part" -f - && mv -T "$2.part" "$2"'
"""Shell: unpack a tar.zst ($1) so that the directory ($2) appears at once."""


def bencode(value: Any) -> bytes:
    """BEP 3."""
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%s" % (len(value), value)
        case str():
            return bencode(value.encode())
        case list():
            return b"l" + b"".join(map(bencode, value)) + b"e"
        case dict():
            return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"
    raise TypeError(f"no bencoding for {type(value).__name__}")


def _pieces(files: Iterable[Path]) -> bytes:
    hashes = []
    left = bytearray()
    for path in files:
        with open(path, "rb") as file:
            while data := file.read(1024 * 1024):
                left += data
                while len(left) >= PIECE_BYTES:
                    hashes.append(hashlib.sha1(left[:PIECE_BYTES]).digest())
                    del left[:PIECE_BYTES]
    if left:
        hashes.append(hashlib.sha1(left).digest())
    return b"".join(hashes)


def torrent(source: Path, tracker: str) -> bytes:
    """The torrent of a file or a tree."""
    info: dict[str, Any] = {"name": source.name, "piece length": PIECE_BYTES}
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
        info["files"] = [{"length": path.stat().st_size, "path": list(path.relative_to(source).parts)} for path in files]
        info["pieces"] = _pieces(files)
    else:
        info["length"] = source.stat().st_size
        info["pieces"] = _pieces([source])
    return bencode({"announce": tracker, "info": info})


def track(address: str, port: int, peers: Sequence[str]) -> None:
    """A tracker that answers everybody with the whole list."""
    compact = b"".join(socket.inet_aton(peer) + struct.pack("!H", PORT) for peer in peers)
    answer = bencode({"interval": 5, "min interval": 1, "peers": compact})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    http.server.ThreadingHTTPServer((address, port), Handler).serve_forever()


def _session(lt: Any, address: str) -> Any:
    """A session for a private network: no discovery, TCP only, quick to begin, no limits."""
    return lt.session(
        {
            "listen_interfaces": f"{address}:{PORT}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
            "unchoke_slots_limit": -1,
            "unchoke_interval": 2,
            "tick_interval": 100,
            "connection_speed": 200,
            "min_reconnect_time": 1,
            "max_out_request_queue": 64,
            "request_queue_time": 1,
            "in_enc_policy": 2,
            "out_enc_policy": 2,
            "mixed_mode_algorithm": 0,
            "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.storage_notification,
        }
    )


def _add(lt: Any, session: Any, data: bytes, place: Path, seed: bool) -> Any:
    wanted = lt.load_torrent_buffer(data)
    wanted.save_path = str(place)
    wanted.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    if seed:
        wanted.flags |= lt.torrent_flags.seed_mode
    return session.add_torrent(wanted)


def _meet(handle: Any, peers: Sequence[str]) -> None:
    for peer in peers:
        handle.connect_peer((peer, PORT))


def node(address: str, place: Path, peers: Sequence[str], packed: bool) -> None:
    """Wait for a torrent, get it, show it as ``place/tree``; go on giving."""
    import libtorrent as lt

    session = _session(lt, address)
    with socket.create_server((address, NEWS_PORT)) as server:
        connection, _ = server.accept()
    with connection:
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    store = place / "store"
    store.mkdir()
    handle = _add(lt, session, data, store, seed=False)
    met_s = 0.0
    while not handle.status().is_seeding:
        if time.monotonic() - met_s > 1:
            met_s = time.monotonic()
            _meet(handle, peers)
        time.sleep(0.02)
    handle.flush_cache()
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s and not any(isinstance(alert, lt.cache_flushed_alert) for alert in session.pop_alerts()):
        session.wait_for_alert(50)
    if packed:
        subprocess.run(["bash", "-o", "pipefail", "-ec", UNPACK, "unpack", str(store / "tree.tar.zst"), str(place / "tree")], check=True)
    else:
        (place / "link").symlink_to("store/tree")
        os.rename(place / "link", place / "tree")
    while True:
        time.sleep(1)


def seed(address: str, source: Path, peers: Sequence[str]) -> None:
    """Make the torrent, give it to all nodes, and then what it names."""
    import libtorrent as lt

    data = torrent(source, f"http://{address}:6969/announce")
    session = _session(lt, address)
    handle = _add(lt, session, data, source.parent, seed=True)
    for peer in peers:
        with socket.create_connection((peer, NEWS_PORT)) as connection:
            connection.sendall(data)
    while True:
        _meet(handle, peers)
        time.sleep(1)


def main() -> int:
    """Do one of these."""
    parser = argparse.ArgumentParser(description="The BitTorrent side of the benchmark.")
    parser.add_argument("what", choices=("make", "tracker", "node", "seed"))
    parser.add_argument("--address", required=True)
    parser.add_argument("--peers", default="")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--packed", action="store_true")
    options = parser.parse_args()
    peers = options.peers.split(",")
    match options.what:
        case "make":
            sys.stdout.buffer.write(torrent(options.place, f"http://{options.address}:6969/announce"))
        case "tracker":
            track(options.address, 6969, peers)
        case "node":
            shutil.rmtree(options.place / "store", ignore_errors=True)
            node(options.address, options.place, peers, options.packed)
        case "seed":
            seed(options.address, options.place, peers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
