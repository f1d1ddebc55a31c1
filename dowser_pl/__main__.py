"""`python -m dowser_pl <verb>`: offline verbs start at once, the others load the training command line."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from dowser_pl import __doc__ as purpose
from dowser_pl import __version__
from dowser_pl.cli.arguments import joined_numbers, resolve_configs
from dowser_pl.cli.ending import STATUSES, TERMINATED, refuse
from dowser_pl.cli.help import full_help, short_help
from dowser_pl.cli.options import verb_and_rest
from dowser_pl.cli.spelling import check_model, check_spelling
from dowser_pl.errors import DowserError

TRAINING_VERBS = {
    "fit": "fine-tune a model and report what it learnt and forgot",
    "validate": "score a model on every evaluation task",
    "test": "the same on the test sets",
    "predict": "write the model's answers",
    "probe": "measure the importance of each weight and fill the cache",
    "plan": "say what training would take: memory and cards, hours, disk",
}
OFFLINE_VERBS = {
    "evaluate": "score any models on the same tasks, and compare them",
    "report": "show the report of a run, or compare several runs",
    "patch": "look at, apply, remove or make the sparse difference of a tuned model",
    "bench": "compare methods, each tuned on its own, over seeds, tasks and depths",
    "drift": "measure without data how far a tuned model is from its base",
    "chat": "ask a tuned model and its base the same questions, in the terminal",
    "merge": "merge tuned models with their base: DARE, FAPM, TIES, grafting, interpolation, stitching",
    "push": "upload model and patch of a run to the Hugging Face hub, with a card of its report",
}
HELPS = {("--help-all",): full_help, ("-h", "--help"): short_help}
OFFLINE_MODULES = {verb: f"dowser_pl.commands.{verb}" for verb in OFFLINE_VERBS}
VERBS = TRAINING_VERBS | OFFLINE_VERBS


def overview() -> str:
    """The verbs, one line each."""
    lines = [f"  {verb:<10}{line}" for verb, line in VERBS.items()]
    return "\n".join(
        [
            f"dowser_pl {__version__}: {purpose}",
            "",
            "usage: python -m dowser_pl <verb> [options]",
            "",
            *lines,
            "",
            "Options of a verb: python -m dowser_pl <verb> --help",
            "A first run:       python -m dowser_pl fit --config configs/quickstart.yaml",
            "",
            "Exit status:",
            *(f"  {status:<5}{meaning}" for status, meaning in STATUSES.items()),
        ]
    )


def unknown(verb: str) -> str:
    """The error for a verb that does not exist."""
    near = get_close_matches(verb, VERBS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown verb {verb!r}, expected one of: {', '.join(VERBS)}.{hint}"


def wait_quietly() -> None:
    """Let OpenMP's threads sleep while they wait for each other, where others compute; before torch is imported.

    Threads that spin keep the cores from the ones they wait for; on an idle machine they are the faster way. What the
    environment says is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ and 2 * others_computing() >= (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def others_computing() -> int:
    """How many other threads of this machine compute right now: the median of five looks; 0 where it is unknown."""
    looks = []
    for _ in range(5):
        try:
            looks.append(int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]) - 1)
        except (OSError, ValueError, IndexError):  # not Linux
            return 0
        time.sleep(0.01)
    return sorted(looks)[2]


def silence_bitsandbytes() -> None:
    """While it is imported it asks for a package that only makes 4-bit models faster on a CPU."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _prepare() -> None:
    """What must hold before anything else is imported, for all processes of a run.

    The classes that settings name are looked for in the working folder, as under `python -m`, also when it was a script
    that was started.
    """
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status. Leading options (`--config x.yaml fit`) go to the training verbs."""
    _prepare()
    arguments = joined_numbers(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        sys.stdout.write(overview() + "\n")
    elif verb == "--version":
        sys.stdout.write(f"dowser_pl {__version__}\n")
    elif verb in OFFLINE_MODULES:
        if verb in ("bench", "chat", "drift", "evaluate"):
            wait_quietly()
        silence_bitsandbytes()
        return int(import_module(OFFLINE_MODULES[verb]).main(arguments[1:]))
    elif verb in TRAINING_VERBS or verb.startswith("-"):
        return train(arguments)
    else:
        return refuse(unknown(verb))
    return 0


def train(arguments: Sequence[str]) -> int:
    """Run a verb that needs torch, once all is understood that can be without it."""
    try:
        arguments = resolve_configs(list(arguments))
        verb, rest = verb_and_rest(arguments)
        asked = next((show for words, show in HELPS.items() if set(words) & set(rest)), None)
        if asked is not None:
            sys.stdout.write(asked(verb, TRAINING_VERBS[verb]) + "\n")
            return 0
        check_spelling(verb, rest)
        if arguments[0] == verb:  # else a configuration before it may name the model
            check_model(rest)
    except DowserError as error:
        return refuse(error)
    wait_quietly()
    silence_bitsandbytes()
    import_module("dowser_pl.cli.main").main(arguments)
    return 0


def script() -> NoReturn:
    """What a shell starts: `main`, and where that was asked to end (SIGTERM), no time is lost on cleaning up.

    With torch loaded that takes Python two seconds of a core, and more on a busy machine.
    """
    try:
        status = main()
    except SystemExit as stop:
        if stop.code != TERMINATED:
            raise
        status = TERMINATED
    if status == TERMINATED:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    script()
