"""Ways of running one sequence on several devices that HSA does not know yet: refused by name, never silently lost.

Context and sequence parallelism give each device a part of every sequence. They replace the attention or drop its mask, and
the semantic types are not cut along. Tensor parallelism (`tp_plan="auto"`, `tp_size`) only shares out the heads, of which
HSA treats each alike, so it works; so do data parallelism and its sharded forms.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as F


_SIZES = {
    "cp_size": "context parallelism cuts sequences up and replaces their mask",
    "sp_size": "sequence parallelism (Ulysses, ALST) cuts sequences up and replaces the attention",
}
_AUTO_TENSOR_PARALLEL = "DeepSpeed's own tensor parallelism rewrites the model and has not been tried"
_VARIABLES = {f"PARALLELISM_CONFIG_{option.upper()}": reason for option, reason in _SIZES.items()}
_TORCH_CONTEXT_PARALLEL = "torch.distributed.tensor.experimental._context_parallel._attention"


def check_parallelism(parallelism_config: Any = None, deepspeed_config: Mapping[str, Any] | None = None) -> None:
    """Refuse context and sequence parallelism, asked for or under way.

    What is under way is looked up where accelerate, DeepSpeed and torch keep it, if they are loaded; nothing is imported.
    It takes some microseconds, so that every forward pass can afford it.

    Args:
        parallelism_config: accelerate's `ParallelismConfig`, or a mapping with its fields; None: not given.
        deepspeed_config: A DeepSpeed configuration that was read; None: not given.

    Raises:
        ValueError: Naming the option, its value and what to do.
    """
    found = (
        *_sizes("parallelism_config", parallelism_config),
        *_deepspeed_options(deepspeed_config),
        *_from_environment(),
        *_from_accelerate(),
        *_from_deepspeed(),
        *_from_torch(),
    )
    for option, reason in found:
        raise ValueError(
            f"{option} cannot be combined with HSA yet: {reason}. Switch it off; data parallelism (DDP, FSDP, ZeRO) and "
            "transformers' tensor parallelism (tp_plan=\"auto\") work. HSA's own way to share a row among devices is "
            "enable_hsa(…, context_parallel=process_group), or `hsa: {context_parallel: R}`."
        )


def _sizes(name: str, config: Any) -> Iterator[tuple[str, str]]:
    for option, reason in _SIZES.items():
        size = config.get(option) if isinstance(config, Mapping) else getattr(config, option, None)
        if size is not None and int(size) > 1:
            yield f"{name}.{option} = {size}", reason


def _deepspeed_options(config: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if config is None:
        return
    size = config.get("sequence_parallel_size")
    if size is not None and int(size) > 1:
        yield f"sequence_parallel_size = {size} in the DeepSpeed configuration", _SIZES["sp_size"]
    size = (config.get("tensor_parallel") or {}).get("autotp_size")
    if size is not None and int(size) > 1:
        yield f"tensor_parallel.autotp_size = {size} in the DeepSpeed configuration", _AUTO_TENSOR_PARALLEL


def _from_environment() -> Iterator[tuple[str, str]]:
    """What `accelerate launch` asks for; accelerate reads the sizes only where the switch is on."""
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() != "true":
        return
    for variable, reason in _VARIABLES.items():
        size = os.environ.get(variable, "1")
        if size.isdigit() and int(size) > 1:
            yield f"{variable} = {size}", reason


def _from_accelerate() -> Iterator[tuple[str, str]]:
    module = sys.modules.get("accelerate.state")
    if module is None:
        return
    state: Mapping[str, Any] = module.AcceleratorState._shared_state
    yield from _sizes("parallelism_config", state.get("parallelism_config"))
    plugins = state.get("deepspeed_plugins")
    for plugin in plugins.values() if isinstance(plugins, Mapping) else ():
        yield from _deepspeed_options(plugin.deepspeed_config)


def _from_deepspeed() -> Iterator[tuple[str, str]]:
    module = sys.modules.get("deepspeed.utils.groups")
    if module is None or (module.mpu is None and module.mesh_device is None):
        return  # loaded, and nothing is split; asking would fail where DeepSpeed itself has not been started
    size = module._get_sequence_parallel_world_size()
    if size > 1:
        yield f"DeepSpeed's sequence parallel group of {size}", _SIZES["sp_size"]


def _from_torch() -> Iterator[tuple[str, str]]:
    module = sys.modules.get(_TORCH_CONTEXT_PARALLEL)
    replaced: Mapping[Any, Any] = getattr(module, "_replaced_functions", {})
    if F.scaled_dot_product_attention in replaced:
        yield "torch's context_parallel", _SIZES["cp_size"]
