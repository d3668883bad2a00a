"""The Triton backend where there is no GPU: its kernels in Triton's interpreter, and what the CPU does for them.

On CUDA all of `test_backends.py` runs them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton_names import LONG, SHORT

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, api, hsa_attention


triton = pytest.importorskip("triton")
from hsa_factory.attention.backends.triton import attention, launch, layout, tiles  # noqa: E402


no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA the kernels themselves are tested")
SCRIPT = Path(__file__).with_name("triton_interpreted.py")


def interpret(names):
    """Return what a process of its own says of each case: Triton looks at the variable when it is imported."""
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    paths = [str(SCRIPT.parent), str(Path(api.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *names]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return {found["case"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def short():
    return interpret(SHORT)


@pytest.fixture(scope="module")
def long():
    return interpret(LONG)


def check(found):
    """Output and gradients are the reference's, no block is left out, listed twice or in vain, work is cut up, and memory is freed with the plan."""
    tolerance = 1e-3 if "half precision" in found["case"] else 2e-6
    assert len(found["errors"]) == 4 and max(found["errors"]) <= tolerance, found["errors"]
    assert min(found["sizes"]) > 0.1  # an agreement of zeros proves nothing
    assert found["blocks"] == []
    assert found["pieces"] and min(found["pieces"]) > 1
    assert found["is_freed"]


@no_cuda
class TestKernels:
    @pytest.mark.parametrize("name", SHORT)
    def test_equal_the_reference(self, name, short):
        check(short[name])

    @pytest.mark.long
    @pytest.mark.parametrize("name", LONG)
    def test_equal_the_reference_in_other_cases(self, name, long):
        check(long[name])

    def test_a_wrong_result_is_seen(self, short):
        with pytest.raises(AssertionError):
            check(short[SHORT[0]] | {"errors": [1e-7, 1e-7, 1e-7, 1e-3]})


class TestTiles:
    @pytest.mark.parametrize("kib", [227, 163, 99])
    @pytest.mark.parametrize("head_size", [16, 64, 96, 128, 256])
    @pytest.mark.parametrize("is_half", [True, False])
    def test_they_fit_the_memory_of_a_multiprocessor(self, kib, head_size, is_half):
        """What is kept, and each step that is loaded ahead, as ptxas says for sm_80 to sm_90."""
        found = tiles.find_tiles(head_size, is_half, kib)
        size = max(16, 1 << (head_size - 1).bit_length()) * (2 if is_half else 4)
        assert (found.forward.rows, found.forward.keys) == (found.query.rows, found.query.keys)
        ahead = lambda tile: tile.stages if kib > 200 or tile.stages == 1 else tile.stages - 1
        used = {
            "forward": found.forward.rows * size + ahead(found.forward) * found.forward.keys * 2 * size,
            "query": found.query.rows * 2 * size + ahead(found.query) * found.query.keys * 2 * size,
            "key": found.key.keys * 2 * size + ahead(found.key) * found.key.rows * 2 * size,
        }
        assert {name: need for name, need in used.items() if need > (kib - 1) * 1024} == {}
        for tile in (found.forward, found.query, found.key):
            assert tile.rows % 16 == tile.keys % 16 == 128 % tile.keys == 0

    def test_larger_heads_take_the_next(self):
        assert tiles.find_tiles(80, True, 227) is tiles.find_tiles(128, True, 227)
        assert tiles.find_tiles(65, True, 227) != tiles.find_tiles(64, True, 227)


class FakeKernel:
    """Stands for a kernel: compiled at its first call, then launched with addresses."""

    def __init__(self):
        self.calls = []

    def __getitem__(self, grid):
        def run(*arguments, **constants):
            self.calls.append(("triton", grid, arguments, constants))
            return {grid: lambda *arguments: self.calls.append(("direct", grid, arguments))}

        return run


class TestLaunch:
    def launch(self, kernel, stride=32, kept=None):
        kept = torch.zeros(4) if kept is None else kept
        constants = {"SIZE": 7, "num_warps": 4}
        return launch.Launch(kernel, (3, 2, 1), (kept,), (stride, 0.5), 1, constants, (torch.float32,)), kept

    def test_triton_is_asked_once(self):
        kernel, tensor = FakeKernel(), torch.zeros(64)
        call, kept = self.launch(kernel)
        call(tensor)
        call(tensor)
        again, other = self.launch(kernel, stride=48)  # compiled for multiples of 16, whichever
        again(tensor)
        assert kernel.calls == [
            ("triton", (3, 2, 1), (tensor, kept, 32, 0.5), {"SIZE": 7, "num_warps": 4}),
            ("direct", (3, 2, 1), (tensor.data_ptr(), kept.data_ptr(), 32, 0.5, 7)),
            ("direct", (3, 2, 1), (tensor.data_ptr(), other.data_ptr(), 48, 0.5, 7)),
        ]

    @pytest.mark.parametrize("stride", [1, 24, 2**31])
    def test_what_triton_compiles_anew_for_is_compiled_anew(self, stride):
        kernel, tensor = FakeKernel(), torch.zeros(64)
        for numbers in (32, stride):
            self.launch(kernel, numbers)[0](tensor)
        assert [call[0] for call in kernel.calls] == ["triton", "triton"]

    def test_tensors_that_are_not_aligned_are_tritons(self):
        kernel, tensor = FakeKernel(), torch.zeros(64)
        call, _ = self.launch(kernel)
        for view in (tensor, tensor[1:], tensor[4:], tensor[2:]):
            call(view)
        assert [call[0] for call in kernel.calls] == ["triton", "triton", "direct", "triton"]

    def test_strides_of_one_do_not_count(self):
        tensor = torch.zeros(1, 6, 1, 8).transpose(1, 2)  # (1, 1, 6, 8)
        assert launch.strides_of(tensor, torch.zeros(2, 3, 4, 5)) == [0, 0, 8, 60, 20, 5]


class TestLayout:
    @pytest.mark.parametrize(
        ("config", "runs"),
        [
            (HSAConfig(), [0, 0, 1]),
            (HSAConfig(noise_window=None), [0, 0, 0]),
            (HSAConfig(landmark_window=60, global_window=7), [2, 0, 1]),
            (HSAConfig(noise_turns=1, landmark_turns=3), [0, 1, 2]),
            (HSAConfig(noise_turns=1, landmark_turns=1), [0, 1, 1]),
        ],
    )
    def test_types_that_are_seen_equally_long_share_a_run_and_the_longest_come_first(self, config, runs):
        assert layout._runs(LayerRules.of(config)) == runs

    def test_tensors_of_one_allocation_begin_at_multiples_of_16_bytes(self):
        parts = layout._allocate([3, 8, 0, 5], torch.int32, torch.device("cpu"))
        assert all(part.data_ptr() % 16 == 0 for part in parts) and [len(part) for part in parts] == [4, 8, 0, 8]

    def test_a_maker_is_the_same_for_all_layers(self):
        tensor = torch.zeros(1, 4, 6, 16)
        maker = attention.layout_maker(tensor, tensor[:, :2], tensor[:, :2])
        assert maker is attention.layout_maker(tensor.clone(), tensor[:, 2:], tensor[:, 2:])
        assert (maker.group, maker.key_heads) == (2, 2)


class TestApi:
    @pytest.fixture
    def query(self, monkeypatch):
        monkeypatch.setattr(api, "has_triton", lambda: True)
        monkeypatch.setattr(api, "_capability", lambda device: (9, 0))
        return SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 1, 4096, 64))

    def test_obstacles(self, query, monkeypatch):
        assert api.triton_obstacle(query) is None and api.triton_obstacle(query, 256) is None
        assert "heads of up to 256, got 257" in api.triton_obstacle(query, 257)
        query.dtype = torch.float64
        assert "got torch.float64" in api.triton_obstacle(query)
        query.dtype = torch.float32
        monkeypatch.setattr(api, "_capability", lambda device: (7, 5))
        assert "compute capability 8.0 or more" in api.triton_obstacle(query)
        monkeypatch.setattr(api, "_capability", lambda device: (8, 0))
        monkeypatch.setattr(api, "has_triton", lambda: False)
        assert api.triton_obstacle(query) == "Triton"
        query.device = torch.device("cpu")
        assert "tensors on CUDA, got cpu" in api.triton_obstacle(query)

    def test_auto_takes_flex_for_larger_heads(self, query, monkeypatch):
        monkeypatch.setattr(api, "_compiler_is_off", lambda: False)
        plan = SimpleNamespace(device=query.device, query_length=4096, is_causal=lambda rules: False)
        assert api.choose_backend(query, plan, None, value_size=64)[0] == "triton"
        assert api.choose_backend(query, plan, None, value_size=512)[0] == "flex"

    @no_cuda
    def test_without_cuda_it_is_an_error(self):
        tensor, types = torch.randn(1, 2, 20, 16), torch.zeros(1, 20, dtype=torch.long)
        with pytest.raises(ValueError, match="'triton' needs CUDA. Available here: auto, reference, dense, blockwise"):
            hsa_attention(tensor, tensor, tensor, types, HSAConfig(), backend="triton")


def test_a_plan_says_without_a_look_whether_it_is_causal(monkeypatch):
    """Where types and turns are known, the CPU does not wait for a GPU."""
    turns = torch.arange(40)[None] // 10
    plan = AttentionPlan.from_inputs(torch.arange(40)[None] % 2 * 2, turn_ids=turns)
    monkeypatch.setattr(AttentionPlan, "last_seen", lambda self, rules: pytest.fail("looked"))
    assert (plan.types, plan.most_turns) == ((0, 2), 3)
    for config, is_causal in (
        (HSAConfig(), False),
        (HSAConfig(noise_turns=2), False),
        (HSAConfig(noise_turns=3), True),  # no LANDMARK fades where there is none
        (HSAConfig(noise_window=39, noise_decay=0), True),
        (HSAConfig(noise_window=38, noise_decay=0), False),
    ):
        assert plan.is_causal(LayerRules.of(config)) == is_causal, config
    assert not plan.is_causal(LayerRules.of(HSAConfig(noise_turns=3), 39))
