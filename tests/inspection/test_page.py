"""The HTML page: nothing of the data runs, nothing is loaded, and what it says of a token is what the attention does."""

import dataclasses
import io
import json
import random
import re
import time

import pytest
import torch
from PIL import Image

from hsa_factory import HSAConfig
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.attention.plan import AttentionPlan
from hsa_factory.inspection.inspected_sample import InspectedSample, Media, Part, RowSummary, Turn, count_trained
from hsa_factory.inspection.page import PageWriter
from hsa_factory.visible_text import show_hidden


EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> &amp; <b>bold</b>"
WORDS = ["open", " the", " fridge", " 苹果", " 👩‍🚒", " مرحبا", EVIL, "\n", " ", "\u2028"]
REASONS = ("role", "before marker", "weight", "media", "padding")


def make_sample(index, texts, types=None, trained=None, turns=None, documents=None, cut=0):
    """A sample of one token a text; ids are the texts' numbers."""
    n = len(texts)
    types = types or [k % 3 for k in range(n)]
    trained = trained or [k % 2 == 0 for k in range(n)]
    return InspectedSample(
        index=index,
        dataset=f"kitchen {EVIL}",
        input_ids=list(range(100, 100 + n)),
        semantic_ids=types,
        labels=[5 if one else -100 for one in trained],
        tokens=list(texts),
        reasons=[None if one else REASONS[k % len(REASONS)] for k, one in enumerate(trained)],
        documents=documents or [1] * n,
        parts=[Part(f"kitchen {EVIL}", index + 7, 0, n, cut, cut > 0)],
        turns=turns
        if turns is not None
        else [Turn(0, 0, "user", 0, n // 2), Turn(0, 1, "assistant", n // 2, n, [7] * cut)],
    )


def summary(sample):
    counts = tuple(sample.counts().values())
    cut = sum(part.cut for part in sample.parts)
    return RowSummary(
        sample.index, sample.dataset, len(sample.input_ids), counts, count_trained(sample.labels), cut, cut > 0
    )


ACCOUNT = {
    "samples": 9,
    "with_marker": 2,
    "kept": 6,
    "dropped": {f"nothing left {EVIL}": 3},
    "dropped_samples": {f"nothing left {EVIL}": [1, 2]},
    "text_truncated": 1,
    "turns_removed": 0,
    "tokens": {"GLOBAL": 1, "LANDMARK": 2, "NOISE": 3},
    "total_tokens": 6,
    "trained_share": 0.5,
    "sight": {"replies": 4, "blind": 2},
}


def write(path, samples, config=HSAConfig(), more=(), notes=()):
    page = PageWriter(f"train {EVIL}.yaml", config, 101, lambda ids: EVIL * (len(ids) > 0), notes)
    for sample in samples:
        page.add(sample)
    with open(path, "w", encoding="utf-8") as file:
        page.write(file, [summary(sample) for sample in [*samples, *more]], {f"kitchen {EVIL}": ACCOUNT})
    return path


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    directory = tmp_path_factory.mktemp("page")
    Image.new("RGB", (1000, 700), "red").save(directory / "big.png")
    (directory / "broken.png").write_bytes(b"no picture")
    media = [
        Media("image", str(directory / "big.png"), 2),
        Media("image", str(directory / "broken.png"), 3),
        Media("video", EVIL, 3),
    ]
    texts = [WORDS[k % len(WORDS)] for k in range(40)]
    turns = [
        Turn(0, None, "system", 0, 2),
        Turn(0, 0, "user", 2, 20, [], media),
        Turn(0, 1, "assistant", 20, 40, [1, 2, 3]),
    ]
    samples = [
        make_sample(0, texts, turns=turns, cut=3),
        make_sample(4, texts[:11]),
        make_sample(5, texts, turns=[], documents=[1] * 15 + [2] * 20 + [0] * 5),
    ]
    return write(directory / "page.html", samples, more=[make_sample(9, texts)], notes=[f"note {EVIL}"])


# -- without a browser -----------------------------------------------------------------------------------------


def scripts(text):
    return re.findall(r"<script([^>]*)>(.*?)</script>", text, re.S)


def test_the_data_cannot_leave_their_script_elements(page_file):
    text = page_file.read_text("utf-8")
    assert "window.hacked = 1</script>" not in text and "<img src=x" not in text
    data = [json.loads(body) for attributes, body in scripts(text) if "application/json" in attributes]
    assert len(data) == 3 + 3
    shown = [show_hidden(WORDS[k % len(WORDS)]) for k in range(40)]
    assert data[3]["text"] == "".join(shown)
    assert data[3]["lengths"] == [len(word.encode("utf-16-le")) // 2 for word in shown]


def test_nothing_is_loaded_and_scripts_need_the_nonce(page_file):
    text = page_file.read_text("utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", text)[1]
    assert "default-src 'none'" in text
    own = [attributes for attributes, _ in scripts(text) if "application/json" not in attributes]
    assert own and all(f'nonce="{nonce}"' in attributes for attributes in own)


def test_pictures_are_small_and_shown_once(tmp_path):
    Image.effect_noise((2000, 1500), 90).save(tmp_path / "big.png")
    texts = ["a"] * 4
    media = [Media("image", str(tmp_path / "big.png"), k) for k in range(4)]
    path = write(
        tmp_path / "page.html", [make_sample(k, texts, turns=[Turn(0, 0, "user", 0, 4, [], media)]) for k in (0, 1)]
    )
    text = path.read_text("utf-8")
    assert text.count("data:image/jpeg;base64,") == 1
    assert len(text) < 250_000


@pytest.mark.parametrize("source", ["bytes", "mapping", "pillow", "path in a mapping"])
def test_pictures_as_data_sets_hold_them(tmp_path, source):
    picture = Image.new("RGBA", (20, 10), "blue")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    picture.save(tmp_path / "a.png")
    value = {
        "bytes": buffer.getvalue(),
        "mapping": {"bytes": buffer.getvalue(), "path": None},
        "pillow": picture,
        "path in a mapping": {"bytes": None, "path": str(tmp_path / "a.png")},
    }[source]
    sample = make_sample(0, ["a", "b"], turns=[Turn(0, 0, "user", 0, 2, [], [Media("image", value, 0)])])
    assert "data:image/jpeg" in write(tmp_path / "page.html", [sample]).read_text("utf-8")


# -- in a browser ----------------------------------------------------------------------------------------------


def random_attention(rng):
    length = rng.randint(1, 60)
    types = [rng.randrange(3) for _ in range(length)]
    documents, number = [], 1
    for _ in range(length):
        number += rng.random() < 0.1
        documents.append(number)
    for _ in range(rng.randrange(3)):
        start = rng.randrange(length)
        documents[start : start + 4] = [0] * len(documents[start : start + 4])
    window = lambda: rng.choice([None, 0, 1, 5, 50])
    decay = lambda: rng.choice([0.0, 0.001, 0.5, 2.25])
    pairs = [(query, key) for query in range(3) for key in range(3)]
    turns = {f"{kind}_turns": rng.choice([None, None, 0, 1, 3]) for kind in ("global", "landmark", "noise")}
    turn_ids = [0] * length
    for number in set(documents) - {0}:
        turn = rng.randrange(5)
        for place in range(length):
            if documents[place] == number:
                turn += rng.choice([0, 0, 0, 1, 3])
                turn_ids[place] = turn
    config = HSAConfig(
        global_decay=decay(), landmark_decay=decay(), noise_decay=decay(),
        global_window=window(), landmark_window=window(), noise_window=window(),
        hide=rng.sample(pairs, rng.randrange(4)), **turns,
    )  # fmt: skip
    return types, documents, turn_ids, config


def test_the_page_computes_the_bias_of_the_attention_plan(opened, page_file):
    rng = random.Random(0)
    with opened(page_file) as page:
        for _ in range(60):
            types, documents, turn_ids, config = random_attention(rng)
            rules = {name: getattr(config, name) for name in ("decays", "windows", "turns", "hide")}
            rows = page.evaluate(
                """([types, documents, rules, turns]) => {
                    const [kinds, rows, numbers] = [Uint8Array.from(types), Int32Array.from(documents), Int32Array.from(turns)];
                    const attention = new Attention(kinds, rows, rules, numbers);
                    const text = (bias) => (bias === -Infinity ? null : bias);
                    return types.map((_, query) => [[...attention.biasRow(query)].map(text), attention.count(query)]);
                }""",
                [types, documents, rules, turn_ids],
            )
            tensors = [torch.tensor([values]) for values in (types, documents, turn_ids)]
            plan = AttentionPlan.from_inputs(*tensors[:2], turn_ids=tensors[2])
            expected = plan.dense_bias(torch.float32, LayerRules.of(config))[0, 0]
            actual = torch.tensor(
                [[float("-inf") if bias is None else bias for bias in row] for row, _ in rows], dtype=torch.float32
            )
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
            for query, (_, counts) in enumerate(rows):
                seen = expected[query, : query + 1] != float("-inf")
                kinds = torch.tensor(types)[: query + 1]
                assert counts["seen"] == [int((seen & (kinds == kind)).sum()) for kind in range(3)]
                assert counts["unseen"] == [int((~seen & (kinds == kind)).sum()) for kind in range(3)]


def test_without_rules_every_token_sees_all_before_it(opened, tmp_path):
    path = write(tmp_path / "page.html", [make_sample(0, ["a"] * 70, types=[2] * 70)], config=None)
    with opened(path) as page:
        row = page.evaluate("[...HSA.sample(0).attention.biasRow(60)].map((bias) => bias === 0)")
        assert row == [True] * 61 + [False] * 9


def test_data_are_shown_and_never_run(opened, page_file):
    with opened(page_file) as page:
        for target in ("#overview", "#sample=0", "#sample=4", "#sample=5"):
            page.evaluate("(target) => { location.hash = target; }", target)
            page.wait_for_timeout(50)
            assert page.evaluate("window.hacked") is None
        page.evaluate("location.hash = '#sample=0'")
        page.wait_for_selector(".turn")
        assert EVIL in page.inner_text("#conversation")
        assert (
            page.evaluate("document.querySelectorAll('#conversation b, #conversation script, header b').length") == 0
        )
        assert EVIL in page.inner_text("header .file")
        page.click("details.cut summary")
        assert EVIL in page.inner_text("details.cut")
        assert page.evaluate("window.hacked") is None


def test_the_conversation(opened, page_file):
    with opened(page_file) as page:
        page.evaluate("location.hash = '#sample=0'")
        page.wait_for_selector(".turn .t")
        heads = page.locator(".turn header").all_inner_texts()
        assert [re.sub(r"\s+", " ", head).strip() for head in heads] == [
            "system 2 tokens · 1 trained",
            "user message 0 18 tokens · 9 trained",
            "assistant message 1 what it still saw 20 tokens · 10 trained",
        ]
        assert page.locator("img.media").count() == 1
        assert page.locator("img.media").evaluate("(image) => image.naturalWidth") <= 480
        notes = page.locator("span.media").all_inner_texts()
        assert notes[0] == "image: broken.png" and notes[1].startswith("video: ")
        assert page.inner_text("details.cut summary") == "3 tokens cut away by cutoff_len"
        assert page.locator("#conversation .t.marker").count() == 1
        texts = page.locator("#conversation .t").evaluate_all(
            "(spans) => spans.map((span) => [span.textContent, span.className])"
        )
        assert [text for text, _ in texts] == [show_hidden(WORDS[k % len(WORDS)]) for k in range(40)]
        for k, (_, style) in enumerate(texts):
            assert f"t{k % 3}" in style.split() and ("u" in style.split()) == (k % 2 == 1)
        # white space, direction and whole characters stay what they are
        assert (
            page.locator(".body").first.evaluate("(body) => [body.dir, getComputedStyle(body).whiteSpace]")[0]
            == "auto"
        )


def classes(page):
    return page.locator("#conversation .t").evaluate_all("(spans) => spans.map((span) => span.className.split(' '))")


def test_a_token_shows_what_it_sees(opened, page_file):
    config = HSAConfig()
    with opened(page_file) as page:
        page.evaluate("location.hash = '#sample=5'")  # three documents: the last is padding
        page.wait_for_selector(".turn .t")
        documents = torch.tensor([[1] * 15 + [2] * 20 + [0] * 5])
        types = torch.tensor([[k % 3 for k in range(40)]])
        bias = AttentionPlan.from_inputs(types, documents).dense_bias(torch.float32, LayerRules.of(config))[0, 0]
        page.locator("#conversation .t").nth(30).click()
        for k, names in enumerate(classes(page)):
            if k == 30:
                assert "query" in names
            elif k > 30:
                assert "later" in names
            else:
                assert ("hidden" in names) == (bias[30, k] == float("-inf"))
                assert any(re.fullmatch(r"s[1-8]", name) for name in names) != ("hidden" in names)
        seen = [int((bias[30, :31] != float("-inf")).logical_and(types[0, :31] == kind).sum()) for kind in range(3)]
        table = page.locator("#seen td").all_inner_texts()
        assert [int(text) for text in table[::2]] == seen
        assert sum(map(int, table)) == 31
        assert f"It sees {sum(seen)} of the 31 tokens up to itself" in page.inner_text("#seen caption")
        assert page.inner_text("#live").endswith(f"sees {sum(seen)} of 31")
        assert page.evaluate("location.hash") == "#sample=5&token=30"


def state_of(bias):
    """What is seen of some keys, by the definition."""
    clear, gone = int((bias >= -3).sum()), int((bias == float("-inf")).sum())
    if gone == len(bias):
        return "gone"
    return "faded" if not clear else "in sight" if clear == len(bias) else "in part"


@pytest.mark.parametrize(
    "rules", [{"noise_turns": 0}, {"noise_turns": 1, "landmark_decay": 0.1}, {"noise_window": 30}]
)
def test_a_reply_shows_what_it_still_saw(opened, tmp_path, rules):
    """Ten turns of a message with two pictures, 12 tokens, and a reply of 6; a short one as a document of its own."""
    turns, types, places = [], [], []
    for k in range(10):
        start = len(types)
        media = [Media("image", "a.png", start + 1, 3), Media("image", "b.png", start + 5, 3)]
        turns += [Turn(0, 2 * k, "user", start, start + 12, [], media, number=k)]
        turns += [Turn(0, 2 * k + 1, "assistant", start + 12, start + 18, number=k)]
        types += [2] * 8 + [1] * 4 + [k % 3] * 6
        places += [start + 1, start + 5]
    turns += [Turn(1, 0, "user", 180, 185, number=0), Turn(1, 1, "assistant", 185, 190, number=0)]
    types += [0] * 10
    documents, numbers = [1] * 180 + [2] * 10, [k // 18 for k in range(180)] + [0] * 10
    sample = make_sample(0, ["a "] * 190, types=types, turns=turns, documents=documents)
    is_media = {place + k for place in places for k in range(3)}
    reasons = ["media" if k in is_media else None for k in range(190)]
    parts = [Part("d", 0, 0, 180, 0, False), Part("d", 1, 180, 190, 0, False)]
    sample = dataclasses.replace(sample, turn_ids=numbers, reasons=reasons, parts=parts)
    config = HSAConfig(**rules)
    tensors = [torch.tensor([values]) for values in (types, documents, numbers)]
    plan = AttentionPlan.from_inputs(*tensors[:2], turn_ids=tensors[2])
    assert turns[17].start == 156  # the last reply but one
    row = plan.dense_bias(torch.float32, LayerRules.of(config))[0, 0, 156]

    with opened(write(tmp_path / "page.html", [sample], config=config)) as page:
        page.evaluate("location.hash = '#sample=0'")
        page.wait_for_selector(".turn .t")
        page.locator(".saw").nth(8).click()
        assert page.evaluate("location.hash") == "#sample=0&token=156"
        assert page.inner_text("#still-title") == "What the reply, message 17 (turn 8), still saw"
        states = [state_of(row[turn.start : turn.stop]) for turn in turns[:17]]
        shown = page.evaluate("[...document.querySelectorAll('.turn')].map((turn) => turn.dataset.state || null)")
        assert shown == [state.replace(" ", "-") for state in states] + [None] * 5
        of_media = [state_of(row[place : place + 3]) for place in places[:18]]
        names = ("in sight", "in part", "faded", "gone")
        clear, gone = int((row[:156] >= -3).sum()), int((row[:156] == float("-inf")).sum())
        expected = [f"{group.count(name)} {name}" for group in (states, of_media) for name in names]
        expected += [f"{clear} in sight", f"{156 - clear - gone} faded", f"{gone} gone"]
        assert page.locator("#still-counts .state").all_inner_texts() == expected
        assert len(set(states)) > 1

        page.locator(".saw").nth(10).click()  # the other document: nothing of the first
        assert page.locator("#still-counts .state").first.inner_text() == "1 in sight"
        page.keyboard.press("Escape")
        assert page.locator("[data-state]").count() == page.locator("#still-counts .state").count() == 0


def test_reasons_are_told_on_hover(opened, page_file):
    with opened(page_file) as page:
        page.evaluate("location.hash = '#sample=4'")
        page.wait_for_selector(".turn .t")
        page.locator("#conversation .t").nth(1).hover()
        page.wait_for_timeout(60)
        assert page.locator("#conversation .t").nth(1).get_attribute("title") == "LANDMARK, not trained: before marker"
        assert "no: before marker" in page.inner_text("#facts")
        assert "query" in classes(page)[1]
        page.mouse.move(1390, 890)
        page.wait_for_timeout(60)
        assert not any("query" in names for names in classes(page))


def test_keys(opened, page_file):
    with opened(page_file) as page:

        def query():
            return page.evaluate("HSA.conversation.query")

        page.keyboard.press("]")
        page.wait_for_selector(".turn .t")
        assert page.evaluate("location.hash") == "#sample=0"
        page.keyboard.press("ArrowRight")
        assert query() == 0
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert query() == 2  # the second message
        page.keyboard.press("ArrowDown")
        assert query() == 20
        page.keyboard.press("ArrowUp")
        assert query() == 2
        page.keyboard.press("End")
        assert query() == 39
        page.keyboard.press("Home")
        assert query() == 0
        page.keyboard.press("Escape")
        assert query() is None
        page.keyboard.press("]")
        page.wait_for_timeout(50)
        assert page.evaluate("location.hash") == "#sample=4"
        page.keyboard.press("o")
        page.wait_for_selector("#overview-view .tile")
        page.keyboard.press("?")
        assert page.locator("dialog[open]").count() == 1


def test_heat_map(opened, page_file):
    with opened(page_file) as page:
        page.evaluate("location.hash = '#sample=4'")
        page.wait_for_selector(".turn .t")
        box = page.locator("#cross").bounding_box()
        at = lambda query, key: (
            box["x"] + (key + 0.5) / 11 * box["width"],
            box["y"] + (query + 0.5) / 11 * box["height"],
        )
        page.mouse.click(*at(7, 3))
        assert page.evaluate("HSA.conversation.query") == 7
        page.mouse.move(*at(7, 2))
        assert re.search(r"\(7\) sees NOISE .*\(2\), bias -2\.50", page.inner_text("#readout"))
        page.mouse.move(*at(2, 7))
        assert "does not see" in page.inner_text("#readout")
        invisible, (red, green, blue, _) = page.evaluate(
            """(points) => {
                const map = document.querySelector("#heat");
                const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.width).data;
                const place = (part) => Math.floor((part + 0.5) / 11 * map.width);
                return points.map(([y, x]) => [...pixels.slice(4 * (place(y) * map.width + place(x))).slice(0, 4)]);
            }""",
            [[2, 7], [9, 0]],
        )
        assert invisible == [255, 255, 255, 255]
        assert blue > green > red  # GLOBAL


def test_overview(opened, page_file):
    with opened(page_file) as page:
        page.wait_for_selector(".tile")
        tiles = page.locator(".tile").all_inner_texts()
        assert tiles[0].split("\n") == ["4", "rows"] and tiles[1].startswith("131")
        assert page.locator(".chart").count() == 6
        longest = page.locator(".outliers section").first
        assert longest.locator("li").count() == 4
        assert longest.locator("a").count() == 3  # sample 9 is not on the page
        assert longest.locator(".absent").get_attribute("title") == "Not on this page: --samples 9"
        assert "nothing left" in page.locator(".outliers section").last.inner_text()
        page.locator(".chart").first.locator(".bar:enabled").last.click()
        assert page.locator(".picked li").count() == 3
        page.locator(".picked a").first.click()
        page.wait_for_selector(".turn .t")
        assert page.evaluate("location.hash") == "#sample=0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened, page_file, scheme):
    contrast = """() => {
        const parse = (text) => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const style = getComputedStyle(document.documentElement);
        const value = (name) => parse(style.getPropertyValue(name));
        return [["--ink", "--paper"], ["--soft", "--paper"], ["--accent", "--paper"], ["--soft", "--ground"]].map((pair) => {
            const [a, b] = pair.map((name) => light(value(name))).sort();
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        });
    }"""
    with opened(page_file, color_scheme=scheme) as page:
        assert all(ratio >= 4.5 for ratio in page.evaluate(contrast))
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(15, 17, 22)") == (scheme == "dark")


def test_a_narrow_window(opened, page_file):
    with opened(page_file) as page:
        page.set_viewport_size({"width": 400, "height": 800})
        page.evaluate("location.hash = '#sample=0'")
        page.wait_for_selector(".turn")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("where", ["#overview", "#sample=0"])
def test_nothing_is_cut_on_a_phone(opened, tmp_path, where):
    sample = make_sample(0, [WORDS[k % len(WORDS)] for k in range(40)], cut=3)
    with opened(write(tmp_path / "page.html", [sample])) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.evaluate("(hash) => (location.hash = hash)", where)
        page.wait_for_selector("main:not([hidden]) :is(.tile, .turn)")
        outside = """() => [...document.querySelectorAll("main:not([hidden]) *, header *")]
            .filter((node) => node.getBoundingClientRect().right > 391 && !node.closest(".unseen")).map((node) => node.outerHTML)"""
        assert page.evaluate(outside) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_was_cut_away_is_one_stop_of_the_tab_key(opened, tmp_path):
    turns = [Turn(0, k, "user" if k % 2 == 0 else "assistant", min(k, 4), min(k + 1, 4), [7] * 3) for k in range(9)]
    with opened(write(tmp_path / "page.html", [make_sample(0, ["a"] * 4, turns=turns)])) as page:
        page.evaluate("location.hash = '#sample=0'")
        page.wait_for_selector(".turn")
        stops = set()
        for _ in range(20):
            page.keyboard.press("Tab")
            stops.add(page.evaluate("`${document.activeElement.tagName}#${document.activeElement.id}`"))
        assert "BUTTON#open-cut" in stops and not any(stop.startswith("SUMMARY") for stop in stops)
        opened_cuts = "document.querySelectorAll('details.cut[open]').length"
        page.locator("#open-cut").click()
        assert page.evaluate(opened_cuts) == 9
        page.keyboard.press("c")
        assert page.evaluate(opened_cuts) == 0
        page.locator(".cut summary").first.click()  # each can still be opened
        assert page.evaluate(opened_cuts) == 1


def test_both_sides_of_a_pair_are_reached(opened, tmp_path):
    samples = [
        dataclasses.replace(make_sample(k, [side, "!", "?"]), side=side)
        for k in (0, 1)
        for side in ("chosen", "rejected")
    ]
    with opened(write(tmp_path / "page.html", samples)) as page:
        choice = page.locator("select").first
        assert choice.locator("option").all_inner_texts()[1:] == [
            *("sample 0 chosen", "sample 0 rejected", "sample 1 chosen", "sample 1 rejected")
        ]
        choice.select_option(label="sample 1 rejected")
        page.wait_for_selector(".turn")
        assert page.evaluate("decodeURIComponent(location.hash)") == "#sample=1 rejected"
        assert page.locator(".turn").first.inner_text().endswith("rejected")
        page.reload()  # a link to one side
        page.wait_for_selector(".turn")
        assert page.locator(".turn").first.inner_text().endswith("rejected")


def test_the_overview_says_what_its_colours_are(opened, page_file):
    with opened(page_file) as page:
        page.wait_for_selector(".tile")
        legend = page.locator("#overview-view .legend").inner_text()
        assert all(name in legend for name in ("GLOBAL", "LANDMARK", "NOISE", "number of rows"))
        assert "2/4" in page.locator(".datasets").inner_text()


def test_32k_tokens_are_fast(opened, tmp_path):
    rng = random.Random(1)
    texts = [rng.choice(["open", " the", " fridge", ".\n", " 苹果"]) for _ in range(32768)]
    types = [rng.choice([0, 1, 2, 2, 2]) for _ in texts]
    turns = [Turn(0, k, ("user", "assistant")[k % 2], 256 * k, 256 * (k + 1)) for k in range(100)]
    turns.append(Turn(0, 100, "user", 25600, 32768))  # one long message
    path = write(tmp_path / "page.html", [make_sample(0, texts, types=types, turns=turns)])
    assert path.stat().st_size < 2**20
    with opened(path) as page:
        start = time.perf_counter()
        page.evaluate("location.hash = '#sample=0'")
        page.wait_for_selector(".turn .t")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        shown = time.perf_counter() - start
        assert page.locator("#conversation .t").count() < 6000
        start = time.perf_counter()
        page.evaluate("location.hash = '#sample=0&token=32000'")
        page.wait_for_selector(".t.query")
        chosen = time.perf_counter() - start
        assert page.locator("#conversation .t.query").is_visible()
        hover = page.evaluate(
            """() => {
                const start = performance.now();
                for (let cell = 31000; cell < 31010; cell++) HSA.conversation.look(cell, false);
                document.body.getBoundingClientRect();
                return (performance.now() - start) / 10;
            }"""
        )
        print(f"32k tokens: shown {shown:.2f} s, token chosen {chosen:.2f} s, {hover:.0f} ms a token pointed at")
        assert hover < 100
        assert shown < 5 and chosen < 2


def test_a_reply_may_begin_with_half_a_character(opened, tmp_path):
    """What two tokens spell together is one thing to click; the reply is the same."""
    turns = [Turn(0, 0, "user", 0, 3), Turn(0, 1, "assistant", 3, 7)]
    sample = make_sample(0, ["a", " b", " c", "\ufffd", "\ufffd", " d", " e"], turns=turns)
    with opened(write(tmp_path / "page.html", [sample])) as page:
        page.evaluate("location.hash = '#sample=0'")
        page.locator(".saw").click()
        assert page.inner_text("#still-title") == "What the reply, message 1, still saw"
