"""A policy whose mistakes are told as such, in one line: what, where, and at which event."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any, get_args

from modelium.core import Action, ClusterState, Event, Policy
from modelium.errors import ModeliumError, PolicyError

ACTIONS = get_args(Action)


class CheckedPolicy:
    """The policy called `name`, asked with care; in all else it is the policy itself."""

    def __init__(self, policy: Policy, name: str) -> None:
        self.policy, self.name = policy, name

    def __getattr__(self, key: str) -> Any:
        return getattr(self.policy, key)

    def decide(self, state: ClusterState, event: Event) -> Iterable[Action]:
        """Ask the policy. Raises PolicyError if it raises, or answers with other than actions."""
        try:
            answer = self.policy.decide(state, event)
            actions = None if answer is None else tuple(answer)
        except ModeliumError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = "" if last.filename == __file__ else f" in {last.filename}, line {last.lineno}"
            told = f"raised {type(error).__name__}: {error}{place}"
            raise self._broken(told, state, event) from error
        if actions is None:
            raise self._broken("answered None, expected actions, or ()", state, event)
        for action in actions:
            if not isinstance(action, ACTIONS):
                raise self._broken(f"answered {action!r:.60}, which is no action", state, event)
        return actions

    def _broken(self, what: str, state: ClusterState, event: Event) -> PolicyError:
        when = f"at {state.now_s:.6g} s, asked about {event}"
        return PolicyError(f"policy {self.name!r} {what} ({when})")
