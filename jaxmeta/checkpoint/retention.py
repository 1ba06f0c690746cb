"""Which checkpoints to keep: ``tf.train.Saver``'s rules, without files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from jaxmeta import errors

_SECONDS_PER_HOUR: Final = 3600.0


class Retention:
    """Keeps the latest checkpoints, and one every so often for good.

    Record a checkpoint when it is in place, write the state file with ``last_checkpoints``, and
    only then remove what ``record`` returned: so the state file never names what is gone.

    Args:
        max_to_keep: how many to keep. None or 0 keeps all, and lists none.
        keep_checkpoint_every_n_hours: one of those that fall out is kept for good each time so
            many hours of training have passed.
        start_time: when the training began, in seconds since the epoch; now, if None.

    Raises:
        CheckpointError: max_to_keep is negative.

    Attributes:
        next_checkpoint_time: a checkpoint made later than this is kept for good when it falls out.

    Example:
        >>> retention = Retention(max_to_keep=2, start_time=0.0)
        >>> [retention.record(f"model-{step}", made=float(step)) for step in range(4)]
        [None, None, 'model-0', 'model-1']
        >>> retention.last_checkpoints
        ['model-2', 'model-3']
    """

    def __init__(
        self,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float = 10000.0,
        *,
        start_time: float | None = None,
    ) -> None:
        if max_to_keep is not None and max_to_keep < 0:
            raise errors.CheckpointError(
                f"max_to_keep is {max_to_keep}; give a number, or 0 or None to keep all checkpoints"
            )
        self._max_to_keep = max_to_keep
        self._period = keep_checkpoint_every_n_hours * _SECONDS_PER_HOUR
        self._last: list[tuple[str, float]] = []
        self.next_checkpoint_time = (
            time.time() if start_time is None else start_time
        ) + self._period

    @property
    def last_checkpoints(self) -> list[str]:
        """The checkpoints that are kept, from oldest to newest."""
        return [prefix for prefix, _ in self._last]

    @property
    def last_checkpoints_with_time(self) -> list[tuple[str, float]]:
        """The same, each with when it was made, in seconds since the epoch."""
        return list(self._last)

    def record(self, prefix: str, *, made: float | None = None) -> str | None:
        """Lists a new checkpoint and returns the one to remove, if any.

        One that is saved again moves to the end.

        Args:
            prefix: the checkpoint.
            made: when, in seconds since the epoch; now, if None.
        """
        if not self._max_to_keep:
            return None
        self._last = [pair for pair in self._last if pair[0] != prefix]
        self._last.append((prefix, time.time() if made is None else made))
        if len(self._last) <= self._max_to_keep:
            return None
        oldest, oldest_made = self._last.pop(0)
        if oldest_made > self.next_checkpoint_time:
            self.next_checkpoint_time += self._period
            return None
        return oldest

    def set_last_checkpoints(self, prefixes: Iterable[str]) -> None:
        """Replaces the list by checkpoints of unknown age, as ``tf.train.Saver`` does.

        They count as the newest possible, so one in each period is kept for good.
        """
        self._last = [(prefix, math.inf) for prefix in prefixes]

    def set_last_checkpoints_with_time(self, checkpoints: Iterable[tuple[str, float]]) -> None:
        """Replaces the list by checkpoints, each with when it was made."""
        self._last = list(checkpoints)

    def recover_last_checkpoints(
        self, prefixes: Iterable[str], modified: Callable[[str], float | None]
    ) -> None:
        """Replaces the list by those checkpoints that exist, as after a crash.

        Args:
            prefixes: from oldest to newest.
            modified: returns when one was last written, in seconds since the epoch, or None where
                it is gone.
        """
        times = ((prefix, modified(prefix)) for prefix in prefixes)
        self._last = [(prefix, made) for prefix, made in times if made is not None]
