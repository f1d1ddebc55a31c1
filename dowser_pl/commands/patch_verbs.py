"""What the sub-verbs of `patch` do and print; loads torch, so `--help` does without this file."""

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dowser_pl import __version__
from dowser_pl.commands.model_folder import model_folder
from dowser_pl.files.atomic import write_atomically
from dowser_pl.masking.base_model import Change
from dowser_pl.patches.applied import Applied
from dowser_pl.patches.apply import apply_patches, remove_patch
from dowser_pl.patches.diff import difference
from dowser_pl.patches.from_checkpoint import CheckpointPatch, read_checkpoint_patch
from dowser_pl.patches.patch import Patch, save_patch
from dowser_pl.patches.sparse_update import save_sparse_update
from dowser_pl.patches.tuned_folder import ends_added, rearrange
from dowser_pl.reporting import read_report
from dowser_pl.reporting.provenance import installed_version, provenance

__all__ = ["run_head"]


def run_head(found: CheckpointPatch) -> dict[str, Any]:
    """Configuration and scores of a run, for the head of a patch; what is not known is left out.

    The scores of a report belong to the end of a run, so they are taken where the checkpoint is of that very moment.

    Args:
        found: a checkpoint, in `RUN/checkpoints`.

    Raises:
        DowserError: if the report cannot be read.
    """
    run, head = found.file.absolute().parent.parent, dict[str, Any]()
    if found.file.name == "previous.ckpt":  # of an earlier run, whose folder this was
        return head
    if (run / "config.yaml").is_file():
        head["config"] = (run / "config.yaml").read_text(encoding="utf-8")
    if (run / "report.json").is_file():
        report = read_report(run)
        if (report.steps, report.frozen_digest.get("before")) == (found.steps, found.frozen_digest):
            head["scores"] = report.scores()
    return head


def describe(patch: Patch) -> dict[str, Any]:
    """Everything a patch says of itself, with the number of entries of each tensor; JSON-able."""
    tensors = {name: patch.head["tensors"][name] | {"entries": patch.num_entries(name)} for name in patch.names}
    return patch.head | {
        "path": str(patch.path),
        "bytes": patch.path.stat().st_size,
        "entries": sum(entry["entries"] for entry in tensors.values()),
        "of_entries": sum(math.prod(entry["shape"]) for entry in tensors.values()),
        "tensors": tensors,
    }


def info_table(content: dict[str, Any]) -> str:
    """The description of a patch, a line per fact; what is not known is left out."""
    tensors, base = content["tensors"], content["base"]
    fingerprint = f" (fingerprint {base['fingerprint'][:12]})" if base["fingerprint"] else ""
    share = content["entries"] / content["of_entries"] if content["of_entries"] else 0.0
    facts = {
        "patch": content["path"],
        "size": size(content["bytes"]),
        "base": f"{base['model'] or 'not recorded'}{fingerprint}",
        "tensors": f"{len(tensors):,}",
        "entries": f"{content['entries']:,} of {content['of_entries']:,} in these tensors ({share:.2%})",
        "dtype": ", ".join(sorted({entry["dtype"] for entry in tensors.values()})),
        "method": _settings(content["method"]),
        "scores": _settings(content["scores"]),
        "made by": content["created_by"] or "",
        "versions": _settings(content["versions"]),
    }
    return "\n".join(f"{name:<10}{value}" for name, value in facts.items() if value)


def applied_table(applied: Sequence[Applied]) -> str:
    """What was written, a line per patch."""
    width = max(len("patch"), *(len(entry.file) for entry in applied))
    lines = [f"{'patch':<{width}}  {'entries':>15}  {'also in earlier':>15}  {'with other values':>17}"]
    for entry in applied:
        counts = f"{entry.entries:>15,}  {entry.conflicts:>15,}  {entry.conflicts_different:>17,}"
        lines.append(f"{entry.file:<{width}}  {counts}")
    return "\n".join(lines)


def conversion_lines(first: Applied) -> list[str]:
    """Lines which say that the folder was converted for the first of the patches, if it was."""
    if first.widened is not None:
        before = first.widened.before
        return [f"Converted from {before} to {first.cast}, which loses nothing; removing undoes it."]
    return [f"Converted to {first.cast}, which removing does not undo."] if first.cast else []


def size(num_bytes: int) -> str:
    """Bytes, and megabytes where these say more."""
    return f"{num_bytes:,} bytes" + (f", {num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else "")


def _settings(settings: dict[str, Any] | None, prefix: str = "") -> str:
    """`a: 1, b.c: 2`; settings that are null are left out."""
    parts = []
    for key, value in (settings or {}).items():
        if isinstance(value, dict):
            parts.append(_settings(value, f"{prefix}{key}."))
        elif value is not None:
            parts.append(f"{prefix}{key}: {value:.4g}" if isinstance(value, float) else f"{prefix}{key}: {value}")
    return ", ".join(part for part in parts if part)


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
    out, patches = Path(options.out), [Path(path) for path in options.patches]
    applied = apply_patches(model_folder(options.base), patches, out, options.cast, options.layout)
    return "\n".join(
        [
            applied_table(applied),
            "",
            *conversion_lines(applied[0]),
            options.order,
            f"Patched model written to {out}; `{options.program} remove {out}` takes {applied[-1].file} off again.",
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
    """Make a patch, or a sparse update, out of a checkpoint or of a patch; or a model in its other layout."""
    source, out = Path(options.run), Path(options.out)
    if options.layout is not None:
        rearrange(model_folder(options.run), out, options.layout)
        return f"{options.run} written to {out} in the layout {options.layout}, every tensor byte for byte."
    if source.is_file() and source.suffix == ".safetensors":
        with Patch.open(source) as patch:
            changes, head = {name: patch.change(name) for name in patch.names}, patch.head
        head, origin = {field: head[field] for field in ("base", "method", "config", "scores")}, f"From {source}."
    else:
        found = read_checkpoint_patch(source)
        changes, head = found.changes, found.head | run_head(found)
        origin = f"From {found.file}, after {found.steps:,} steps."
    if options.format == "sparse-update":
        entries = save_sparse_update(out, changes, head["base"])
        return f"{origin}\n\nSparse update of {entries:,} entries written to {out} ({size(out.stat().st_size)})."
    return "\n".join([_write(out, changes, head, "export"), "", origin, *_written(out)])


def _write(out: Path, changes: Mapping[str, Change], head: dict[str, Any], sub_verb: str) -> str:
    """Write a patch; returns its description."""
    versions = {"dowser_pl": __version__, "torch": installed_version("torch")}
    made = {"versions": versions, "created_by": f"dowser_pl {__version__} patch {sub_verb}"}
    save_patch(out, changes, head | made)
    with Patch.open(out) as patch:
        return info_table(describe(patch))


def _written(out: Path) -> list[str]:
    return ["", f"Patch written to {out} ({size(out.stat().st_size)})."]
