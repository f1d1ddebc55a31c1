"""The job scripts and the image: what they name exists, and a job ends, goes on or stops as its script says.

SLURM is not here. In its place stand an ``srun`` that starts the processes as SLURM would, with its variables, and an
``scontrol`` that writes down what it was asked.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from dowser_pl.__main__ import main
from dowser_pl.reporting import read_report
from tests.tiny_models import save_tiny_llava
from tests.tiny_run import pictures

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "examples" / "slurm").glob("*.sh"))
SAME = "# From here on the same in all examples."
GUIDE = (ROOT / "examples" / "README.md").read_text()

SRUN = """\
#!/usr/bin/env bash
shift # --kill-on-bad-exit=1
pids=()
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
  SLURM_PROCID=$rank SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE)) SLURM_NODEID=$((rank / SLURM_NTASKS_PER_NODE)) \\
    "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
highest=0
for pid in "${pids[@]}"; do
  while true; do
    status=0
    wait "$pid" || status=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  ((status > highest)) && highest=$status
done
exit "$highest"
"""
SCONTROL = """\
#!/usr/bin/env bash
echo "$@" >>asked
"""


def header(job: Path) -> dict[str, str]:
    """What a script asks of SLURM."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", job.read_text(), flags=re.MULTILINE))


def environment(folder: Path, tasks: int = 1, nodes: int = 1, **more: str) -> dict[str, str]:
    """Of a job, with stand-ins for the commands of SLURM in front."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, **more}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "mine",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(tasks * nodes),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_CPUS_PER_TASK": "1",
    }


def command(job: Path, folder: Path, *arguments: str) -> list[str]:
    """What a script starts on every node, word by word."""
    asked = header(job)
    around = environment(
        folder, int(asked["ntasks-per-node"]), int(asked["nodes"]), srun='#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n'
    )
    ran = subprocess.run(["bash", str(job), *arguments], cwd=folder, env=around, check=True, capture_output=True)
    return ran.stdout.decode().splitlines()


def settings(words: list[str], capsys) -> dict:
    """What the real command line makes of a command; one that does not exist is an error."""
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return yaml.safe_load(printed.out)


@pytest.mark.parametrize("path", [*JOBS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_are_bash_and_may_be_run(path):
    subprocess.run(["bash", "-n", str(path)], check=True, capture_output=True)
    assert os.access(path, os.X_OK)


def test_there_is_a_script_for_each_size_and_the_guide_names_them():
    assert [job.name for job in JOBS] == ["one_gpu.sh", "one_node.sh", "several_nodes.sh"]
    links = re.findall(r"\]\((.+?)\)", GUIDE)
    assert [link for link in links if link.startswith("slurm/")] == [f"slurm/{job.name}" for job in JOBS]
    assert all((ROOT / "examples" / link).is_file() for link in links)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_option_and_configuration_exists(job, tmp_path, capsys):
    words = command(job, tmp_path, "--data.train_file", "my/train.json")
    assert words[:4] == ["python", "-m", "dowser_pl", "fit"]
    asked, config = header(job), settings(words[3:], capsys)
    assert str(config["trainer"]["devices"]) == asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert config["trainer"]["num_nodes"] == int(asked["nodes"])
    assert config["trainer"]["default_root_dir"] == "runs/mine" and config["ckpt_path"] == "last"
    assert config["checkpoint"]["every_n_steps"] > 0 and config["data"]["init_args"]["train_file"] == "my/train.json"
    assert ("FSDP2" in str(config["trainer"]["strategy"])) == (int(asked["ntasks-per-node"]) > 1)
    assert "requeue" in asked and asked["signal"] == "B:TERM@180" and asked["open-mode"] == "append"


def test_how_a_job_ends_is_the_same_in_all_scripts():
    first, *others = (job.read_text().partition(SAME)[2] for job in JOBS)
    assert first and all(other == first for other in others)


def test_commands_of_the_guide_exist(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("data: {class_path: ConversationData, init_args: {train_file: a.json}}\n")
    blocks = "".join(re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    lines = [shlex.split(line) for line in blocks]
    ours = [line[3:] for line in lines if line[:3] == ["python", "-m", "dowser_pl"]]
    for line in (line for line in lines if line[:2] == ["docker", "run"]):
        (image,) = (position for position, word in enumerate(line) if word.partition(":")[0] == "dowser_pl")
        ours.append(line[image + 1 :])
    (submitted,) = (line for line in lines if line[0] == "sbatch")
    (job,) = (word for word in submitted if word.endswith(".sh"))
    ours.append(command(ROOT / job, tmp_path, *submitted[submitted.index(job) + 1 :])[3:])
    assert len(ours) == 4
    for words in ours:
        settings(words, capsys)


def start(job: Path, folder: Path, around: dict[str, str], *arguments: str) -> subprocess.Popen:
    """A job, as SLURM starts it: in a session of its own."""
    return subprocess.Popen(
        ["bash", str(job), *arguments], cwd=folder, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def until(done, process: subprocess.Popen, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


STEP = """\
#!/usr/bin/env bash
{saves}
trap 'sleep 0.2; exit {status}' TERM
sleep 0.2 # until the script listens too
touch began
for ((i = 0; i < 1000; i++)); do sleep 0.05; done
"""
SAVES = "mkdir -p runs/mine/checkpoints; sleep 0.05; touch runs/mine/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("saves", "status", "asked"),
    [(SAVES, 143, ["requeue 4242"]), (SAVES, 1, ["requeue 4242"]), ("", 143, []), (SAVES, 0, [])],
    ids=["ended", "ended with the others", "nothing saved", "done meanwhile"],
)
def test_a_job_that_is_told_its_time_is_over(tmp_path, saves, status, asked):
    around = environment(tmp_path, srun=STEP.format(saves=saves, status=status))
    process = start(JOBS[0], tmp_path, around)
    until((tmp_path / "began").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == status
    said, told = process.stderr.read().decode(), tmp_path / "asked"
    assert (told.read_text().splitlines() if told.exists() else []) == asked
    assert ("saved no checkpoint" in said) == (not saves)


@pytest.mark.parametrize("status", [0, 1, 7])
def test_a_job_that_ends_by_itself_is_not_started_again(tmp_path, status):
    (tmp_path / "runs" / "mine" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "checkpoints" / "last.ckpt").touch()  # of an earlier job
    process = start(JOBS[0], tmp_path, environment(tmp_path, srun=f"#!/bin/sh\n{SAVES}\nexit {status}\n"))
    assert process.wait(20) == status and not (tmp_path / "asked").exists()


SMALL = """\
model: {{path: {model}, dtype: float32, gradient_checkpointing: false, last_n_layers: null}}
data:
  init_args: {{train_file: train.json, image_folder: images, batch_size: 2, holdout: 0.2}}
trainer: {{accelerator: cpu, precision: 32-true, max_epochs: 2}}
dowser: {{probe: {{num_prompts: 4, num_probes: 2, num_tokens: 12}}}}
checkpoint: {{every_n_steps: 1}}
"""


def write_rows(folder: Path) -> None:
    """LLaVA JSON and a folder of images."""
    (folder / "images").mkdir()
    rows = []
    for index, (colour, image) in enumerate(pictures(20)):
        image.save(folder / "images" / f"{index}.png")
        turns = [("human", "<image>\nwhat colour is it ?"), ("gpt", colour)]
        rows.append({"image": f"{index}.png", "conversations": [{"from": who, "value": text} for who, text in turns]})
    (folder / "train.json").write_text(json.dumps(rows))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("job", "tasks", "nodes"), [(JOBS[0], 1, 1), (JOBS[1], 2, 1), (JOBS[2], 1, 2)])
def test_a_run_goes_on_where_its_time_ended(tmp_path, job, tasks, nodes):
    """The real command line under the real script, on a small model: told in mid training, then submitted again."""
    write_rows(tmp_path)
    model = save_tiny_llava(tmp_path / "model")
    (tmp_path / "small.yaml").write_text(SMALL.format(model=model))
    around = environment(tmp_path, tasks, nodes)
    run = tmp_path / "runs" / "mine"
    pause = ["--trainer.callbacks+=tests.slow_down.SlowDown"]
    pause += ["--trainer.callbacks.init_args.pause_after=3", "--trainer.callbacks.init_args.seconds=5"]
    process = start(job, tmp_path, around, "-c", "small.yaml", *pause)
    until((run / "paused").exists, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[1].decode()
    assert process.returncode != 0 and (tmp_path / "asked").read_text() == "requeue 4242\n", said
    assert not (run / "report.json").exists()
    again = start(job, tmp_path, around, "-c", "small.yaml")
    said = again.communicate(timeout=200)[1].decode()
    assert again.returncode == 0, said
    assert "Restored all states from the checkpoint" in said and read_report(run).frozen.changed == 0
    assert (run / "checkpoints" / "last.ckpt").is_dir() == (job.stem == "several_nodes")
