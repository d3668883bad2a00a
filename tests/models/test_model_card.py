"""What a saved model says of HSA to readers and to programs that do not know HSA."""

import json
import warnings

import pytest
import torch
from helpers import VISION, build, enabled
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from hsa_factory import HSAConfig, disable_hsa, enable_hsa
from hsa_factory.models.model_card import NOTE, NOTE_KEY, mentions_hsa, write_card_section


CONFIG = HSAConfig(noise_window=7, hide=[("GLOBAL", "NOISE")])
HEADING = "## Hierarchical Semantic Attention (HSA)"


def card(directory):
    return (directory / "README.md").read_text("utf-8")


def values(directory):
    return json.loads((directory / "config.json").read_text("utf-8"))


class TestNote:
    @pytest.mark.parametrize("model_type", ["qwen3", "qwen2_5_vl"])
    def test_plain_transformers_keeps_it(self, model_type, tmp_path, caplog):
        enabled(model_type, CONFIG).save_pretrained(tmp_path / "saved")
        assert values(tmp_path / "saved")[NOTE_KEY] == NOTE and not mentions_hsa(tmp_path / "saved")
        auto_class = AutoModelForImageTextToText if model_type in VISION else AutoModelForCausalLM
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = auto_class.from_pretrained(tmp_path / "saved")
        assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
        loaded.save_pretrained(tmp_path / "again")
        assert values(tmp_path / "again")[NOTE_KEY] == AutoConfig.from_pretrained(tmp_path / "again").hsa == NOTE
        assert mentions_hsa(tmp_path / "again")  # and no rules: they are lost

    def test_a_model_in_memory_has_none(self, tmp_path):
        model = enabled("llama", CONFIG)
        model.save_pretrained(tmp_path / "on")
        assert not hasattr(model.config, NOTE_KEY)
        disable_hsa(model).save_pretrained(tmp_path / "off")
        assert NOTE_KEY not in values(tmp_path / "off") and not (tmp_path / "off" / "README.md").exists()

    def test_it_stays_where_a_save_fails(self, tmp_path):
        enabled("llama", CONFIG).save_pretrained(tmp_path / "saved")
        model = enable_hsa(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))
        (tmp_path / "file").touch()
        with pytest.raises(OSError):
            model.save_pretrained(tmp_path / "file" / "below")
        assert model.config.hsa == NOTE

    @pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"hsa": {"heads": 3}}'])
    def test_no_note(self, content, tmp_path):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert not mentions_hsa(tmp_path)

    def test_rules_that_are_lost_are_warned_of(self, tmp_path, caplog):
        enabled("llama", CONFIG).save_pretrained(tmp_path)
        (tmp_path / "hsa_config.json").unlink()
        enable_hsa(AutoModelForCausalLM.from_pretrained(tmp_path))
        assert "hsa_config.json is missing" in caplog.text


class TestCard:
    def test_a_card_is_begun(self, tmp_path):
        enabled("llama", CONFIG).save_pretrained(tmp_path)
        text = card(tmp_path)
        assert text.startswith("---\ntags:\n- hsa\n---\n") and text.count(HEADING) == 1
        assert "- `noise_window`: 7\n" in text and "- `hide`: [[0, 2]]\n" in text and "--model_name_or_path" in text

    @pytest.mark.parametrize(
        "text", ["# Mine\r\n\r\nWords.\r\n", "---\nlicense: mit\n---\n# Mine", "", "\n", "caf\udce9\n"]
    )
    def test_what_stands_there_is_kept(self, tmp_path, text):
        path = tmp_path / "README.md"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        write_card_section(tmp_path, CONFIG)
        first = path.read_bytes()
        assert first.startswith(text.rstrip().encode("utf-8", "surrogateescape"))
        write_card_section(tmp_path, CONFIG)
        assert path.read_bytes() == first
        path.write_bytes(first + b"\r\nmore\r\n")
        write_card_section(tmp_path, HSAConfig(noise_window=8))
        third = path.read_bytes()
        assert third.endswith(b"\r\nmore\r\n") and b"`noise_window`: 8" in third
        assert third.count(HEADING.encode()) == 1 and b"`noise_window`: 7" not in third

    def test_a_section_whose_end_is_gone(self, tmp_path):
        write_card_section(tmp_path, CONFIG)
        cut = card(tmp_path).partition("<!-- hsa-factory: end")[0]
        (tmp_path / "README.md").write_text(cut, "utf-8")
        write_card_section(tmp_path, CONFIG)
        assert card(tmp_path).startswith(cut.rstrip())

    def test_of_an_adapter(self, tmp_path):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(enabled("qwen3", CONFIG), peft.LoraConfig(target_modules=["q_proj"]))
        for _ in range(2):
            model.save_pretrained(tmp_path)
            text = card(tmp_path)
            assert "library_name: peft" in text and "- PEFT " in text
            assert text.count(HEADING) == 1 and "--adapter_name_or_path" in text
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            peft.PeftConfig.from_pretrained(tmp_path)

    @pytest.mark.parametrize("is_main_process", [True, False])
    def test_only_the_main_process_writes(self, tmp_path, is_main_process):
        model = build("llama")
        stock = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        enable_hsa(model, CONFIG).save_pretrained(tmp_path, is_main_process=is_main_process)
        assert (tmp_path / "README.md").exists() is is_main_process
        assert all(torch.equal(tensor, stock[name]) for name, tensor in model.state_dict().items())
