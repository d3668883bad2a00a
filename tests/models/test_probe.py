"""The probe for silence on every family and every wrapper; and that it notices where HSA is missing."""

import copy

import pytest
import torch
from helpers import SOFTMAX, build, enabled
from probe import assert_hsa_reaches, probe_batch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hsa_factory import HSAConfig, disable_hsa, enable_hsa


CONFIG = HSAConfig(noise_window=3, landmark_decay=0.01)


def lora(model, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("model_type", SOFTMAX)
def test_every_family(model_type):
    assert_hsa_reaches(enabled(model_type, CONFIG), probe_batch())


@pytest.mark.parametrize("backend", ["reference", "dense", "blockwise"])
def test_every_backend(backend):
    assert_hsa_reaches(enabled("qwen3", HSAConfig(noise_window=3, backend=backend)), probe_batch())


@pytest.mark.parametrize(
    "options",
    [{"hide": [("GLOBAL", "NOISE"), ("LANDMARK", "NOISE")]}, {"landmark_window": 5, "global_window": 60}],
)
def test_other_rules(options):
    assert_hsa_reaches(enabled("llama", HSAConfig(noise_window=3, **options)), probe_batch())


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2_5_vl"])
@pytest.mark.parametrize("labels", [True, False])
def test_packed(model_type, labels):
    assert_hsa_reaches(enabled(model_type, CONFIG), probe_batch(packed=True, labels=labels))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("is_training", [True, False])
def test_lora(order, is_training):
    model = lora(enabled("qwen3", CONFIG)) if order == "before" else enable_hsa(lora(build("qwen3")), CONFIG)
    model.train(is_training)
    assert_hsa_reaches(model, probe_batch())
    assert_hsa_reaches(model.merge_and_unload(), probe_batch())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    model = enabled("qwen3", CONFIG).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_hsa_reaches(model, probe_batch())


@pytest.mark.long
def test_compiled():
    model = torch.compile(enabled("qwen3", CONFIG), backend="eager")
    assert_hsa_reaches(model, probe_batch())


def test_copied_saved_and_loaded(tmp_path):
    model = enabled("qwen3", CONFIG)
    assert_hsa_reaches(copy.deepcopy(model), probe_batch())
    model.save_pretrained(tmp_path)
    loaded = enable_hsa(type(model).from_pretrained(tmp_path))
    assert_hsa_reaches(loaded, probe_batch(), config=CONFIG)


class TestWrapped:
    @pytest.fixture
    def mesh(self, tmp_path):
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        yield init_device_mesh("cpu", (1,))
        distributed.destroy_process_group()

    @pytest.mark.parametrize("is_lora", [False, True])
    def test_data_parallel(self, mesh, is_lora):
        model = enabled("qwen3", CONFIG).train()
        assert_hsa_reaches(DistributedDataParallel(lora(model) if is_lora else model), probe_batch())

    @pytest.mark.parametrize("is_lora", [False, True])
    def test_fully_shard(self, mesh, is_lora):
        model = enabled("qwen3", CONFIG).train()
        layers = model.model.layers
        model = lora(model) if is_lora else model
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        assert_hsa_reaches(fully_shard(model, mesh=mesh), probe_batch())

    def test_what_is_saved_says_so(self, mesh, tmp_path):
        model = lora(enabled("qwen3", CONFIG).train())
        DistributedDataParallel(model).module.save_pretrained(tmp_path / "ddp")
        for layer in model.base_model.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        weights = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
        model.save_pretrained(tmp_path / "fsdp2", state_dict=weights)
        for name in ("ddp", "fsdp2"):
            assert HSAConfig.from_pretrained(tmp_path / name) == CONFIG


class TestItNotices:
    """A probe that always passes would prove nothing."""

    def test_a_model_without_hsa(self):
        model = enabled("qwen3", CONFIG)
        windows = dict(model.model.hsa_state.windows)
        disable_hsa(model)

        def forward(batch):
            return model(**{name: tensor for name, tensor in batch.items() if name != "semantic_ids"}).logits

        with pytest.raises(AssertionError, match="is out of sight, but changing it moves"):
            assert_hsa_reaches(model, probe_batch(), CONFIG, windows, forward)

    @pytest.mark.parametrize("layers", [[0], [1]])
    def test_a_layer_without_hsa(self, layers):
        model = enabled("qwen3", HSAConfig(noise_window=3, layers=layers))
        with pytest.raises(AssertionError, match="is out of sight"):
            assert_hsa_reaches(model, probe_batch(), CONFIG)

    def test_another_window(self):
        with pytest.raises(AssertionError, match="is out of sight"):
            assert_hsa_reaches(enabled("qwen3", HSAConfig(noise_window=30)), probe_batch(), CONFIG)

    def test_a_model_that_sees_too_little(self):
        strict = HSAConfig(noise_window=0, landmark_window=0, global_window=0)
        with pytest.raises(AssertionError, match="are in sight, but changing them moves nothing"):
            assert_hsa_reaches(enabled("qwen3", strict), probe_batch(), CONFIG)

    def test_a_batch_in_which_everything_is_seen(self):
        batch = probe_batch()
        batch["semantic_ids"] = torch.zeros_like(batch["semantic_ids"])
        with pytest.raises(AssertionError, match="no token to probe with"):
            assert_hsa_reaches(enabled("qwen3", CONFIG), batch)
