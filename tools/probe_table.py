"""The numbers of `bench_probe.py` for people."""

from collections.abc import Mapping
from typing import Any

__all__ = ["lines"]

ROUNDING = 1e-6  # relative; scores that differ by less are equal up to the rounding of float32 sums
BUSY = 0.8  # share of its threads' time below which other processes had a part in the seconds


def lines(result: Mapping[str, Any]) -> list[str]:
    """The lines of what `bench_probe.py` measured."""
    columns = {name: result[name]["seconds"] for name in ("naive", "ours", "default_budget", "roofline")}
    phases = list(dict.fromkeys(phase for seconds in columns.values() for phase in seconds if phase != "total"))
    text = [f"{'seconds':<12}" + "".join(f"{name:>16}" for name in columns)]
    for phase in [*phases, "total"]:
        cells = [f"{seconds[phase]:.3f}" if phase in seconds else "" for seconds in columns.values()]
        text.append(f"{phase:<12}" + "".join(f"{cell:>16}" for cell in cells))
    ratio, sizes = result["ratio"], result["sizes"]
    text += [
        "",
        f"{sizes['parameters']:,} parameters, {sizes['target_weights']:,} of them scored; the cache takes "
        f"{result['ours']['cache_bytes'] / 2**20:.2f} MiB",
        f"given the prompts: naive / ours {ratio['seconds']:.2f}, "
        f"/ default budget {ratio['default_budget_seconds']:.2f}",
        f"with the writing of them: naive / ours {ratio['seconds_with_prompts']:.2f}, "
        f"/ default budget {ratio['default_budget_seconds_with_prompts']:.2f}; ours / roofline {ratio['roofline']:.2f}",
    ]
    for kind, words in (("peak_memory", "in use"), ("peak_resident", "resident")):
        if ratio[kind] is None:
            text.append(f"peak memory {words}: {result['problem'] or 'too small to compare'}")
        else:
            ours, naive = (result[side][kind]["total"] / 2**20 for side in ("ours", "naive"))
            text.append(f"peak memory {words}: ours {ours:.1f} MiB, naive {naive:.1f} MiB, ratio {ratio[kind]:.3f}")
    if result["cpu_share"] < BUSY and result["settings"]["device"] == "cpu":
        text.append(f"the process had {result['cpu_share']:.0%} of its threads' time: a busy machine, doubtful seconds")
    if result["naive"]["extrapolated"]:
        text.append("the loop ran a few probes of one batch: its seconds are multiplied up, its masks not compared")
        return text
    distance = result["largest_distance_to_threshold"]
    why = f"(below {ROUNDING:g}: rounding)" if distance < ROUNDING else "(more than rounding explains)"
    equal = "masks equal" if result["masks_equal"] else f"masks differ, at most {distance:.1e} from the threshold {why}"
    text.append(f"{equal}: {result['differing_entries']} differing of {result['selected_entries']:,} selected entries")
    return text
