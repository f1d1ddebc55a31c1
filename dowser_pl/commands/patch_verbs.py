"""What the sub-verbs of `patch` do; loads torch, so `--help` does without this file."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dowser_pl import __version__
from dowser_pl.commands.model_folder import model_folder
from dowser_pl.commands.patch import ORDER, PROGRAM
from dowser_pl.commands.patch_text import applied_table, conversion_lines, describe, info_table, size
from dowser_pl.commands.run_head import run_head
from dowser_pl.files.atomic import write_atomically
from dowser_pl.masking.checkpoint_patch import read_checkpoint_patch
from dowser_pl.patches.answer_ends import ends_added
from dowser_pl.patches.apply import apply_patches
from dowser_pl.patches.diff import difference
from dowser_pl.patches.patch import Change, Patch, save_patch
from dowser_pl.patches.remove import remove_patch
from dowser_pl.reporting.provenance import installed_version, provenance


def run_info(options: Namespace, argv: Sequence[str]) -> str:
    """Read one patch, all of it: one that is damaged is told, not shown."""
    with Patch.open(options.patch) as patch:
        patch.check()
        content = describe(patch)
        checked = "every tensor, by its digest" if patch.has_digests else "values are finite; there are no digests"
    if options.json:
        written = provenance("patch", argv) | {"patch": content}
        write_atomically(options.json, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return f"{info_table(content)}\n{'checked':<10}{checked}"


def run_apply(options: Namespace, argv: Sequence[str]) -> str:  # noqa: ARG001 - one signature for all
    """Write a patched copy of a model folder."""
    out = Path(options.out)
    applied = apply_patches(model_folder(options.base), [Path(path) for path in options.patches], out, options.cast)
    return "\n".join(
        [
            applied_table(applied),
            "",
            *conversion_lines(applied[0]),
            ORDER,
            f"Patched model written to {out}; `{PROGRAM} remove {out}` takes {applied[-1].file} off again.",
        ]
    )


def run_remove(options: Namespace, argv: Sequence[str]) -> str:  # noqa: ARG001 - one signature for all
    """Take the last patch off."""
    folder, out = model_folder(options.folder), Path(options.out) if options.out else None
    removed = remove_patch(folder, out, Path(options.patch) if options.patch else None)
    kept = f" It stays in {removed.cast}, to which it was converted." if removed.cast else ""
    if removed.widened:
        kept = f" It is {removed.widened.before} again, byte for byte as before."
    return f"{removed.file} is off: {removed.entries:,} entries restored in {out or folder}.{kept}"


def run_diff(options: Namespace, argv: Sequence[str]) -> str:  # noqa: ARG001 - one signature for all
    """Make a patch out of two model folders."""
    base, tuned = model_folder(options.base), model_folder(options.tuned)
    found = difference(base, tuned, options.update_ratio)
    head = {
        "base": {"model": options.base, "generation": ends_added(base, [tuned])},
        "method": {"name": "diff", "update_ratio": options.update_ratio},
    }
    lines = [_write(Path(options.out), found.changes, head, "diff")]
    if found.left_out:
        tensors = "tensor" if len(found.left_out) == 1 else "tensors"
        lines += ["", f"Left out, being no matrix: {len(found.left_out)} changed {tensors}, first {found.left_out[0]}."]
    return "\n".join([*lines, *_written(Path(options.out))])


def run_export(options: Namespace, argv: Sequence[str]) -> str:  # noqa: ARG001 - one signature for all
    """Make a patch out of a checkpoint."""
    found = read_checkpoint_patch(Path(options.run))
    head = found.head | run_head(found)
    lines = [_write(Path(options.out), found.changes, head, "export")]
    lines += ["", f"From {found.file}, after {found.steps:,} steps."]
    return "\n".join([*lines, *_written(Path(options.out))])


def _write(out: Path, changes: Mapping[str, Change], head: dict[str, Any], sub_verb: str) -> str:
    """Write a patch; returns its description."""
    versions = {"dowser_pl": __version__, "torch": installed_version("torch")}
    made = {"versions": versions, "created_by": f"dowser_pl {__version__} patch {sub_verb}"}
    save_patch(out, changes, head | made)
    with Patch.open(out) as patch:
        return info_table(describe(patch))


def _written(out: Path) -> list[str]:
    return ["", f"Patch written to {out} ({size(out.stat().st_size)})."]
