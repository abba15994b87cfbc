"""Fitting StepTime to published measurements: `python -m modelium.sim.fit SOURCE FOLDER`."""
