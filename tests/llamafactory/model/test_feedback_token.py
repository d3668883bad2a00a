"""The feedback token in the tokenizer, and its rows in the embeddings."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.model.feedback_token import ensure_token, fit_embeddings


M = "<|feedback|>"
HSA = HSAConfig()


@pytest.fixture(scope="module")
def model_dir(lf):
    return lf.model_dir("qwen3", extra=(M,))


def dialogue(lf, *contents):
    return [lf.say(("user", "assistant")[k % 2], text, k % 3) for k, text in enumerate(contents)]


def run(lf, tmp_path, model_dir, samples, feedback, **options):
    """Prepare data."""
    data = lf.write_data(tmp_path, data=samples)
    return lf.prepare(lf.args(data, "data", model_dir, **{"template": "qwen3_nothink", **options}), HSA, feedback)


# -- the tokenizer ---------------------------------------------------------------------------------------------


def test_a_missing_marker_becomes_one_special_token(lf, tiny_qwen3, tmp_path):
    feedback = FeedbackConfig()
    before = AutoTokenizer.from_pretrained(tiny_qwen3)
    prepared = run(lf, tmp_path, tiny_qwen3, [dialogue(lf, "<m0>", "<m1>" + M + "<m2>")], feedback)
    tokenizer = prepared.tokenizer
    number = tokenizer.convert_tokens_to_ids(M)
    assert number == len(before) and len(tokenizer) == len(before) + 1
    assert tokenizer.encode(f"a{M}b", add_special_tokens=False).count(number) == 1
    assert tokenizer.decode([number], skip_special_tokens=True) == ""
    assert {name: i for name, i in tokenizer.get_vocab().items() if i != number} == before.get_vocab()


def test_a_marker_that_is_there_is_looked_up(lf, model_dir, tmp_path):
    prepared = run(lf, tmp_path, model_dir, [dialogue(lf, "<m0>", M + "<m1>")], FeedbackConfig())
    assert len(prepared.tokenizer) == len(AutoTokenizer.from_pretrained(model_dir))


@pytest.mark.parametrize("role", ["eos_token", "pad_token"])
def test_a_token_with_another_role_is_refused(lf, model_dir, tmp_path, role):
    token = getattr(AutoTokenizer.from_pretrained(model_dir), role)
    with pytest.raises(ValueError, match=f"is the tokenizer's {role}; choose a token of its own"):
        run(lf, tmp_path, model_dir, [dialogue(lf, "<m0>", "<m1>")], FeedbackConfig(token=token))


def test_split_special_tokens_is_refused(lf, model_dir, tmp_path):
    with pytest.raises(ValueError, match="not one token of this tokenizer.*split_special_tokens must be off"):
        run(lf, tmp_path, model_dir, [dialogue(lf, "<m0>", "<m1>")], FeedbackConfig(), split_special_tokens=True)


@pytest.mark.parametrize("listed", [True, False])
def test_the_marker_never_ends_generation(lf, tmp_path, monkeypatch, listed):
    """LLaMA-Factory takes every extra special token for an end of generation."""
    import llamafactory.train.sft.workflow as workflow
    from llamafactory.train.tuner import run_exp

    directory = lf.model_dir("qwen3", extra=(M,)) if listed else lf.model_dir("qwen3")
    listed_tokens = AutoTokenizer.from_pretrained(directory)._extra_special_tokens
    assert (M in map(str, listed_tokens)) == listed

    class Stop(Exception):
        pass

    seen = {}

    def start(self, **kwargs):
        seen.update(kwargs)
        raise Stop

    monkeypatch.setattr(workflow.CustomSeq2SeqTrainer, "__init__", start)
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    with pytest.raises(Stop), integrate(HSA, FeedbackConfig()):
        run_exp(lf.args(data, "data", directory))
    ends = seen["gen_kwargs"]["eos_token_id"]
    tokenizer = seen["processing_class" if "processing_class" in seen else "tokenizer"]
    assert tokenizer.eos_token_id in ends and len(ends) > 1
    assert tokenizer.convert_tokens_to_ids(M) not in ends
    assert tokenizer.encode(M, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(M)]


def test_a_saved_tokenizer_still_has_the_marker_as_one_token(lf, model_dir, tmp_path):
    prepared = run(lf, tmp_path, model_dir, [dialogue(lf, "<m0>", M + "<m1>")], FeedbackConfig())
    prepared.tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    number = prepared.tokenizer.convert_tokens_to_ids(M)
    assert again.encode(M, add_special_tokens=False) == [number]
    assert again.decode([number], skip_special_tokens=True) == ""
    assert not ensure_token(again, M).is_new


# -- the embeddings --------------------------------------------------------------------------------------------


def weights(model):
    return [layer.weight.detach() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_the_new_row_is_the_mean_of_those_before(lf, tmp_path, tied, padded):
    more = {"vocab_size": 512} if padded else {}
    directory = lf.model_dir("qwen3", tie_word_embeddings=tied, **more)
    former = weights(AutoModelForCausalLM.from_pretrained(directory))
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    tokenizer, model = lf.load(lf.args(data, "data", directory), HSA, FeedbackConfig())
    number = tokenizer.convert_tokens_to_ids(M)
    now = weights(model)
    assert (now[0].data_ptr() == now[1].data_ptr()) == tied
    for before, after in zip(former, now):
        if padded:
            assert after.shape == before.shape  # never smaller, and never larger than needed
            assert torch.equal(after[number + 1 :], before[number + 1 :])
        else:
            assert before.shape[0] == number < after.shape[0] == model.config.vocab_size
        assert torch.equal(after[:number], before[:number])
        assert torch.allclose(after[number], before[:number].mean(dim=0), atol=1e-6)

    again = weights(lf.load(lf.args(data, "data", directory), HSA, FeedbackConfig())[1])
    assert all(torch.equal(first[: number + 1], second[: number + 1]) for first, second in zip(now, again))


def test_a_known_marker_leaves_the_embeddings_alone(lf, model_dir, tmp_path):
    former = weights(AutoModelForCausalLM.from_pretrained(model_dir))
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    _, model = lf.load(lf.args(data, "data", model_dir), HSA, FeedbackConfig())
    assert all(torch.equal(before, after) for before, after in zip(former, weights(model)))


def test_resize_vocab_of_llamafactory(lf, tiny_qwen3, tmp_path):
    former = weights(AutoModelForCausalLM.from_pretrained(tiny_qwen3))
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    tokenizer, model = lf.load(lf.args(data, "data", tiny_qwen3, resize_vocab=True), HSA, FeedbackConfig())
    number = tokenizer.convert_tokens_to_ids(M)
    for before, after in zip(former, weights(model)):
        assert after.shape[0] > number
        assert torch.equal(after[:number], before[:number])
        assert torch.allclose(after[number], before.mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("target", [None, "embed_tokens,lm_head"])
def test_lora_says_what_to_set_for_a_new_marker(lf, tiny_qwen3, tmp_path, caplog, target):
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    more = {"finetuning_type": "lora", "lora_rank": 2, "additional_target": target}
    with caplog.at_level("WARNING"):
        tokenizer, model = lf.load(lf.args(data, "data", tiny_qwen3, **more), HSA, FeedbackConfig())
    number = tokenizer.convert_tokens_to_ids(M)
    row = model.get_input_embeddings().weight[number]
    rows = AutoModelForCausalLM.from_pretrained(tiny_qwen3).get_input_embeddings().weight
    assert torch.allclose(row, rows.mean(dim=0), atol=1e-6)
    said = "<|feedback|> is new to this model, and lora does not train its embedding" in caplog.text
    assert said == (target is None)
    assert ("set `additional_target: embed_tokens,lm_head`" in caplog.text) == (target is None)


def test_a_quantized_model_cannot_take_a_new_token(lf, tiny_qwen3):
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    model.quantization_method = "bitsandbytes"
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    fit_embeddings(model, len(tokenizer))  # large enough: nothing to do
    with pytest.raises(ValueError, match="quantized model cannot take a new token. Add it to the unquantized"):
        fit_embeddings(model, len(tokenizer) + 1)


def test_a_smaller_tokenizer_never_shrinks_the_table(tiny_qwen3):
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    before = model.get_input_embeddings().weight.clone()
    fit_embeddings(model, 3)
    assert torch.equal(model.get_input_embeddings().weight, before)
