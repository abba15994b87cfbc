"""What the name of a GPU says, as drivers, data sheets and people write it.

"NVIDIA A100-SXM4-80GB", "a100-sxm-80g" and "A100 SXM 80GB" are one GPU: maker and product line are
no part of what it is, form factor and memory tell variants apart, and a part of a GPU (MIG) names
the GPU first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelium.catalog.lookup import simplify

_LINES = {"nvidia", "amd", "geforce", "tesla", "quadro", "instinct", "generation", "gpu"}
"""Words that say whose, or for which market, but not which GPU."""
_FORMS = {"sxm": "sxm", "pcie": "pcie", "pci": "pcie", "nvl": "nvl", "oam": "oam"}
_MEMORY = re.compile(r"([1-9]\d{0,3})(?:g|gb|gib)")
_MEMORY_TYPE = re.compile(r"hbm\d\w?|gddr\d\w?")
_MIG = re.compile(r"(.*)-mig-((?:\dc\.)?[1-7]g\.[1-9]\d{0,2}gb(?:\.[a-z.]+)?)")
_MIG_SIZE = re.compile(r"(?:\dc\.)?(\d)g\.(\d{1,3})gb")
_NEVER_IN_A_WORD = re.compile(r"[^a-z0-9.]+")


@dataclass(frozen=True, slots=True)
class NameParts:
    """A name, taken apart."""

    model: str
    """What remains: "a100", "rtx-4060-ti"."""
    form: str = ""
    """"sxm", "pcie", "nvl" or "oam"; empty if the name does not say."""
    memory_gib: int | None = None
    """As in the name, thus rounded."""
    memory_type: str = ""
    """Such as "hbm3"."""
    mig: str = ""
    """Profile of a MIG instance, such as "1g.10gb"; empty for a whole GPU."""

    @property
    def kind(self) -> str:
        """The same, written as the catalogue writes names: "a100-sxm-64g"."""
        memory = f"{self.memory_gib}g" if self.memory_gib else ""
        parts = (self.model, self.form, memory, f"mig-{self.mig}" if self.mig else "")
        return "-".join(filter(None, parts))

    @property
    def mig_slices(self) -> int:
        """Compute slices of the MIG instance; 0 for a whole GPU."""
        found = _MIG_SIZE.match(self.mig)
        return int(found[1]) if found else 0

    @property
    def size_gib(self) -> int | None:
        """Memory of the GPU or, for a MIG instance, of that part; None if the name does not say."""
        found = _MIG_SIZE.match(self.mig)
        return int(found[2]) if found else self.memory_gib

    def covers(self, other: NameParts) -> bool:
        """Whether all that this name says is true of `other`."""
        return (
            self.model == other.model
            and self.mig == other.mig
            and self.form in ("", other.form)
            and self.memory_gib in (None, other.memory_gib)
        )


def plain(name: str) -> str:
    """The name without maker and product line, its words joined by single dashes."""
    words = simplify(name.replace("+", ".")).split("-")
    plain_words = (_NEVER_IN_A_WORD.sub("", word) for word in words)
    return "-".join(word for word in plain_words if word and word not in _LINES)


def parse(name: str) -> NameParts:
    """Take any name apart; what is not understood stays in `model`."""
    words = plain(name).split("-")
    memory_type = next(filter(_MEMORY_TYPE.fullmatch, reversed(words)), "")
    text, mig = "-".join(word for word in words if not _MEMORY_TYPE.fullmatch(word)), ""
    if found := _MIG.fullmatch(text):
        text, mig = found.groups()
    model: list[str] = []
    form, memory_gib = "", None
    for word in text.split("-"):
        if word.rstrip("0123456789") in _FORMS:
            form = _FORMS[word.rstrip("0123456789")]
        elif size := _MEMORY.fullmatch(word):
            memory_gib = int(size[1])
        else:
            model.append(word)
    return NameParts("-".join(filter(None, model)) or "gpu", form, memory_gib, memory_type, mig)
