"""Makes an installed environment small and quick to start: `python trim.py ENVIRONMENT`, while an image is built.

Debug symbols, test suites and headers go: nothing that a server loads. What is left is compiled to bytecode that is
never compared with its source, because a root that is read only could not keep a fresh one, and images normalise times.
It runs on the Python of the image, before anything of the project is there: the standard library is all it may import.
"""

from __future__ import annotations

import argparse
import compileall
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

TESTS = ("**/tests", "torch/test", "torch/bin/test_*", "torch/bin/*_test*", "torch/bin/protoc*", "torch/lib/*_test.so", "**/*.a")
HEADERS = ("torch/include", "pyarrow/include", "numpy/_core/include")
STRIPPED = (
    "blis", "cymem", "lancedb", "llvmlite", "murmurhash", "preshed", "pyarrow", "spacy", "srsly", "thinc", "torch", "vllm",
    "zstandard",
)  # fmt: skip
"""Packages whose libraries come with symbols. Those of a `*.libs` folder were edited after linking: strip would break them."""
ELF_64 = b"\x7fELF\x02\x01"
LOADED = 1


def drop(packages: Path, *, headers: bool) -> None:
    """Remove test suites, static libraries and, unless something is compiled later, headers."""
    for pattern in TESTS if headers else TESTS + HEADERS:
        for found in list(packages.glob(pattern)):
            shutil.rmtree(found) if found.is_dir() else found.unlink()


def loadable(file: Path) -> bool:
    """Whether every segment of a 64-bit ELF file lies where the loader can map it."""
    with file.open("rb") as content:
        head = content.read(64)
        if head[:6] != ELF_64:
            return False
        start, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        content.seek(start)
        table = content.read(size * count)
    for at in range(0, size * count, size):
        kind, _, offset, address, _, _, _, align = struct.unpack_from("<IIQQQQQQ", table, at)
        if kind == LOADED and align > 1 and (offset - address) % align:
            return False
    return True


def strip(packages: Path, tools: Path) -> None:
    """Take the symbols out of the libraries that come with them; one that could not be loaded afterwards stays as it was.

    `tools` is a root with binutils, of the same release of the same distribution.
    """
    libraries = tools / "usr" / "lib" / f"{platform.machine()}-linux-gnu"
    tool = ["env", f"LD_LIBRARY_PATH={libraries}", str(tools / "usr" / "bin" / "strip")]
    if not Path(tool[-1]).exists():
        sys.exit("strip is missing in the image of the tools: install binutils there")
    for package in STRIPPED:
        for library in sorted(path for path in packages.glob(f"{package}/**/*.so*") if path.is_file() and not path.is_symlink()):
            smaller = library.with_name(f"{library.name}.stripped")
            done = subprocess.run([*tool, "--strip-unneeded", "-o", smaller, library], capture_output=True, check=False)  # noqa: S603  no shell
            if done.returncode == 0 and loadable(smaller):
                shutil.copymode(library, smaller)
                smaller.replace(library)
            smaller.unlink(missing_ok=True)


def compiled(packages: Path) -> bool:
    """Write the bytecode of every module; templates that are no Python are passed over."""
    return bool(compileall.compile_dir(packages, quiet=2, workers=0, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH))


def main() -> None:
    """Trim the environment that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("--tools", type=Path, default=Path("/"), help="root of the image that has binutils")
    parser.add_argument("--headers", action="store_true", help="keep them: a GPU's kernels are compiled when they are first used")
    told = parser.parse_args()
    [packages] = told.environment.glob("lib/python3.*/site-packages")
    drop(packages, headers=told.headers)
    strip(packages, told.tools)
    compiled(packages)


if __name__ == "__main__":
    main()
