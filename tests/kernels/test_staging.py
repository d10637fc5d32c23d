"""Host memory on a GPU piece by piece: who waits for whom, by streams that take notes; and on a GPU, the data."""

from contextlib import contextmanager

import pytest
import torch

from longloom.kernels.staging import staged


class Notes:
    """In place of torch.cuda: writes down what is asked of the streams."""

    def __init__(self):
        self.log = []
        self.running = "work"

    def stream(self, name):
        notes = self

        class Stream:
            def __init__(self, device=None):
                self.name = name

            def wait_stream(self, other):
                notes.log.append(f"{self.name} waits for {other.name}")

            def wait_event(self, event):
                notes.log.append(f"{self.name} waits for {event}")

            def record_event(self):
                worked = sum(line.startswith("work on") for line in notes.log)
                return f"work {worked}"

        return Stream

    @contextmanager
    def on(self, stream):
        self.running = stream.name
        yield
        self.running = "work"


@pytest.fixture
def notes(monkeypatch):
    notes = Notes()
    monkeypatch.setattr("torch.cuda.current_stream", notes.stream("work"))
    monkeypatch.setattr("torch.cuda.Stream", notes.stream("copies"))
    monkeypatch.setattr("torch.cuda.stream", notes.on)
    copy = torch.Tensor.copy_

    def copy_(target, source, non_blocking=False):
        assert non_blocking
        notes.log.append(f"{notes.running} copies {list(source.shape)}")
        return copy(target, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    return notes


def test_the_next_comes_while_one_is_worked_on_and_no_room_is_written_too_early(notes):
    sizes = [3, 5, 2, 4]
    pieces = [[torch.zeros(1, 1, size, 8), torch.zeros(1, 1, size)] for size in sizes]
    rooms = []
    for i, (key, scales) in enumerate(staged(pieces, torch.device("meta")), start=1):
        assert key.device.type == "meta"
        assert (key.shape, scales.shape) == (pieces[i - 1][0].shape, pieces[i - 1][1].shape)
        rooms.append(key.untyped_storage())
        notes.log.append(f"work on {i}")
    assert notes.log == [
        "copies waits for work",
        "copies copies [1, 1, 3, 8]",
        "copies copies [1, 1, 3]",
        "work waits for copies",
        "work on 1",
        "copies copies [1, 1, 5, 8]",
        "copies copies [1, 1, 5]",
        "work waits for copies",
        "work on 2",
        "copies waits for work 1",
        "copies copies [1, 1, 2, 8]",
        "copies copies [1, 1, 2]",
        "work waits for copies",
        "work on 3",
        "copies waits for work 2",
        "copies copies [1, 1, 4, 8]",
        "copies copies [1, 1, 4]",
        "work waits for copies",
        "work on 4",
    ]
    assert [room.nbytes() for room in rooms] == [4 * 8 * 5] * 4
    assert len({room._cdata for room in rooms}) == 2


def test_what_is_on_the_device_stays_where_it_is(notes):
    here = [[torch.zeros(1, 2, 3, 8)], [torch.zeros(1, 2, 4, 8)]]
    assert [piece is found for piece, found in zip(here, staged(here, torch.device("cpu")), strict=True)] == [True] * 2
    assert notes.log == []
    mixed = [here[0], [torch.zeros(1, 2, 5, 8, device="meta")], here[1]]
    found = list(staged(mixed, torch.device("meta")))
    assert found[1] is mixed[1]
    assert sum("copies copies" in line for line in notes.log) == 2


def test_strided_pieces_go_line_by_line(notes):
    piece = torch.zeros(2, 3, 9, 8)[:, :, :4]
    list(staged([[piece]], torch.device("meta")))
    assert notes.log.count("copies copies [4, 8]") == 6


@pytest.mark.parametrize("pinned", [True, False])
def test_the_data_arrive(pinned, device):
    if device.type == "cpu":
        pytest.skip("the host's memory is the device's")
    pieces = [torch.randn(2, 3, size, 64) for size in (4000, 5000, 1, 6000, 300)]
    pieces = [piece.pin_memory() if pinned else piece for piece in pieces]
    pieces[2], pieces[3] = pieces[2].to(device), pieces[3][:, :, 7:900]
    sums = [found.double().cumsum(2) for (found,) in staged([[piece] for piece in pieces], device)]
    for piece, found in zip(pieces, sums, strict=True):
        assert torch.allclose(found.cpu(), piece.double().cpu().cumsum(2))
