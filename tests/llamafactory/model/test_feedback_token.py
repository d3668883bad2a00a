"""The feedback token in the tokenizer, and its rows in the embeddings."""

import contextlib
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from hsa_factory import FeedbackConfig, HSAConfig, tiny
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.inspect.prepared_data import load_samples
from hsa_factory.llamafactory.model import feedback_token
from hsa_factory.llamafactory.model.feedback_token import (
    FeedbackToken,
    ensure_token,
    fit_embeddings,
    initialize_rows,
    table_sizes,
)
from hsa_factory.training_file import TrainingFile


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
    labels = lf.collator(prepared, HSA, feedback)([dict(prepared.rows()[0])])["labels"][0].tolist()
    assert prepared.text([label for label in labels if label != -100]) == "<m2><|im_end|>\n"
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


@pytest.fixture
def lacking(lf, tmp_path):
    """A model of 256 rows whose tokenizer knows the feedback token as number 256."""
    size = 256
    directory = tmp_path / "lacking"
    tokenizer = lf.new_tokenizer()
    tokenizer.add_tokens([f"<filler{k}>" for k in range(size - len(tokenizer))])
    tiny.save_tiny("qwen3", directory, [], tokenizer=tokenizer, vocab_size=len(tokenizer))
    tokenizer.add_tokens([M], special_tokens=True)
    tokenizer.save_pretrained(directory)
    return directory


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
        else:  # every row that padding added beside it
            assert torch.equal(after[number + 1 :], after[number].expand_as(after[number + 1 :]))
            assert before.shape[0] == number < after.shape[0] == model.config.vocab_size
        assert torch.equal(after[:number], before[:number])
        assert torch.allclose(after[number], before[:number].mean(dim=0), atol=1e-6)

    again = weights(lf.load(lf.args(data, "data", directory), HSA, FeedbackConfig())[1])
    assert all(torch.equal(first, second) for first, second in zip(now, again))


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


def test_a_known_marker_without_a_row_gets_one(lf, lacking, tmp_path):
    """Somebody added the token to the tokenizer's files alone."""
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    args = lf.args(data, "data", lacking, max_steps=1)
    tokenizer, model = lf.load(args, HSA, FeedbackConfig())
    former, now = (weights(each)[0] for each in (AutoModelForCausalLM.from_pretrained(lacking), model))
    number = tokenizer.convert_tokens_to_ids(M)
    assert former.shape[0] == number < now.shape[0]
    assert torch.equal(now[:number], former)
    assert torch.allclose(now[number:], former.mean(dim=0).expand_as(now[number:]), atol=1e-6)
    assert 0 < lf.train(args, HSA, FeedbackConfig())[0] < 20


@pytest.mark.parametrize("resize_vocab", [False, True])
def test_rows_of_the_templates_tokens(lf, tiny_qwen3, tmp_path, resize_vocab):
    """Without `resize_vocab` they are new rows as others are; with it LLaMA-Factory sets them as it does plainly."""
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    args = lf.args(data, "data", tiny_qwen3, template="llama3", resize_vocab=resize_vocab)
    former = weights(AutoModelForCausalLM.from_pretrained(tiny_qwen3))
    tokenizer, model = lf.load(args, HSA, FeedbackConfig())
    stop, number = tokenizer.convert_tokens_to_ids(["<|eot_id|>", M])
    assert former[0].shape[0] <= stop < number
    for before, after in zip(former, weights(model)):
        mean = before.mean(dim=0)
        assert torch.equal(after[: len(before)], before)
        assert torch.allclose(after[number:], mean.expand_as(after[number:]), atol=1e-6)
        assert torch.allclose(after[stop], mean, atol=1e-6) != resize_vocab


def test_an_output_bias_gets_its_entries():
    from transformers import PhiConfig, PhiForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=100, pad_token_id=None, **shape))
    torch.nn.init.normal_(model.lm_head.bias)
    bias = model.lm_head.bias.detach().clone()
    former_sizes = table_sizes(model)
    fit_embeddings(model, 101)
    initialize_rows(model, FeedbackToken(M, 100, True, 100), former_sizes)
    assert len(model.lm_head.bias) == 128
    assert torch.equal(model.lm_head.bias[:100], bias)
    assert torch.allclose(model.lm_head.bias[100:], bias.mean().expand(28))


def test_rows_that_zero_3_has_scattered(lf, tiny_qwen3, monkeypatch):
    """A stand-in for DeepSpeed: tables are empty but while they are gathered."""
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    whole = {id(table): table.data for table in (model.get_input_embeddings().weight, model.lm_head.weight)}
    former = {key: table.clone() for key, table in whole.items()}

    @contextmanager
    def gather(parameters, modifier_rank):
        assert modifier_rank == 0  # the others receive what it has written
        for parameter in parameters:
            parameter.data = whole[id(parameter)]
        yield
        for parameter in parameters:
            whole[id(parameter)] = parameter.data
            parameter.data = torch.empty(0)

    zero = SimpleNamespace(GatheredParameters=gather)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero))
    monkeypatch.setattr(feedback_token, "is_deepspeed_zero3_enabled", lambda: True)
    for table in (model.get_input_embeddings().weight, model.lm_head.weight):
        table.data = torch.empty(0)

    rows = len(next(iter(whole.values())))
    assert table_sizes(model) == (rows,) * len(whole)
    initialize_rows(model, FeedbackToken(M, rows - 1, True, rows - 5), table_sizes(model))
    for key, table in whole.items():
        assert torch.equal(table[: rows - 1], former[key][: rows - 1])
        assert torch.allclose(table[rows - 1], former[key][: rows - 5].mean(dim=0), atol=1e-6)
    assert not model.lm_head.weight.numel()


def test_a_reference_model_knows_the_new_token(lf, tiny_qwen3, tmp_path):
    """LLaMA-Factory loads it with a tokenizer of its own, which no template has touched."""
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    args = lf.args(data, "data", tiny_qwen3, template="llama3", max_steps=1, use_asft_loss=True)
    assert 0 < lf.train(args, None, FeedbackConfig())[0] < 20


# -- ids are those of plain LLaMA-Factory ----------------------------------------------------------------------


@pytest.mark.parametrize("template", ["llama3", "gemma", "chatml", "qwen3", "glm4"])
def test_the_token_comes_after_those_of_the_template(lf, tiny_qwen3, tmp_path, template):
    """Where the tokenizer lacks the template's stop token, that takes the next id with Feedback as without it."""
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", "<m1>", "<m2>", "<m3>")])
    args = lf.args(data, "data", tiny_qwen3, template=template)
    plain = lf.prepare(args)
    ours = lf.prepare({**args, "overwrite_cache": True}, HSA, FeedbackConfig())
    assert [row["input_ids"] for row in ours.rows()] == [row["input_ids"] for row in plain.rows()]
    vocabulary = ours.tokenizer.get_vocab()
    assert vocabulary.pop(M) == len(plain.tokenizer)
    assert vocabulary == plain.tokenizer.get_vocab()


def test_tokenized_data_and_inspect_have_plain_ids(lf, tiny_qwen3, tmp_path):
    samples = [dialogue(lf, "<m0>", M + "<m1>"), dialogue(lf, "<m2>", "<m3>")]
    args = lf.args(lf.write_data(tmp_path, data=samples), "data", tiny_qwen3, template="llama3")
    plain = lf.prepare(args)
    args["tokenized_path"] = str(tmp_path / "tokenized")
    written, read = (lf.prepare(args, HSA, FeedbackConfig()) for _ in range(2))
    with contextlib.redirect_stdout(None):
        inspected = load_samples(TrainingFile(args, HSA, FeedbackConfig()))
    number = len(plain.tokenizer)
    for rows in (written.rows(), read.rows(), list(inspected.rows)):
        assert rows[1]["input_ids"] == plain.rows()[1]["input_ids"]
        assert number in rows[0]["input_ids"]
    assert inspected.marker_id == number


def test_chat_and_export_have_plain_ids(lf, tiny_qwen3, tmp_path):
    from llamafactory.chat import ChatModel
    from llamafactory.train.tuner import export_model

    args = {"model_name_or_path": str(tiny_qwen3), "template": "llama3"}
    plain = ChatModel(args).engine.tokenizer
    with integrate(HSA, FeedbackConfig()):
        engine = ChatModel(args).engine
        export_model({**args, "export_dir": str(tmp_path / "exported")})
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    for tokenizer, rows in ((engine.tokenizer, weights(engine.model)[0]), (exported, weights(model)[0])):
        vocabulary = tokenizer.get_vocab()
        assert vocabulary.pop(M) == len(plain) < len(rows)
        assert vocabulary == plain.get_vocab()


def test_an_adapter_without_its_token(lf, tiny_qwen3, tmp_path, caplog):
    """ZeRO-3 saves no tables with an adapter, and Qwen has rows to spare: loading it gives no error then."""
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", M + "<m1>")])
    args = lf.args(data, "data", tiny_qwen3, finetuning_type="lora", lora_rank=2)
    tokenizer, model = lf.load(args, None, FeedbackConfig())
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    args["adapter_name_or_path"] = str(tmp_path / "adapter")
    for feedback in (FeedbackConfig(), None):
        caplog.clear()
        with caplog.at_level("WARNING"):
            lf.load(args, HSA, feedback)
        assert (f"was trained with tokens that this run lacks: {M}." in caplog.text) == (feedback is None)


@pytest.mark.long
def test_the_rows_that_qwen_has_to_spare(lf, tmp_path, monkeypatch):
    """They keep their values, that of a template's token too; only the feedback token's own is set."""
    # LLaMA-Factory looks for a processor first: here it would find the large tokenizer again, and drop it.
    monkeypatch.setattr(AutoProcessor, "from_pretrained", Mock(side_effect=OSError("no processor")))
    if not (lf.SHARED / "tokenizers" / "qwen").is_dir():
        pytest.skip("../shared is absent")
    stock = AutoTokenizer.from_pretrained(lf.SHARED / "tokenizers" / "qwen")
    directory = tmp_path / "qwen"
    tiny.save_tiny("qwen3", directory, [], tokenizer=stock, vocab_size=152064, hidden_size=16)
    data = lf.write_data(tmp_path, data=[dialogue(lf, "<m0>", "<m1>")])
    args = lf.args(data, "data", directory, template="llama3")
    plain = lf.prepare(args)
    ours = lf.prepare({**args, "overwrite_cache": True}, HSA, FeedbackConfig())
    assert ours.rows()[0]["input_ids"] == plain.rows()[0]["input_ids"]

    known = len(stock)
    tokenizer, model = lf.load(args, HSA, FeedbackConfig())
    number = tokenizer.convert_tokens_to_ids(M)
    assert known < number == len(plain.tokenizer)
    for before, after in zip(weights(AutoModelForCausalLM.from_pretrained(directory)), weights(model)):
        others = [row for row in range(known - 5, len(before)) if row != number]
        assert after.shape == before.shape and torch.equal(after[others], before[others])
        assert torch.allclose(after[number], before[:known].mean(dim=0), atol=1e-6)
