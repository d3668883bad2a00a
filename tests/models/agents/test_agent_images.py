"""Episodes with pictures: replies, tokens, types and positions are those of a conversation that is read at once."""

import copy

import pytest
import torch
from PIL import Image

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import AgentBatch, HSACache
from hsa_factory.models.agents import shared_cache
from hsa_factory.models.agents.new_images import read_images
from hsa_factory.training import encode_conversation


pytest.importorskip("torchvision")
RULES = [{"role": "user", "turn": 0, "type": "GLOBAL"}, {"role": "user", "type": "NOISE"}]
CONFIG = HSAConfig(rules=RULES, noise_turns=1, noise_window=40)
TASK = {"role": "system", "content": "find the red ball"}


def picture(side, shade):
    return Image.effect_noise((side, side), 40 + shade).convert("RGB")


def seen(text, *pictures):
    parts = [{"type": "image", "image": one} for one in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def player(request, tmp_path_factory):
    folder = tiny.save_tiny(request.param, tmp_path_factory.mktemp("vl"), ["find the red ball", "move forward now"])
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


class Words:
    """Lets a model without training write words that its tokenizer spells in one way."""

    def __init__(self, tokenizer):
        self._known = tokenizer(" red ball forward now<|im_end|>", add_special_tokens=False)["input_ids"]

    def __call__(self, ids, scores):
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self._known] = scores[:, self._known]
        return kept


def make(player, config=CONFIG, rows=2, **options):
    model, processor = player
    options = {"max_new_tokens": 6, "max_waiting": 1, "stop": "<|im_end|>"} | options
    options["logits_processor"] = [Words(processor.tokenizer)]
    return AgentBatch(enable_hsa(model, config), processor, rows=rows, **options)


def reply_alone(player, messages, config=CONFIG):
    """The reply that `generate` writes for a conversation, read at once."""
    model, processor = player
    placeholder = {"role": "assistant", "content": "now"}
    row = encode_conversation(processor, [*messages, placeholder], config)
    stop = max(n for n in range(1, len(row["labels"])) if row["labels"][n] != -100 and row["labels"][n - 1] == -100)
    inputs = {
        name: torch.tensor([value[:stop]]) if isinstance(value, list) else torch.as_tensor(value)
        for name, value in row.items()
        if name not in ("labels", "loss_weights")
    }
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    options = {"max_new_tokens": 6, "do_sample": False, "logits_processor": [Words(processor.tokenizer)]}
    output = model.generate(**inputs, past_key_values=HSACache(config), eos_token_id=end, **options)
    ids = output[0, stop:].tolist()
    return ids[: ids.index(end)] if end in ids else ids


@pytest.mark.parametrize("tokens", [8192, 1])
def test_replies_are_those_of_conversations_read_at_once(player, monkeypatch, tokens):
    """Other pictures a row, turns without one, and what is read cut into pieces."""
    monkeypatch.setattr(shared_cache, "_TOKENS", tokens)
    monkeypatch.setattr(shared_cache, "_COLUMNS", 7 if tokens == 1 else 32)
    agents = make(player, rows=3)
    news = [
        [[TASK, seen("go", picture(56, 1))], [TASK, seen("go", picture(112, 2), picture(56, 3))], [TASK, seen("now")]],
        [seen("red", picture(84, 4)), seen("ball"), seen("go", picture(56, 5))],
        [seen("move"), seen("ball", picture(84, 6)), seen("red", picture(56, 7))],
    ]
    for turn, given in enumerate(news):
        agents.append_messages(given)
        before = [agents.messages(row) for row in range(3)]
        replies = agents.act()
        for row in range(3):
            assert list(replies[row].ids) == reply_alone(player, before[row]), (turn, row)
    assert agents.report().peak_held < max(len(agents.history(row)["input_ids"]) for row in range(3))


def test_tokens_and_types_are_those_of_training(player):
    agents = make(player, rows=1)
    for number in range(2):
        agents.append_messages({0: [TASK, seen("go", picture(56, 1))] if not number else seen("red", picture(84, 2))})
        agents.act({0: ["move forward"]})
    row = encode_conversation(player[1], agents.messages(0), CONFIG)
    history = agents.history(0)
    length = len(history["input_ids"])
    assert {name: row[name][:length] for name in history} == history and len(row["input_ids"]) - length <= 1


def test_rows_begin_anew_and_failures_are_taken_up_with_their_pictures(player, monkeypatch):
    agents = make(player, rows=2)
    agents.append_messages([[TASK, seen("go", picture(56, 1))], [TASK, seen("go", picture(84, 2))]])
    agents.act()
    agents.start(0)
    talk = [TASK, seen("ball", picture(112, 3))]
    agents.append_messages([talk, seen("red", picture(56, 4))])
    other = agents.messages(1)

    def fails(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(agents._shared, "step", fails)
        agents.act()
    replies = agents.act()
    for row, messages in enumerate((talk, other)):
        assert list(replies[row].ids) == reply_alone(player, messages), row


def test_what_is_no_image_is_refused_by_name(player):
    model, processor = player
    agents = make(player, rows=2)
    video = {"type": "video", "video": torch.zeros(4, 3, 56, 56, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="row 1: .*reads images .*video"):
        agents.append_messages({1: {"role": "user", "content": [video, {"type": "text", "text": "go"}]}})
    assert agents.messages(1) == []
    texts = AgentBatch(model, processor.tokenizer, rows=1, max_new_tokens=2, stop=5)
    with pytest.raises(ValueError, match="row 0"):
        texts.append_messages({0: seen("go", picture(56, 1))})


def test_a_file_that_is_written_anew_changes_no_picture_shown_before(player, tmp_path):
    """A screenshot has one path for all turns; pictures are fetched once, also where the episode is read again."""
    agents, file, told = make(player, rows=1), tmp_path / "screen.png", []
    for number in range(3):
        shown = picture(56 + 28 * number, number)
        shown.save(file)
        part = (
            {"type": "image", "path": str(file)} if number else {"type": "image_url", "image_url": {"url": str(file)}}
        )
        agents.append_messages({0: {"role": "user", "content": [part, {"type": "text", "text": "red"}]}})
        told.append(seen("red", shown))
        if number == 2:
            agents._shared.forget()
            agents._rows[0] = agents._rows[0].begin_anew()
        (reply,) = agents.act()
        assert list(reply.ids) == reply_alone(player, told), number
        told.append({"role": "assistant", "content": str(reply)})
    assert agents.messages(0)[0]["content"][0] == {"type": "image_url", "image_url": {"url": str(file)}}
    file.write_text("no picture")
    for part in ({"type": "image", "path": str(file)}, {"type": "image", "url": "nowhere.png"}):
        with pytest.raises(ValueError, match=r"row 0: turn 6: the picture .*(screen|nowhere)\.png.* cannot be read"):
            agents.append_messages({0: {"role": "user", "content": [part]}})
    assert len(agents.messages(0)) == 6


def test_pixels_are_held_until_they_are_read(player, monkeypatch):
    """Positions after them stay: row 0 reads its last token while row 1 gets a picture; what failed is read again."""
    agents = make(player, rows=2)
    agents.append_messages([[TASK, seen("go", picture(112, 1))], [TASK, seen("go")]])
    agents.act()
    for row, shown in ((1, picture(84, 2)), (0, picture(56, 3))):
        agents.append_messages({row: seen("ball", shown)})
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(agents._shared, "read", lambda *_: (_ for _ in ()).throw(MemoryError()))
            agents.act()
        messages = agents.messages(row)
        assert list(agents.act()[row].ids) == reply_alone(player, messages), row
        assert {name for one in agents._rows for name in one.images} == {"image_grid_thw"}


def test_a_processor_is_no_burden_for_text(player):
    """Other models' processors say of each token that it is text; some tokenizers have a `tokenizer` as well."""
    model, processor = player
    agents, texts = make(player, rows=1), AgentBatch(model, processor.tokenizer, rows=1, max_new_tokens=6, stop=5)
    assert agents.tokenizer is processor.tokenizer
    assert read_images(0, object(), {"token_type_ids": [0, 0]}) == {}
    with pytest.raises(ValueError, match="row 0: .*token_type_ids"):
        read_images(0, object(), {"token_type_ids": [0, 1]})
    processor.tokenizer.tokenizer = object()
    try:
        other = AgentBatch(model, processor.tokenizer, rows=1, max_new_tokens=6, stop=5)
    finally:
        del processor.tokenizer.tokenizer
    assert other.tokenizer is texts.tokenizer


def test_a_placeholder_that_the_model_has_written_is_named(player):
    model, processor = player
    agents = AgentBatch(enable_hsa(model, CONFIG), processor, rows=1, max_new_tokens=6, stop="<|im_end|>")
    agents.append_messages({0: seen("go", picture(56, 1))})
    agents.act({0: [processor.image_token]})
    with pytest.raises(ValueError, match=r"row 0: .*more placeholders than there are images.*<\|image_pad\|>"):
        agents.append_messages({0: seen("red", picture(56, 2))})


def test_adapters_see_images_as_well(player):
    """Of PEFT's model neither positions on three axes nor the names of arguments are known."""
    peft = pytest.importorskip("peft")
    model, processor = player
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))
    talks = [[TASK, seen("go", picture(56, 1))], [seen("red ball", picture(112, 2), picture(56, 3))]]
    replies = []
    for one in (model, adapted):
        agents = make((one, processor))
        agents.append_messages(talks)
        replies.append([list(reply.ids) for reply in agents.act()])
    assert replies[0] == replies[1]
