"""Conformance suites for authors: `check_policy` for policies, `check_cluster` for clusters."""

from modelium.testing.fake import FakeCluster

__all__ = ["FakeCluster"]
