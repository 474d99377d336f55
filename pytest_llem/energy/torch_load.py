"""A steady load on one CUDA device, for calibration and for the tests on real GPUs: matrix products with torch."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from pytest_llem.errors import MeterError

SIZE = 8192


class MatmulLoad:
    """Half-precision matrix products, back to back, on the device with this UUID."""

    def __init__(self, uuid: str, size: int = SIZE) -> None:
        """Allocate the matrices and run once, so that a burst starts at once; `MeterError` without torch and CUDA."""
        try:
            torch: Any = import_module("torch")
        except ImportError:
            raise MeterError(
                "calibration under load needs torch",
                fix="pip install 'pytest-llem[transformers]', or: llem doctor --calibrate --without-load (wide bounds)",
            ) from None
        if not torch.cuda.is_available():
            raise MeterError(
                "torch sees no CUDA device",
                fix="install a CUDA build of torch, or: llem doctor --calibrate --without-load (wide bounds)",
            )
        wanted = uuid.removeprefix("GPU-")
        indices = [
            index
            for index in range(torch.cuda.device_count())
            if str(torch.cuda.get_device_properties(index).uuid).removeprefix("GPU-") == wanted
        ]
        if not indices:
            raise MeterError(f"torch does not see {uuid}", fix="check CUDA_VISIBLE_DEVICES")
        self._torch = torch
        self._device = torch.device("cuda", indices[0])
        self._a = torch.randn(size, size, device=self._device, dtype=torch.float16)
        self._b = torch.randn(size, size, device=self._device, dtype=torch.float16)
        self._product_s = self._time_one()

    def burst(self, seconds: float) -> tuple[int, int]:
        """Run for about this long, synchronised at both ends; at most two products are queued ahead."""
        torch = self._torch
        torch.cuda.synchronize(self._device)
        start_ns = time.monotonic_ns()
        events: list[Any] = []
        for _ in range(max(1, round(seconds / self._product_s))):
            torch.matmul(self._a, self._b)
            event = torch.cuda.Event()
            event.record()
            events.append(event)
            if len(events) > 2:
                events.pop(0).synchronize()
        torch.cuda.synchronize(self._device)
        return start_ns, time.monotonic_ns()

    def _time_one(self) -> float:
        torch = self._torch
        for _ in range(3):
            torch.matmul(self._a, self._b)
        torch.cuda.synchronize(self._device)
        begin = time.monotonic_ns()
        for _ in range(10):
            torch.matmul(self._a, self._b)
        torch.cuda.synchronize(self._device)
        return (time.monotonic_ns() - begin) / 10 / 1e9
