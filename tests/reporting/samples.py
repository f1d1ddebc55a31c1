"""Reports to test with."""

from dataclasses import replace

from dowser_pl.reporting import (
    BudgetChoice,
    Counts,
    CurvePoint,
    DriftScore,
    Report,
    ReportedDrift,
    Seconds,
    TaskScore,
)


def report(**changes: object) -> Report:
    """A run with one downstream and two upstream tasks, scores chosen to be easy to average."""
    base = Report(
        method="ModelDowser",
        update_ratio=0.1,
        seed=3,
        tasks={
            "colour": TaskScore("upstream", "exact_match", 1.0, 0.75),
            "digits": TaskScore("downstream", "exact_match", 0.0, 0.5),
            "ocr": TaskScore("upstream", "vqa", 0.5, 0.25),
        },
        frozen=Counts(900, 0),
        trainable=Counts(100, 97),
        seconds=Seconds(6.1, 72.0, 3725.0),
        peak_memory_bytes=512 * 2**20,
        versions={"torch": "2.13.0"},
        learning_rate=6e-3,
        steps=1500,
        model="embedded:world",
        run="quickstart",
        diagnostics={"overlap with magnitude": 0.81},
        update="compact",
        frozen_digest={"before": "ab" * 32, "after": "ab" * 32},
    )
    return replace(base, **changes)


def drift() -> ReportedDrift:
    """KL 0.004 and 95 % the same on 400 positions of two sources."""
    return ReportedDrift({"text": DriftScore(0.001, 0.98, 300), "shuffle": DriftScore(0.013, 0.86, 100)})


def with_tasks(num_tasks: int) -> Report:
    """A run with many tasks, one of them CIDEr, one with a long name."""
    tasks = {
        f"task {number}": TaskScore("upstream" if number % 3 else "downstream", "vqa", 0.6, number / num_tasks)
        for number in range(1, num_tasks + 1)
    }
    tasks["a very long name of a captioning benchmark | test"] = TaskScore("upstream", "cider", 1.12, 0.9)
    return report(tasks=tasks)


def curve() -> list[CurvePoint]:
    """Downstream means 0, 0.25, 0.5, upstream means 0.75, 0.75, 0.5; the knee is at 0.05."""
    return [
        CurvePoint(0.0, {"colour": 1.0, "digits": 0.0, "ocr": 0.5}),
        CurvePoint(0.05, {"colour": 0.875, "digits": 0.25, "ocr": 0.625}),
        CurvePoint(0.1, {"colour": 0.75, "digits": 0.5, "ocr": 0.25}),
    ]


def with_curve(**changes: object) -> Report:
    """A run whose curve was measured; nothing was chosen."""
    return report(curve=curve(), **changes)


def with_budget(kept: bool = True, **changes: object) -> Report:
    """The same run, where 0.05 was chosen because at most 0.02 of the upstream mean may be lost."""
    chosen = curve()[1].scores
    tasks = {name: replace(task, after=chosen[name]) for name, task in report().tasks.items()}
    drops = {0.05: 0.013 if kept else 0.037, 0.1: 0.25}
    return with_curve(tasks=tasks, budget=BudgetChoice(0.02, 0.05, kept, drops), **changes)


def with_points(ratios: list[float], downstream: list[float], upstream: list[float], **changes: object) -> Report:
    """A run of one task of each role with this curve, the first point the base model and the last the tuned one."""
    tasks = {
        "new": TaskScore("downstream", "cider", downstream[0], downstream[-1]),
        "old": TaskScore("upstream", "vqa", upstream[0], upstream[-1]),
    }
    points = zip(ratios, downstream, upstream, strict=True)
    return report(
        tasks=tasks,
        update_ratio=ratios[-1],
        curve=[CurvePoint(ratio, {"new": new, "old": old}) for ratio, new, old in points],
        **changes,
    )
