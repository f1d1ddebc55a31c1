"""The page of a bench: its numbers as tables, best H-score first."""

from collections.abc import Sequence

from dowser_pl.bench.cells import setting_text
from dowser_pl.bench.paired import Difference
from dowser_pl.bench.results import Comparison, MethodResult, Spread
from dowser_pl.bench.settings import Settings
from dowser_pl.reporting.drift import kl_text
from dowser_pl.reporting.scores import h_score
from dowser_pl.reporting.table import NOTHING, bytes_text, markdown_grid, score_text, seconds_text

__all__ = ["page", "spread_text"]

HEADER = (
    "method",
    "setting",
    "downstream",
    "upstream",
    "H",
    "95 % of H",
    "behind the first",
    "mean",
    "KL to the base",
    "trainable",
    "training",
    "a step",
    "peak memory",
    "file",
)
EDGE_MARK = "\u2020"
NOTES = (
    "Mean ± standard deviation over seeds on the test split; every setting was chosen on the validation split, by the "
    "H-score, the harmonic mean of downstream and upstream; mean is the arithmetic one. Training is without "
    "evaluation; of what is merged after training it holds the training as well. Trainable: share of the tuned "
    "matrices' entries that may move, or, after a merge, that differ from the base. File: the smallest written that "
    "gives the tuned model. The deviation is that of training seeds; all seeds answer the same questions, so a mean p "
    "over n of them is uncertain by about sqrt(p (1 - p) / n) more. Methods that decide after training tried their own "
    "option at two learning rates of the runs they merge. 95 % of H: of draws of questions and seeds with replacement; "
    "behind the first: the difference of H to the first row on the same draws, p two-sided and Holm-corrected over the "
    "rows. KL to the base: on rows that the base wrote itself, which no method trains on. A step: seconds of training "
    "by its steps, all that a method does meanwhile included, the median of short runs in which the methods took "
    "turns, and how many times that of the fastest it is."
)


_LEAST_P = 0.001  # smaller ones are as the number of draws has them


def page(settings: Settings, comparisons: Sequence[Comparison], pictures: Sequence[str]) -> str:
    """The contents of bench.md, the report of a bench.

    Args:
        settings: of the bench.
        comparisons: one for each group.
        pictures: file names beside it.
    """
    parts = [f"# {settings.folder.name}", NOTES]
    for comparison in comparisons:
        parts += [f"## {comparison.group.text}", *_sections(settings, comparison)]
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def spread_text(spread: Spread, of_score: bool = True) -> str:
    """Such as `0.820 ± .010`; the mean alone for one seed."""
    mean = f"{spread.mean:.3f}" if of_score else seconds_text(spread.mean)
    if spread.std is None or not of_score:
        return mean
    return f"{mean} ± {f'{spread.std:.3f}'.lstrip('0')}"


def _sections(settings: Settings, comparison: Comparison) -> list[str]:
    methods = [method for method in comparison.methods if method.begun] or list(comparison.methods)
    others = [method.entry.name for method in comparison.methods if method not in methods]
    fastest = min((each.step_seconds for each in methods if each.step_seconds), default=None)
    rows = [_row(settings, method, comparison.differences.get(method.entry.name), fastest) for method in methods]
    if comparison.base is not None:
        downstream, upstream = comparison.base
        scores = [score_text(each) for each in (downstream, upstream, h_score(upstream, downstream))]
        rows.append(
            ("base model", "", *scores, "", "", score_text((downstream + upstream) / 2), "0", "", "", "", "", "")
        )
    shown = [column for column, name in enumerate(HEADER) if name != "a step" or fastest is not None]
    grid = [[row[column] for column in shown] for row in (HEADER, *rows)]
    sections = [markdown_grid(grid[0], grid[1:], "ll" + "r" * (len(shown) - 2))]
    if others:
        sections.append(f"Not begun: {', '.join(others)}.")
    if alike := [method.entry.name for method in methods if _seeds_alike(method)]:
        sections.append(
            f"The same scores with every seed, of every task: {', '.join(alike)}. Does `seeded` name what draws there?"
        )
    if any(method.choice is not None and method.choice.edges for method in methods):
        sections.append(f"{EDGE_MARK} at the edge of what was tried: a better setting may lie outside.")
    sections += _matched(comparison) + _foretold(comparison) + _failures(methods) + _drops(methods)
    sections += ["What was tried, on the validation split:", _tried(methods)]
    return sections


def _seeds_alike(method: MethodResult) -> bool:
    """Whether several seeds gave one result, so that their spread says nothing."""
    scores = [{name: task.after for name, task in record.tasks.items()} for record in method.records]
    return len(scores) > 1 and all(each == scores[0] for each in scores[1:])


def _row(
    settings: Settings, method: MethodResult, difference: Difference | None, fastest: float | None
) -> tuple[str, ...]:
    if method.choice is None:
        state = "failed" if method.failures else "not finished"
        return (method.entry.name, state, *[NOTHING] * (len(HEADER) - 2))
    edges = method.choice.edges
    setting = " ".join(f"{name} {value:g}{EDGE_MARK if name in edges else ''}" for name, value in method.choice.setting)
    missing = len(settings.seeds) - len(method.seeds)
    if missing:
        setting += f" ({len(method.seeds)} of {len(settings.seeds)} seeds)"
    if not method.records:
        return (method.entry.name, setting, *[NOTHING] * (len(HEADER) - 2))
    content = method.to_dict()
    return (
        method.entry.name,
        setting,
        spread_text(method.downstream),
        spread_text(method.upstream),
        spread_text(method.h_score),
        NOTHING if difference is None else " to ".join(f"{end:.3f}" for end in difference.interval),
        _behind(difference),
        spread_text(method.arithmetic_mean),
        NOTHING if method.drift is None else kl_text(method.drift.mean),
        f"{100 * content['trainable_share']:.1f} %",
        spread_text(method.seconds, of_score=False),
        _step(method, fastest),
        bytes_text(method.peak_memory_bytes),
        bytes_text(content["file_bytes"]),
    )


def _step(method: MethodResult, fastest: float | None) -> str:
    """Such as `0.21 s, 1.9`."""
    if method.step_seconds is None or fastest is None:
        return NOTHING
    return f"{method.step_seconds:.2g} s, {method.step_seconds / fastest:.2f}"


def _behind(difference: Difference | None) -> str:
    """Such as `0.028, p 0.004`; how sure that is stands beside how much it is."""
    if difference is None:
        return NOTHING
    if difference.p is None:
        return ""
    p = f"p {difference.p:.2g}" if difference.p >= _LEAST_P else f"p < {_LEAST_P}"
    return f"{max(0.0, -difference.value):.3f}, {p}"


def _matched(comparison: Comparison) -> list[str]:
    if comparison.matched is None:
        return []
    level, upstream = comparison.matched
    order = sorted(upstream, key=lambda name: -(upstream[name] or 0.0))
    rows = [(name, "not reached" if upstream[name] is None else score_text(upstream[name])) for name in order]
    return [
        f"Upstream where downstream is {level:.2f}, on the validation split, between the settings that were tried: who "
        "keeps most when all have learnt equally much.",
        markdown_grid(("method", "upstream"), rows, "lr"),
    ]


def _foretold(comparison: Comparison) -> list[str]:
    if comparison.foretold is None:
        return []
    value, runs = comparison.foretold
    return [
        f"Drift foretells what is forgotten, without data: over {runs} runs the rank correlation (Spearman) of KL to "
        f"the base with the upstream score that was lost is {value:.2f} (1 = the same order, 0 = none)."
    ]


def _failures(methods: Sequence[MethodResult]) -> list[str]:
    lines = [
        f"- {cell}: {reason.splitlines()[-1] if reason else ''}"
        for method in methods
        for cell, reason in method.failures.items()
    ]
    return ["Failed (run the bench again with `--retry`):", "\n".join(lines)] if lines else []


def _drops(methods: Sequence[MethodResult]) -> list[str]:
    shown = [method for method in methods if method.records]
    if not shown:
        return []
    tasks = list(shown[0].drops)
    rows = [(each.entry.name, *(_change(each.drops[task].mean) for task in tasks)) for each in shown]
    grid = markdown_grid(("lost of", *tasks), rows, "l" + "r" * len(tasks))
    return ["What was lost of every upstream task (negative: gained), mean over seeds:", grid]


def _change(lost: float) -> str:
    return f"{lost:.3f}" if abs(lost) >= 0.0005 else "0.000"


def _tried(methods: Sequence[MethodResult]) -> str:
    rows = []
    for method in methods:
        for point in method.curve:
            chosen = method.choice is not None and method.choice.setting == point.cell.setting
            record = point.record
            scores = (record.mean("downstream"), record.mean("upstream"), record.h_score) if record else (None,) * 3
            state = "chosen" if chosen else "" if record else "failed" if point.failure else "not finished"
            rows.append((method.entry.name, setting_text(point.cell.setting), *map(score_text, scores), state))
    return markdown_grid(("method", "setting", "downstream", "upstream", "H", ""), rows, "llrrrl")
