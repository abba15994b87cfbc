"""ServeGen's densities of prompt and output lengths."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelium.errors import TraceError
from modelium.traces.lengths import Ints
from modelium.traces.random_streams import stream

FIELDS = ("input_tokens", "output_tokens")


@dataclass(frozen=True)
class Density:
    """Probability of each number of tokens."""

    tokens: Ints
    probability: NDArray[np.float64]

    @classmethod
    def mean(cls, parts: Iterable[dict[int, float]]) -> Density:
        """The equal mixture of densities, each first made to sum to 1."""
        total: dict[int, float] = {}
        for part in parts:
            weight = sum(part.values())
            for n, p in part.items():
                total[n] = total.get(n, 0.0) + p / weight
        tokens = np.array(sorted(total), np.int32)
        probability = np.array([total[t] for t in tokens.tolist()])
        return cls(tokens, probability / probability.sum())

    def draw(self, n: int, rng: np.random.Generator) -> Ints:
        """`n` independent lengths."""
        return rng.choice(self.tokens, n, p=self.probability)


@dataclass(frozen=True)
class Densities:
    """Lengths drawn from each client's densities, averaged over its windows of six hours.

    Prompts and outputs are independent (the files hold no pairs). A client without densities
    draws from the mean of all clients.
    """

    clients: dict[str, tuple[Density, Density]]

    @classmethod
    def of(cls, files: Iterable[tuple[str, str]]) -> Densities:
        """Read the texts of chunk-N-dataset.json files, given with their clients' names."""
        clients = {}
        for name, text in files:
            prompt, output = (_windows(name, text, field) for field in FIELDS)
            if prompt and output:
                clients[name] = Density.mean(prompt), Density.mean(output)
        return cls(clients)

    @property
    def names(self) -> tuple[str, ...]:
        """Clients that have densities."""
        return tuple(self.clients)

    def draw(self, n: int, seed: int, model: str) -> tuple[Ints, Ints]:
        """Draw from the client of that name, or from all where it has no densities."""
        known = [self.clients[model]] if model in self.clients else list(self.clients.values())
        which = stream(seed, "client", model).integers(0, len(known), n)
        lengths = np.empty((2, n), np.int32)
        for i, pair in enumerate(known):
            rows = np.flatnonzero(which == i)
            for row, density in enumerate(pair):
                rng = stream(seed, FIELDS[row], model, str(i))
                lengths[row, rows] = density.draw(len(rows), rng)
        return lengths[0], lengths[1]

    def __str__(self) -> str:
        return f"drawn from the densities of {len(self.clients)} clients"


def _windows(name: str, text: str, field: str) -> list[dict[int, float]]:
    """The densities of one field that are not empty."""
    try:
        windows = json.loads(text)
        # Dict literals inside strings; literal_eval reads them and can run nothing.
        read = [ast.literal_eval(window.get(field, "{}")) for window in windows.values()]
    except (ValueError, SyntaxError, AttributeError) as error:
        raise TraceError(f"chunk of {name}: {field} is not a density ({error})") from error
    return [density for density in read if density]
