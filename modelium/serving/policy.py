"""The policy that an order names."""

from __future__ import annotations

from modelium.config import Plan
from modelium.core import Policy
from modelium.registry import make_policy, with_defaults
from modelium.serving.order import Order


def policy_of(order: Order, plan: Plan) -> tuple[Policy, str, dict[str, str]]:
    """The policy, its name and its parameters. Raises PolicyError."""
    name, given = with_defaults(order.policy, plan.policy_defaults)
    words = ",".join(f"{key}={value}" for key, value in given.items())
    policy = make_policy(f"{name}:{words}", rng_seed=order.seed, models=plan.models)
    return policy, name, given
