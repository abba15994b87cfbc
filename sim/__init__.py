"""The simulator: SimPy for what is rare, compiled kernels for what is frequent. `modelium.sim`."""

if __name__ == "sim":  # this folder is the package modelium.sim
    raise ImportError("import modelium.sim, not sim")

from modelium.sim.inputs import SimInput
from modelium.sim.run import simulate

__all__ = ["SimInput", "simulate"]
