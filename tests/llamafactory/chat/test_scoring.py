"""Raw texts scored by a reward model with HSA: typed by rules that can type them, else refused; export and chat."""

import shutil

import llamafactory.api.app
import llamafactory.chat.chat_model
import pytest
import torch
from chatting import chat_model
from fastapi.testclient import TestClient
from llamafactory.train.tuner import export_model
from safetensors.torch import load_file, save_file

from hsa_factory import HSAConfig, cli
from hsa_factory.llamafactory import integrate


RULES = [{"pattern": "<m[12]>", "type": "NOISE"}, {"pattern": "<m9>", "type": "LANDMARK"}]
SCORING = HSAConfig(noise_window=2, noise_decay=0.3, rules=RULES)
MARKS = [0, 1, 2, 1, 3, 4, 9, 5, 6, 7, 8]
HEAD = "value_head.safetensors"
WRONG = [
    ({"messages": [""]}, "messages[0]: the text is empty"),
    ({"messages": ["<m0>", "", "<m1>"]}, "messages[1]: the text is empty"),
    ({"max_length": -1}, "max_length: -1 is not allowed"),
    ({"max_length": 0}, "max_length: 0 is not allowed"),
    ({"max_length": 10**30}, "is not allowed"),
    ({"semantic_type": "NOISE"}, "typed by its rules"),
    ({"semanticTypes": ["NOISE"]}, "semanticTypes: the texts of a reward model are typed by its rules"),
]


@pytest.fixture(scope="module")
def reward_dir(lf, tmp_path_factory):
    """A tiny reward model, saved as stage `rm` saves it."""
    directory = tmp_path_factory.mktemp("reward") / "model"
    shutil.copytree(lf.model_dir(), directory)
    head = {"v_head.summary.weight": torch.randn(1, 64, generator=torch.Generator().manual_seed(0))}
    save_file({**head, "v_head.summary.bias": torch.zeros(1)}, directory / HEAD, metadata={"format": "pt"})
    SCORING.save_pretrained(directory)
    return directory


def text_of(marks):
    return "".join(f"<m{mark}>" for mark in marks)


def scores_of(model, *texts, **options):
    return [float(score) for score in model.get_scores(list(texts), **options)]


def test_texts_are_typed_by_rules(reward_dir):
    kinds = torch.tensor([[{1: 2, 2: 2, 9: 1}.get(mark, 0) for mark in MARKS]])
    with chat_model(reward_dir, "saved", stage="rm") as model:
        engine, text = model.engine, text_of(MARKS)
        ids = torch.tensor([engine.tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            alone = engine.model(input_ids=ids, semantic_ids=kinds)[2][0].tolist()
            plain = engine.model(input_ids=ids, semantic_ids=torch.zeros_like(kinds))[2][0, -1].item()
        # beside a longer and a shorter one, and cut
        longest, short, score = scores_of(model, text + text_of([3] * 9), "<m0>", text)
        assert score == pytest.approx(alone[-1], abs=1e-4) and score != pytest.approx(plain, abs=1e-3)
        assert short == pytest.approx(alone[0], abs=1e-4) and longest != score
        assert scores_of(model, text, max_length=6) == pytest.approx([alone[5]], abs=1e-4)


def test_a_text_out_of_sight_moves_no_score(reward_dir):
    with chat_model(reward_dir, "saved", stage="rm") as model:
        score, hidden, seen = scores_of(model, *(text_of([first, *[1] * 8, 1]) for first in (1, 2, 0)))
        assert score == pytest.approx(hidden, abs=1e-5) and score != pytest.approx(seen, abs=1e-3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (HSAConfig(), "Start the server with `hsa.rules` that type parts of a text"),
        (HSAConfig(rules=[*RULES, {"role": "user", "type": "NOISE"}]), "rule '.*user.*' is about a message"),
        (HSAConfig(rules=[{"contains": "cup", "type": "NOISE"}]), "is about a message"),
        (HSAConfig(rules=[{"tag": "obs", "turn": "first", "type": "NOISE"}]), "is about a message"),
        (HSAConfig(rules=RULES, noise_turns=1), "its rules count turns"),
    ],
)
def test_what_cannot_be_typed_is_refused_by_name(lf, reward_dir, tmp_path, config, said):
    directory = shutil.copytree(reward_dir, tmp_path / "model")
    config.save_pretrained(directory)
    with chat_model(directory, "saved", stage="rm") as model:
        with pytest.raises(ValueError, match=f"attends by the types of its tokens .HSA.*{said}"):
            model.get_scores(["<m0>"])


def test_the_server_scores_and_says_what_it_refuses(reward_dir, tmp_path):
    asked = {"model": "tiny", "messages": [text_of(MARKS), "<m0>"]}
    with chat_model(reward_dir, "saved", stage="rm") as model:
        with TestClient(llamafactory.api.app.create_app(model)) as client:
            answer = client.post("/v1/score/evaluation", json=asked)
            assert answer.json()["scores"] == pytest.approx(scores_of(model, *asked["messages"]), abs=1e-5)
            for wrong, said in WRONG:
                refused = client.post("/v1/score/evaluation", json={**asked, **wrong})
                assert refused.status_code == 400 and said in refused.json()["detail"]
            chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
            assert client.post("/v1/chat/completions", json=chat).status_code == 405
        with pytest.raises(ValueError, match="does not support `chat`"):
            model.chat(chat["messages"])

    directory = shutil.copytree(reward_dir, tmp_path / "model")
    HSAConfig().save_pretrained(directory)
    with chat_model(directory, "saved", stage="rm") as model:
        with TestClient(llamafactory.api.app.create_app(model)) as client:
            refused = client.post("/v1/score/evaluation", json=asked)
            assert refused.status_code == 400 and "a raw text has none" in refused.json()["detail"]


def test_chat_is_refused_before_the_model_is_loaded(reward_dir, monkeypatch, capsys):
    monkeypatch.setattr(llamafactory.chat.chat_model.ChatModel, "__init__", lambda self: pytest.fail("it was loaded"))
    asked = ["chat", "--model_name_or_path", str(reward_dir), "--template", "qwen3_nothink", "--stage", "rm"]
    assert cli.main(asked) == 2
    assert "does not chat. Serve it with `hsa-factory api`" in capsys.readouterr().err


def test_without_hsa_scores_are_those_of_llamafactory(reward_dir):
    with chat_model(reward_dir, False, stage="rm") as model:
        ids = torch.tensor([model.engine.tokenizer.encode("<m0><m1>", add_special_tokens=False)])
        with torch.no_grad():
            expected = model.engine.model(input_ids=ids)[2][0, -1].item()
        assert scores_of(model, "<m0><m1>") == pytest.approx([expected], abs=1e-5)


def test_export_keeps_rules_and_value_head(reward_dir, tmp_path):
    exported = tmp_path / "exported"
    with integrate("saved"):
        export_model(
            {
                "model_name_or_path": str(reward_dir),
                "template": "qwen3_nothink",
                "stage": "rm",
                "export_dir": str(exported),
                "infer_dtype": "float32",
            }
        )
    assert HSAConfig.from_pretrained(exported) == SCORING
    before, after = load_file(reward_dir / HEAD), load_file(exported / HEAD)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with chat_model(exported, "saved", stage="rm") as model, chat_model(reward_dir, "saved", stage="rm") as former:
        assert scores_of(model, text_of(MARKS)) == pytest.approx(scores_of(former, text_of(MARKS)), abs=1e-5)
