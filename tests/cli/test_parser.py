"""Typos on the command line of the offline verbs."""

import pytest

from dowser_pl.__main__ import main

TYPOS = {
    "report --jsn x runs": "there is no option --jsn; did you mean --json? Help: python -m dowser_pl report --help",
    "report --plt x runs": "did you mean --plot?",
    "report": "there is nothing to report. Fix: name a run, or files by --base and --tuned",
    "patch appl": "did you mean apply? Help: python -m dowser_pl patch --help",
    "patch remove a b c": "not understood: c.",
    "patch apply a b --out c --csat": "there is no option --csat; did you mean --cast?",
    "patch apply a b --ou c": "the following arguments are required: --out",
    "bench -c bench/quick --lst": "did you mean --list?",
    "bench -c bench/quik": "did you mean bench/quick?",
    "bench -c bench/quick --list --only Radnom": "did you mean Random?",
    "merge --base a --tuned b --out c --method Dear": "did you mean Dare?",
    "merge --base a --tuned b --out c --method Dare --method.scal 1": "did you mean --method.scale?",
    "merge --base a --tuned b --out c --method Dare --othres base": "did you mean --others?",
    "merge --base a --tuned b --out c --method Dare --others tune": "expected one of: tuned, base; did you mean tuned?",
}


@pytest.mark.parametrize("line", TYPOS)
def test_a_typo_is_one_line(line, capsys):
    try:
        status = main(line.split())
    except SystemExit as stop:
        status = stop.code
    out, error = capsys.readouterr()
    assert status in (1, 2) and out == ""
    assert error.startswith("error: ") and error.count("\n") == 1 and TYPOS[line] in error
    assert "usage:" not in error
