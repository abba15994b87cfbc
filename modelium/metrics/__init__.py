"""Figures for Prometheus."""

from modelium.metrics.exporter import ModeliumMetrics

__all__ = ["ModeliumMetrics"]
