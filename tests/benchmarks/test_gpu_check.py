"""`make gpu-check` without a GPU: its arithmetic, its reports, and every check and benchmark at tiny sizes."""

import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_check
import pytest
import torch
from gpu import ceilings, correctness, decode, gather, harness, head_probe, peers, prefill, report, spans, timing
from gpu.ceilings import Ceilings
from gpu.harness import Row, Run, Target

from longloom.kernels.attention.pages import RaggedKV

ROOT = Path(gpu_check.__file__).resolve().parents[1]

#: Every part at sizes for the CPU.
TINY = {
    "decode": {
        "contexts": (128, 256),
        "batches": (1, 2, 3),
        "ratio_at": 256,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "whole": (1, 2),
        "window": 16,
        "far": 1 << 16,
        "fuzz": 3,
    },
    "topk": {
        "keys": 700,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "queries": (1, 5),
        "block": 32,
        "far": 1 << 15,
        "fuzz": 4,
    },
    "prefill": {
        "context": 300,
        "dense": (60, 90),
        "chunk": 20,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "window": 50,
        "far": 1 << 16,
        "fuzz": 4,
    },
    "linear_cross_entropy": {
        "tokens": (70, 90),
        "width": 32,
        "vocabulary": 300,
        "far": 900,
        "check": (50, 32, 100),
    },
    "gather": {
        "keys": 600,
        "scope": 128,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "queries": (1, 9),
        "span": 8,
        "sets": 2,
        "far": 1 << 15,
        "fuzz": 3,
    },
    "head_probe": {"tokens": 101, "period": 25, "heads": 4, "kv_heads": 2, "head_dim": 32},
    "compress": {"context": 300, "batch": 2, "kv_heads": 3, "head_dim": 16, "window": 60, "far": 1 << 15, "fuzz": 4},
    "append": {"context": 64, "batch": 2, "kv_heads": 2, "head_dim": 16, "fuzz": 3},
    "spans": {"keys": 500, "most": 7, "span": 8, "sets": 2, "fuzz": 6},
    "combine": {"parts": 2, "shapes": ((2, 4, 1, 16), (1, 2, 33, 16))},
}


class NoMeter:
    """Runs every call once, and says that it took a millisecond and no memory."""

    def seconds(self, calls, *, graph=False):
        for call in calls:
            call()
        return timing.Timing(1e-3, 0.01)

    def extra_bytes(self, call):
        call()
        return 0


@pytest.fixture
def run():
    random.seed(0)
    torch.manual_seed(0)
    return Run(torch.device("cpu"), NoMeter(), Ceilings(1e12, 1e13), "reference", 1000, 1 << 30, lambda text: None)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_every_kernel_has_its_turn_and_its_tests():
    found = {path.stem for path in (ROOT / "kernels" / "attention").glob("[!_]*.py")} - {"pages"}
    assert set(gpu_check.PARTS) == found | {"linear_cross_entropy"}
    assert [path for path in (*gpu_check.PARTS.values(), *gpu_check.TESTS) if not (ROOT / path).exists()] == []


def part(name):
    module = importlib.import_module(f"gpu.{name}")
    return module, module.Sizes(**TINY[name])


@pytest.mark.parametrize("name", gpu_check.PARTS)
def test_every_check_passes_on_the_reference(run, name):
    module, sizes = part(name)
    assert gpu_check.check(run, {name: module}, {name: sizes}) == []
    assert run.notes == []


@pytest.mark.parametrize("name", gpu_check.PARTS)
def test_every_benchmark_runs(run, name):
    module, sizes = part(name)
    failures, seconds = gpu_check.measure(run, {name: module}, {name: sizes}, lambda: False)
    assert failures == []
    assert set(seconds) == {name}
    assert {row.part for row in run.rows} == {name}
    assert all(row.share is not None for row in run.rows)
    ours = [row for row in run.rows if row.way.startswith("reference")]
    assert ours
    if name != "combine":
        assert len(ours) < len(run.rows)  # a peer beside it
    assert all(target.found is not None for target in run.targets)
    strange = [note for note in run.notes if "sdpa" not in note]  # backends that the CPU does not have
    assert strange == []


def test_a_check_that_fails_is_told_and_the_others_go_on(run):
    def wrong(run, sizes):
        harness.close(torch.ones(3), torch.full((3,), 1.1))

    module = SimpleNamespace(CHECKS={"wrong": wrong, "right": lambda run, sizes: None})
    assert gpu_check.check(run, {"some": module}, {"some": None}) == [
        ("some: wrong", "AssertionError: relative error 9.09e-02, allowed 3e-05")
    ]


def test_a_benchmark_that_fails_or_comes_too_late_is_told(run):
    def measure(run, sizes):
        raise RuntimeError("out of\n memory")

    modules = {"first": SimpleNamespace(measure=measure), "second": SimpleNamespace(measure=measure)}
    turns = iter([False, True])
    failures, _ = gpu_check.measure(run, modules, {"first": None, "second": None}, lambda: next(turns))
    assert failures == [
        ("first", "RuntimeError: out of memory"),
        ("second", "not measured: the time is up; --part measures it alone"),
    ]


# What is counted


def test_bytes_of_a_step():
    """2 rows of 2 KV heads and 4 query heads, 20 + 0 + 33 + 5 slots on pages of 16."""
    kv_len = torch.tensor([[20, 0], [33, 5]], dtype=torch.int32)
    table = torch.tensor([[[0, 1, -1], [-1, -1, -1]], [[2, 3, 4], [5, -1, -1]]], dtype=torch.int32)
    cache = RaggedKV(*torch.zeros(2, 6, 16, 32, dtype=torch.bfloat16), table, kv_len)
    query = torch.zeros(2, 4, 1, 32, dtype=torch.bfloat16)
    pools = 2 * (20 + 33 + 5) * 32 * 2
    integers = 4 * (4 + 6)
    assert decode.needed_bytes(query, cache) == pools + integers + 2 * 8 * 32 * 2 + 8 * 4
    means = {name: torch.zeros(2, 2, 32) for name in ("mean_key", "mean_value")}
    with_means = RaggedKV(cache.keys, cache.values, table, kv_len, **means, dropped=torch.ones_like(kv_len))
    assert decode.needed_bytes(query, with_means) - decode.needed_bytes(query, cache) == 4 * (2 * 32 * 4 + 4)


def test_razor_keeps_a_third():
    sizes = decode.Sizes()
    for context, ratio in ((131_072, 3.125), (524_288, 3.125), (4000, 1.0)):
        windows = torch.cat([decode.razor_windows(context, whole, sizes) for whole in sizes.whole])
        kept = torch.where(windows < 0, context, (windows + sizes.sink).clamp(max=context))
        assert context * kept.numel() / float(kept.sum()) == pytest.approx(ratio, rel=2e-3)


def test_repeated_rows_are_alike_on_pages_of_their_own(run):
    one = decode.ragged(run, torch.tensor([[70, 5, 130]], dtype=torch.int32), 16)
    three = decode.repeated(one, 3)
    assert three.keys.shape[0] == 3 * one.keys.shape[0]
    assert len(three.host_table[three.host_table >= 0].unique()) == int((three.host_table >= 0).sum())
    query = run.randn(1, 6, 1, 16)
    output, _ = decode.decode(query.expand(3, -1, -1, -1).contiguous(), three, scale=0.25)
    assert torch.equal(output, decode.decode(query, one, scale=0.25)[0].expand(3, -1, -1, -1))


@pytest.mark.parametrize(
    ("tokens", "window", "sink"), [(9, 9, 0), (9, 100, 3), (9, 3, 0), (9, 3, 2), (9, 3, 8), (5, 0, 1)]
)
def test_pairs_that_a_window_sees(tokens, window, sink):
    seen = [(p, j) for p in range(tokens) for j in range(p + 1) if p - j < window or j < sink]
    assert prefill.window_pairs(tokens, window, sink) == len(seen)


def test_the_dense_probe_is_the_definition():
    query, key = torch.randn(2, 12, 16).double(), torch.randn(1, 12, 16).double()
    scores = head_probe.dense(query, key, 3, 0.3)
    for head in range(2):
        logits = (query[head] @ key[0].T * 0.3).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
        weights = logits.softmax(-1)
        for offset in (0, 1):
            sums = [
                sum(float(weights[1 + r, 1 + c + offset]) for c in range(r - 3, -1, -3) if c + offset <= r)
                for r in range(3, 11)
            ]
            assert float(scores[head, offset]) == pytest.approx(sum(sums) / len(sums), rel=1e-5)


def test_a_selection_is_what_longcache_makes(run):
    sizes = gather.Sizes(**TINY["gather"])
    chosen = gather.selection(run, sizes)[0].tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == sizes.scope
    assert chosen[: sizes.span] == list(range(sizes.span))
    assert chosen[-sizes.scope // 2 :] == list(range(sizes.keys - sizes.scope // 2, sizes.keys))


def test_spans_by_hand():
    votes = torch.tensor([0, 3, 0, 0, 0, 0, 1, 1, 0, 0, 9])
    assert spans.by_hand(votes, 2, 4, 0, 10) == [0, 1, 2, 5, 6, 7, 8]
    assert spans.by_hand(votes, 9, 2, 6, 8) == [6, 7]


def test_flashinfer_is_asked_for_every_head_as_a_request(run, monkeypatch):
    asked = {}

    class Wrapper:
        def __init__(self, workspace, layout, **options):
            asked["layout"] = layout

        def plan(self, *arguments, **options):
            asked["plan"] = arguments

        def run(self, query, pools):
            return query

    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper))
    cache = decode.ragged(run, torch.tensor([[70, 5], [130, 64]], dtype=torch.int32), 16)
    [call] = peers.flashinfer_decode([run.randn(2, 4, 1, 16)], [cache])
    assert call().shape == (4, 2, 16)
    indptr, indices, last, *rest = asked["plan"]
    assert indptr.tolist() == [0, 2, 3, 6, 7]
    assert indices.tolist() == [page for line in cache.table.flatten(0, 1).tolist() for page in line if page >= 0]
    assert last.tolist() == [6, 5, 2, 64]
    assert rest == [2, 1, 16, 64]


# The harness


def test_inputs_rotate_beyond_the_cache(run):
    assert [run.copies(size) for size in (1, 100, 2999, 3000, 10**9)] == [64, 30, 2, 1, 1]


def test_what_does_not_fit_is_noted(run):
    run.part = "decode"
    assert run.fits("small", 1 << 30)
    assert not run.fits("large", 2 << 30)
    assert run.notes == ["decode: large: skipped, it takes 2.1 GB of 1.1"]


def test_waits_for_the_device_are_errors_on_a_gpu(run, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with run.no_waits():
        assert modes == []  # the CPU has none
    run.device = torch.device("cuda")
    with run.no_waits():
        assert modes == ["error"]
    assert modes == ["error", "default"]


def test_a_peer_that_cannot_is_noted_and_the_fastest_is_told(run):
    def broken():
        raise RuntimeError("No available kernel.\n Aborting")

    times = iter([3e-3, 2e-3])
    run.meter.seconds = lambda calls, graph: timing.Timing(next(times), 0.0)
    found = run.fastest("case", {"slow": list, "broken": broken, "fast": list}, moved=10**9)
    assert (found.way, found.seconds, found.share) == ("fast", 2e-3, pytest.approx(0.5))
    assert run.notes == [": no broken: RuntimeError: No available kernel. Aborting"]
    assert run.fastest("case", {"broken": broken}) is None


def test_a_row_in_a_line():
    row = Row("decode", "128K x 8", "triton", 1.25e-3, 0.012, 5_000_000_000, 10**12, 0.93, 2_500_000)
    assert harness.line(row).split() == (
        ["1250.0", "us", "1.2%", "93.0%", "4000", "GB/s", "800", "TFLOP/s", "2.5", "MB", "128K", "x", "8:", "triton"]
    )
    assert harness.line(Row("p", "c", "w", 1e-6, 0.0)).split() == ["1.0", "us", "0.0%", "c:", "w"]


@pytest.mark.parametrize(
    ("found", "bound", "most", "met"),
    [
        (0.9, 0.85, False, True),
        (0.8, 0.85, False, False),
        (1.1, 1.15, True, True),
        (1.2, 1.15, True, False),
        (None, 1.0, False, False),
        (None, 1.0, True, False),
        (float("nan"), 1.0, True, False),
    ],
)
def test_verdicts(found, bound, most, met):
    assert Target("decode", "share", found, bound, most).met is met


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (torch.zeros(2), torch.zeros(3), "shape [2], expected [3]"),
        (torch.tensor([1.0, torch.nan]), torch.ones(2), "1 NaN, or infinities in other places"),
        (torch.tensor([-torch.inf, 1.0]), torch.ones(2), "relative error inf, allowed 3e-05"),
        (torch.ones(2), torch.tensor([-torch.inf, 1.0]), "0 NaN, or infinities in other places"),
        (torch.ones(4), torch.full((4,), 1.25), "relative error 2.00e-01, allowed 3e-05"),
    ],
)
def test_differences_are_told(found, expected, message):
    with pytest.raises(AssertionError) as error:
        harness.close(found, expected)
    assert str(error.value) == message


def test_equal_results_are_close_and_the_same():
    values = torch.tensor([1.0, -torch.inf, 0.0])
    harness.close(values, values.double())
    harness.close(torch.zeros(3), torch.zeros(3))
    harness.same([torch.tensor(torch.nan), values], [torch.tensor(torch.nan), values.clone()])
    with pytest.raises(AssertionError, match="result 1 differs"):
        harness.same([values, values], [values, values + 1])


def test_ceilings():
    found = ceilings.measure(torch.device("cpu"), NoMeter(), copy_bytes=1000, matmul=16)
    assert found == (pytest.approx(2e6), pytest.approx(2 * 16**3 * 1e3))
    assert found.floor(4_000_000, 0) == pytest.approx(2.0)


class Device:
    """A CUDA device that is not there: calls take the time they say, events note it."""

    def __init__(self):
        self.now, self.capturing = 0.0, None

    def work(self, seconds):
        def call():
            if self.capturing is None:
                self.now += seconds
            else:
                self.capturing.append(seconds)

        return call

    def cuda(self):
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.now

            def elapsed_time(self, other):
                return (other.at - self.at) * 1e3

        class Graph:
            def replay(self):
                device.now += sum(self.calls)

        class Capture:
            def __init__(self, graph):
                self.graph = graph

            def __enter__(self):
                device.capturing = self.graph.calls = []

            def __exit__(self, *_):
                device.capturing = None

        class Nothing:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def wait_stream(self, _):
                pass

        memory = iter([700])
        return SimpleNamespace(
            Event=Event,
            CUDAGraph=Graph,
            graph=Capture,
            Stream=Nothing,
            stream=lambda _: Nothing(),
            current_stream=Nothing,
            synchronize=lambda: None,
            reset_peak_memory_stats=lambda: None,
            memory_allocated=lambda: next(memory),
            max_memory_allocated=lambda: 1000,
        )


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("seconds", [[2e-6, 4e-6], [0.4], [1.0, 2.0, 3.0]])
def test_the_meter_tells_the_mean_of_a_round(monkeypatch, graph, seconds):
    device = Device()
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=device.cuda()))
    found = timing.CudaMeter().seconds([device.work(one) for one in seconds], graph=graph)
    assert found.seconds == pytest.approx(sum(seconds) / len(seconds))
    assert found.noise == pytest.approx(0.0, abs=1e-6)


def test_the_meter_tells_memory_beyond_what_was_held(monkeypatch):
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=Device().cuda()))
    assert timing.CudaMeter().extra_bytes(lambda: None) == 300


# Reports


def test_slug():
    assert report.slug("NVIDIA H200") == "nvidia-h200"
    assert report.slug(" NVIDIA A100-SXM4-80GB ") == "nvidia-a100-sxm4-80gb"


def test_the_commit_is_told_or_unknown(tmp_path):
    assert report.commit(tmp_path / "nowhere") == "unknown"
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    clean = report.commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "new").touch()
    assert report.commit(tmp_path) == clean + "+"


def test_the_machine_is_told_without_its_tools(monkeypatch):
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=10**11, L2_cache_size=60 << 20
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("PATH", "")
    about = report.machine(torch.device("cpu"))
    assert (about["device"], about["driver"], about["capability"]) == ("NVIDIA H200", "unknown", "9.0")
    assert about["torch"] == torch.__version__


def test_the_table_tells_every_target(run):
    targets = [Target("decode", "share", 0.8712, 0.85, False), Target("prefill", "ratio", None, 5.0, False)]
    assert [line.split() for line in report.table(targets).splitlines()] == [
        ["0.871", ">=", "0.85", "met", "decode:", "share"],
        ["-", ">=", "5", "NOT", "MET", "prefill:", "ratio"],
    ]


def test_json_holds_every_figure(run, tmp_path):
    run.part = "decode"
    run.time("128K x 8", "triton", [list], moved=10**9, peak=True)
    run.target("share", 0.9, 0.85)
    run.note("no peer")
    report.write(tmp_path / "new" / "some.json", run, run.ceilings, {"device": "NVIDIA H200"})
    found = json.loads((tmp_path / "new" / "some.json").read_text())
    assert found == {
        "device": "NVIDIA H200",
        "ceilings": {"copy_bytes_per_s": 1e12, "matmul_flops": 1e13},
        "targets": [{"part": "decode", "what": "share", "found": 0.9, "bound": 0.85, "most": False, "met": True}],
        "rows": [
            {
                "part": "decode",
                "case": "128K x 8",
                "way": "triton",
                "seconds": 1e-3,
                "noise": 0.01,
                "bytes": 10**9,
                "flops": 0,
                "share": 1.0,
                "extra_bytes": 0,
            }
        ],
        "notes": ["decode: no peer"],
    }


# The tests' process and the whole


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with tests, some of which fail; pytest starts sooner without its plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(correctness.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "good.py").write_text(
        "import os, pytest\n"
        "def test_device(): assert os.environ['LONGLOOM_TEST_DEVICE'] == 'cpu'\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_number(n): pass\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
    )
    (tmp_path / "bad.py").write_text("def test_wrong():\n    assert 1 == 2, 'one is not two'\n")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "slow.py").write_text("import time\ndef test_slow(): time.sleep(60)\n")
    return tmp_path


def outcome(checkout, *tests, limit=60.0):
    return correctness.finish(correctness.start(checkout, tests, checkout, "cpu"), checkout, limit)


def test_the_tests_outcome(checkout):
    assert outcome(checkout, "good.py") == (3, 1, [])
    found = outcome(checkout, "good.py", "bad.py", "broken.py")
    assert [failure.name for failure in found.failures] == ["::broken"]  # pytest stops where it cannot collect
    found = outcome(checkout, "good.py", "bad.py")
    assert found[:2] == (3, 1)
    assert found.failures == [("bad::test_wrong", "AssertionError: one is not two")]


def test_tests_that_do_not_end_or_do_not_begin(checkout):
    [failure] = outcome(checkout, "slow.py", limit=2.0).failures
    assert failure.why.startswith("did not end in 2 s; ")
    [failure] = outcome(checkout, "absent.py").failures
    assert failure.name == "pytest"
    assert "absent.py" in failure.why


@pytest.fixture
def whole(checkout, monkeypatch):
    """The whole script on two parts on the CPU; what it returns."""
    about = {"device": "Some CPU", "memory_bytes": 1 << 40, "cache_bytes": 1000}
    small = {name: importlib.import_module(f"gpu.{name}").Sizes(**TINY[name]) for name in ("combine", "head_probe")}
    for name, sizes in small.items():
        monkeypatch.setattr(f"gpu.{name}.Sizes", lambda sizes=sizes: sizes)
    monkeypatch.setattr(gpu_check, "PARTS", {"combine": "good.py", "head_probe": "bad.py"})
    monkeypatch.setattr(gpu_check, "TESTS", ("good.py",))
    monkeypatch.setattr(gpu_check, "ROOT", checkout)
    monkeypatch.setattr(gpu_check, "RESULTS", checkout / "results")
    few = ceilings.measure
    monkeypatch.setattr(ceilings, "measure", lambda device, meter: few(device, meter, copy_bytes=99, matmul=9))

    def start(**options):
        options = SimpleNamespace(**{"part": None, "out": None, "seed": 1} | options)
        return gpu_check.everything(options, checkout, about, torch.device("cpu"), NoMeter(), "reference")

    return start


def test_a_whole_run_leaves_its_figures(whole, checkout, capsys):
    assert whole() == 0
    told = capsys.readouterr().out
    assert "tests: 3 passed, 1 skipped" in told
    assert "combine: parts that have seen nothing: passed" in told
    assert "met  head_probe: 101 tokens, 4 heads: MB of scratch" in told
    found = json.loads((checkout / "results" / "some-cpu.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"combine", "head_probe"}
    assert set(found) >= {"device", "commit", "seed", "ceilings", "targets", "tests_passed", "elapsed_s", "notes"}
    assert found["failures"] == []


def test_a_part_alone_leaves_the_results_as_they_are(whole, checkout, capsys):
    assert whole(part=["combine"], out=checkout / "out") == 0
    assert not (checkout / "results").exists()
    found = json.loads((checkout / "out" / "some-cpu.json").read_text())
    assert {row["part"] for row in found["rows"]} == {"combine"}


def test_nothing_is_timed_after_a_failure(whole, checkout, capsys):
    assert whole(part=["head_probe"], out=checkout / "out") == 1
    told = capsys.readouterr().out
    assert "failed: bad::test_wrong\n    AssertionError: one is not two" in told
    assert "1 of the tests and checks failed, so nothing was timed" in told
    found = json.loads((checkout / "out" / "some-cpu.json").read_text())
    assert found["rows"] == []
    assert found["failures"] == [["bad::test_wrong", "AssertionError: one is not two"]]


def test_the_checkout_is_importable_without_an_install(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu_check, pathlib;"
        "gpu_check.importable(pathlib.Path(sys.argv[2])); import longloom.kernels.dispatch as d; print(d.__file__)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, ROOT / "benchmarks", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == str(tmp_path / "longloom" / "kernels" / "dispatch.py")


def test_without_a_gpu_one_line_is_told():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_check.py"], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        f"gpu-check: torch {torch.__version__} finds no CUDA device; nvidia-smi shows what the driver finds\n"
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_takes_the_interpreter_it_is_given(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    told = subprocess.run(
        ["make", "-s", "-C", ROOT, "gpu-check", f"PYTHON={python}", "ARGS=--part decode"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert told.stdout.splitlines()[-1] == "benchmarks/gpu_check.py --part decode"
