"""How the package is built: arrows point downwards only, files are short, every room imports what it may, none by itself.

The package's files are read, not run.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "src" / "hsa_factory"
LONGEST = 400  # lines
LOWER_ROOMS = ("attention", "models", "typed", "labeling")
BACKENDS = "hsa_factory.attention.backends"
BACKEND_NAMES = ("reference", "dense", "flex", "blockwise", "triton")


def module_name(path):
    parts = ("hsa_factory", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(tree, module, is_package):
    """Yield the full name of everything that a file imports, wherever in it: (module, name in it or None)."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*start, *filter(None, [node.module])])
            for alias in node.names:
                yield source, alias.name


def read_imports(sources):
    """Return what each module imports: modules of the package by their own name, everything else as written.

    Args:
        sources: (text, whether it is a package's own file) by module name.
    """
    imports = {}
    for module, (text, is_package) in sources.items():
        found = set()
        for source, name in imported_names(ast.parse(text), module, is_package):
            inner = f"{source}.{name}"
            found.add(inner if name and (inner in sources or source.split(".")[0] != "hsa_factory") else source)
        imports[module] = found
    return imports


def find_circles(imports):
    """Return the modules that stand in circles, each circle once, sorted."""

    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for module in imports.get(waiting.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    waiting.append(module)
        return seen

    reach = {module: reached(module) for module in imports}
    circles = {
        tuple(sorted({other for other in imports if other in reach[module] and module in reach[other]}))
        for module in imports
        if module in reach[module]
    }
    return sorted(circles)


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def backend_of(module):
    """Return the backend that a module belongs to; None if it belongs to none."""
    if not module.startswith(f"{BACKENDS}."):
        return None
    return module[len(BACKENDS) + 1 :].split(".")[0]


def is_in(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.fixture(scope="module")
def imports():
    return read_imports({name: (path.read_text("utf-8"), path.stem == "__init__") for name, path in FILES.items()})


# -- the reader itself -----------------------------------------------------------------------------------------


def test_the_reader_sees_every_kind_of_import():
    sources = {
        "hsa_factory": ("from .a import x\ndef f():\n    from . import b", True),
        "hsa_factory.a": ("import os.path\nfrom transformers import Trainer", False),
        "hsa_factory.b": ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .c.d import y", False),
        "hsa_factory.c": ("from .d import y", True),
        "hsa_factory.c.d": ("import hsa_factory.a\nfrom ..a import x\nfrom ... import nothing", False),
    }
    assert read_imports(sources) == {
        "hsa_factory": {"hsa_factory.a", "hsa_factory.b"},
        "hsa_factory.a": {"os.path", "transformers.Trainer"},
        "hsa_factory.b": {"typing.TYPE_CHECKING", "hsa_factory.c.d"},
        "hsa_factory.c": {"hsa_factory.c.d"},
        "hsa_factory.c.d": {"hsa_factory.a", ".nothing"},
    }


def test_circles_are_found():
    imports = {"a": {"b", "os"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": {"f"}, "f": {"g"}, "g": {"e"}}
    assert find_circles(imports) == [("b", "c"), ("e", "f", "g")]
    assert find_circles({"a": {"a"}}) == [("a",)] and find_circles({"a": {"b"}, "b": set()}) == []


def test_the_whole_package_is_read(imports):
    assert {"hsa_factory", "hsa_factory.config", "hsa_factory.attention.backends.blockwise.tiles"} <= set(imports)
    assert set(BACKEND_NAMES) == {backend_of(module) for module in imports} - {None}
    assert {room_of(module) for module in imports} >= set(LOWER_ROOMS)


# -- the rules -------------------------------------------------------------------------------------------------


def test_no_import_circle(imports):
    """Imports within functions and for type checkers only count as well: a reader follows them all."""
    assert find_circles(imports) == []


def test_no_long_file():
    lengths = {module: len(path.read_text("utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST} == {}


@pytest.mark.parametrize(("library", "room"), [("llamafactory", "llamafactory"), ("vllm", "vllm")])
def test_one_room_imports_a_host(imports, library, room):
    strangers = [
        module
        for module, names in imports.items()
        if room_of(module) != room and any(is_in(n, library) for n in names)
    ]
    assert strangers == []


def test_the_plugin_for_vllm_stands_alone(imports):
    """Whoever imports it imports vllm; what it may use itself lies below every host."""
    rooms = {"vllm", "config", "semantics", "labeling", "attention", "models", "training", "typed"}
    rooms |= {"loss_weights", "request_keys", "serving_checkpoint", "suggestions"}
    room = {module: names for module, names in imports.items() if room_of(module) == "vllm"}
    used = {room_of(name) for names in room.values() for name in names if is_in(name, "hsa_factory")}
    users = [m for m, names in imports.items() if m not in room and any(is_in(n, "hsa_factory.vllm") for n in names)]
    assert room and users == [] and used <= rooms


def test_lower_rooms_know_no_trainer(imports):
    hosts = (
        "llamafactory",
        "vllm",
        "trl",
        "transformers.Trainer",
        "transformers.trainer",
        "transformers.Seq2SeqTrainer",
    )
    hosts += ("hsa_factory.llamafactory", "hsa_factory.commands", "hsa_factory.inspection", "hsa_factory.quickstart")
    wrong = {
        module: sorted(name for name in names if is_in(name, *hosts))
        for module, names in imports.items()
        if room_of(module) in LOWER_ROOMS
    }
    assert {module: names for module, names in wrong.items() if names} == {}


def test_training_knows_no_host(imports):
    """TRL is imported only where a function is given one of its classes."""
    hosts = ("llamafactory", "vllm", "hsa_factory.llamafactory", "hsa_factory.commands", "hsa_factory.inspection")
    wrong = {
        module: sorted(name for name in names if is_in(name, *hosts))
        for module, names in imports.items()
        if room_of(module) == "training"
    }
    assert wrong and {module: names for module, names in wrong.items() if names} == {}


def test_encoding_conversations_imports_no_trl(imports):
    """Nor anything that imports it, wherever in a file."""
    reached, waiting = set(), ["hsa_factory.training.batched"]
    while waiting:
        for module in imports.get(waiting.pop(), ()):
            if module not in reached:
                reached.add(module)
                waiting.append(module)
    assert not any(is_in(module, "trl", "llamafactory", "datasets") for module in reached)


def test_backends_do_not_know_each_other(imports):
    wrong = {
        module: sorted(name for name in names if backend_of(name) not in (None, backend_of(module)))
        for module, names in imports.items()
        if backend_of(module) is not None
    }
    assert {module: names for module, names in wrong.items() if names} == {}


def test_attention_is_pure_torch(imports):
    wrong = [
        module
        for module, names in imports.items()
        if room_of(module) == "attention" and any(is_in(name, "transformers", "hsa_factory.models") for name in names)
    ]
    assert wrong == []


def test_nothing_imports_the_commands(imports):
    users = {
        module
        for module, names in imports.items()
        if room_of(module) != "commands" and any(is_in(name, "hsa_factory.commands") for name in names)
    }
    assert users == {"hsa_factory.cli"}


def test_test_files_have_names_of_their_own():
    """Pytest imports two test files of one name as one module."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, number in names.items() if number > 1] == []
