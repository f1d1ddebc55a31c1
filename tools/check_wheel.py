"""Check what a wheel and an sdist hold: all that the package needs, nothing else, and metadata that is true.

    python -m build --outdir dist && python tools/check_wheel.py dist

Exits with 1 and everything that is wrong.
"""

import argparse
import re
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("dowser_pl", "configs")
PYTHON = "Programming Language :: Python :: "
TOLD = ("LICENSE", "README.md", "pyproject.toml")  # what an sdist has beside what a wheel is made of


def files(root: Path) -> dict[str, str]:
    """Path in the checkout -> path in a wheel, of every file of the package and its configurations."""
    found = [path for folder in SHIPPED for path in (root / folder).rglob("*") if path.is_file()]
    names = [path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts]
    return {name: name if name.startswith("dowser_pl/") else f"dowser_pl/{name}" for name in sorted(names)}


def problems(root: Path, wheel: Path, sdist: Path) -> list[str]:
    """Everything that is not as it should be, in words."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
        (metadata,) = (name for name in in_wheel if name.endswith(".dist-info/METADATA"))
        told = archive.read(metadata).decode()
    info = metadata.removesuffix("METADATA")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    expected = files(root)
    beside = {name for name in in_wheel - set(expected.values()) if not name.startswith(info)}
    missing = [f"the wheel lacks {name}" for name in expected.values() if name not in in_wheel]
    missing += [f"the sdist lacks {name}" for name in (*expected, *TOLD) if name not in in_sdist]
    return [
        *missing,
        *(f"the wheel holds {name}, which no one needs" for name in sorted(beside)),
        *([] if f"{info}licenses/LICENSE" in in_wheel else ["the wheel lacks its license"]),
        *untrue(told),
    ]


def untrue(metadata: str) -> list[str]:
    """What the metadata of a wheel do not say, or say otherwise."""
    told = message_from_string(metadata)
    lowest, beyond = (re.search(rf"{sign}3\.(\d+)", told["Requires-Python"]) for sign in (">=", "<"))
    promised = {f"{PYTHON}3.{minor}" for minor in range(int(lowest[1]), int(beyond[1]))}  # type: ignore[index]
    listed = {each for each in told.get_all("Classifier", []) if re.fullmatch(rf"{PYTHON}3\.\d+", each)}
    license_ = told["License-Expression"]
    return [
        *(f"the metadata lack {each!r}" for each in sorted(promised - listed)),
        *(f"the metadata promise {each!r}, which Requires-Python denies" for each in sorted(listed - promised)),
        *([] if license_ == "Apache-2.0" else [f"the metadata call the license {license_}, expected Apache-2.0"]),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Check a folder with one wheel and one sdist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where `python -m build` has put them")
    folder = parser.parse_args(argv).folder
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        print(f"expected one wheel and one sdist in {folder}, got {len(wheels)} and {len(sdists)}", file=sys.stderr)
        return 1
    wrong = problems(ROOT, wheels[0], sdists[0])
    print("\n".join(wrong) if wrong else f"{wheels[0].name} and {sdists[0].name} are whole")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
