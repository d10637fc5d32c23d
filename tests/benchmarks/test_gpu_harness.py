"""What the benchmarks on a GPU are measured by and how they are told, without one."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
from gpu import ceilings, harness, report, timing
from gpu.harness import Row, Target

from .tiny import NoMeter


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
