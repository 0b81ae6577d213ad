"""An environment is made small, and still loads."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import trim


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("box/tests/test_box.py", "box/testing/used.py", "torch/include/torch.h", "torch/bin/test_api", "box/libbox.a"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")
    return folder


def left(packages):
    return {file.relative_to(packages).as_posix() for file in packages.rglob("*") if file.is_file()}


def test_tests_and_headers_go(packages):
    trim.drop(packages, headers=False)

    assert left(packages) == {"box/testing/used.py"}


def test_headers_stay_where_kernels_are_compiled_later(packages):
    trim.drop(packages, headers=True)

    assert left(packages) == {"box/testing/used.py", "torch/include/torch.h"}


def test_bytecode_is_not_compared_with_its_source(packages):
    """An image normalises times: bytecode that looks at them would be thrown away at each start."""
    module = packages / "box" / "testing" / "used.py"
    assert trim.compiled(packages)
    module.write_text("x = 2\n")
    done = subprocess.run(
        [sys.executable, "-c", "import used; print(used.x)"], cwd=module.parent, capture_output=True, text=True, check=True
    )

    assert done.stdout == "1\n"


@pytest.fixture
def library(tmp_path):
    if not (shutil.which("gcc") and shutil.which("strip")):
        pytest.skip("gcc and binutils make the library that is stripped here")
    source = tmp_path / "box.c"
    source.write_text("static int inner(int x) { return x + 1; }\nint outer(int x) { return inner(x); }\n")
    folder = tmp_path / "site-packages" / "torch" / "lib"
    folder.mkdir(parents=True)
    subprocess.run(["gcc", "-g", "-shared", "-fPIC", "-o", folder / "libbox.so", source], check=True)
    return folder / "libbox.so"


def test_a_library_without_its_symbols_is_smaller_and_loads(library, tmp_path):
    before = library.stat().st_size
    trim.strip(tmp_path / "site-packages", Path("/"))

    assert library.stat().st_size < before
    assert ctypes.CDLL(str(library)).outer(1) == 2
    assert [path.name for path in library.parent.iterdir()] == ["libbox.so"]


def test_what_could_not_be_loaded_is_told(library):
    assert trim.loadable(library)
    content = bytearray(library.read_bytes())
    at = int.from_bytes(content[32:40], "little")
    kinds = [at + i * 56 for i in range(int.from_bytes(content[56:58], "little"))]
    first = next(i for i in kinds if int.from_bytes(content[i : i + 4], "little") == 1)
    content[first + 8] += 8  # the first segment's offset
    library.write_bytes(content)

    assert not trim.loadable(library)


def test_without_strip_the_build_ends(tmp_path):
    with pytest.raises(SystemExit, match="binutils"):
        trim.strip(tmp_path, tmp_path)
