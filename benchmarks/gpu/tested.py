"""What the tests say on this card: those that are marked, and a step of every family."""

import json
import os
import subprocess
import sys
import traceback
from typing import Any
from xml.etree import ElementTree

from gpu.place import ROOT, Place
from gpu.runs import python_path

__all__ = ["families", "gpu_tests"]


def gpu_tests(place: Place) -> dict[str, Any]:
    """`pytest -m gpu`."""
    result = place.work / "gpu_tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", f"--junitxml={result}"]
    ended = subprocess.run(
        [*command, "tests/test_gpu.py", "tests/functional/test_selection.py"],
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": python_path()},
    )
    if not result.is_file():
        raise AssertionError(ended.stdout[-4000:])
    suite = ElementTree.parse(result).getroot().find("testsuite")
    assert suite is not None
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    sys.stderr.write(ended.stdout)
    cases = [case for case in suite.iter("testcase") if case.find("failure") is not None]
    failed = {f"{case.get('classname')}::{case.get('name')}": _message(case) for case in cases}
    if count["failures"] + count["errors"]:
        raise AssertionError(f"{count}: {json.dumps(failed, indent=1)}\n{ended.stdout[-3000:]}")
    skips = [skip.get("message", "") for skip in suite.iter("skipped")]
    if not place.rehearse and any("needs a GPU" in why for why in skips):
        raise AssertionError(f"tests were skipped for want of a GPU on a GPU:\n{ended.stdout[-3000:]}")
    return {"summary": count, "left_out": sorted(set(skips))}  # such as what needs bitsandbytes, where it is missing


def _message(case: ElementTree.Element) -> str:
    failure = case.find("failure")
    return "" if failure is None else (failure.text or "")[-1500:]


def families(place: Place) -> dict[str, Any]:
    """Every family, small, in bfloat16: a masked step, frozen entries compared, an answer."""
    from tests.test_gpu import family_step  # noqa: PLC0415
    from tests.tiny_models import FAMILIES  # noqa: PLC0415

    losses, failed = {}, {}
    for family in FAMILIES:
        try:
            losses[family] = family_step(family, place.device)
        except Exception:  # noqa: BLE001 - the next family is tried all the same
            failed[family] = traceback.format_exc()[-1500:]
    if failed:
        raise AssertionError(json.dumps(failed, indent=1))
    return {"losses": losses, "summary": {"families": ", ".join(losses)}}
