"""A watch on the loss by noise level: training that breaks does so at one level first."""

from __future__ import annotations

import math
from collections.abc import Mapping


class CollapseWatch:
    """Reports the noise levels whose loss jumped above their own recent course.

    The logarithm of each level's loss is followed by an exponential mean and variance; a jump is more than
    `deviations` standard deviations and more than a factor `factor` above the mean.

    Args:
      warmup: rows seen of a level before it is judged.

    >>> watch = CollapseWatch(warmup=3)
    >>> rows = [1.0, 1.1, 0.9, 1.0, 5.0]
    >>> [watch.update({"loss_by_log_snr/0_to_5": value}) for value in rows][-1]
    ['loss_by_log_snr/0_to_5 jumped from about 1.0 to 5.0']
    """

    def __init__(self, deviations: float = 6.0, factor: float = 2.0, warmup: int = 5) -> None:
        self._deviations, self._factor, self._warmup = deviations, factor, warmup
        self._course: dict[str, tuple[int, float, float]] = {}

    def update(self, row: Mapping[str, float | None]) -> list[str]:
        """One message for each level that jumped in this row."""
        messages = []
        for name, value in row.items():
            if not name.startswith("loss_by_log_snr/") or value is None or not value > 0:
                continue
            count, mean, variance = self._course.get(name, (0, math.log(value), 0.01))
            distance = math.log(value) - mean
            if count >= self._warmup and distance > max(self._deviations * variance**0.5, math.log(self._factor)):
                messages.append(f"{name} jumped from about {math.exp(mean):.1f} to {value:.1f}")
            rate = max(0.1, 1 / (count + 1))
            self._course[name] = (
                count + 1,
                mean + rate * distance,
                (1 - rate) * (variance + rate * distance**2),
            )
        return messages
