"""`benchmarks/gpu.py`: in small on the CPU; what is kept, what fails, and what is aimed at."""

import csv
import sys
import time
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def path():
    """Let the scripts be imported as they import each other."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path[:] = before


@pytest.fixture
def make_rows(tmp_path):
    from gpu_parts.rows import Budget, Rows

    def make(again=False, seconds=60.0, said=None, torch_version="2.11"):
        say = (lambda _: None) if said is None else said.append
        stamp = {"device": "a GPU", "torch": torch_version}
        return Rows(tmp_path / "part.csv", ("tokens", "method"), ("ms",), stamp, Budget(seconds), again, say)

    return make


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_in_small(tmp_path, capsys):
    import gpu

    output = tmp_path / "results"
    assert gpu.main(["--smoke", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    files = {part: read(output / f"{part}.csv") for part in gpu.MODULES}
    assert all(row["status"] == "ok" for rows in files.values() for row in rows)
    (tests,) = files["tests"]
    assert (tests["group"], tests["failed"], tests["skipped"]) == ("self-test", "0", "0") and int(tests["passed"]) > 20
    attention = [row for row in files["attention"] if row["method"] == "blockwise"]
    assert len(attention) == 12 and {row["noise_turns"] for row in attention} == {"", "0", "1", "4"}
    for row in attention:
        causal = next(one for one in files["attention"] if one["tokens"] == row["tokens"] and one["layout"] == "")
        assert float(row["speed_up"]) == pytest.approx(float(causal["ms"]) / float(row["ms"]), rel=1e-2, abs=1e-3)
        assert float(row["limit"]) >= 1 and float(row["plan_ms"]) > 0 and float(row["block_limit"]) > 0
    assert [row["variant"] for row in files["training"]] == ["plain", "window 50", "turns 1"]
    assert all(float(row["over_plain"]) > 0 for row in files["training"])
    assert [row["variant"] for row in files["decode"]] == ["plain", "no eviction", "hsa", "turns 1"]
    assert "unmeasured  speed-up over causal, 32k tokens" in said and "0 failed, 0 out of time or memory" in said
    assert {path.name for path in output.glob("*.png")} == {"attention.png", "training.png", "decode.png"}

    before = {part: (output / f"{part}.csv").read_text() for part in gpu.MODULES}
    assert gpu.main(["--smoke", "--output", str(output), "--only", "decode", "training"]) == 0
    assert before == {part: (output / f"{part}.csv").read_text() for part in gpu.MODULES}
    assert "decode: " not in capsys.readouterr().out  # nothing was measured anew


def test_without_a_gpu(capsys, monkeypatch):
    import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2 and "--smoke runs on the CPU" in capsys.readouterr().err


def test_where_nothing_can_be_written(tmp_path, capsys):
    import gpu

    (tmp_path / "file").write_text("", "utf-8")
    assert gpu.main(["--smoke", "--only", "decode", "--output", str(tmp_path / "file" / "results")]) == 2
    said = capsys.readouterr()
    assert "cannot be written to: Not a directory. Name another with --output." in said.err and not said.out


def test_no_matplotlib_no_plots(tmp_path, monkeypatch):
    from gpu_parts.plots import plot_all

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot_all(tmp_path, [], [], []) == []


class TestRows:
    def test_a_case_that_fails_is_a_row(self, make_rows):
        def fail(error):
            raise error

        said = []
        rows = make_rows(said=said)
        rows.measure(lambda: {"ms": 1.5}, tokens=1, method="a")
        rows.measure(lambda: fail(torch.OutOfMemoryError("CUDA out of memory")), tokens=2, method="a")
        rows.measure(lambda: fail(RuntimeError("no kernel in /home/me/x.py")), tokens=3, method="a")
        rows.measure(lambda: {"ms": 1}, expected_s=1000, tokens=4, method=None)
        found = [(row["tokens"], row["method"], row["status"], row["ms"], row["note"]) for row in read(rows.path)]
        assert found == [
            ("1", "a", "ok", "1.5", ""),
            ("2", "a", "out of memory", "", ""),
            ("3", "a", "failed", "", "RuntimeError: no kernel in …/x.py"),
            ("4", "", "out of time", "", ""),
        ]
        assert said[0] == "tokens 1, method a: ok" and said[2].endswith("failed: RuntimeError: no kernel in …/x.py")
        assert rows.find(tokens=1, method="a")["ms"] == "1.5" and rows.find(tokens=2, method="a") is None

    def test_finished_rows_are_kept(self, make_rows):
        first = make_rows()
        first.measure(lambda: {"ms": 1}, tokens=1, method="a")
        make_rows(seconds=0).measure(lambda: {"ms": 2}, tokens=2, method="a")
        rows = make_rows()
        assert rows.measure(lambda: {"ms": 9}, tokens=1, method="a")["ms"] == "1"
        assert rows.measure(lambda: {"ms": 9}, tokens=2, method="a")["ms"] == "9"  # there was no time for it before
        assert make_rows(again=True).measure(lambda: {"ms": 7}, tokens=1, method="a")["ms"] == "7"
        newer = make_rows(torch_version="2.12")
        assert not newer.is_finished(tokens=2, method="a")
        assert newer.measure(lambda: {"ms": 3}, tokens=2, method="a")["torch"] == "2.12"
        assert [(row["ms"], row["torch"]) for row in read(rows.path)] == [("7", "2.11"), ("3", "2.12")]

    def test_again_measures_once(self, make_rows):
        rows = make_rows(again=True)
        rows.measure(lambda: {"ms": 1}, tokens=1, method="a")
        assert rows.measure(lambda: {"ms": 2}, tokens=1, method="a")["ms"] == "1"


class TestTestsPart:
    def run(self, tmp_path, make_rows, text, seconds=60.0):
        from gpu_parts import tests_part
        from gpu_parts.rows import Budget, Rows

        (tmp_path / "test_it.py").write_text(text)
        rows = Rows(
            tmp_path / "x.csv", tests_part.KEYS, tests_part.COLUMNS, {}, Budget(seconds), False, lambda _: None
        )
        sizes = tests_part.Sizes(groups={"it": ("test_it.py",)}, root=tmp_path)
        return rows.measure(lambda: tests_part._run(sizes.groups["it"], sizes.root, rows.budget), group="it")

    def test_counts(self, tmp_path, make_rows):
        text = "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2, 'no'\n"
        row = self.run(tmp_path, make_rows, text + "@pytest.mark.skip\ndef test_c(): pass\n")
        assert [row[name] for name in ("status", "passed", "failed", "skipped")] == ["ok", "1", "1", "1"]
        assert row["first_failure"].startswith("test_b: AssertionError: no")

    def test_the_time_is_kept(self, tmp_path, make_rows):
        start = time.monotonic()
        row = self.run(tmp_path, make_rows, "import time\ntime.sleep(60)", seconds=0.2)
        assert row["status"] == "failed" and "time of this part is over" in row["note"]
        assert time.monotonic() - start < 20


def attention_row(**values):
    usual = {"status": "ok", "method": "flex", "layout": "scattered", "memory_share": "0.05", "tokens": "32768"}
    return usual | {"speed_up": "7.0", "limit": "8.0", "plan_ms": "0.5"} | values


def test_targets():
    from gpu_parts.targets import find_targets

    assert {target.verdict for target in find_targets([], [])} == {"unmeasured"}
    rows = [
        attention_row(),
        attention_row(memory_share="0.2", speed_up="3.0", limit="4.0"),
        attention_row(tokens="131072", speed_up="18", limit="20", plan_ms="1.2"),
        attention_row(tokens="4096", speed_up="1.5"),
        attention_row(status="failed", speed_up="0.1"),
        attention_row(method="blockwise", speed_up="0.1"),
    ]
    step = {"status": "ok", "tokens": "4096", "variant": "turns 1", "over_plain": "0.98"}
    found = find_targets(rows, [step, step | {"variant": "plain", "over_plain": "5.0"}])
    assert [(target.verdict, target.measured) for target in found] == [
        ("met", "7.0×"),
        ("missed", "75%"),
        ("missed", "1.20 ms"),
        ("met", "1.50×"),
        ("met", "0.98"),
    ]


def test_the_table_of_the_page(tmp_path, monkeypatch):
    gpu_tables = pytest.importorskip("gpu_tables")
    monkeypatch.setattr(gpu_tables, "RESULTS", tmp_path)
    texts = pytest.importorskip("page_words").TEXTS["docs/benchmarks.md"]
    assert gpu_tables.gpu_tables(texts) == [texts["no_gpu"]]
    rows = [
        attention_row(method="causal, flash", layout="", memory_share="", ms="40", speed_up="", head_size="128"),
        attention_row(head_size="128", noise_turns="", ms="5"),
        attention_row(head_size="128", noise_turns="1", layout="turns", speed_up="4", limit="5", plan_ms="0.7"),
        attention_row(head_size="64", status="out of memory", speed_up=""),
    ]
    (tmp_path / "gpu" / "a-gpu").mkdir(parents=True)
    with open(tmp_path / "gpu" / "a-gpu" / "attention.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[1], "device", "torch"])
        writer.writeheader()
        writer.writerows(row | {"device": "A GPU", "torch": "2.11"} for row in rows)
    lines = gpu_tables.gpu_tables(texts)
    assert lines[0].startswith("Attention on A GPU, torch 2.11") and len(lines) == 5
    assert (
        lines[2]
        == "| tokens | head size | causal flash, ms | causal, torch's choice, ms | 5% | 5%, turns 1 | plan, ms |"
    )
    assert lines[4] == "| 32,768 | 128 | 40.00 |  | 7.0× (8.0) | 4.0× (5.0) | 0.70 |"
    steps = [
        {"model": "a", "tokens": "4096", "variant": "plain", "status": "ok", "seconds": "0.5", "over_plain": "1.0"}
    ]
    steps += [
        steps[0] | {"variant": "window 50", "over_plain": "0.9"},
        steps[0] | {"variant": "turns 1", "status": "failed"},
    ]
    with open(tmp_path / "gpu" / "a-gpu" / "training.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*steps[0], "device"])
        writer.writeheader()
        writer.writerows(step | {"device": "A GPU"} for step in steps)
    assert gpu_tables.gpu_tables(texts)[-1] == "| a | 4,096 | 0.500 | 0.90 |  |"
