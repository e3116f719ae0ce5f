# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Memory of what was used last."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LastUsed(Generic[Value]):
    """Values by name, of which those used last are remembered; any number of threads may ask.

    Args:
        most: Number of values that are remembered.

    >>> squares = LastUsed[int](2)
    >>> squares.of("3", lambda: 3 * 3)
    9
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str, make: Callable[[], Value]) -> Value:
        """Return the value of a name, made if it is not remembered. Other threads do not wait for that."""
        with self._lock:
            if name in self._values:
                self._values.move_to_end(name)
                return self._values[name]
        value = make()
        self.keep(name, value)
        return value

    def keep(self, name: str, value: Value) -> None:
        """Keep a value, and forget the one that was not used for longest if there are too many."""
        with self._lock:
            self._values[name] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)
