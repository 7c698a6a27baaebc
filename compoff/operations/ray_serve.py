"""Tails on many machines through Ray Serve: a front speaks our wire, replicas somewhere in the cluster run the tail.

The front checks and decodes every payload, so that a replica sees only what a head has made; it holds no weights. Ray
decides where replicas run, how many there are, and what goes together in a batch.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from typing import TYPE_CHECKING, Any

from compoff.artifact import read_folder
from compoff.errors import BackendError
from compoff.operations.checked import CheckedTail
from compoff.parts import find_part
from compoff.printable import told

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from compoff.coding import Decoded
    from compoff.edge.backends.choosing import BackendName
    from compoff.edge.tail import Tail
    from compoff.operations.checked import Checked

__all__ = ["RayTail", "answers", "deploy"]

_logger = logging.getLogger("compoff.ray")
_PAUSE = 0.05  # seconds before a request whose replica died is sent to another one


class RayTail(CheckedTail):
    """A tail whose replicas run in a Ray cluster; what `compoff.serve` takes.

    Args:
        folder: The tail's folder, or the one around head and tail; only the manifest and the tables are used here.
        name: Name of the Ray Serve application that runs it; `deploy` starts one.
        timeout: Seconds within which a replica has to answer, with all second tries.

    Raises:
        ArtifactError: The folder is damaged or foreign.
        BackendError: Ray is not installed, there is no such application, or the tail's answers say their own structure.

    Source: this project.
    """

    def __init__(self, folder: str | Path, *, name: str = "compoff", timeout: float = 10.0) -> None:
        super().__init__(folder)
        self._timeout = timeout
        try:
            self._handle: Any = _serve().get_app_handle(name)
        except Exception as error:  # Ray's own classes
            raise BackendError(f"Ray Serve runs no application '{name}' ({told(error)}); deploy it first") from error

    def run(self, decoded: Sequence[Checked]) -> list[list[NDArray[Any]]]:
        """Have several requests answered, each by whichever replica Ray chooses.

        Args:
            decoded: What `decode` made of each.

        Returns:
            The leaves of the output of each.

        Raises:
            BackendError: No replica answered in time, or one could not.
        """
        deadline = time.monotonic() + self._timeout
        asked = [self._handle.remote(one.payload) for one in decoded]
        return [self._answer(one, response, deadline) for one, response in zip(decoded, asked, strict=True)]

    def _answer(self, one: Checked, response: Any, deadline: float) -> list[NDArray[Any]]:
        """Wait for a replica; where it dies, ask another, since a tail changes nothing by answering."""
        died = importlib.import_module("ray.exceptions").RayActorError
        while True:
            try:
                answer = response.result(timeout_s=max(0.0, deadline - time.monotonic()))
            except died as error:
                if time.monotonic() >= deadline:
                    raise BackendError(f"no replica lived long enough to answer within {self._timeout} s") from error
                _logger.warning("a replica of '%s' died under a request: %s", self.split, told(error))
                time.sleep(_PAUSE)
                response = self._handle.remote(one.payload)
            except TimeoutError as error:
                raise BackendError(f"no replica answered within {self._timeout} s; there may be too few") from error
            except Exception as error:  # Ray's own classes
                raise BackendError(f"a replica could not answer: {told(error)}") from error
            else:
                if isinstance(answer, str):
                    raise BackendError(f"a replica could not answer: {answer}")
                return answer


def deploy(
    folder: str | Path,
    *,
    name: str = "compoff",
    device: str = "cpu",
    backend: BackendName = "eager",
    replicas: tuple[int, int] = (1, 4),
    max_batch: int = 32,
    batch_wait: float = 0.005,
    cpus: float = 1.0,
    gpus: float = 0.0,
    timeout: float = 10.0,
) -> RayTail:
    """Run a tail in Ray Serve, in the cluster that this process is connected to; one is started where it is to none.

    Args:
        folder: The tail's folder, or the one around head and tail, under a path that every machine of the cluster has.
        name: Name of the application.
        device: Where each replica runs its tail, such as ``"cuda"``.
        backend: The runtime, as for `compoff.Tail.load`.
        replicas: The fewest and the most replicas; Ray starts and ends them as the load demands.
        max_batch: Requests that a replica runs as one batch.
        batch_wait: Seconds that a request waits for others.
        cpus: Processors that Ray reserves for a replica.
        gpus: GPUs that it reserves; a part of one will do.
        timeout: Seconds within which a replica has to answer a request.

    Returns:
        What `compoff.serve` takes; give it several `workers`, each of which has one batch under way.

    Raises:
        ArtifactError: The folder is damaged or foreign.
        BackendError: Ray is not installed, or the replicas cannot be started.
    """
    serve = _serve()
    place = find_part(folder, "tail").resolve()
    read_folder(place, "tail")  # a mistake is named here, not in a replica's log
    fewest, most = replicas
    scale: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        scale = {"autoscaling_config": {"min_replicas": fewest, "max_replicas": most}}
    options = {"num_cpus": cpus, "num_gpus": gpus}

    @serve.deployment(
        max_ongoing_requests=4 * max_batch,
        ray_actor_options=options,
        logging_config={"enable_access_log": False},
        **scale,
    )
    class Replica:
        """The tail in a process of Ray's."""

        def __init__(self) -> None:
            from compoff.edge.tail import Tail  # in the replica's process

            self._tail = Tail.load(place, device=device, backend=backend)

        @serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=batch_wait)
        async def __call__(self, payloads: list[bytes]) -> list[Any]:
            return await asyncio.to_thread(answers, self._tail, payloads)

    try:
        serve.start(proxy_location="Disabled")  # nobody is to come in over HTTP
        serve.run(Replica.bind(), name=name, route_prefix=None)
    except Exception as error:  # Ray's own classes
        raise BackendError(f"Ray Serve cannot run the tail '{place}': {told(error)}") from error
    return RayTail(place, name=name, timeout=timeout)


def answers(tail: Tail, payloads: Sequence[bytes]) -> list[list[NDArray[Any]] | str]:
    """Answer payloads in as few runs as they fit in; what one of them does to the tail, the others do not notice.

    Args:
        tail: The tail.
        payloads: The payloads.

    Returns:
        For each the leaves of its output, or the words of what went wrong.
    """
    found: dict[int, list[NDArray[Any]] | str] = {}  # by place, as the group
    group: dict[int, Decoded] = {}
    for place, payload in enumerate(payloads):
        try:
            decoded = tail.decode(payload)
        except Exception as error:  # whatever a payload does to it
            found[place] = told(error)
            continue
        if group and sum(map(len, group.values())) + len(decoded) > tail.max_batch:
            found.update(zip(group, _run(tail, [*group.values()]), strict=True))
            group = {}
        group[place] = decoded
    if group:
        found.update(zip(group, _run(tail, [*group.values()]), strict=True))
    return [found[place] for place in range(len(payloads))]


def _run(tail: Tail, group: list[Decoded]) -> list[list[NDArray[Any]] | str]:
    try:
        return list(tail.run(group))
    except Exception as error:  # whatever a tail raises
        if len(group) == 1:
            return [told(error)]
        return [answer for one in group for answer in _run(tail, [one])]


def _serve() -> Any:
    try:
        return importlib.import_module("ray.serve")
    except ImportError as error:
        raise BackendError(f'Ray Serve is not installed ({error}): pip install "compoff[ray]"') from error
