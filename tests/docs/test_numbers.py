"""Numbers that pages repeat are those of the files that measured them."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
STEPS = json.loads((ROOT / "benchmarks" / "results" / "gpu_h200.json").read_text())["steps"]
GB = 1e9


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_the_readme_shows_the_report_that_the_card_gave_too():
    """The lines of the first output: the same scores and the same frozen content as on the machine of the file."""
    report = STEPS["quickstart.32-true"]["report"]
    shown = next(block for block in re.findall(r"```text\n(.*?)```", README, re.DOTALL))
    assert len(shown.splitlines()) == 12
    for line in shown.splitlines()[1:8]:
        name = line.split()[0]
        if name in report["tasks"]:
            task = report["tasks"][name]
            expected = f"{task['before']:.3f}  {task['after']:.3f}"
            assert expected in line, line
    assert f"{report['h_score']['after']:.3f}" in shown
    assert f"sha256 {report['frozen_digest']['after'][:16]}" in shown
    assert f"{report['frozen']['entries']:,}, changed 0" in shown
    assert f"{report['trainable']['entries']:,}" in shown


def test_the_readme_names_the_cards_of_the_result_files_and_no_other():
    files = sorted((ROOT / "benchmarks" / "results").glob("gpu_*.json"))
    cards = {json.loads(path.read_text())["steps"]["environment.ceilings"]["device"] for path in files}
    told = README[README.index("**What has run on which card.**") :].split("\n\n")[0]
    assert set(re.findall(r"NVIDIA \w+", told)) == cards
    compact, dense = STEPS["training.compact"], STEPS["training.dense"]
    assert f"{compact['peak_bytes'] / GB:.1f} GB" in told
    assert f"{dense['peak_bytes'] / GB:.1f} GB" in told
    assert f"{STEPS['importance.pass']['seconds']['total']:.1f} s" in told


def test_the_tutorial_of_a_large_model_repeats_what_was_measured():
    rows = [line for line in page("tutorials/seven_billion.md").splitlines() if line.startswith("| ")]
    names = {"compact (": "compact", "compact, b": "compact_8bit", "dense": "dense", "full": "full", "LoRA": "lora"}
    for start, name in names.items():
        (row,) = (row for row in rows if row.startswith(f"| {start}"))
        step = STEPS[f"training.{name}"]
        assert f"| {step['peak_bytes'] / GB:.1f} GB |" in row
        assert f"| {step['tokens_per_second']:,.0f} |" in row


def test_the_short_table_of_methods_is_the_long_one():
    long = page("results/methods.md")
    rows = re.findall(r"^\| (\w+) \| (.+ ± .+) \| (.+) \| (.+) \| (.*) \| (.+) \|$", README, re.MULTILINE)
    assert len(rows) == 8
    for name, downstream, upstream, score, behind, kl in rows:
        assert re.search(
            rf"^\| {name} \| [^|]+ \| {downstream} \| {upstream} \| {score} \| [^|]+ \| {behind} \| [^|]+ \| {kl} \|",
            long,
            re.MULTILINE,
        ), name
    assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)


def test_what_is_said_of_the_real_model_follows_from_its_table():
    """Who leads, by how much, and whether that may be chance."""
    spread = r"0(\.\d+) ± \S+"
    rows = re.findall(
        rf"^\| (\w+) \| lr [^|\u2020]+ \| {spread} \| {spread} \| {spread} \| [^|]+ \| ?(?:0(\.\d+), p 0(\.\d+))? ?\|",
        page("results/real.md"),
        re.MULTILINE,
    )
    score, behind, p = ({row[0]: row[column] for row in rows} for column in (3, 4, 5))
    order = list(score)
    assert order[:2] == ["NullSpace", "ModelDowser"]
    assert sorted(score.values(), reverse=True) == list(score.values())
    readme = README[README.index("[a real model]") :].split("\n\n")[0].replace("\n", " ")
    assert f"the null space leads full fine-tuning by {behind['Full']} and OSF by {behind['OSF']}" in readme
    assert float(p["Full"]) < 0.05
    assert float(p["OSF"]) < 0.05
    assert f"Model-Dowser is second, {behind['ModelDowser']} behind, which may be chance" in readme
    assert float(p["ModelDowser"]) > 0.05
    assert "Of five methods on\n[a real" in README
    assert len(rows) == 5
    long = page("results/real.md").replace("\n", " ")
    for name, p_text in (("Full", "full fine-tuning"), ("OSF", "OSF")):
        assert f"{behind[name]} ahead of {p_text} (p {p[name]})" in long


def test_experiments_say_what_they_cost():
    names = {"llava_7b_dowser": "compact", "llava_7b_dowser_8bit": "compact_8bit", "llava_7b_lora": "lora"}
    folder = ROOT / "configs" / "experiment"
    assert {path.stem for path in folder.glob("*.yaml")} == names.keys()
    for name, step in names.items():
        said = " ".join((folder / f"{name}.yaml").read_text().replace("# ", "").split())
        seconds = sorted(STEPS[f"training.{step}"]["step_seconds"])[2]
        assert f"peak {STEPS[f'training.{step}']['peak_bytes'] / GB:.1f} GB, {seconds:.2f} s a row" in said, name
        assert f"-c experiment/{name} " in said, name
