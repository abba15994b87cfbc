"""Deploys and deletes Ray Serve's applications as it is told, one JSON line for each call.

    python driver.py READ_FD WRITE_FD '{"address": "127.0.0.1:6400", "host": ..., "port": ..., ...}'

Its own Python is Ray's. It ends when the other side closes, and leaves what it deployed.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import ray
from modelium_served.replica import Replica
from ray import serve
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.context import _get_global_client

DEPLOYMENT = "model"


class Driver:
    """Connected to one Ray."""

    def __init__(self, address: str, host: str, port: int, ours: bool) -> None:
        """Serve is started at host and port, unless the cluster has one; `ours`: nobody else's."""
        ray.init(address=address, log_to_driver=False, namespace=SERVE_NAMESPACE)
        self.began = _get_global_client(raise_if_no_controller_running=False) is None
        if self.began:
            try:
                serve.start(http_options={"host": host, "port": port, "location": "HeadOnly"})
            except Exception:  # as where somebody has the port: Serve would stay, and be deaf
                serve.shutdown()
                raise
        self.only_at = {"host": host} if ours else {}
        self.http_port = _get_global_client().http_config.port

    def deploy(self, name: str, model: dict, deployment: dict, actor: dict) -> dict:
        """Begin to deploy an application; its state tells when it runs."""
        slot = next((one for one in actor.pop("slots") if one in ray.cluster_resources()), None)
        if slot is not None:  # a cluster of several nodes says by a resource which GPU is where
            actor["resources"] = {slot: 0.001}
        variables = actor["runtime_env"]["env_vars"]
        variables.setdefault("PYTHONPATH", str(Path(__file__).parent))
        made = serve.deployment(Replica).options(
            name=DEPLOYMENT, ray_actor_options=actor, **deployment
        )
        route = f"/{name}"
        target = serve.RunTarget(
            made.bind({**model, **self.only_at}, route), name=name, route_prefix=route
        )
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        return {}

    def states(self) -> dict:
        """Each application's state, and what Ray says about it."""
        told = {}
        for name, one in serve.status().applications.items():
            said = [one.message, *(each.message for each in one.deployments.values())]
            told[name] = {"state": str(one.status.value), "said": "\n".join(filter(None, said))}
        return told

    def delete(self, name: str) -> dict:
        """Begin to delete an application; it is gone when it has no state any more."""
        serve.delete(name, _blocking=False)
        return {}

    def leave(self) -> dict:
        """End Serve, unless somebody has an application there."""
        if not serve.status().applications:
            serve.shutdown()
        return {}


def main() -> None:
    """Answer until the other side closes."""
    with os.fdopen(int(sys.argv[1])) as asked, os.fdopen(int(sys.argv[2]), "w") as answers:

        def tell(**what: object) -> None:
            print(json.dumps(what), file=answers, flush=True)

        try:
            driver = Driver(**json.loads(sys.argv[3]))
        except Exception as error:
            tell(error=f"{type(error).__name__}: {error}")
            return
        tell(made={"http_port": driver.http_port, "began": driver.began})
        for line in asked:
            call = json.loads(line)
            try:
                tell(made=getattr(driver, call["call"])(**call["given"]))
            except Exception as error:
                tell(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
    os._exit(0)  # Ray's own end asks a head that may be gone
