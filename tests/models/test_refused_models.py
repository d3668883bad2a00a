"""Models that HSA cannot reach are refused by name, when it is switched on or in the first forward."""

import pytest
import torch
from helpers import build, close, differs
from torch import nn
from transformers import (
    AutoConfig,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hsa_factory import HSAConfig, enable_hsa
from hsa_factory.attention import LayerRules
from hsa_factory.models import HSACache
from hsa_factory.models.enable import get_state
from hsa_factory.models.forward_pass import innermost
from hsa_factory.models.text_model import has_stateful_layers
from hsa_factory.models.transformers_versions import CACHE


class HandmadeConfig(PreTrainedConfig):
    model_type = "handmade"

    def __init__(self, fault=None, **options):
        self.fault, self.vocab_size, self.hidden_size, self.num_hidden_layers = fault, 32, 16, 2
        self.num_attention_heads = self.num_key_value_heads = 2
        self.sliding_window, self.initializer_range = 4, 0.5
        super().__init__(**options)


def eager_attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    raise AssertionError("sdpa was asked for")


class HandmadeAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.projection = nn.Linear(16, 48)

    def forward(self, hidden, attention_mask=None, **kwargs):
        query, key, value = self.projection(hidden).view(*hidden.shape[:2], 2, 24).transpose(1, 2).chunk(3, dim=-1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        extra = {"position_bias": torch.zeros(1)} if self.config.fault == "asks for a position bias" else {}
        output, _ = attend(self, query, key, value, attention_mask, scaling=8**-0.5, **extra, **kwargs)
        return hidden + output.flatten(2)


class HandmadeDeafAttention(HandmadeAttention):
    def forward(self, hidden, attention_mask=None):
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return attend(self, hidden, hidden, hidden, attention_mask)


class HandmadeModel(PreTrainedModel):
    config_class = HandmadeConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        attention = HandmadeDeafAttention if config.fault == "attention without keywords" else HandmadeAttention
        self.embedding = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(attention(config, index) for index in range(2))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        fault, hidden = self.config.fault, self.embedding(input_ids)
        make_mask = create_causal_mask
        if fault == "hides its sliding window":
            make_mask = create_sliding_window_causal_mask
        given = {"config": self.config, "inputs_embeds": hidden, "attention_mask": attention_mask}
        extra = {"or_mask_function": lambda b, h, q, k: k == 0} if fault == "sees ahead" else {}
        mask = make_mask(**given, **{CACHE: None}, **extra)
        if fault == "makes its own mask":
            mask = torch.ones(hidden.shape[1], hidden.shape[1]).tril().bool()[None, None]
        for index, layer in enumerate(self.layers):
            dropped = fault == "drops keywords" or (fault == "drops keywords in one layer" and index)
            if not (fault == "skips a layer" and index):
                hidden = layer(hidden, mask, **({} if dropped else kwargs))
        return BaseModelOutput(last_hidden_state=hidden)


class HandmadeDeafModel(HandmadeModel):
    def forward(self, input_ids=None, attention_mask=None):
        return HandmadeModel.forward(self, input_ids, attention_mask)


class TestRefusedModels:
    IDS, KINDS = torch.arange(10)[None], torch.full((1, 10), 2)

    def test_the_same_model_without_a_fault_is_served(self):
        torch.manual_seed(0)
        model = HandmadeModel(HandmadeConfig()).eval()
        stock = model(input_ids=self.IDS).last_hidden_state
        enable_hsa(model, HSAConfig(noise_window=1))
        close(model(input_ids=self.IDS, semantic_ids=0 * self.KINDS).last_hidden_state, stock)
        differs(model(input_ids=self.IDS, semantic_ids=self.KINDS).last_hidden_state, stock)

    @pytest.mark.parametrize(
        ("model_class", "fault", "message"),
        [
            (HandmadeDeafModel, None, r"does not hand keywords on to its layers \(HandmadeDeafModel.forward has no"),
            (HandmadeModel, "attention without keywords", r"\(layer 0, HandmadeDeafAttention.forward has no \*\*kw"),
        ],
    )
    def test_seen_when_enabling(self, model_class, fault, message):
        model = model_class(HandmadeConfig(fault)).eval()
        with pytest.raises(ValueError, match=f"{model_class.__name__} .*{message}"):
            enable_hsa(model, HSAConfig())
        assert model.config._attn_implementation == "sdpa" and get_state(model) is None

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("drops keywords", r"did not hand HSA's plan on to HandmadeAttention \(layer 0\)"),
            ("drops keywords in one layer", r"did not hand HSA's plan on to HandmadeAttention \(layer 1\)"),
            ("skips a layer", r"plan did not reach layers \[1\]"),
            ("makes its own mask", "made its own attention mask although HSA was active"),
            ("asks for a position bias", "gives its attention 'position_bias', which HSA cannot honour"),
            ("sees ahead", "lays another mask over the causal one"),
            ("hides its sliding window", r"has a sliding window of \{4\} that its attention layers are not told of"),
        ],
    )
    def test_seen_in_the_first_forward(self, fault, message, training):
        model = enable_hsa(HandmadeModel(HandmadeConfig(fault)).train(training), HSAConfig())
        with pytest.raises(ValueError, match=f"HandmadeModel.*{message}"):
            model(input_ids=self.IDS, semantic_ids=self.KINDS)
        assert innermost() is None
        model.config.fault = None
        model(input_ids=self.IDS, semantic_ids=self.KINDS)

    def test_a_vision_language_model_that_stops_keywords_at_its_entry(self):
        model = build("qwen2_vl")
        forward = lambda self, input_ids=None, attention_mask=None: None
        model.model.__class__ = type("DeafEntry", (type(model.model),), {"forward": forward})
        with pytest.raises(ValueError, match=r"Qwen2VL.* does not hand keywords on .*DeafEntry.forward has no"):
            enable_hsa(model, HSAConfig())

    def test_encoder_decoder(self):
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
        )
        with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model.*decoder-only"):
            enable_hsa(model, HSAConfig())

    def test_encoder(self):
        sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        with pytest.raises(ValueError, match="BertModel "):
            enable_hsa(BertModel(BertConfig(**sizes, intermediate_size=16)), HSAConfig())

    @pytest.mark.parametrize("kind", ["chunked", "indexed", "heavily compressed", "some future kind of"])
    def test_attention_of_other_kinds(self, kind):
        model = build("llama")
        model.config.layer_types = [f"{kind} attention".replace(" ", "_"), "full_attention"]
        with pytest.raises(ValueError, match=f"LlamaForCausalLM uses {kind} attention"):
            enable_hsa(model, HSAConfig())

    def test_a_head_that_calls_a_part_of_its_base_model(self):
        sizes = {
            "vocab_size": 32,
            "d_model": 16,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 16,
        }
        model = enable_hsa(BartForCausalLM(BartConfig(**sizes)).eval(), HSAConfig())
        ids = torch.arange(5)[None]
        assert model(input_ids=ids).logits.isfinite().all()  # without types it attends as ever
        for _ in range(2):
            with pytest.raises(ValueError, match="BartForCausalLM does not call .* semantic_ids were lost"):
                model(input_ids=ids, semantic_ids=ids % 3)
        assert model(input_ids=ids).logits.isfinite().all()


# -- around it -------------------------------------------------------------------------------------------------


STATEFUL = (
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
    "jamba",
    "bamba",
    "zamba2",
    "falcon_h1",
    "nemotron_h",
    "recurrent_gemma",
)


@pytest.mark.parametrize("model_type", [*STATEFUL, "llama", "gemma3", "gpt_oss", "qwen2_5_vl", "mixtral"])
def test_which_models_carry_a_state(model_type):
    assert has_stateful_layers(AutoConfig.for_model(model_type)) == (model_type in STATEFUL)


def test_attention_and_a_state_in_one_layer_cannot_be_cached():
    cache, config = HSACache(HSAConfig()), AutoConfig.for_model("falcon_h1")
    for _ in range(2):  # the second time, too
        with pytest.raises(ValueError, match="falcon_h1 has softmax attention and a state space in one layer"):
            cache.bind(config, {0: LayerRules.plain(None)}, HSAConfig())


def test_positions_of_an_image_that_is_drawn_cannot_be_cached():
    model, ids = enable_hsa(build("qwen2_5_vl")), torch.arange(5)[None]
    model.model._cached_decode_position_ids = None  # as GLM-Image keeps them
    with pytest.raises(ValueError, match="the image that it draws positions which an HSACache does not know"):
        model(input_ids=ids, semantic_ids=ids % 3, past_key_values=HSACache(HSAConfig()))
