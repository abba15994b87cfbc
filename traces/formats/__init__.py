"""One file for each public format; `modelium.traces.read` tells them apart."""
