"""How one directory of this node is configured (protocol section 9.1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DirConfig:
    """The content of ``configs/KEY.yaml``, checked. ``directory`` is an absolute path of this host."""

    key: str
    directory: str
    append_only: bool
    num_levels: int
    upload_keys: tuple[str, ...] = ()
    download_keys: tuple[str, ...] = ()
    auto_clean: bool = False
    keep_list_file: str | None = None
    keep_min_directories: int = 2
    keep_max_directories: int = 100
    keep_recent_ms: int = 2 * 24 * 3600 * 1000
