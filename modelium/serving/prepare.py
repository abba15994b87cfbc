"""What an order needs is made and checked, at the start and at each reload, before it is served."""

from __future__ import annotations

from dataclasses import dataclass

from modelium.config import Plan
from modelium.core import Policy, traits
from modelium.live.settings import LiveInput
from modelium.plugins.registry import make_policy, with_defaults
from modelium.serving.launch_spec import LaunchSpec
from modelium.serving.managers import Managers
from modelium.serving.served_models import ServedModels


@dataclass(frozen=True)
class Prepared:
    """Models, and the policy that places them."""

    stock: ServedModels
    policy: Policy
    policy_name: str
    policy_parameters: dict[str, str]
    given: LiveInput


def prepare(order: LaunchSpec, plan: Plan, managers: Managers) -> Prepared:
    """All that `order`, with the hardware that `plan` was made for, needs. Raises ModeliumError."""
    stock = ServedModels(order, plan)
    name, parameters = with_defaults(order.policy, stock.plan.policy_defaults)
    words = ",".join(f"{key}={value}" for key, value in parameters.items())
    policy = make_policy(f"{name}:{words}", rng_seed=order.seed, models=stock.plan.models)
    stock.sleeps = traits(policy).sleeps
    return Prepared(stock, policy, name, parameters, stock.given(managers.need))
