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
