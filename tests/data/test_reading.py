"""Work on several threads comes back in order, not too far ahead, and stops with its user."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest
from PIL import ImageFile

from deltaw.data import reading


@pytest.fixture(autouse=True)
def _three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_THREADS", 3)
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.mark.parametrize("in_turns", [False, True])
@pytest.mark.parametrize("n", [0, 1, 12, 50])
def test_results_come_in_order(n: int, in_turns: bool) -> None:
    def slowly(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        return 10 * i

    assert list(reading.ahead(slowly, range(n), in_turns=in_turns)) == [10 * i for i in range(n)]


@pytest.mark.parametrize("in_turns", [False, True])
def test_an_error_is_raised_in_its_turn(in_turns: bool) -> None:
    given = []
    with (
        pytest.raises(ZeroDivisionError),
        closing(reading.ahead(lambda i: 1 // (i - 2), range(9), in_turns=in_turns)) as found,
    ):
        given.extend(found)
    assert given == ([] if in_turns else [-1, -1])


@pytest.mark.parametrize("in_turns", [False, True])
def test_no_more_is_done_than_has_room(in_turns: bool) -> None:
    done: list[int] = []
    with closing(reading.ahead(done.append, range(1000), in_turns=in_turns)) as found:
        next(found)
        time.sleep(0.05)
        assert len(done) <= 3 * reading.AHEAD + 1
    assert len(done) <= 3 * reading.AHEAD + 1


def test_threads_rest_while_their_user_works() -> None:
    at_work = 0
    lock = threading.Lock()

    def work(i: int) -> None:
        nonlocal at_work
        with lock:
            at_work += 1
        time.sleep(0.002)
        with lock:
            at_work -= 1

    for _ in reading.ahead(work, range(40), in_turns=True):
        assert at_work == 0


def test_pillow_is_strict_inside_and_as_it_was_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert list(reading.ahead(lambda _: ImageFile.LOAD_TRUNCATED_IMAGES, range(5))) == [False] * 5
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
