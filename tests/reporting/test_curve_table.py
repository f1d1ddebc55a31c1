import pytest

from dowser_pl.reporting import BudgetChoice, markdown_page, markdown_table, text_comparison, text_table
from dowser_pl.reporting.table import budget_text, settings
from tests.reporting.samples import report, with_budget, with_curve, with_points

CURVE = """\
ratio  downstream  upstream  H-score   drop
-------------------------------------------------------
0           0.000     0.750    0.000  0.000  base model
0.05        0.250     0.750    0.375  0.000  knee
0.1         0.500     0.500    0.500  0.250

Knee: of the upstream mean over the downstream mean the point farthest above the line from the base
model to the trained one.

frozen entries """
BUDGET = """\
ratio  downstream  upstream  H-score   drop  drop when choosing
---------------------------------------------------------------------------
0           0.000     0.750    0.000  0.000                   -  base model
0.05        0.250     0.750    0.375  0.000               0.013  knee, chosen
0.1         0.500     0.500    0.500  0.250               0.250
"""
KEPT = (
    "Budget: at most 0.02 of the upstream mean may be lost. Chosen: update ratio 0.05, which lost 0.013 on data set "
    "apart to choose on, not the data of this report."
)
NOT_KEPT = (
    "WARNING: the budget is not kept: at most 0.02 of the upstream mean may be lost, and every measured update ratio "
    "lost more. Chosen: the smallest, 0.05, which lost 0.037 on data set apart to choose on, not the data of this "
    "report."
)


def test_curve_between_scores_and_facts() -> None:
    assert f"H-score                                    0.000  0.500  +0.500\n\n{CURVE}" in text_table(with_curve())


def test_nothing_without_a_curve() -> None:
    for table in (text_table(report()), markdown_page(report())):
        assert "ratio  downstream" not in table and "Knee" not in table and "Budget" not in table


@pytest.mark.parametrize(("kept", "sentence"), [(True, KEPT), (False, NOT_KEPT)])
def test_what_a_budget_chose(kept: bool, sentence: str) -> None:
    table = text_table(with_budget(kept))
    assert max(map(len, table.splitlines())) <= 100
    assert sentence in " ".join(table.split())
    assert sentence in markdown_table(with_budget(kept))


def test_chosen_row() -> None:
    lines = [line.split() for line in text_table(with_budget()).splitlines()]
    for line in BUDGET.splitlines():
        if not set(line) <= {"-"}:
            assert line.split() in lines


def test_gained() -> None:
    assert "ratio 0.05, which gained 0.010 on data" in budget_text(BudgetChoice(0.0, 0.05, True, {0.05: -0.01}))


def test_a_budget_without_a_curve_is_still_told() -> None:
    table = text_table(report(budget=with_budget().budget))
    assert "Budget: at most 0.02" in table and "ratio  downstream" not in table


def test_markdown() -> None:
    table = markdown_table(with_curve())
    assert "| 0.05 | 0.250 | 0.750 | 0.375 | 0.000 | knee |" in table
    assert "| ratio | downstream | upstream | H-score | drop |  |\n| :--- | ---: |" in table


def test_page_links_the_picture() -> None:
    page = markdown_page(with_curve(), "report.png", "curve.png")
    assert page.index("](report.png)") < page.index("](curve.png)") < page.index("| task |")
    assert "curve.png" not in markdown_page(with_curve(), "report.png")


def test_one_role_is_a_dash() -> None:
    run = with_points([0, 0.1], [0.2, 0.6], [0.5, 0.5])
    only = {name: task for name, task in run.tasks.items() if task.role == "downstream"}
    points = [type(point)(point.update_ratio, {"new": point.scores["new"]}) for point in run.curve]
    assert "| 0.1 | 0.600 | - | - | - |  |" in markdown_table(report(tasks=only, curve=points))


def test_the_kept_ratio_is_named_wherever_the_ratio_is() -> None:
    assert settings(with_budget())[0] == "update ratio 0.1, kept 0.05"
    assert settings(with_curve())[0] == "update ratio 0.1"
    table = text_comparison([with_curve(), with_budget(run="a-name", method="HighestImportance")])
    assert " 0.05 of 0.1 " in table
    assert max(map(len, table.splitlines())) <= 100
