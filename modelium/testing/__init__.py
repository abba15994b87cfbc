"""Conformance suites for authors: `check_policy` for policies, `check_cluster` for clusters."""

from modelium.testing.cluster import Harness, check_cluster
from modelium.testing.fake import FakeCluster
from modelium.testing.policy import check_policy

__all__ = ["FakeCluster", "Harness", "check_cluster", "check_policy"]
