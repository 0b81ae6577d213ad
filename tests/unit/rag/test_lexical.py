import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from rag.lexical import tokens


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Running trains", ["run", "train"]),
        ("退票", ["退", "票", "退票"]),
        ("在2016年的Panthers防守", ["在", "2016", "年", "的", "年的", "panther", "防", "守", "防守"]),
        ("ＡＢＣ１２", ["abc12"]),
        ("snake_case 3.5%", ["snake", "case", "3", "5"]),
        ("???", []),
    ],
)
def test_terms(text, terms):
    """A number or a name inside Chinese text ends a run of characters, though no space stands there."""
    assert tokens(text) == terms


def test_the_same_texts_give_the_same_files_in_every_process(tmp_path):
    build = "import sys; from pathlib import Path; from rag.lexical import Bm25; "
    build += (
        "Bm25.build(Path(sys.argv[1]), ['fast trains to the sea', '退票 fees of trains', 'the sea, the sea'], ['a', 'b', 'c'])"
    )
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin"}
        subprocess.run(
            [sys.executable, "-c", build, folder], cwd=Path(__file__).resolve().parents[3], env=environment, check=True
        )
        found.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})

    assert found[0] == found[1]
    assert len(found[0]) > 3
