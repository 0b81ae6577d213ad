"""The card says what the manifest says, and takes a new measurement without losing what an author wrote."""

import pytest

from adapters.card import record_evaluation, write_card
from adapters.curve import draw_curve, smooth
from adapters.manifest import Manifest, write_manifest

TRAINING = {
    "rank": 8, "alpha": 16, "rslora": True, "rows": 90, "held_out_rows": 10, "epochs": 2, "batch": 4, "learning_rate": 0.002,
    "seed": 7, "compute": "float32", "minutes": 12.3, "cores": 2, "held_out_loss": 0.1234, "best_step": 40, "steps": 46,
}  # fmt: skip
MANIFEST = Manifest(
    name="a", base_source="pypi:m==1", dataset="Rows of somebody, CC-BY-4.0.", system_prompt="Name it.", sha256="0" * 64,
    labels=["one", "two"], training=TRAINING,
)  # fmt: skip
RESULT = {"n": 100, "accuracy": 0.95, "base_accuracy": 0.2, "shots": 16, "data": "dev.jsonl"}


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    write_card(tmp_path, MANIFEST, licence="apache-2.0")
    return tmp_path


def test_the_card_names_data_prompt_recipe_and_labels(folder):
    card = (folder / "README.md").read_text()

    told = ["Rows of somebody, CC-BY-4.0.", "`Name it.`", "rsLoRA of rank 8", "12 minutes", "2 cores", "`one`, `two`", "0.1234"]
    for part in [*told, "license: apache-2.0", "Not measured yet"]:
        assert part in card


def test_a_measurement_goes_into_manifest_and_card_again_and_again(folder):
    path = folder / "README.md"
    path.write_text(path.read_text() + "\nWritten by hand.\n")
    record_evaluation(folder, {**RESULT, "accuracy": 0.5})
    record_evaluation(folder, RESULT)
    card = path.read_text()

    assert "**0.950**" in card
    assert "0.500" not in card
    assert "Not measured yet" not in card
    assert card.endswith("Written by hand.\n")
    assert Manifest.model_validate_json((folder / "ekiben.json").read_text()).evaluation == RESULT


def test_a_card_without_marks_is_left_alone(folder):
    (folder / "README.md").write_text("# Mine\n")
    record_evaluation(folder, RESULT)

    assert (folder / "README.md").read_text() == "# Mine\n"


def test_the_average_starts_at_the_first_loss():
    assert smooth([4.0]) == pytest.approx([4.0])
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([4.0, 0.0])[1] == pytest.approx(4 * 0.09 / 0.19)


@pytest.mark.parametrize("held_out", [[], [(2, 1.5), (4, 1.0)]])
def test_the_curve_is_a_picture(tmp_path, held_out):
    pytest.importorskip("matplotlib")
    draw_curve([3.0, 2.0, 1.0, 0.5], held_out, 4, tmp_path / "curve.png", title="a")

    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
