"""Where the time of a block goes: kernels, waits, and a trace."""

import gzip
import shutil
import time
from collections.abc import Callable
from typing import Any

from gpu.place import Place

__all__ = ["profiled"]


def profiled(place: Place, name: str, run: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, kernels and waits of `run`; its trace is kept beside the results where it is small enough."""
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    kinds = [ProfilerActivity.CPU] + ([] if place.rehearse else [ProfilerActivity.CUDA])
    place.wait()
    with profile(activities=kinds) as profiler:
        start = time.perf_counter()
        run()
        place.wait()
        wall = time.perf_counter() - start
    averages = profiler.key_averages()
    on_device = [each for each in averages if each.self_device_time_total > 0 and not each.cpu_time_total]
    rows = sorted(on_device or averages, key=lambda each: -(each.self_device_time_total or each.self_cpu_time_total))
    top = [
        {
            "name": each.key[:120],
            "calls": each.count,
            "milliseconds": (each.self_device_time_total or each.self_cpu_time_total) / 1e3,
        }
        for each in rows[:15]
    ]
    waits = {
        each.key: {"calls": each.count, "milliseconds": each.self_cpu_time_total / 1e3}
        for each in averages
        if each.key.startswith(("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "aten::item"))
    }
    busy = sum(each.self_device_time_total for each in on_device) / 1e6
    numbers: dict[str, Any] = {"wall_seconds_profiled": wall, "device_busy_seconds": busy, "top": top, "waits": waits}
    trace = place.work / f"{name}.trace.json"
    profiler.export_chrome_trace(str(trace))
    packed = place.traces / f"{name}.trace.json.gz"
    with trace.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    trace.unlink()
    if packed.stat().st_size >= 16 << 20:
        packed.unlink()
    numbers["summary"] = {
        "wall s": wall,
        "share of it that the device was busy": busy / wall,
    }
    return numbers
