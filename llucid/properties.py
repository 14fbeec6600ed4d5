"""Properties that are computed once."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class cached_property(Generic[T]):
    """That of functools without the lock that it has in Python 3.11: one for all objects, for which a process that is
    forked while another thread has it would wait for ever. Two threads may compute the same value."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:  # it is looked up in the class
            return cast(T, self)
        value = instance.__dict__[self.name] = self.function(instance)
        return value
