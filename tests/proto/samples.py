"""Every message of the appendix as our value, under the name of its vector."""

from __future__ import annotations

import json
from pathlib import Path

from ciruela.model.ids import BlockHash, ImageId, MachineId, Server, SharedId
from ciruela.model.versions import SigEntry, State, Version
from ciruela.proto import messages as m

VECTORS: dict[str, bytes] = {
    name: bytes.fromhex(text)
    for name, text in json.loads((Path(__file__).parent.parent / "vectors" / "messages.json").read_text(encoding="ascii")).items()
}
T = 1_700_000_000_123


def image(byte: int) -> ImageId:
    return ImageId(bytes([byte]) * 32)


def machine(byte: int) -> MachineId:
    return MachineId(bytes([byte]) * 16)


SIGNATURE = b"\x55" * 64
HOSTS = {machine(0x22): "node2"}
HINT = m.BlockHint("/dir1/a/v1", "/sub/file.txt", 32768)
BLOCK = BlockHash(b"\x44" * 32)
V0 = State(image(0x12), (SigEntry(T, b"\x56" * 64),))
V1 = State(image(0x11), (SigEntry(T, SIGNATURE),))
DIRS = {"v0": V0, "v1": V1}

REQUESTS: dict[str, tuple[int, m.Request]] = {
    "AppendDir": (1, m.AppendDir("/dir1/a/v1", image(0x11), T, (SIGNATURE,))),
    "ReplaceDir-none": (2, m.ReplaceDir("/dir2/cur", image(0x11), None, T, (SIGNATURE,))),
    "ReplaceDir-old": (3, m.ReplaceDir("/dir2/cur", image(0x11), image(0x33), T, (SIGNATURE,))),
    "GetIndex-hint": (4, m.GetIndex(image(0x11), "/dir1/a/v1")),
    "GetIndex-nohint": (4, m.GetIndex(image(0x11), None)),
    "GetIndexAt": (5, m.GetIndexAt("/dir1/a/v1")),
    "GetBlock-hint": (6, m.GetBlock(BLOCK, HINT)),
    "GetBlock-nohint": (6, m.GetBlock(BLOCK, None)),
    "GetBaseDir": (7, m.GetBaseDir("/dir1/a")),
}

RESPONSES: dict[str, tuple[int, str, m.Response]] = {
    "AppendDirAck-ok": (1, "AppendDir", m.UploadAck(True, None, HOSTS)),
    "AppendDirAck-rej": (1, "AppendDir", m.UploadAck(False, "signature_mismatch")),
    "ReplaceDirAck": (3, "ReplaceDir", m.UploadAck(False, "dir_is_append_only", HOSTS)),
    "GetIndexResponse": (4, "GetIndex", m.IndexData(b"DIRSIGNATURE.v1")),
    "GetIndexAtResponse": (5, "GetIndexAt", m.IndexAtData(b"DIRSIGNATURE.v1")),
    "GetIndexAtResponse-none": (5, "GetIndexAt", m.IndexAtData(None, HOSTS)),
    "GetBlockResponse": (6, "GetBlock", m.BlockData(b"hello")),
    "GetBaseDirResponse": (7, "GetBaseDir", m.BaseDirData(b"\xcc" * 32, b"\xdd" * 32, DIRS)),
    "Error": (7, "Error", m.Error("No such config")),
}

NOTIFICATIONS: dict[str, m.Notification] = {
    "PublishImage": m.PublishImage(image(0x11)),
    "ReceivedImage": m.ReceivedImage(image(0x11), "/dir1/a/v1", machine(0x22), "node2", True),
    "AbortedImage": m.AbortedImage(image(0x11), "/dir1/a/v1", machine(0x22), "node2", False, "cant_fetch_index"),
}

HOOK_RESULT = m.HookResult(image(0x11), "/dir1/a/v1", machine(0x22), "node2", True, "on-commit", "failed", "exited with 1")
"""Of our own: the reference has none."""

VERSION = Version(T, image(0x12))
SERVERS = (
    Server("node2", machine(0x22), ("10.0.0.2:24783", "[2001:db8::2]:24783"), 1500),
    Server("node3.example.org", None, (), None),
    Server("node4", machine(0x24), ("10.0.0.4:24783",), 0, configured=False),
)
PATH_STATES = (
    m.PathStateData(machine(0x21), "node1", T, False),
    m.PathStateData(
        machine(0x21),
        "node1",
        T,
        True,
        VERSION,
        Version(T + 1, image(0x13)),
        (image(0x14), "no_space: needs 5 bytes"),
        SERVERS,
        (SharedId(machine(0x22), ("10.0.0.2:24783", "10.0.0.3:24783")),),
        (bytes(range(32)), bytes(32)),
    ),
)
OWN_REQUESTS: tuple[m.Request, ...] = (
    m.GetPathState("/dir1/a/v1"),
    m.GetPathState("/dir1/a/v1", servers=True),
    m.WithdrawUpload("/dir1/a/v1", image(0x11)),
    m.PushPull(24783, None, ()),
    m.PushPull(24783, 5, (b"body", b"another")),
    m.RemoveDir("/dir1/a/v1", image(0x11), T, (SIGNATURE,), force=True),
)
OWN_RESPONSES: tuple[tuple[str, m.Response], ...] = (
    *(("GetPathState", state) for state in PATH_STATES),
    ("WithdrawUpload", m.UploadAck(True, None)),
    ("AppendDir", m.UploadAck(False, "already_exists", HOSTS, machine(0x21), "node1", "why")),
    ("PushPull", m.PushPullData(False, None, ())),
    ("PushPull", m.PushPullData(True, 7, (b"body", b"x" * 1400))),
    ("CheckUpload", m.CheckData(True, None, "", image(1), image(2), 1 << 50, machine(1), "n1", {}, T, T + 1)),
    (
        "GetBaseDir",
        m.BaseDirData(
            bytes(32), bytes(32), {}, removed={"v9": m.RemovedEntry(7, image(1), (SIGNATURE,), True)}, kept_signed={"v1": (V0, V1)}
        ),
    ),
)
"""What only this program has, in every form."""
