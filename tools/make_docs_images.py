"""Draw the pictures of the documentation from the quickstart's data.

    python tools/make_docs_images.py            # writes docs/images/{bias.png,inspect.svg,inspect_page.png}

The last needs a Chromium. Everything is seeded and made offline, so that the pictures only change when the code or the
data does.
"""

import contextlib
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from playwright.sync_api import sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from hsa_factory import HSAConfig, SemanticType
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.commands import inspect
from hsa_factory.inspection.inspected_sample import InspectedSample
from hsa_factory.inspection.terminal import print_legend, print_sample
from hsa_factory.llamafactory.inspect.prepared_data import PreparedData, load_samples
from hsa_factory.quickstart.recipes import DATA_DIR, RECIPES
from hsa_factory.tiny import save_tiny
from hsa_factory.training_file import read_training_file


IMAGES_DIR = Path(__file__).resolve().parents[1] / "docs" / "images"
SAMPLE = 1  # a trajectory with a picture, key events and a feedback turn
PAGE_SAMPLE = 23  # one with a picture in an observation, too
TYPE_COLOURS = {SemanticType.GLOBAL: "#1b9aaa", SemanticType.LANDMARK: "#3a9d3a", SemanticType.NOISE: "#e0b400"}
HIDDEN, FUTURE = "#c9c9c9", "#f3f3f3"


def write_training_file(directory: Path) -> Path:
    """Build the quickstart's tiny Qwen2.5-VL in `directory`; return a training file for it on the household data."""
    recipe = next(recipe for recipe in RECIPES if recipe.name == "qwen2_5_vl_full")
    texts = (DATA_DIR / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    save_tiny(recipe.model_type, directory / recipe.model_type, texts)
    path = directory / "train.yaml"
    path.write_text(
        recipe.render(str(path), models_dir=str(directory), data_dir=str(DATA_DIR), output_dir=str(directory / "out")),
        encoding="utf-8",
    )
    return path


def prepare_data(file: Path) -> PreparedData:
    """Prepare the data of a training file."""
    with contextlib.redirect_stdout(io.StringIO()):
        return load_samples(read_training_file(file))


def draw_bias(sample: InspectedSample, path: Path) -> None:
    """Draw the stock causal mask and HSA's bias of a sample side by side, types on the axes."""
    semantic_ids = torch.tensor([sample.semantic_ids])
    plain = AttentionPlan.from_inputs(semantic_ids).dense_bias(torch.float32, LayerRules.plain())[0, 0].numpy()
    biased = (
        AttentionPlan.from_inputs(semantic_ids).dense_bias(torch.float32, LayerRules.of(HSAConfig()))[0, 0].numpy()
    )

    figure = Figure(figsize=(9.6, 5.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06)
    panels = figure.subplots(1, 2)
    for axes, bias, title in ((panels[0], plain, "stock causal attention"), (panels[1], biased, "with HSA")):
        seen = int(np.isfinite(bias).sum())
        image = _draw_panel(axes, bias, sample.semantic_ids)
        axes.set_title(f"{title}: {seen:,} visible pairs", fontsize=11, pad=14)

    panels[0].set_ylabel("query token", labelpad=10)
    bar = figure.colorbar(image, ax=panels, shrink=0.72, pad=0.02, ticks=[0.001, 0.01, 0.1, 1, 10])
    bar.ax.set_yticklabels(["≈ 0", "−0.01", "−0.1", "−1", "−10"])
    bar.ax.invert_yaxis()
    bar.set_label("bias on the attention logit")
    handles = [Patch(color=colour, label=kind.name) for kind, colour in TYPE_COLOURS.items()]
    handles += [
        Patch(color=HIDDEN, label="out of sight: probability 0"),
        Patch(facecolor=FUTURE, edgecolor="#999999", label="later token"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _draw_panel(axes: Any, bias: np.ndarray, semantic_ids: list[int]) -> Any:
    """Draw one matrix, with a strip of types along each axis; return the image the colour bar belongs to."""
    length = len(semantic_ids)
    query, key = np.indices(bias.shape)
    background = np.where(key > query, 1.0, 0.0)
    extent = (-0.5, length - 0.5, length - 0.5, -0.5)
    axes.imshow(background, cmap=ListedColormap([HIDDEN, FUTURE]), extent=extent, interpolation="nearest")
    strength = np.ma.masked_where(~np.isfinite(bias), np.clip(-bias, 1e-3, None))
    image = axes.imshow(
        strength, cmap="YlGnBu_r", norm=LogNorm(1e-3, 25), extent=extent, interpolation="nearest", zorder=2
    )

    colours = ListedColormap(list(TYPE_COLOURS.values()))
    types = np.array(semantic_ids)
    options = {"cmap": colours, "vmin": 0, "vmax": 2, "interpolation": "nearest", "clip_on": False, "aspect": "auto"}
    gap, width = 3, 9
    axes.imshow(types[None, :], extent=(-0.5, length - 0.5, -gap, -gap - width), **options)
    axes.imshow(types[:, None], extent=(-gap - width, -gap, length - 0.5, -0.5), **options)
    axes.set(xlim=(-gap - width, length - 0.5), ylim=(length - 0.5, -gap - width), xlabel="key token", aspect="equal")
    axes.set_xticks(range(0, length, 100))
    axes.set_yticks(range(0, length, 100))
    axes.spines[:].set_visible(False)
    return image


class _WrappingConsole(Console):
    """A console that breaks long lines itself, as a terminal does, where a picture would cut them off."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **kwargs: Any) -> None:
        super().print(*objects, **kwargs)


def draw_inspect(data: PreparedData, sample: InspectedSample, path: Path) -> None:
    """Write what ``hsa-factory inspect`` prints for a sample as a picture."""
    console = _WrappingConsole(
        record=True, width=114, highlight=False, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    print_legend(console, data.marker)
    print_sample(console, sample, data.decode, data.marker_id)
    # Without the web font there is nothing to download: the viewer's own monospaced font does.
    without_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(
        title="hsa-factory inspect train.yaml --samples 1", code_format=without_fonts, unique_id="inspect"
    )
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def draw_page(file: Path, path: Path) -> None:
    """Photograph the page that ``hsa-factory inspect`` writes for a training file: what one reply still saw.

    Args:
        file: The training file.
        path: Of the picture.
    """
    html = file.with_suffix(".html")
    options = ["--samples", str(PAGE_SAMPLE), "--format", "html", "--output", str(html)]
    inspect.main([str(file), *options, "hsa.noise_window=none", "hsa.noise_turns=1"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
        view.goto(f"{html.as_uri()}#sample={PAGE_SAMPLE}")
        view.locator(".saw").last.click()
        view.wait_for_selector(".t.query")
        view.locator("img").last.scroll_into_view_if_needed()
        view.mouse.move(0, 0)
        view.wait_for_timeout(500)
        view.screenshot(path=path)
        browser.close()
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    """Write the pictures."""
    torch.manual_seed(0)
    IMAGES_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        file = write_training_file(Path(directory))
        data = prepare_data(file)
        sample = next(iter(data.samples(SAMPLE, SAMPLE + 1)))
        draw_bias(sample, IMAGES_DIR / "bias.png")
        draw_inspect(data, sample, IMAGES_DIR / "inspect.svg")
        draw_page(file, IMAGES_DIR / "inspect_page.png")
    for path in sorted(IMAGES_DIR.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
