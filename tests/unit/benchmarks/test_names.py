"""A script's folder comes first on the path: a benchmark named like a package would hide it from its neighbours."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_no_benchmark_is_named_like_a_package():
    packages = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()}

    assert "guards" in packages
    assert not packages & {script.stem for script in (ROOT / "benchmarks").glob("*.py")}
