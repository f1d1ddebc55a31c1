"""The numbers of a report by flat names, for loggers."""

from dowser_pl.reporting.report import Report


def scalars(report: Report) -> dict[str, float]:
    """Every number worth a comparison of runs; what is not known is left out.

    Returns:
        `report/<task>/before` and `after`, the same of `upstream`, `downstream` and `h_score`, counts of entries that
        moved, drift, seconds and memory. `hp_metric` is the one number of the run, by the name that TensorBoard's table
        of hyperparameters has for it: the H-score after training, the mean where all tasks are of one role.
    """
    means = {"upstream": report.upstream, "downstream": report.downstream, "h_score": report.h_score}
    found: dict[str, float | None] = {}
    for name, task in report.tasks.items():
        found |= {f"report/{name}/before": task.before, f"report/{name}/after": task.after}
    for name, mean in means.items():
        found |= {f"report/{name}/before": mean.before, f"report/{name}/after": mean.after}
    found |= {f"report/{name}": value for name, value in report.diagnostics.items()}
    found["report/frozen_changed"] = report.frozen.changed
    found["report/trainable_changed"] = report.trainable.changed
    found["report/drift_kl"] = None if report.drift is None else report.drift.all.kl
    found["report/seconds"] = report.seconds.total
    found["report/peak_memory_bytes"] = report.peak_memory_bytes
    after = (report.h_score.after, report.downstream.after, report.upstream.after)
    found["hp_metric"] = next((each for each in after if each is not None), None)
    return {name: float(value) for name, value in found.items() if value is not None}
