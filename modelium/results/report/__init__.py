"""The report: one HTML file that opens without a network, for one run or several side by side."""

from modelium.results.report.page import build

__all__ = ["build"]
