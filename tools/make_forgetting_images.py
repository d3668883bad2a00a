"""Draw the pictures of docs/forgetting.md from a trajectory of the quickstart.

    python tools/make_forgetting_images.py            # writes docs/images/forgetting_{reply,pairs}.png

What is drawn is what the attention computes: the biases of `AttentionPlan`.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_docs_images import FUTURE, HIDDEN, IMAGES_DIR, TYPE_COLOURS, prepare_data, write_training_file
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.inspection.inspected_sample import InspectedSample


SAMPLE = 23  # a picture in the task, another in an observation, a feedback turn
REPLY = 12  # "put cup in sink", the sixth reply: what it still sees is drawn
SIGHT = LinearSegmentedColormap.from_list("sight", ["#e6e0f2", "#8a72c0", "#3d2a78"])  # faded to in sight
MESSAGES = {
    0: "system",
    1: "task,\npicture",
    2: "pick up\ncup",
    3: "feedback",
    4: "go to\nnightstand",
    5: "there",
    6: "pick up\ncup",
    7: "held",
    8: "go to\nkitchen",
    9: "picture of\nthe kitchen",
    10: "go to\nsink",
    11: "there",
}
RULES = {
    "noise_window: 50\nnoise_decay: 0.5  (defaults)": {},
    "noise_window: 50\nnoise_decay: 0": {"noise_decay": 0.0},
    "noise_window: none\nnoise_decay: 0.02": {"noise_window": None, "noise_decay": 0.02},
    "noise_turns: 0": {"noise_turns": 0},
    "noise_turns: 1": {"noise_turns": 1},
    "noise_turns: 1\nnoise_decay: 0.02": {"noise_turns": 1, "noise_decay": 0.02},
    "noise_turns: 1\nlandmark_turns: 3": {"noise_turns": 1, "landmark_turns": 3},
}
PANELS = {
    "tokens: noise_window 50, noise_decay 0": {"noise_decay": 0.0},
    "turns: noise_turns 1": {"noise_turns": 1},
    "decay: noise_decay 0.02, no limit": {"noise_window": None, "noise_decay": 0.02},
}


def plan_of(sample: InspectedSample) -> AttentionPlan:
    """Return the plan of a sample alone in its batch."""
    return AttentionPlan.from_inputs(torch.tensor([sample.semantic_ids]), turn_ids=torch.tensor([sample.turn_ids]))


def weights(sample: InspectedSample, options: dict[str, Any]) -> np.ndarray:
    """Return exp(bias), (L, L): 1 for a key seen as without HSA, 0 for one out of sight."""
    rules = LayerRules.of(HSAConfig(**options))
    return plan_of(sample).dense_bias(torch.float32, rules)[0, 0].exp().numpy()


def draw_reply(sample: InspectedSample, path: Path) -> None:
    """Draw how well the first token of a reply sees everything before it, a strip of tokens for each set of rules."""
    query = next(turn.start for turn in sample.turns if turn.message == REPLY)
    figure = _figure(9.6, 5.4)
    strips = figure.subplots(len(RULES) + 1, 1, sharex=True, height_ratios=[0.7] + [1] * len(RULES))
    options = {"aspect": "auto", "interpolation": "nearest", "extent": (-0.5, query + 0.5, 0, 1)}
    types = np.array(sample.semantic_ids[: query + 1])[None]
    strips[0].imshow(types, cmap=ListedColormap(list(TYPE_COLOURS.values())), vmin=0, vmax=2, **options)
    for axes, (name, rule) in zip(strips[1:], RULES.items(), strict=True):
        seen = weights(sample, rule)[query, : query + 1]
        axes.imshow(np.ma.masked_equal(seen, 0)[None], cmap=SIGHT, vmin=0, vmax=1, **options)
        axes.set_facecolor(HIDDEN)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    strips[0].set_ylabel("type", rotation=0, ha="right", va="center", fontsize=8)
    for axes in strips:
        _mark_messages(axes.axvline, sample, query, 0.7, 2.2)
        axes.set(yticks=[])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=8)

    for turn in sample.turns:
        if turn.message in MESSAGES:
            middle = (turn.start + turn.stop) / 2
            strips[0].text(middle, 1.2, MESSAGES[turn.message], ha="center", va="bottom", fontsize=7)
    turns = np.array(sample.turn_ids[: query + 1])
    strips[-1].set_xticks([np.flatnonzero(turns == number).mean() for number in range(turns[-1] + 1)])
    strips[-1].set_xticklabels([f"turn {number}" for number in range(turns[-1] + 1)])
    figure.suptitle("What the reply “put cup in sink” still sees", fontsize=11)
    handles = [Patch(color=colour, label=kind.name) for kind, colour in TYPE_COLOURS.items()]
    handles += [Patch(color=SIGHT(0.9), label="in sight"), Patch(color=SIGHT(0.2), label="faded")]
    handles += [Patch(color=HIDDEN, label="out of sight")]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    _save(figure, path)


def draw_pairs(sample: InspectedSample, path: Path) -> None:
    """Draw the pairs of tokens that see each other, one panel for each way to forget."""
    length = len(sample.semantic_ids)
    key, query = np.meshgrid(np.arange(length), np.arange(length))
    figure = _figure(10.2, 4.5)
    for axes, (name, rule) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        seen = weights(sample, rule)
        background = np.where(key > query, 1.0, 0.0)
        axes.imshow(background, cmap=ListedColormap([HIDDEN, FUTURE]), interpolation="nearest")
        axes.imshow(np.ma.masked_equal(seen, 0), cmap=SIGHT, vmin=0, vmax=1, interpolation="nearest")
        _mark_messages(axes.axhline, sample, length, 0, 0.9)
        _mark_messages(axes.axvline, sample, length, 0, 0.9)
        axes.set_title(f"{name}\n{np.count_nonzero(seen):,} pairs", fontsize=9)
        axes.set(xticks=range(0, length, 100), yticks=range(0, length, 100), xlabel="key token")
        axes.tick_params(labelsize=8)
        axes.spines[:].set_visible(False)
    figure.axes[0].set_ylabel("query token")
    handles = [Patch(color=SIGHT(0.9), label="in sight"), Patch(color=SIGHT(0.2), label="faded")]
    handles += [Patch(color=HIDDEN, label="out of sight")]
    handles += [Patch(facecolor=FUTURE, edgecolor="#999999", label="later token")]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    _save(figure, path)


def _mark_messages(line: Any, sample: InspectedSample, end: int, width: float, turn_width: float) -> None:
    """Draw a white line where each message begins, of another width where a turn does."""
    numbers = [-1] + [turn.number for turn in sample.turns]
    for turn, before in zip(sample.turns, numbers, strict=False):
        if 0 < turn.start <= end:
            line(turn.start - 0.5, color="white", lw=turn_width if turn.number != before else width)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def main() -> int:
    """Write the pictures."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        data = prepare_data(write_training_file(Path(directory)))
        sample = next(iter(data.samples(SAMPLE, SAMPLE + 1)))
    draw_reply(sample, IMAGES_DIR / "forgetting_reply.png")
    draw_pairs(sample, IMAGES_DIR / "forgetting_pairs.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
