"""What the index says of one model."""

from __future__ import annotations

from dataclasses import dataclass

ASKED_FOR = "as asked for"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What the index says of one model."""

    name: str
    path: str
    """Folder of its files, relative to the repository."""
    architecture: str
    format: str
    parameters: int | None
    weights_bytes: int
    runtime: str
    """vllm, triton or ray."""
    runtime_reason: str
    added: float
    """Unix time."""

    @property
    def runtime_asked(self) -> str:
        """The runtime that whoever added it asked for; "" if it was chosen from its files."""
        return self.runtime if self.runtime_reason == ASKED_FOR else ""
