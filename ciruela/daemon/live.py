"""The directory configs that count now: one mapping that all rooms share, of which a reload changes the content in one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ciruela.model.dirconfig import DirConfig


class LiveConfigs(Mapping[str, DirConfig]):
    """Threads may look things up at any time: they see all of the old content, or all of the new."""

    def __init__(self, configs: Mapping[str, DirConfig]) -> None:
        self._now = dict(configs)

    def replace(self, configs: Mapping[str, DirConfig]) -> None:
        """These count from now on."""
        self._now = dict(configs)

    def __getitem__(self, key: str) -> DirConfig:
        return self._now[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)
