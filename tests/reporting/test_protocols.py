import json
from dataclasses import replace

import pytest

from dowser_pl.commands.report import main
from dowser_pl.reporting import Report, markdown_page, text_comparison, text_table
from tests.reporting.samples import report

LLAVA = {"name": "llava", "max_new_tokens": 128, "metric": "vqa", "ocr_tokens": True, "scorer": "dowser_pl 1"}
LMMS = {**LLAVA, "name": "lmms-eval", "max_new_tokens": 1024, "ocr_tokens": False}


def asked_by(protocol: dict, **changes: object) -> Report:
    tasks = dict(report().tasks)
    return report(tasks=tasks | {"ocr": replace(tasks["ocr"], protocol=protocol)}, **changes)


def test_a_report_keeps_the_protocol_of_every_number() -> None:
    written = asked_by(LLAVA).to_json()
    assert json.loads(written)["tasks"]["ocr"]["protocol"] == LLAVA
    assert Report.from_json(written).tasks["ocr"].protocol == LLAVA


def test_reports_of_earlier_versions_have_none() -> None:
    content = json.loads(asked_by(LLAVA).to_json())
    del content["tasks"]["ocr"]["protocol"]
    assert Report.from_json(json.dumps(content)).tasks["ocr"].protocol == {}


def test_the_foot_of_a_table_tells_protocols_that_have_a_name() -> None:
    line = "ocr: vqa, 128 new tokens, with OCR tokens; scored by dowser_pl 1"
    for table in (text_table, markdown_page):
        assert line in " ".join(table(asked_by(LLAVA)).split())
        assert "protocol" not in table(asked_by({"name": "own", "max_new_tokens": 16, "metric": "vqa"}))
    assert line in text_comparison([asked_by(LLAVA), asked_by(LLAVA)])


def test_other_protocols_are_not_compared(tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match=r"'ocr' was not measured in the same way: name is 'llava' in run 1, 'lmms-"):
        text_comparison([asked_by(LLAVA), asked_by(LMMS)])
    for name, protocol in (("a", LLAVA), ("b", LMMS)):
        (tmp_path / f"{name}.json").write_text(asked_by(protocol).to_json())
    paths = [str(tmp_path / f"{name}.json") for name in ("a", "b")]
    assert main([*paths, "--plot", str(tmp_path / "c.png")]) == 1
    assert "max_new_tokens is 128 in run 1, 1024 in run 2" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize("key", ["metric", "scorer", "max_new_tokens", "normalisation", "prompts"])
def test_any_part_of_a_protocol_counts(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is .* in run 1, 'other' in run 3"):
        text_comparison([asked_by(LLAVA), report(), asked_by({**LLAVA, key: "other"})])


def test_another_padding_is_refused_and_what_was_not_told_was_the_processors() -> None:
    square = {**LLAVA, "padding": "square"}
    with pytest.raises(ValueError, match="padding is 'processor' in run 1, 'square' in run 2"):
        text_comparison([asked_by(LLAVA), asked_by(square)])
    assert "ocr" in text_comparison([asked_by(LLAVA), asked_by({**LLAVA, "padding": "processor"})])
    both = report(tasks={name: replace(task, protocol=LLAVA) for name, task in report().tasks.items()})
    one = replace(both, tasks=both.tasks | {"ocr": replace(both.tasks["ocr"], protocol=square)})
    for told, words in ((asked_by(square), "pictures padded"), (one, "pictures of ocr padded")):
        assert f"{words} to squares" in " ".join(text_table(told).split())
    assert "padded" not in text_table(asked_by(LLAVA))


def test_tasks_that_only_one_run_has_and_runs_that_do_not_tell_are_compared() -> None:
    assert "ocr" in text_comparison([asked_by(LLAVA), report()])
    fewer = asked_by(LMMS)
    alone = replace(fewer, tasks={name: task for name, task in fewer.tasks.items() if name != "ocr"})
    assert "other tasks" in text_comparison([asked_by(LLAVA), alone])
