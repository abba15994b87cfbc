"""The tables' codes that are compiled in."""

from __future__ import annotations

from modelium.results.record import OUTCOMES
from modelium.sim.kernel.outcomes import OUTCOME_CODES, OUTCOME_NAMES


def test_outcomes_have_the_codes_of_the_tables() -> None:
    assert [OUTCOMES[OUTCOME_CODES[k]] for k in range(4)] == [OUTCOME_NAMES[k] for k in range(4)]
