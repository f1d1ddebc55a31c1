"""What `merge` does; loads torch, so `--help` does without this file."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from inspect import isabstract
from pathlib import Path
from typing import Any

from dowser_pl import __version__, methods
from dowser_pl.commands.model_folder import model_folder
from dowser_pl.errors import DowserError
from dowser_pl.files.atomic import write_atomically
from dowser_pl.methods import AfterFit, Method
from dowser_pl.patches.apply import check_free
from dowser_pl.patches.merge import Merge
from dowser_pl.patches.patch import save_patch
from dowser_pl.patches.safetensors_file import dtype_name
from dowser_pl.patches.versions import Versions
from dowser_pl.reporting.provenance import installed_version, provenance


def run(options: Namespace, settings: Mapping[str, Any], argv: Sequence[str]) -> str:
    """Merge and write; returns what to print."""
    method, out = _method(options, settings), Path(options.out)
    versions = Versions(model_folder(options.base), [_tuned(name) for name in options.tuned], options.cast)
    as_patch = options.patch or out.suffix == ".safetensors"
    if as_patch:
        _check_apart(out, [versions.base, *versions.tuned])
    else:
        check_free(out, versions.base)  # before everything is read
    merge = Merge(versions, method, take_others=options.others == "tuned", only=options.only)
    if as_patch:
        _write_patch(out, merge, options.base)
    else:
        merge.write_folder(out)
    rows = _rows(merge)
    if options.json:
        content = {"method": method.settings(), "out": options.out, "tensors": rows}
        written = provenance("merge", argv) | {"merge": content}
        write_atomically(options.json, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    told = ", ".join(f"{key} {value}" for key, value in method.settings().items() if key != "method")
    lines = [f"{options.method} ({told}), {len(options.tuned)} tuned", "", *_table(rows)]
    if len(options.tuned) > 1:
        lines += ["", f"Of the matrices, {merge.shared:,} entries are moved by several of them."]
    if versions.dtype is not None:
        loss = "which may lose digits" if options.cast else "which loses nothing"
        lines += ["", f"The base was converted to {dtype_name(versions.dtype)}, the tuned model's, {loss}."]
    return "\n".join([*lines, "", f"{'Patch' if as_patch else 'Merged model'} written to {out}."])


def _method(options: Namespace, settings: Mapping[str, Any]) -> Method:
    """The method; refused with its reason if it exists and cannot be applied offline."""
    found = getattr(methods, options.method, None)
    if not (isinstance(found, type) and issubclass(found, Method)) or isabstract(found) or found is Method:
        known = ", ".join(options.methods)
        raise DowserError(f"got --method {options.method}, expected one of: {known}; see {options.program} --help")
    kind: type[Method] = (found.of_patches or found) if issubclass(found, AfterFit) else found
    return kind(**settings)


def _tuned(name: str) -> Path:
    """A patch, or the folder of a model; of a run its patch, which tells its base, or if it has none its model."""
    path = Path(name).expanduser()
    if (path / "report.json").is_file():
        path = next((path / part for part in ("patch.safetensors", "model") if (path / part).exists()), path)
    return path if path.is_file() else model_folder(str(path))


def _check_apart(out: Path, sources: Sequence[Path]) -> None:
    """Refuse to write a patch into a model folder, where a name such as `model.safetensors` replaces its weights."""
    for source in sources:
        if source.resolve() in out.resolve().parents:
            raise DowserError(f"{out} is inside {source}, which is merged; name a file elsewhere with --out")


def _write_patch(out: Path, merge: Merge, base: str) -> None:
    head = {
        "base": {"model": base, "generation": merge.generation},
        "method": merge.method.settings(),
        "versions": {"dowser_pl": __version__, "torch": installed_version("torch")},
        "created_by": f"dowser_pl {__version__} merge",
    }
    save_patch(out, merge.changes(), head)


def _rows(merge: Merge) -> dict[str, dict[str, int]]:
    """What was done to which tensors, with counts."""
    others = asdict(merge.taken) if merge.take_others else {"tensors": len(merge.others)}
    name = "others, tuned" if merge.take_others else "others, left as in the base"
    return {"matrices, merged": asdict(merge.merged)} | ({name: others} if merge.others else {})


def _table(rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    width = max(len(name) for name in rows)
    lines = [f"{'':<{width}}  {'tensors':>7}  {'entries':>15}  {'not as in the base':>18}"]
    for name, row in rows.items():
        cells = [f"{row[key]:>{size},}" if key in row else "" for key, size in _COLUMNS.items()]
        lines.append(f"{name:<{width}}  {'  '.join(cells)}".rstrip())
    return lines


_COLUMNS = {"tensors": 7, "entries": 15, "changed": 18}
