"""The documentation: links lead somewhere, and the blocks of training files that it shows are accepted."""

import re
from pathlib import Path

import pytest

from hsa_factory.training_file import BLOCKS, read_training_file


ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def without_code(text):
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_training_files_are_accepted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "train.yaml"
    fences = re.findall(r"^( *)```yaml\n(.*?)^\1```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    for indent, block in fences:
        block = re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
        for alternative in split_repeated(block):
            file.write_text(alternative, "utf-8")
            if any(re.search(f"^{name}:", alternative, re.MULTILINE) for name in BLOCKS):
                read_training_file(file)


def split_repeated(block):
    """Yield a block as often as it writes one key ("or:"), each time with one of them."""
    parts = re.split(r"^(?=\S)", block, flags=re.MULTILINE)
    keys = [part.partition(":")[0] for part in parts]
    if len(set(keys)) == len(keys):
        yield block
    else:
        yield from parts
