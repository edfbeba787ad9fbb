"""An application for Ray Serve: an ingress, and for each model replicas of serve's app, as many as the queue needs.

    client ──► Ray's proxy ──► Ingress ──► a replica of the model: serve's app, in process
               on every node   guard;      as many as the queue needs, from
                               who goes    min_replicas to max_replicas
                               where

Serve's app comes from outside: `make` is called in each replica and returns it with its model, and `front` is what stands around the
ingress. Both must be picklable. Source: Ray Serve, "Deploy compositions of models" and "Ray Serve autoscaling".
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from spanqa.errors import QueueFullError
from spanqa.scale.forward import Forward, ReplicaLostError, Reply, Sent, answer, collect, routed
from spanqa.scale.ray_config import RayConfig, RayModel

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

INGRESS_REQUESTS = 100_000
"""Most requests in an ingress: more than all replicas and queues hold, since only they refuse."""


@dataclass(frozen=True, slots=True)
class Served:
    """An application with its model loaded, and what ends it."""

    app: ASGIApp
    close: Callable[[], object]


Make = Callable[[], Served]
Front = Callable[[ASGIApp], ASGIApp]


class Replica:
    """One process with a model."""

    def __init__(self, make: Make) -> None:
        self._served = make()

    async def answer(self, sent: Sent) -> Reply:
        """Answer a request."""
        return await answer(self._served.app, sent)

    def __del__(self) -> None:
        if hasattr(self, "_served"):
            self._served.close()


class Ingress:
    """What takes requests, checks them, and hands them to replicas."""

    def __init__(
        self, models: "Mapping[str, DeploymentHandle]", front: Front, seconds: float, probes: Collection[str]
    ) -> None:
        asks = {name: partial(_ask, handle) for name, handle in models.items()}
        self._app = routed(front(Forward(asks, seconds, probes)))

    async def __call__(self, request: Request) -> Response:
        reply = await collect(self._app, request.scope, request.receive)
        response = Response(reply.body, reply.status)
        response.raw_headers = [
            each for each in reply.headers if each[0].lower() != b"x-request-id"
        ]  # Ray sends it, too
        return response


async def _ask(handle: "DeploymentHandle", sent: Sent) -> Reply:
    """Have a request answered by a replica that Ray chooses: of two, the one with the shorter queue.

    Raises:
        QueueFullError: all replicas are busy, and as many requests wait as may.
        ReplicaLostError: the replica died.
    """
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    response = handle.answer.remote(sent)
    try:
        reply: Reply = await response
    except BackPressureError:
        raise QueueFullError("the queue of the replicas is full") from None
    except RayActorError as error:
        raise ReplicaLostError(type(error).__name__) from None
    except asyncio.CancelledError:  # the client has gone, or the time is over
        response.cancel()
        raise
    return reply


def ray_application(
    config: RayConfig, makes: Mapping[str, Make], front: Front, *, seconds: float, probes: Collection[str] = ()
) -> "Application":
    """Return the application, to be run with `ray.serve.run`. `makes` makes serve's app for each model of the configuration.

    `seconds` is the longest time for a request, and `probes` are routes that say 200 under any load.
    """
    from ray import serve

    logging = {"enable_access_log": False}  # serve's app has its own, without what clients wrote
    replicas = {
        model.name: serve.deployment(Replica)
        .options(name=f"model-{model.name}", logging_config=logging, **_options(config, model))
        .bind(makes[model.name])
        for model in config.models
    }
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=config.drain_timeout,
        ray_actor_options={"num_cpus": 0},
        logging_config=logging,
    )
    application: Application = ingress.bind(replicas, front, seconds, frozenset(probes))
    return application


def _options(config: RayConfig, model: RayModel) -> dict[str, Any]:
    """Return what Ray wants to know of a model's replicas."""
    scaling = (
        "min_replicas",
        "max_replicas",
        "target_ongoing_requests",
        "upscale_delay_s",
        "downscale_delay_s",
        "look_back_period_s",
    )
    return {
        "autoscaling_config": {name: getattr(model, name) for name in scaling},
        "max_ongoing_requests": model.max_ongoing_requests,
        "max_queued_requests": model.max_queued_requests,
        "graceful_shutdown_timeout_s": config.drain_timeout,
        "ray_actor_options": {"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
    }
