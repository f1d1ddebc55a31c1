"""How numbers of a report are written, the same in the terminal, in Markdown and in plots."""

from dowser_pl.reporting.report import Report

NOTHING = "-"
UNITS = ("KiB", "MiB", "GiB", "TiB")


def score_text(score: float | None) -> str:
    """Three decimals; "-" where there is no score."""
    return NOTHING if score is None else f"{score:.3f}"


def change_text(change: float | None) -> str:
    """Three decimals with sign; what rounds to zero has none."""
    if change is None:
        return NOTHING
    return f"{change:+.3f}" if abs(change) >= 0.0005 else "0.000"


def number_text(number: float | None) -> str:
    """Shortest form of a setting: 0.1, 6e-05, 0.003."""
    return NOTHING if number is None else f"{number:g}"


def seconds_text(seconds: float) -> str:
    """`6.1 s`, `4 min 05 s` or `2 h 03 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(num_bytes: int | None) -> str:
    """Binary units with one decimal: `512.0 MiB`."""
    if num_bytes is None:
        return NOTHING
    if num_bytes < 1024:
        return f"{num_bytes} B"
    power = min((num_bytes.bit_length() - 1) // 10, len(UNITS))
    return f"{num_bytes / 1024**power:.1f} {UNITS[power - 1]}"


def share_text(part: int, whole: int) -> str:
    """`97.2 %`; "-" of nothing."""
    return NOTHING if whole == 0 else f"{100 * part / whole:.1f} %"


def lost_text(lost: float | None) -> str:
    """What was lost, as a positive number; negative where it was gained."""
    return change_text(lost).lstrip("+")


def ratio_text(report: Report) -> str:
    """The trained update ratio, and the one that a budget kept of it: `0.1, kept 0.05`."""
    trained = number_text(report.update_ratio)
    return trained if report.budget is None else f"{trained}, kept {number_text(report.budget.update_ratio)}"


def settings(report: Report) -> list[str]:
    """The settings that a reader needs beside the numbers, for a heading."""
    parts = [f"update ratio {ratio_text(report)}"] if report.update_ratio is not None else []
    if report.learning_rate is not None:
        parts.append(f"learning rate {number_text(report.learning_rate)}")
    if report.steps is not None:
        parts.append(f"{report.steps:,} steps")
    parts.append(f"seed {report.seed}")
    if report.model is not None:
        parts.append(report.model)
    return parts


def facts(report: Report) -> list[tuple[str, str]]:
    """What follows the scores: counts of entries, time, memory, diagnostics."""
    frozen, trainable, seconds = report.frozen, report.trainable, report.seconds
    warning = " (WARNING: a frozen entry must not change)" if frozen.changed else ""
    stages = f"probe {seconds_text(seconds.probe)}, fit {seconds_text(seconds.fit)}"
    return [
        ("frozen entries", f"{frozen.entries:,}, changed {frozen.changed:,}{warning}"),
        (
            "trainable entries",
            f"{trainable.entries:,}, changed {trainable.changed:,}"
            f" ({share_text(trainable.changed, trainable.entries)})",
        ),
        *_digest_fact(report),
        ("time", f"{stages}, evaluate {seconds_text(seconds.evaluate)}"),
        ("peak memory", bytes_text(report.peak_memory_bytes)),
        *((name, number_text(value)) for name, value in report.diagnostics.items()),
    ]


def _digest_fact(report: Report) -> list[tuple[str, str]]:
    """The content hash of frozen entries, shortened; both if they differ."""
    values = list(dict.fromkeys(value[:16] for value in report.frozen_digest.values()))
    return [("frozen content", f"sha256 {', then '.join(values)}")] if values else []
