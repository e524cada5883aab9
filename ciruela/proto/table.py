"""Table of all messages: what answers what, which version of the subprotocol has it, how many items it may have.

The loops of :mod:`ciruela.proto.codec` run over it, and a test compares it with ``docs/reference/messages.cddl``. Names on the wire are
those of the classes; :data:`FORMS` has what stands in them.
"""

from __future__ import annotations

from typing import Any

from ciruela.model.values import dataclass
from ciruela.proto import messages as m
from ciruela.proto.forms import FEW_PIECES, MAX_BULK, MAX_HOSTS, Struct

MAX_ITEMS = 256
MAX_ITEMS_WITH_HOSTS = 2 * MAX_HOSTS + MAX_ITEMS
MAX_ITEMS_BASE_DIR = 16 * 65_536
MAX_ITEMS_PATH_STATE = (12 + m.MOST_ADDRESSES) * m.MOST_SERVERS + (3 + m.MOST_ADDRESSES) * m.MOST_SHARED_IDS + MAX_ITEMS
MAX_ITEMS_PUSH_PULL = m.MOST_PULLED + MAX_ITEMS
MAX_ITEMS_BULK = 5 * MAX_BULK + 16
MAX_ITEMS_NEWS = (4 + 3 * FEW_PIECES) * m.MOST_OFFERS + MAX_ITEMS


@dataclass(frozen=True, slots=True)
class Exchange:
    """Request and answer, which both bear the name of the request's class.

    ``most`` and ``most_asked``: items (keys, values, containers) of an answer and of a request. ``version``: of the
    subprotocol that has it.
    """

    request: type[Any]
    answer: type[Any]
    most: int = MAX_ITEMS
    most_asked: int = MAX_ITEMS
    version: int = 1


EXCHANGES = (
    Exchange(m.AppendDir, m.UploadAck, MAX_ITEMS_WITH_HOSTS),
    Exchange(m.ReplaceDir, m.UploadAck, MAX_ITEMS_WITH_HOSTS),
    Exchange(m.GetIndex, m.IndexData),
    Exchange(m.GetIndexAt, m.IndexAtData, MAX_ITEMS_WITH_HOSTS),
    Exchange(m.GetBlock, m.BlockData),
    Exchange(m.GetBaseDir, m.BaseDirData, MAX_ITEMS_BASE_DIR),
    Exchange(m.GetBlocks, m.BlocksData, MAX_ITEMS_BULK, MAX_ITEMS_BULK, version=2),
    Exchange(m.GetShare, m.ShareData, version=2),
    Exchange(m.GetPieces, m.PiecesData, version=2),
    Exchange(m.RemoveDir, m.UploadAck, MAX_ITEMS_WITH_HOSTS, version=2),
    Exchange(m.CheckUpload, m.CheckData, MAX_ITEMS_WITH_HOSTS, version=2),
    Exchange(m.GetPathState, m.PathStateData, MAX_ITEMS_PATH_STATE, version=2),
    Exchange(m.WithdrawUpload, m.UploadAck, version=2),
    Exchange(m.PushPull, m.PushPullData, MAX_ITEMS_PUSH_PULL, version=2),
    Exchange(m.OpenBulk, m.BulkTicket, version=3),
)

NOTIFICATIONS: dict[type[Any], int] = {
    m.PublishImage: 1,
    m.ReceivedImage: 1,
    m.AbortedImage: 1,
    m.RemovedImage: 2,
    m.HookResult: 2,
    m.ExchangePieces: 3,
}
"""Version of the subprotocol that has each notification."""

NEWER: dict[type[Any], int] = {row.request: row.version for row in EXCHANGES if row.version > 1}
"""Requests that ``ciruela.v1`` lacks, each with the version of the subprotocol that has it."""


def deadly(request: Any) -> str | None:
    """The path of which a server of the first implementation would die: one with a single component, where it asks for what is above it."""
    match request:
        case m.AppendDir(path=path) | m.ReplaceDir(path=path) | m.GetIndexAt(path=path) | m.GetBlock(hint=m.BlockHint(vpath=path)):
            return path if path.rstrip("/").count("/") < 2 else None
    return None


def no_images_at(path: object, name: str = "it") -> str:
    """Says why a server is not asked about such a path."""
    return f"{name} is a server of the first implementation, which has no images at {path}"


FORMS: dict[type[Any], Struct[Any]] = {
    message: Struct.of(m.PlainBlocks if message is m.BlocksData else message)
    for message in (*(one for row in EXCHANGES for one in (row.request, row.answer)), *NOTIFICATIONS)
}
"""Form of the fields of each message."""
