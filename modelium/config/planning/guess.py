"""What to assume where nothing is configured: models from a trace's names, GPUs from the models."""

from __future__ import annotations

from collections.abc import Sequence

from modelium import catalog
from modelium.catalog.fleet import DEFAULT_SHARE
from modelium.config import schema
from modelium.core import Model
from modelium.errors import ConfigError, ProfileError, did_you_mean

STAND_IN = "llama-3.1-8b"
"""Taken for models of which nothing is known."""
GPU = "h100-80g"
GPUS_PER_NODE = 8
TRIAL = f"{GPUS_PER_NODE}x{GPU}"
"""What models are sized for before the fleet is known."""
ROOM = 0.5
"""Share of what all models together need that the assumed GPUs have room for."""


def parse_models(text: str) -> tuple[dict[str, str], list[str]]:
    """Read "a=llama-3.1-8b,b=phi-4,qwen2.5-7b": what the trace's models are, and a list to deal.

    Raises ConfigError for another form and for a name that is not in the catalogue.
    """
    named: dict[str, str] = {}
    dealt: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, known = (piece.strip() for piece in part.partition("="))
        try:
            catalog.model(known if equals else name)
        except ProfileError as error:
            raise ConfigError(f"--models {part}: {error}") from None
        if equals:
            named[name] = known
        else:
            dealt.append(name)
    return named, dealt


def guess_models(
    names: Sequence[str], named: dict[str, str], dealt: Sequence[str]
) -> tuple[dict[str, schema.ModelEntry], list[str]]:
    """An entry for each of the trace's `names`, and what had to be assumed.

    `named` says what some are; the others are found in the catalogue by name, or are dealt the
    models of `dealt` in turn. Raises ConfigError if `named` has a model that the trace has not.
    """
    for name in named.keys() - set(names):
        raise ConfigError(
            f"--models {name}=…: no such model in the trace.{did_you_mean(name, names)}"
        )
    found = {name: named.get(name) or _in_catalogue(name) for name in names}
    unknown = [name for name, known in found.items() if known is None]
    deck = list(dealt) or [STAND_IN]
    found |= {name: deck[i % len(deck)] for i, name in enumerate(unknown)}
    entry = schema.ModelEntry
    entries = {name: entry(catalogue=known) for name, known in found.items()}
    if not unknown:
        return entries, []
    whose = (
        f"{unknown[0]!r}" if len(unknown) == 1 else f"{len(unknown)} models such as {unknown[0]!r}"
    )
    dealt_out = "as given by --models" if dealt else "(--models says otherwise)"
    return entries, [f"not in the catalogue: {whose}, taken for {', '.join(deck)} {dealt_out}"]


def guess_fleet(models: Sequence[Model]) -> str:
    """The smallest fleet with room for `ROOM` of `models`, which were sized for `TRIAL`."""
    need = sum(model.gpus * model.bytes_per_gpu() for model in models)
    usable = int(DEFAULT_SHARE * catalog.gpu(GPU).memory_bytes)
    count = max(-(-round(ROOM * need) // usable), *(model.gpus for model in models))
    nodes = -(-count // GPUS_PER_NODE)
    return f"{count}x{GPU}" if nodes == 1 else f"{nodes}x{GPUS_PER_NODE}x{GPU}"


def _in_catalogue(name: str) -> str | None:
    try:
        return catalog.model(name).name
    except ProfileError:
        return None
