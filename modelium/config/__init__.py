"""Configuration: where the file is, what it may say, and what that means."""

from modelium.config.files import VARIABLE, examine, find, read, search
from modelium.config.planning.plan import Plan, make_plan
from modelium.config.schema import Config

__all__ = ["VARIABLE", "Config", "Plan", "examine", "find", "make_plan", "read", "search"]
