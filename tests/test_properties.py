"""Properties that are computed once."""

import threading

from llucid.properties import cached_property
from tests.waiting import LIMIT


class Slow:
    """`value` is computed once `ready`."""

    def __init__(self) -> None:
        self.begun, self.ready, self.times = threading.Event(), threading.Event(), 0

    @cached_property
    def value(self) -> int:
        self.begun.set()
        assert self.ready.wait(LIMIT)
        self.times += 1
        return self.times


def test_it_is_computed_once_for_each_object() -> None:
    one, other = Slow(), Slow()
    one.ready.set()
    other.ready.set()
    assert (one.value, one.value, other.value, one.times) == (1, 1, 1, 1)
    assert isinstance(Slow.value, cached_property)


def test_one_object_does_not_wait_for_another() -> None:
    """As it would in Python 3.11, and in a process that is forked meanwhile for ever."""
    slow, other, found = Slow(), Slow(), list[int]()
    other.ready.set()
    computing = threading.Thread(target=lambda: slow.value, daemon=True)
    computing.start()
    assert slow.begun.wait(LIMIT)
    asking = threading.Thread(target=lambda: found.append(other.value), daemon=True)
    asking.start()
    asking.join(LIMIT / 60)
    assert found == [1]
    slow.ready.set()
    computing.join()
