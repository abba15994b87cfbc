"""The compiled part of the simulator: arrays, engines and the loop over their events."""
