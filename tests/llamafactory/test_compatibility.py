"""What is counted on in LLaMA-Factory: named, there, and said when it has moved."""

import inspect

import pytest
from llamafactory.data import loader
from llamafactory.data.template import Template
from llamafactory.extras.env import VERSION

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.hosts import is_known_llamafactory
from hsa_factory.llamafactory import compatibility
from hsa_factory.llamafactory.integration import all_seams
from hsa_factory.llamafactory.state import Integration
from hsa_factory.loss_weights import LossWeightsConfig


def name_of(seam):
    owner = seam.owner
    module = owner.__name__ if inspect.ismodule(owner) else f"{owner.__module__}.{owner.__qualname__}"
    return f"{module}.{seam.name}"


def test_nothing_has_moved():
    assert compatibility.find_moved(VERSION) == []


def test_every_seam_is_named():
    state = Integration(HSAConfig(), FeedbackConfig(), LossWeightsConfig())
    seams = all_seams(state)
    listed = {point.name for point in compatibility.points()}
    assert len(seams) > 25 and [name for name in map(name_of, seams) if name not in listed] == []


def test_every_line_is_read():
    lines = [line for line in f"{compatibility.REPLACED}{compatibility.EXTENDED}".split("\n") if line]
    assert len(list(compatibility.points())) == len(lines)


def test_what_has_moved_is_said_by_name(monkeypatch):
    monkeypatch.delattr(loader, "merge_dataset")
    monkeypatch.setattr(Template, "remove_thought", lambda self, content, strict=False: content)
    monkeypatch.setattr(compatibility, "EXTENDED", compatibility.EXTENDED + "nowhere.at_all(x)\n")
    assert compatibility.find_moved(VERSION) == [
        "llamafactory.data.loader.merge_dataset is gone",
        "llamafactory.data.template.Template.remove_thought takes (self, content, strict), not (self, content)",
        "llamafactory.nowhere.at_all is gone, with its module",
    ]


def test_points_of_other_versions_are_passed_over():
    streams = [point for point in compatibility.points() if point.name.endswith("WebChatModel.stream")]
    assert [point.holds_in("0.9.5") for point in streams] == [True, False]
    assert [point.holds_in("0.9.6.dev0") for point in streams] == [False, True]


@pytest.mark.parametrize(
    ("version", "is_known"),
    [("0.9.4", False), ("0.9.5", True), ("0.9.6.dev0", True), ("0.9.6", True), ("0.9.7.dev0", False), ("main", False)],
)
def test_known_versions(version, is_known):
    assert is_known_llamafactory(version) is is_known
