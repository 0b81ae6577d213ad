"""Parser names are read from vLLM's source."""

import sys

from services.parsers import known_parsers, registered_names


def test_the_installed_vllms_parsers_are_known_without_importing_it():
    assert {"hermes", "llama3_json", "mistral"} <= known_parsers("tool_call_parser")
    assert {"qwen3", "deepseek_r1"} <= known_parsers("reasoning_parser")
    assert "vllm" not in sys.modules


def test_only_the_register_counts(tmp_path):
    source = tmp_path / "__init__.py"
    source.write_text('OTHER = {"no": 1}\nREGISTER = {"a": ("m", "C"), "b": 2, **OTHER}\n')

    assert registered_names(source, "REGISTER") == {"a", "b"}
    assert registered_names(source, "MISSING") == frozenset()


def test_a_vllm_that_keeps_them_elsewhere_refuses_nothing(tmp_path):
    assert registered_names(tmp_path / "gone.py", "REGISTER") == frozenset()
    (tmp_path / "bad.py").write_text("def (")
    assert registered_names(tmp_path / "bad.py", "REGISTER") == frozenset()
