"""A number for each type, without a copy from the CPU's memory; what is made of a plan does not wait for a GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.attention.backends import flex
from hsa_factory.attention.by_type import by_type
from hsa_factory.attention.layer_rules import UNLIMITED


WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "item", "masked_select", "unique")


class Recorder(TorchDispatchMode):
    """Remember the operators that would wait for a GPU, or copy to it."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.found |= {name for name in WAITING if name in str(operator)}
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((0.0, 0.001, 0.5), torch.float32),
        ((UNLIMITED, -1, 50), torch.int64),
        ((7, 7, 7), torch.int64),
        ((1, 2, 1), torch.int64),
        ((3e38, 0.0, 1e-30), torch.float32),
    ],
)
def test_it_is_a_lookup(values, dtype):
    types = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])
    found = by_type(types, values, dtype)
    assert found.dtype == dtype and torch.equal(found, torch.tensor(values, dtype=dtype)[types])


def test_the_recorder_sees_what_waits():
    with Recorder() as recorder:
        numbers = torch.tensor([1, 2])
        bool((numbers > 1).any())
        numbers.nonzero()
    assert recorder.found >= {"_local_scalar_dense", "nonzero", "lift_fresh"}


@pytest.mark.parametrize(
    "config",
    [HSAConfig(), HSAConfig(noise_turns=1, landmark_turns=4), HSAConfig(hide=[(0, 1), (1, 2)]), HSAConfig(noise_window=None)],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_the_mask_of_a_plan_waits_for_nothing(config, packed):
    length = 300
    documents = 1 + torch.arange(length)[None] // (100 if packed else length)
    plan = AttentionPlan.from_inputs(
        torch.arange(length)[None] % 3, documents, turn_ids=torch.arange(length)[None] // 40
    )
    assert plan.has_packed_rows() == packed
    with Recorder() as recorder:
        plan.once(flex.FlexMask, LayerRules.of(config, sliding_window=200))
    assert recorder.found == set()


def test_a_type_that_fades_is_known_without_waiting():
    plan = AttentionPlan.from_inputs(torch.arange(300)[None] % 3)
    with Recorder() as recorder:
        assert not plan.is_causal(LayerRules.of(HSAConfig()))
    assert recorder.found == set()
    assert AttentionPlan.from_inputs(torch.zeros(1, 300, dtype=torch.long)).is_causal(LayerRules.of(HSAConfig()))
