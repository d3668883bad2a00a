"""Turn numbers of a chat: they come from its messages, and answers are those of full forwards."""

import pytest
from chatting import HSA, N, chat_model, greedy, prompt_of, talk
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments

from hsa_factory import HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.data.turns import number_prompt
from hsa_factory.models.enable import get_state


TURNS = HSAConfig(noise_turns=0, default_type="NOISE", backend="dense")


@pytest.fixture(scope="module")
def loaded(lf):
    with chat_model(lf.model_dir("qwen3"), TURNS) as model:
        return model


@pytest.fixture
def served(loaded):
    """A chat model that attends by turns; one for all tests of this file."""
    with integrate(TURNS):
        yield loaded


def turns_of_marks(lf, model, gen_kwargs):
    """Return the turns that each message's tokens have, by the number of its mark."""
    marks, found = lf.mark_ids(model.engine.tokenizer), {}
    for token, number in zip(gen_kwargs["inputs"][0].tolist(), gen_kwargs["turn_ids"][0].tolist()):
        if token in marks:
            found.setdefault(marks[token], set()).add(number)
    return found


def test_turns_of_a_prompt(lf, served, monkeypatch):
    """Counted by message; what the template writes for one has its number, the header of the answer included."""
    messages = talk(lf, "user", "assistant", "observation", "function", "observation", "assistant", "user")
    messages[3]["content"] = '{"name": "go", "arguments": {"to": "' + lf.MARKS[3] + '"}}'
    gen_kwargs = prompt_of(served, messages, lf.MARKS[9])
    assert turns_of_marks(lf, served, gen_kwargs) == {
        9: {0},
        0: {0},
        1: {0},
        2: {1},
        3: {1},
        4: {2},
        5: {2},
        6: {3},
    }
    assert gen_kwargs["turn_ids"].shape == gen_kwargs["inputs"].shape
    ids, numbers = gen_kwargs["inputs"][0].tolist(), gen_kwargs["turn_ids"][0].tolist()
    start = served.engine.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert [number for token, number in zip(ids, numbers) if token == start] == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert numbers[-1] == 3
    monkeypatch.setattr(get_state(served.engine.model), "config", HSA)
    assert "turn_ids" not in prompt_of(served, messages)


def test_two_reply_messages_in_a_row_are_one_turn(lf, served):
    gen_kwargs = prompt_of(served, talk(lf, "user", "assistant", "assistant", "user", "observation", "assistant"))
    assert turns_of_marks(lf, served, gen_kwargs) == {0: {0}, 1: {0}, 2: {0}, 3: {1}, 4: {1}, 5: {1}}


@pytest.mark.parametrize("template", ["qwen3", "glm4", "glm4_moe", "llama2", "gemma", "mistral"])
def test_turns_go_by_the_block_that_a_token_stands_in(lf, served, template, monkeypatch):
    """A prompt grows at its end only: whatever stands there already keeps its number, stop tokens that are headers too."""
    tokenizer = lf.new_tokenizer("<|user|>", "<|observation|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>")
    found = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template))
    monkeypatch.setattr(served.engine, "template", found)
    monkeypatch.setattr(served.engine, "tokenizer", tokenizer)
    whole = prompt_of(served, talk(lf, "user", "assistant", "user", "assistant", "user"), lf.MARKS[9])
    ids, numbers = whole["inputs"][0].tolist(), whole["turn_ids"][0].tolist()
    assert numbers == sorted(numbers) and set(numbers) == {0, 1, 2}
    for turn, roles in enumerate((["user"], ["user", "assistant", "user"])):
        shorter = prompt_of(served, talk(lf, *roles), lf.MARKS[9])["inputs"][0].tolist()
        same = next((place for place, pair in enumerate(zip(shorter, ids)) if len(set(pair)) > 1), len(shorter))
        assert numbers[same - 1] == turn  # an empty thought at the end of a prompt does not come again
    if template.startswith("glm4"):
        header = served.engine.tokenizer.convert_tokens_to_ids("<|user|>")
        assert [number for token, number in zip(ids, numbers) if token == header] == [0, 1, 2]


@pytest.mark.parametrize("template", ["qwen3_nothink", "qwen3", "llama3"])
def test_chat_turns_are_training_turns(lf, served, tmp_path, template, monkeypatch):
    """The prompt of a conversation has the turns that its prefix has in training."""
    messages = lf.dialogue(["GLOBAL", "NOISE", "LANDMARK", "NOISE", "NOISE", "NOISE"])
    data = lf.write_data(tmp_path, data=[{"messages": messages, "system": lf.MARKS[9]}])
    (row,) = lf.prepare(lf.args(data, "data", template=template), TURNS).rows()
    found = get_template_and_fix_tokenizer(served.engine.tokenizer, DataArguments(template=template))
    monkeypatch.setattr(served.engine, "template", found)
    gen_kwargs = prompt_of(served, messages[:5], lf.MARKS[9])
    ids, turns = gen_kwargs["inputs"][0].tolist(), gen_kwargs["turn_ids"][0].tolist()
    same = next((place for place, pair in enumerate(zip(ids, row["input_ids"])) if len(set(pair)) > 1), len(ids))
    assert (
        same > 20
        and list(row["turn_ids"][:same]) == turns[:same]
        and turns[same - 1] == (2 if same == len(ids) else 0)
    )


def test_pictures_have_the_turn_of_their_message(lf, tmp_path):
    files = lf.images(tmp_path, [(56, 56), (84, 56)])
    with chat_model(lf.model_dir("qwen2_5_vl"), TURNS, template="qwen2_vl") as model:
        messages = talk(lf, "user", "assistant", "user")
        messages[0]["content"], messages[2]["content"] = "<image>" + lf.MARKS[0], "<image>" + lf.MARKS[2]
        gen_kwargs = prompt_of(model, messages, images=files)
        pad = model.engine.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert gen_kwargs["turn_ids"][gen_kwargs["inputs"] == pad].tolist() == [0] * 4 + [1] * 6
        assert model.chat(messages, images=files)[0].response_length


def test_images_in_front_are_of_the_first_turn(lf, served, monkeypatch):
    monkeypatch.setattr(
        type(served.engine.template.mm_plugin),
        "process_token_ids",
        lambda self, ids, labels, *args: ([5, 6, *ids], labels),
    )
    numbers = prompt_of(served, talk(lf, "user", "assistant", "user"))["turn_ids"][0].tolist()
    assert numbers[:3] == [0, 0, 0] and numbers == sorted(numbers) and numbers[-1] == 1


def test_answers_in_turns_are_those_of_full_forwards(lf, served):
    messages = talk(lf, "user", "assistant", "user", "assistant", "user")
    for _ in range(2):
        gen_kwargs = prompt_of(served, messages)
        expected = greedy(served.engine.model, gen_kwargs, N)
        text = served.engine.tokenizer.decode(expected, skip_special_tokens=True)
        (answer,) = served.chat(messages)
        assert answer.response_text == text
        assert "".join(served.stream_chat(messages)) == text
        messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": lf.MARKS[5]}]
    assert expected != greedy(served.engine.model, gen_kwargs | {"turn_ids": gen_kwargs["turn_ids"] * 0}, N)


def test_blocks():
    """The answer's own block is not read; an empty thought follows the last block, pictures stand before the first."""
    messages = [{"role": role} for role in ("user", "assistant", "user")]
    assert number_prompt(messages, [2, 1, 2, 9], 5, 0).tolist() == [0, 0, 0, 1, 1]
    assert number_prompt(messages, [2, 1, 2, 9], 7, 2).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert number_prompt(messages[:1], [3, 0], 3, 0).tolist() == [0, 0, 0]
