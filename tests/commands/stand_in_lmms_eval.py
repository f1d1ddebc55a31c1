"""What takes the place of lmms-eval where only how it is started and read is tested: its options, files and failures.

Every question has as its score one bit of the digest of the weights, so that it shows which folder was loaded.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from tests.reporting.harnesses.result_files import lmms_task, write_lmms_eval

ERROR = "\x1b[32m2026-11-28 04:52:55\x1b[0m | \x1b[31mERROR   \x1b[0m | lmms_eval.__main__:cli_evaluate:614 - {}"
MORE = "Error during evaluation: {}. Please set `--verbosity=DEBUG` to get more information."


def scores(folder, task, count=8):
    digest = hashlib.sha256(task.encode() + (Path(folder) / "model.safetensors").read_bytes()).digest()
    return [float(digest[0] >> place & 1) for place in range(count)]


def main():
    parser = argparse.ArgumentParser(prog="__main__.py")
    for name in ("model", "model_args", "tasks", "output_path", "device"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--limit", type=float)
    parser.add_argument("--log_samples", action="store_true", required=True)
    options = parser.parse_args()
    with Path(os.environ["STAND_IN_CALLS"]).open("a") as file:
        file.write(json.dumps(vars(options)) + "\n")
    tasks = options.tasks.split(",")
    if "nope" in tasks:
        sys.stdout.write(ERROR.format(MORE.format("Tasks not found: nope")))
        return
    if "killed" in tasks:
        os.kill(os.getpid(), signal.SIGKILL)
    if "empty" in tasks:
        sys.stdout.write(ERROR.format("Error CUDA out of memory in generating") + "\nModel Responding: 100%\n")
    model = dict(part.split("=") for part in options.model_args.split(","))["pretrained"]
    told = {task: lmms_task(scores(model, task, int(options.limit or 8))) for task in tasks}
    folder = Path(options.output_path) / Path(model).name
    write_lmms_eval(folder, model, told, model=options.model, model_args=options.model_args, limit=options.limit)


if __name__ == "__main__":
    main()
