"""How fast a run is: images a second, the wait for data, the use made of the device."""

from __future__ import annotations

import time

import jax

# Dense bf16 peaks of one JAX device in FLOP/s by the start of its name, from the vendors' data sheets; a longer name
# stands before its beginning. TPU v2 and v3 chips are two devices each.
PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(kind: str) -> float | None:
    """The dense bf16 peak in FLOP/s of a device kind, or None where it is not known.

    >>> peak_flops("TPU v5 lite"), peak_flops("cpu")
    (197000000000000.0, None)
    """
    return next((peak for name, peak in PEAKS.items() if kind.startswith(name)), None)


class Clock:
    """Throughput since the last row.

    Args:
      batch_size: the global one.
      flops: of a step, per device, if known.
    """

    def __init__(self, batch_size: int, flops: float | None) -> None:
        self._batch_size, self._flops, self._peak = batch_size, flops, peak_flops(jax.devices()[0].device_kind)
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def step(self, waited: float) -> None:
        """Count a step that waited so many seconds for its batch."""
        self._waited += waited
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Time of the interval that was not training."""
        self._start += seconds

    def row(self) -> dict[str, float]:
        """The interval's metrics; call it when the device has finished the interval's steps."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        row = {
            "images_per_second": self._batch_size * self._steps / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
            "data_wait_share": self._waited / seconds,
        }
        if self._flops and self._peak:
            row["flop_utilisation"] = self._flops * self._steps / seconds / self._peak
        return row
