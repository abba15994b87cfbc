"""Random streams that do not disturb each other."""

from __future__ import annotations

import hashlib

import numpy as np

from modelium.errors import TraceError


def stream(seed: int, *purpose: str) -> np.random.Generator:
    """A generator of its own for each `seed` and purpose, such as ("arrivals", "llama-3.1-8b").

    A draw more for one purpose, or a model more, leaves all other streams as they were.
    """
    if seed < 0:
        raise TraceError(f"seed is {seed}, expected a whole number >= 0")
    digest = hashlib.sha256("\0".join(purpose).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, *digest]))
