"""Reading ahead: the same results in the same order, and never far ahead."""

import threading

import pytest

from equitools.data import workers as data_workers


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_everything_comes_in_order_and_not_all_of_it_is_waiting(workers):
    done, lock = [], threading.Lock()

    def work(item):
        with lock:
            done.append(item)
        return item * item

    found = data_workers.read(iter(range(50)), work, workers)
    assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(done) <= 5 + 2 * workers + 1
    assert list(found) == [item * item for item in range(5, 50)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_in_its_turn(workers):
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    found = data_workers.read(range(9), work, workers)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)
