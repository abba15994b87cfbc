"""The sections that only a live cluster reads."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from modelium.config.values import Bounds, Bytes, Count, Host, Number, Port, Rate, Seconds, Section


class Triton(Section):
    """How Triton serves models."""

    enabled: bool = True
    environment: str | None = None
    """Folder of the Python environment that holds the server; else one is looked for."""
    url: str | None = None
    """HTTP address of a server that runs already, in explicit mode; else servers are started."""
    grpc: str | None = None
    """Its gRPC address, host:port. [default: the port after that of `url`]"""
    repository: str | None = None
    """The folder that the running server serves; needed with `url`."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the servers that are started."""


class Ray(Section):
    """How Ray Serve serves models."""

    enabled: bool = True
    environment: str | None = None
    """Folder of the Python environment that holds Ray; else one is looked for."""
    address: str | None = None
    """A Ray cluster that runs already, host:port; else a local one is started."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of Ray, and of what connects to a cluster that runs already."""


class Emulated(Section):
    """Engines that keep a profile's timing and compute nothing: for trying things with no GPU."""

    enabled: bool = False
    """Serve all models that name no runtime of their own with emulated engines."""
    speed: Annotated[float, Bounds(gt=0, allow_inf_nan=False)] = 1.0
    """10: ten times as fast as the profile says."""


class Limit(Section):
    """What one organization may ask for."""

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None


class Gateway(Section):
    """The one address that clients talk to."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    grpc_port: Port | None = None
    """Of KServe's gRPC; it is not served unless a port is given."""
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
    """Web pages that browsers may call from (CORS); none unless named."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Other names that clients may call models by: alias to model."""
    max_body: Bytes = 32 << 20
    queue_limit: Count = 1000
    """Requests that may wait, per model."""
    max_wait: Seconds = 600.0
    """How long a request may wait for an engine."""
    places: Count | None = None
    """Requests at one engine at a time, if that is less than its `max_num_seqs`; the rest waits in
    fair order."""
    limits: Limit = Limit()
    """Of each organization."""
    organizations: dict[str, Limit] = field(default_factory=dict)
    """Of some organizations, instead."""

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs both tls_certificate and tls_key")
        if self.grpc_port == self.port:
            raise ValueError(f"port and grpc_port are both {self.port}: each needs its own")


class Live(Section):
    """How the executor takes care of engines."""

    folder: str = ".modelium"
    """Journal, logs of engines, API keys."""
    load_deadline: Seconds = 900.0
    """A load that takes longer has failed."""
    sleep_deadline: Seconds = 120.0
    wake_deadline: Seconds = 300.0
    stop_grace: Seconds = 10.0
    """An engine that was told to end has this long before it is killed."""
    memory_back: Seconds = 10.0
    """After an engine has gone, its memory must be seen free within this time."""
    host_reserve: Bytes | None = None
    """RAM that sleeping models leave free. [default: a tenth of all, at least 2GiB]"""
    probe_every: Seconds = 10.0
    """How often each engine is looked at."""
    stall: Seconds = 120.0
    """An engine whose requests all got nothing for this long is looked at closely."""
    shutdown: Seconds = 30.0
    """At the end requests in flight may take this long."""
    load_tries: Count = 3
    """Loads that may fail in a row before a model is given up."""
    retry_first: Seconds = 2.0
    """Rest after the first failed load; then twice as long each time."""
    retry_most: Seconds = 60.0
    forgive: Seconds = 900.0
    """A model that was given up may be tried again after this time."""
    keep: Seconds = 30 * 86400.0
    """Rows of the journal and logs of ended engines are deleted after this time; what
    organizations have used stays known."""
    keep_logs: Number = 200
    """At most so many logs of ended engines are kept, the latest ones."""
    allow_pickle: bool = False
    """Accept models whose weights are pickles, which can run any code."""
