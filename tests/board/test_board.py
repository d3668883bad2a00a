"""The Board as users have it: switch on, look, train, stop, chat, in two languages."""

import json
import re

import pytest
import yaml
from playwright.sync_api import expect

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.training_file import read_training_file


@pytest.fixture
def ready(user, kitchen):
    """A user who has chosen model and data."""
    if user.page.get_by_label("语言", exact=True).count():  # the Board keeps it
        user.choose("语言", "en")
        user.sees("Model path")
    user.choose("Model name", "Custom")
    user.page.wait_for_timeout(1500)  # what depends on the name comes with it
    user.fill("Model path", str(kitchen / "model"))
    user.choose("Finetuning method", "full")
    user.choose("Chat template", "qwen3_nothink")
    user.choose("Dataset", "household_text")
    user.choose("Compute type", "fp32")
    user.fill("Learning rate", "4e-3")
    user.unfold("HSA & Feedback")
    return user


def switch_on(user, window="20"):
    user.tick("On")
    user.tick("Feedback")
    user.fill("NOISE window", window)


RUNNING = re.compile(r"Running \d+/")


def test_from_fields_to_a_loss_curve(ready, kitchen):
    user = ready
    switch_on(user, "abc")
    user.click("Start")
    user.sees("NOISE window: 'abc' is not allowed: a whole number ≥ 0, or none.")
    assert not (kitchen / "saves").exists()

    user.fill("NOISE window", "20")
    user.choose("Output dir", "first")
    user.fill("Epochs", "1000")
    user.unfold("Extra configurations")
    user.slide("Logging steps", 1)
    user.click("Preview command")
    user.sees("hsa-factory train train.yaml")

    user.click("Preview dataset")
    user.sees("GLOBAL_CONDITION")
    user.click("Types and labels")
    frame = user.page.frame_locator("iframe[srcdoc]")
    expect(frame.get_by_text("tokens of type LANDMARK")).to_be_visible(timeout=240_000)
    assert user.page.locator("iframe[srcdoc]").bounding_box()["height"] > 400
    user.click("Close")

    user.click("Start")
    table = user.sees("Training data with HSA / Feedback", 180)
    assert "household_text" in table.inner_text()
    user.sees(RUNNING, 120)
    assert user.page.locator(".prose", has_text="household_text").first.is_visible()

    user.page.reload()  # the run outlives it
    user.sees(RUNNING, 120)
    expect(user.page.locator("img[alt*='lot'], .matplotlib img").first).to_be_visible(timeout=60_000)
    user.unfold("HSA & Feedback")
    expect(user.page.get_by_label("On", exact=True)).to_be_checked()
    expect(user.page.get_by_placeholder("50", exact=True)).to_have_value("20")
    user.click("Start")
    user.sees("A process is in running")
    user.click("Abort")
    user.sees("Finished.", 120)

    run = kitchen / "saves" / "Custom" / "full" / "first"
    read = read_training_file(run / "training_args.yaml")
    assert (read.hsa, read.feedback) == (HSAConfig(noise_window=20), FeedbackConfig())
    config = yaml.safe_load((run / "llamaboard_config.yaml").read_text())
    assert config["top.hsa_mode"] == "on" and config["top.hsa_noise_window"] == "20"
    losses = [json.loads(line).get("loss") for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    assert len([loss for loss in losses if loss is not None]) > 1


def test_chat_in_two_languages(ready, kitchen):
    user = ready
    switch_on(user)
    user.open("Chat")
    user.click("Load model")
    expect(user.page.get_by_role("button", name="Submit")).to_be_visible(timeout=120_000)
    user.slide("Maximum new tokens", 8)
    bubbles = user.page.get_by_test_id("user")
    user.say("Switch the desk lamp on.", "Submit")
    expect(bubbles.last).to_contain_text("GLOBAL", timeout=30_000)
    user.choose("Semantic type", "NOISE")
    user.say("You have reached the desk lamp.", "Submit")
    expect(bubbles.nth(1)).to_contain_text("NOISE", timeout=30_000)

    user.choose("Language", "zh")
    user.sees("HSA 与 Feedback")
    user.choose("语义类型", "LANDMARK")
    user.say("台灯亮了。", "提交")
    expect(bubbles.nth(2)).to_contain_text("LANDMARK", timeout=30_000)
    expect(user.page.get_by_test_id("bot").nth(2)).to_contain_text("GLOBAL", timeout=30_000)
    user.click("卸载模型")
    expect(user.page.get_by_role("button", name="提交")).to_be_hidden(timeout=30_000)
