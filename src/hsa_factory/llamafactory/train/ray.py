"""Ray (`USE_RAY=1`): its workers are processes of their own, and each installs the integration of the run anew."""

from dataclasses import replace
from functools import partial
from typing import Any

import llamafactory.train.tuner
from llamafactory.extras.packages import is_ray_available

from ...user_errors import UserError, setting_up
from ..seams import Seam
from ..state import Integration


_INTEGRATION = "hsa_integration"  # beside LLaMA-Factory's own entries of what a worker is given


class TypedWorker(llamafactory.train.tuner.Worker):
    """LLaMA-Factory's worker, which trains with the integration of the process that started it."""

    def _training_function(self, config: dict[str, Any]) -> None:
        """Train. What is wrong with what the user gave comes back as a `UserError`."""
        config = dict(config)
        integrated = config.pop(_INTEGRATION)
        with setting_up(), integrated():
            super()._training_function(config)


def ray_seams(state: Integration) -> list[Seam]:
    """Return what is replaced where LLaMA-Factory trains on Ray."""
    tuner = llamafactory.train.tuner
    return [
        Seam(tuner, "Worker", TypedWorker, is_call=False),
        Seam(tuner, "_ray_training_function", partial(_train, state)),
    ]


def _train(state: Integration, original: Any, ray_args: Any, config: dict[str, Any]) -> None:
    """Train on Ray; what fails in a worker, or a worker that dies, ends the run.

    Raises:
        UserError: If ray is not installed, or training failed in a worker.
    """
    if not is_ray_available():
        raise UserError("USE_RAY is set, and ray is not installed: pip install ray")
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    was_there = ray.is_initialized()
    try:
        original(ray_args if was_there else _start(ray_args), config | {_INTEGRATION: state.integrated})
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise UserError(f"training failed in a process on Ray:\n{error}", exit_code=1) from error
    except RayActorError as error:
        raise UserError(
            f"a process of this run on Ray died, and the others were stopped: {error}\nA run that has saved a checkpoint goes on "
            "from it with `resume_from_checkpoint: true`.",
            exit_code=1,
        ) from error
    finally:
        if not was_there:
            ray.shutdown()


def _start(ray_args: Any) -> Any:
    """Connect to the cluster that is there, or start one on this machine; return the arguments for it."""
    import ray

    options = dict(ray_args.ray_init_kwargs or {})
    if options.get("address"):
        return ray_args
    try:
        ray.init(**options, address="auto")
        return ray_args
    except ConnectionError:
        ray.init(**{"include_dashboard": False, **options})
        # LLaMA-Factory would ask the dashboard
        return replace(ray_args, master_addr=ray_args.master_addr or ray.util.get_node_ip_address())
