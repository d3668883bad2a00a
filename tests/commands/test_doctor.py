"""`hsa-factory doctor`: a sound machine, backends broken on purpose, versions that do not fit, devices that are not there."""

import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from hsa_factory import cli
from hsa_factory.attention import api
from hsa_factory.commands import doctor
from hsa_factory.doctor import display, machine, self_test, timing, versions
from hsa_factory.doctor.examine import Extent
from hsa_factory.doctor.imports import try_imports
from hsa_factory.doctor.output import aligned
from hsa_factory.doctor.refused import find_refusals
from hsa_factory.doctor.report import Report
from hsa_factory.doctor.scrub import scrub
from hsa_factory.user_errors import UserError


SMALL = Extent(imports=False, test_length=47, timed_lengths=(64, 128))
UNTIMED = Extent(imports=False, test_length=47, timed_lengths=())
CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("USE_V1", "USE_MCA", "ACCELERATE_USE_PARALLELISM_CONFIG", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fitting(monkeypatch):
    """Let versions be what they should; what is installed here is not what is tested."""
    monkeypatch.setattr("hsa_factory.doctor.examine.check_versions", lambda: [versions.Package("torch", "2.11.0")])


def run(capsys, *arguments, extent=UNTIMED):
    code = doctor.main(["--device", "cpu", *arguments], extent)
    return code, capsys.readouterr().out


def examined(capsys, extent=UNTIMED):
    code, out = run(capsys, "--json", extent=extent)
    return code, json.loads(out)


# -- a sound machine -------------------------------------------------------------------------------------------


def test_a_sound_machine(fitting, capsys):
    code, found = examined(capsys, SMALL)
    assert code == 0 and found["status"] == "ok" and found["problems"] == []
    tested = {(one["backend"], one["case"]) for one in found["self_test"]}
    assert {backend for backend, _ in tested} == {"blockwise", "dense"} and len(tested) == len(found["self_test"])
    for word in ("padding", "packed", "turns", "hide", "odd length", "sliding window"):
        assert any(word in case for _, case in tested), word
    assert all(one["status"] == "passed" and 0 < one["error"] < one["tolerance"] for one in found["self_test"])
    assert {(one["tokens"], one["backend"]) for one in found["timing"]} == {
        (tokens, backend) for tokens in (64, 128) for backend in ("blockwise", "dense", "reference")
    }
    for one in found["timing"]:
        assert one["seconds"] > 0 and one["speed_up"] == pytest.approx(one["causal_seconds"] / one["seconds"])
        assert one["share_of_limit"] == pytest.approx(one["speed_up"] / one["limit"])
    auto = {one["case"]: one["backend"] for one in found["auto"]}
    assert auto[512] == "dense" and auto[16384] == "blockwise" and auto["attention dropout"] == "dense"
    assert any("flex" in one["what"] for one in found["refused"])


def test_the_json_keeps_its_form(fitting, capsys):
    _, found = examined(capsys, SMALL)

    def form(value):
        if isinstance(value, dict):
            return {key: form(inner) for key, inner in value.items()}
        return form(value[0]) if isinstance(value, list) and value and isinstance(value[0], dict) else None

    assert form(found) == {
        **dict.fromkeys(("format_version", "status", "problems", "warnings", "imports")),
        "machine": dict.fromkeys(
            ("system", "processor", "cores", "threads", "memory_gib", "compiler", "device", "gpu")
        ),
        "packages": dict.fromkeys(("name", "installed", "wanted", "problems", "advice")),
        "auto": dict.fromkeys(("case", "backend", "reason")),
        "refused": dict.fromkeys(("what", "reason", "advice")),
        "self_test": dict.fromkeys(("backend", "dtype", "case", "status", "error", "tolerance", "what", "seconds")),
        "timing": dict.fromkeys(
            (*("backend", "tokens", "seconds", "causal_seconds", "speed_up", "limit", "note"), "share_of_limit")
        ),
    }
    assert found["format_version"] == 1


@pytest.mark.parametrize("with_rich", [True, False])
def test_text(fitting, with_rich, capsys, monkeypatch):
    if not with_rich:
        for name in ("rich", "rich.console", "rich.progress", "rich.table", "rich.text", "llamafactory", "trl"):
            monkeypatch.setitem(sys.modules, name, None)
    code, out = run(capsys, extent=SMALL)
    assert code == 0
    for text in ("torch         2.11.0", "1,024 to 131,072 tokens", "blockwise  float32  passed  8 of 8", "speed-up"):
        assert " ".join(text.split()) in " ".join(out.split())
    assert out.rstrip().endswith("nothing is wrong")


def test_columns_of_plain_text():
    assert aligned([("a", "long cell", "x"), ("bbb", "c")]) == ["  a    long cell  x", "  bbb  c"]
    assert aligned([]) == []


# -- backends broken on purpose --------------------------------------------------------------------------------


class WrongGradient(torch.autograd.Function):
    """The output as it is, and a gradient that is a tenth too large."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.1


def breakages(attend):
    """Return attention that is wrong in one way each."""

    def one_token(query, *more):
        wrong = torch.zeros_like(query)
        wrong[:, 1, -1] = 1e-2
        return attend(query, *more) + wrong

    def half_way(query, key, value, plan, rules, *more):
        output = attend(query, key, value, plan, rules, *more)
        return output * 1.1 if rules.hide else output

    return {
        "outputs": lambda *given: attend(*given) * 1.001,
        "one token": one_token,
        "gradient of the key": lambda query, key, *more: attend(query, WrongGradient.apply(key), *more),
        "nan": lambda *given: attend(*given) * float("nan"),
        "hide": half_way,
        "detached": lambda query, key, value, *more: attend(query, key, value.detach(), *more),
    }


WRONG = {
    "outputs": "the output is",
    "one token": "the output is",
    "gradient of the key": "the gradient of the key is 1.0e-01 off",
    "nan": "the output is not finite",
    "hide": "first float32, hide: the output is",
    "detached": "a gradient is missing",
}


@pytest.mark.parametrize("way", WRONG)
def test_a_broken_backend_is_named(fitting, way, capsys, monkeypatch):
    monkeypatch.setattr(api, "blockwise_attention", breakages(api.blockwise_attention)[way])
    code, found = examined(capsys)
    assert code == 1 and found["status"] == "wrong"
    (problem,) = found["problems"]
    assert problem["what"].startswith("the blockwise backend fails") and WRONG[way] in problem["what"]
    assert "hsa: {backend: dense}" in problem["advice"]
    failed = [one for one in found["self_test"] if one["status"] == "failed"]
    assert {one["backend"] for one in failed} == {"blockwise"} and len(failed) == (1 if way == "hide" else 8)


def test_a_backend_that_raises(fitting, capsys, monkeypatch):
    def fail(*_given):
        raise RuntimeError("no kernel\nin /home/somebody/.cache/torchinductor_somebody/abc.py:3")

    monkeypatch.setattr(api, "dense_attention", fail)
    code, out = run(capsys)
    assert code == 1 and out.count("RuntimeError: no kernel in …/abc.py:3") == 9 and "somebody" not in out
    assert "hsa: {backend: blockwise}" in out and "something is wrong" in out


def test_what_is_left_when_time_is_out():
    outcomes = self_test.run_self_test(CPU, ["dense"], [FLOAT], lambda _: None, 20, limit_s=-1)
    assert {one.status for one in outcomes} == {"not run"} and len(outcomes) == 8
    report = Report([], outcomes=outcomes)
    assert report.exit_code == 0 and "8 of 8 tests were not run" in report.warnings[0].what
    timings = timing.run_timing(CPU, FLOAT, ["dense"], lambda _: None, [32, 4096], limit_s=0)
    assert [one.seconds for one in timings] == [None, None] and all("no time left" in one.note for one in timings)


def test_a_backend_that_is_slower_than_none(capsys):
    choice = SimpleNamespace(case=16384, backend="blockwise")
    slow = timing.Timing("blockwise", 16384, 2.0, 1.0, 0.5, 10.0)
    report = Report([], choices=[choice], timings=[slow, timing.Timing("dense", 16384, 9.0, 1.0, 1 / 9, 10.0)])
    assert [one.what for one in report.warnings] == [
        "blockwise is 2.0 times slower than no HSA at 16,384 tokens",
    ]


# -- versions --------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these packages are installed: name → (version, needs, Python)."""

    def pretend(**packages):
        def find(name):
            key = name.replace("-", "_")
            if key not in packages:
                raise metadata.PackageNotFoundError(name)
            version, *needs = packages[key]
            python = needs.pop() if needs and needs[-1].startswith(">=3") else None
            return SimpleNamespace(name=name, version=version, requires=needs, metadata={"Requires-Python": python})

        monkeypatch.setattr(versions.metadata, "distribution", find)
        return {package.name: package for package in versions.check_versions()}

    return pretend


OWN = ("0.1.0", "torch>=2.6", "transformers>=5.6,<5.18", "llamafactory>=0.9.5,<0.9.7; extra == 'llamafactory'")
SOUND = {"hsa_factory": OWN, "torch": ("2.11.0+cu130",), "transformers": ("5.6.0",)}


def problems(packages):
    return {name: package.problems for name, package in packages.items() if package.problems}


def test_versions_that_fit(installed):
    assert problems(installed(**SOUND)) == {}
    everything = SOUND | {"llamafactory": ("0.9.5", "transformers<=5.6.0", "trl<=0.24.0"), "trl": ("0.24.0",)}
    everything["torchaudio"] = ("2.11.0+cu130",)
    packages = installed(**everything)
    assert problems(packages) == {} and packages["llamafactory"].wanted == "<0.9.7,>=0.9.5"


@pytest.mark.parametrize(
    ("changed", "name", "problem", "advice"),
    [
        ({"transformers": ("5.24.0",)}, "transformers", "hsa-factory 0.1.0 needs transformers<5.18,>=5.6, not 5.24.0", "pip"),
        ({"torch": ("2.5.1",)}, "torch", "hsa-factory 0.1.0 needs torch>=2.6, not 2.5.1", "pip install 'torch>=2.6'"),
        ({"llamafactory": ("0.9.7",)}, "llamafactory", "0.9.7 is not known to hsa-factory (known: >=0.9.5,<0.9.7)", "==0.9.5"),
        ({"torchaudio": ("2.10.0",)}, "torchaudio", "is built for another torch than 2.11.0+cu130", "torchaudio==2.11.*"),
        ({"torchvision": ("0.25.0", "torch==2.10.0")}, "torch", "torchvision 0.25.0 needs torch==2.10.0", "2.10.0"),
        ({"llamafactory": ("0.9.5", "trl<=0.24.0")}, "trl", "needs trl<=0.24.0, which is not installed", "'trl<=0.24.0'"),
        ({"peft": ("0.21.0", "transformers>=5.10")}, "transformers", "peft 0.21.0 needs transformers>=5.10, not 5.6.0", ""),
        ({"trl": ("9.0", ">=3.99")}, "python", "trl 9.0 needs Python >=3.99", "another Python"),
    ],
)  # fmt: skip
def test_versions_that_do_not_fit(installed, changed, name, problem, advice):
    packages = installed(**SOUND | changed)
    found = problems(packages)
    assert list(found) == [name] and len(found[name]) == 1 and problem in found[name][0]
    assert advice in packages[name].advice
    assert Report(list(packages.values())).exit_code == 1


def test_prereleases_and_odd_versions(installed):
    assert problems(installed(**SOUND | {"torch": ("2.12.0a0+git1",)})) == {}
    assert problems(installed(**SOUND | {"torch": ("2.12.0a0",), "torchaudio": ("nightly",)})) == {
        "torchaudio": ["torchaudio nightly is built for another torch than 2.12.0a0"]
    }


def test_hsa_factory_without_its_metadata(installed):
    packages = installed(torch=("2.11.0",), transformers=("9.9",))
    assert problems(packages) == {} and "not installed as a package" in packages["hsa-factory"].installed


# -- imports, devices, environment -----------------------------------------------------------------------------


def test_imports_are_tried_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "is_wrong.py").write_text("print('loud')\nraise OSError('/opt/x/lib.so: undefined symbol: foo')")
    (tmp_path / "crashes.py").write_text("import os\nos._exit(139)")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert [(one.name, one.error) for one in try_imports(["json", "is_wrong", "crashes", "csv"])] == [
        ("json", None),
        ("is_wrong", "OSError: …/lib.so: undefined symbol: foo"),
        ("crashes", "it ends the process (exit code 139)"),
    ]
    assert [one.error for one in try_imports(["hangs"], limit_s=0.3)] == ["not done after 0 s"]
    assert try_imports([]) == []


def test_a_package_that_ends_the_process_does_not_end_the_doctor(tmp_path, monkeypatch, capsys):
    """As a torchvision built for another torch may, which transformers imports."""
    (tmp_path / "crashing.py").write_text("import os\nos.abort()\n", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("hsa_factory.doctor.examine._CORE", "crashing")
    monkeypatch.setattr("hsa_factory.doctor.examine._modules", lambda packages: ["crashing"])
    code, found = examined(capsys, Extent(test_length=47, timed_lengths=()))
    problems = [problem["what"] for problem in found["problems"]]
    assert code == 1 and found["machine"] is None
    assert "hsa-factory cannot run here: it ends the process (exit code -6)" in problems
    assert "crashing cannot be imported: it ends the process (exit code -6)" in problems


def test_what_does_not_import_is_wrong(fitting, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "hsa_factory.doctor.machine", None)
    code, found = examined(capsys)
    assert code == 1 and found["machine"] is None and "cannot run here" in found["problems"][0]["what"]
    assert run(capsys)[0] == 1


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:-1", "cpu:0", "", "CUDA", "cuda:"])
def test_no_such_device(name, capsys):
    assert cli.main(["doctor", "--quick", "--device", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hsa-factory doctor: --device {name!r}: there is no such device. Known: cpu, cuda")


def test_no_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, said in (("13.0", "finds no GPU.*nvidia-smi"), (None, "was built without CUDA")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(UserError, match=said):
            machine.find_device("cuda:0")
    assert machine.find_device(None) == CPU
    assert cli.main(["doctor", "--quick", "--device", "cuda"]) == 2 and "without CUDA" in capsys.readouterr().err


def test_gpus_are_counted(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert machine.find_device("cuda:1") == torch.device("cuda:1")
    assert machine.find_device("cuda") == machine.find_device(None) == torch.device("cuda:0")
    with pytest.raises(UserError, match="torch sees 2 GPUs, the last is cuda:1"):
        machine.find_device("cuda:2")


def test_variables_that_are_refused(monkeypatch):
    assert [one.what for one in find_refusals(CPU, FLOAT)] == ["backend: flex", "backend: triton"]
    for name, value in {"USE_V1": "1", "USE_MCA": "0", "PARALLELISM_CONFIG_CP_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    whats = [one.what for one in find_refusals(CPU, FLOAT)]
    assert whats[2:] == [
        "USE_V1 is set",
        "TORCHDYNAMO_DISABLE is set",
        "context or sequence parallelism",
    ]


def test_packages_whose_options_are_refused(tmp_path, monkeypatch):
    (tmp_path / "liger_kernel.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (liger,) = [one for one in find_refusals(CPU, FLOAT) if one.what == "enable_liger_kernel"]
    assert "weight" in liger.reason and liger.advice == ""


def test_a_compiler_is_looked_for_as_triton_does(monkeypatch):
    monkeypatch.setattr(
        machine.shutil, "which", lambda name: f"/usr/bin/{name}" if name in ("gcc", "/x/mycc") else None
    )
    monkeypatch.delenv("CC", raising=False)
    assert machine.find_compiler() == "gcc"
    monkeypatch.setenv("CC", "/x/mycc")
    assert machine.find_compiler() == "mycc"
    monkeypatch.setenv("CC", "absent")
    assert machine.find_compiler() is None


def test_messages_hold_no_paths_and_no_names(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "marvin")
    assert scrub("in /home/marvin/env/lib/a.py: C:\\Users\\marvin\\b.dll, ~/c/d.txt") == "in …/a.py: …/b.dll, …/d.txt"
    assert scrub(RuntimeError("torchinductor_marvin is full")) == "RuntimeError: torchinductor_… is full"
    assert scrub(ValueError()) == "ValueError" and len(scrub("x y " * 400)) < 310
    assert scrub("1/2 of it, and/or https://example.org/a/b") == "1/2 of it, and/or https://example.org/a/b"


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "exit codes: 0 nothing is wrong" in said and "--quick" in said
    assert cli.main(["--help"]) == 0 and "\n  doctor " in capsys.readouterr().out


@pytest.mark.parametrize("every_s, shown", [(-1.0, [1, 2, 3]), (60.0, [1])])
def test_a_log_shows_how_far_it_is_now_and_again(every_s, shown, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(display, "_EVERY_S", every_s)
    with display.progress("testing", 3) as advance:
        for step in (1, 2, 3):
            advance(f"step {step}")
    lines = [f"hsa-factory doctor: testing: step {step} ({step} of 3)" for step in shown]
    assert capsys.readouterr().err.splitlines() == lines
