"""The sections that only a live cluster reads."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from modelium.config.values import Bounds, Bytes, Count, Host, Number, Port, Rate, Seconds, Section


class Triton(Section):
    """How Triton serves models."""

    enabled: bool = True
    environment: str | None = None
    """Python environment that has the server; otherwise searched for."""
    url: str | None = None
    """HTTP address of a running server in explicit mode; otherwise servers are started."""
    grpc: str | None = None
    """Its gRPC address, host:port. [default: the port after that of `url`]"""
    repository: str | None = None
    """Model repository of that server; required with `url`."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the servers that are started."""


class Ray(Section):
    """How Ray Serve serves models."""

    enabled: bool = True
    environment: str | None = None
    """Python environment that has Ray; otherwise searched for."""
    address: str | None = None
    """Address of a running Ray cluster, host:port; otherwise a local one is started."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of Ray, and of clients of a running cluster."""


class Emulated(Section):
    """Engines with the timing of a profile that compute nothing, for trials without GPUs."""

    enabled: bool = False
    """Serve all models that name no runtime of their own with emulated engines."""
    speed: Annotated[float, Bounds(gt=0, allow_inf_nan=False)] = 1.0
    """Speed-up; 10 is ten times as fast as the profile."""


class Limit(Section):
    """Rate limits of one organization."""

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None


class Gateway(Section):
    """The address that clients talk to."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    grpc_port: Port | None = None
    """Port of KServe's gRPC API; off unless set."""
    insecure: bool = False
    """Listen without API keys on an address that others can reach."""
    tls_certificate: str | None = None
    """File with the certificate chain (PEM)."""
    tls_key: str | None = None
    """File with its private key (PEM)."""
    keys: str | None = None
    """File with hashed API keys, written by `modelium key`; without one nobody needs a key, and
    admin calls are answered on loopback addresses only."""
    allowed_origins: list[str] = field(default_factory=list)
    """Origins of web pages that may call the gateway (CORS)."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Alternative model names for clients: alias to model."""
    max_body: Bytes = 32 << 20
    queue_limit: Count = 1000
    """Requests that may wait, per model."""
    max_wait: Seconds = 600.0
    """Longest time a request may wait for an engine."""
    places: Count | None = None
    """Concurrent requests per engine, if fewer than its `max_num_seqs`; others wait in
    fair order."""
    limits: Limit = Limit()
    """Limits of each organization."""
    organizations: dict[str, Limit] = field(default_factory=dict)
    """Limits of particular organizations, instead."""

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs both tls_certificate and tls_key")
        if self.grpc_port == self.port:
            raise ValueError(f"port and grpc_port are both {self.port}: each needs its own")


class Live(Section):
    """How the live server manages engines."""

    folder: str = ".modelium"
    """Journal, logs of engines, API keys."""
    load_deadline: Seconds = 900.0
    """A load that takes longer counts as failed."""
    sleep_deadline: Seconds = 120.0
    wake_deadline: Seconds = 300.0
    stop_grace: Seconds = 10.0
    """Time between SIGTERM and SIGKILL when an engine is stopped."""
    memory_back: Seconds = 10.0
    """An engine's memory must be free this long after it has ended."""
    host_reserve: Bytes | None = None
    """RAM that sleeping models leave free. [default: a tenth of all, at least 2GiB]"""
    probe_every: Seconds = 10.0
    """How often each engine is checked."""
    stall: Seconds = 120.0
    """An engine that has requests but no output for this long is suspected to hang."""
    shutdown: Seconds = 30.0
    """Time that requests in flight have to finish on shutdown."""
    load_tries: Count = 3
    """Failed loads in a row before a model is given up."""
    retry_first: Seconds = 2.0
    """Delay after the first failed load; doubles each time."""
    retry_most: Seconds = 60.0
    forgive: Seconds = 900.0
    """Time after which a model that was given up is tried again."""
    keep: Seconds = 30 * 86400.0
    """Rows of the journal and logs of ended engines are deleted after this time; usage
    totals are kept."""
    keep_logs: Number = 200
    """Number of logs of ended engines to keep, latest first."""
    allow_pickle: bool = False
    """Accept models whose weights are pickles, which can run any code."""
