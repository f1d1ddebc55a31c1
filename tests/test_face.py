"""What tells a stranger what this is and who may use it: license, citation, metadata, forms of the repository."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import dowser_pl
from dowser_pl.methods import ModelDowser, Spider

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
GITHUB = ROOT / ".github"
FORMS = [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_license_is_the_text_of_apache_to_the_letter():
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert 'license = "Apache-2.0"' in PYPROJECT and CITATION["license"] == "Apache-2.0"


def test_the_citation_is_of_this_version():
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()  # without which it is not one
    assert CITATION["title"] == dowser_pl.__name__ and CITATION["version"] == dowser_pl.__version__
    assert f'version = "{dowser_pl.__version__}"' in PYPROJECT
    assert f"\n## [{dowser_pl.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("method", [ModelDowser, Spider])
def test_papers_are_cited_as_the_methods_name_them(method):
    told = method.reference
    (paper,) = (each for each in CITATION["references"] if told.arxiv in each["url"])
    assert ", ".join(author["family-names"] for author in paper["authors"]) == told.authors
    assert paper["year"] == told.year and paper["title"].startswith(told.title.removesuffix("MLLMs"))


def test_versions_of_python_are_those_that_may_install_it():
    lowest, beyond = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PYPROJECT).groups())
    listed = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)
    assert [int(minor) for minor in listed] == list(range(lowest, beyond))


def test_every_yaml_of_github_is_read_here():
    names = {path.relative_to(GITHUB).as_posix() for path in GITHUB.rglob("*.y*ml")}
    forms = {path.relative_to(GITHUB).as_posix() for path in FORMS}
    assert names == {"workflows/ci.yml", "ISSUE_TEMPLATE/config.yml", *forms}
    assert yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text()) == {"blank_issues_enabled": False}


def test_the_workflow_runs_the_whole_check_on_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    lowest, beyond = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PYPROJECT).groups())
    assert job["strategy"]["matrix"]["python"] == [f"3.{lowest}", f"3.{beyond - 1}"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"] and (ROOT / ".ci" / "run").is_file()
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    assert workflow[True].keys() == {"push", "pull_request", "workflow_dispatch"}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"} and job["timeout-minutes"] > 0


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_are_what_github_accepts(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"] and isinstance(form["labels"], list)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"checkboxes", "dropdown", "input", "textarea"}
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]+", each) for each in ids)
    for field in fields:
        assert field["attributes"]["label"] and field.keys() <= {"type", "id", "attributes", "validations"}
        choices = field["attributes"].get("options", [])
        assert bool(choices) == (field["type"] in ("checkboxes", "dropdown"))
        assert all(isinstance(choice, str if field["type"] == "dropdown" else dict) for choice in choices)


def instructions() -> list[tuple[str, str]]:
    """Name and words of every instruction of the Dockerfile, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines()]


def copied() -> list[str]:
    return [name for kind, words in instructions() if kind == "COPY" for name in words.split()[:-1]]


def test_the_image_is_built_from_what_a_wheel_is_made_of_and_nothing_else():
    let_through = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert sorted(copied()) == sorted(let_through) == ["LICENSE", "README.md", "configs", "dowser_pl", "pyproject.toml"]
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert all((ROOT / name).exists() for name in copied())


def test_the_image_takes_the_versions_that_the_package_takes():
    bounds = re.findall(r'"((?:torch|torchvision)[<>=][^"]+)"', DOCKERFILE)
    assert len(bounds) == 2 and all(f'"{bound}"' in PYPROJECT for bound in bounds)
    assert f"Python :: {re.search('ARG PYTHON=(.+)', DOCKERFILE)[1]}" in PYPROJECT
    for extra in re.search("ARG EXTRAS=(.+)", DOCKERFILE)[1].split(","):
        assert re.search(rf"^{extra} = \[", PYPROJECT, flags=re.MULTILINE)


def test_the_image_runs_the_command_line_as_no_root_and_keeps_no_secret():
    last = dict(instructions())
    assert json.loads(last["ENTRYPOINT"]) == ["python", "-m", "dowser_pl"] and last["USER"] == "dowser"
    assert f'useradd --uid "$USER_ID" {last["USER"]}' in DOCKERFILE
    names = re.findall(r"\b([A-Z_]+)=", " ".join(words for kind, words in instructions() if kind in ("ARG", "ENV")))
    assert names and not [name for name in names if re.search("TOKEN|KEY|SECRET|PASS", name)]


def shells() -> list[str]:
    return [re.sub(r"--mount=\S+ ", "", words) for kind, words in instructions() if kind == "RUN"]


def test_commands_of_the_image_are_those_of_a_shell():
    assert len(shells()) == 4
    for command in shells():
        subprocess.run(["sh", "-n", "-c", command], check=True, capture_output=True)


@pytest.mark.parametrize(("device", "status", "calls"), [("cuda", 0, 0), ("cpu", 0, 1), ("tpu", 1, 0)])
def test_the_image_is_for_cuda_or_cpu(device, status, calls, tmp_path):
    (tmp_path / "pip").write_text('#!/bin/sh\necho pip "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    (choice,) = (command for command in shells() if "case" in command)
    around = {"PATH": f"{tmp_path}:/bin:/usr/bin", "DEVICE": device}
    ran = subprocess.run(["sh", "-c", choice], env=around, capture_output=True, text=True, check=False)
    assert ran.returncode == status and ran.stdout.count("pip install") == calls
    assert ("expected cuda or cpu" in ran.stderr) == (status == 1)
