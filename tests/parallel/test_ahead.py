"""Items that a thread makes while the one before them is worked on."""

import threading

import pytest

from crops_jax.errors import InputError
from crops_jax.parallel.ahead import ahead


def test_one_item_is_made_ahead_in_order_and_an_error_comes_at_its_place():
    made, threads = [], set()

    def items():
        for i in range(3):
            threads.add(threading.current_thread())
            made.append(i)
            yield i
        raise InputError("part-3", "is damaged")

    found = ahead(items())
    assert made == []
    first = next(found)
    while len(made) < 2:  # the thread makes the second while the first is worked on
        pass
    assert (first, made) == (0, [0, 1])
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(InputError, match="part-3: is damaged"):
        next(found)
    assert threading.current_thread() not in threads and len(threads) == 1 and not threads.pop().is_alive()


def test_a_caller_that_stops_early_stops_the_thread():
    before = threading.active_count()
    found = ahead(iter(range(1000)))
    assert next(found) == 0
    found.close()
    assert threading.active_count() == before
