"""How uneven the contexts of a batch are: attention to uneven ones costs more than to the mean.

LLMServingSim measured it as `t = t_mean + alpha*(t_max - t_mean)`, t_mean and t_max being the times
of decode attention for a batch whose contexts are all the mean, or all the largest; alpha is in its
profiles' `meta.yaml`. As t grows with the sum of contexts, that is a factor
`1 + alpha*(spread - 1)` on what the sum costs, spread being the largest over the mean context.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modelium.sim.spec import StepTime

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DEFAULT_SPREAD = 2.9
"""Of the Azure 2023 conversation trace with 32 running."""
_POINTS = 16
_MOST = 20_000


def context_spread(prompt: ArrayLike, output: ArrayLike, running: int) -> float:
    """Expected largest over expected mean context of `running` requests of these lengths.

    Requests are met in proportion to their output, anywhere in it. Prompts are whole ones, prefix
    hits included: attention reads those too.
    """
    import numpy as np

    prompts, outputs = np.asarray(prompt, float), np.asarray(output, float)
    some = slice(None, None, max(len(prompts) // _MOST, 1))
    prompts, outputs = prompts[some], outputs[some]
    passed = (np.arange(_POINTS) + 0.5) / _POINTS
    contexts = (prompts[:, None] + outputs[:, None] * passed).ravel()
    weights = np.repeat(outputs / outputs.sum() / _POINTS, _POINTS)
    order = np.argsort(contexts, kind="stable")
    contexts, weights = contexts[order], weights[order]
    largest = np.diff(np.minimum(np.cumsum(weights), 1.0) ** running, prepend=0.0)
    return float(contexts @ largest / (contexts @ weights))


def uneven(step: StepTime, alpha: float, spread: float) -> StepTime:
    """The step time for contexts of that spread, from the one for even contexts."""
    factor = 1 + alpha * (spread - 1)
    return replace(step, decode_kv=step.decode_kv * factor, mixed_kv=step.mixed_kv * factor)
