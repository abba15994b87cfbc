"""Modelium decides which model sits on which GPU, in simulation and on a real cluster."""

__version__ = "0.1.0"
