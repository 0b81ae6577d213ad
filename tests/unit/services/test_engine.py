"""vLLM's arguments follow from the bundle and the machine."""

import json
from pathlib import Path

import pytest

from services import engine as engines
from services.bundle import Bundle
from services.engine import GIB, UnusableEngine, command, free_memory_bytes, kv_cache_bytes, vllm_arguments, vllm_environment
from services.layout import Layout

ADAPTERS = {"b": Path("/store/b"), "a": Path("/store/a")}


def bundle(**engine):
    return Bundle.model_validate(
        {
            "model": {"name": "tiny", "source": "pypi:tiny==1"},
            "engine": engine,
            "prompts": {"p": {"path": "p"}},
            "policies": {"s": {"path": "s"}},
            "routes": {"r": {"prompt": "p", "policy": "s"}},
        }
    )


def arguments(device="cpu", adapters=ADAPTERS, layout=None, draft=None, **engine):
    return vllm_arguments(
        bundle(**engine), model=Path("/store/m"), adapters=adapters, device=device, port=8421, free_bytes=12 * GIB, layout=layout,
        draft=draft,
    )  # fmt: skip


def value(listed, flag):
    return listed[listed.index(flag) + 1]


def test_loopback_only_and_no_request_in_the_log():
    listed = arguments()

    assert value(listed, "--host") == "127.0.0.1"
    assert "--disable-uvicorn-access-log" in listed
    assert not any("log-requests" in argument for argument in listed)


def test_a_cpu_engine_with_adapters_loads_the_kernel_and_runs_eagerly():
    listed = arguments()

    assert listed[listed.index("--lora-modules") + 1 :][:2] == ["a=/store/a", "b=/store/b"]
    assert value(listed, "--worker-extension-cls") == "services.cpu_worker.CpuWorker"
    assert value(listed, "--distributed-executor-backend") == "uni"
    assert "--enforce-eager" in listed
    assert int(value(listed, "--kv-cache-memory-bytes")) == 4 * GIB


def test_a_gpu_engine_keeps_vllms_layout_and_kernels():
    listed = arguments("cuda", gpu_memory_utilization=0.8, tensor_parallel_size=2)

    assert "--worker-extension-cls" not in listed
    assert "--distributed-executor-backend" not in listed
    assert (value(listed, "--gpu-memory-utilization"), value(listed, "--tensor-parallel-size")) == ("0.8", "2")
    assert "OMP_NUM_THREADS" not in vllm_environment("cuda", 4)


def test_gpus_share_a_model_as_the_bundle_says():
    listed = arguments("cuda", tensor_parallel_size=2, pipeline_parallel_size=3, data_parallel_size=4)

    assert [value(listed, f"--{kind}-parallel-size") for kind in ("tensor", "pipeline", "data")] == ["2", "3", "4"]
    assert not any("parallel" in argument for argument in arguments("cuda"))


@pytest.mark.parametrize("kind", ["tensor", "pipeline", "data"])
def test_a_cpu_engine_refuses_what_takes_several_gpus(kind):
    with pytest.raises(UnusableEngine, match=f"{kind}_parallel_size: 2 is for GPUs"):
        arguments(**{f"{kind}_parallel_size": 2})


def test_a_measured_layout_decides_on_processes_and_compiling():
    layout = Layout(processes="apart", cpus="0-1", compiled=True)
    listed = arguments(adapters={}, layout=layout)

    assert "--distributed-executor-backend" not in listed
    assert "--enforce-eager" not in listed
    assert vllm_environment("cpu", 2, layout)["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"


def test_the_bundle_has_the_last_word_on_compiling_and_lora_cannot():
    layout = Layout(processes="joined", threads=2, compiled=True)

    assert "--enforce-eager" in arguments(adapters={}, layout=layout, enforce_eager=True)
    assert "--enforce-eager" not in arguments(adapters={}, layout=layout)
    assert "--enforce-eager" in arguments(layout=layout)


def test_compiling_without_a_compiler_is_refused_before_the_engine_starts(monkeypatch):
    monkeypatch.setattr(engines, "compiler_missing", lambda: "torch.compile needs a C++ compiler")
    with pytest.raises(UnusableEngine, match=r"needs a C\+\+ compiler; or leave enforce_eager out"):
        arguments(adapters={}, enforce_eager=False)


def test_configurations_go_to_vllm_as_json():
    listed = arguments(
        speculative_config={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 5},
        structured_outputs_config={"backend": "guidance"}, block_size=32, stream_interval=4, adapters={},
    )  # fmt: skip

    assert json.loads(value(listed, "--speculative-config")) == {
        "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 5, "prompt_lookup_min": 2,
    }  # fmt: skip
    assert json.loads(value(listed, "--structured-outputs-config"))["backend"] == "guidance"
    assert (value(listed, "--block-size"), value(listed, "--stream-interval")) == ("32", "4")


def test_a_draft_model_is_named_by_where_it_was_packed_and_left_out_where_it_was_not():
    drafted = {"method": "draft_model", "num_speculative_tokens": 3, "model": {"source": "path:small"}}
    listed = arguments(adapters={}, draft=Path("/store/small"), speculative_config=drafted)

    assert json.loads(value(listed, "--speculative-config")) == {
        "method": "draft_model", "num_speculative_tokens": 3, "model": "/store/small",
    }  # fmt: skip
    assert "--speculative-config" not in arguments(adapters={}, speculative_config=drafted)


def test_without_adapters_there_is_no_lora_and_compiling_may_be_asked_for():
    listed = arguments(adapters={}, enforce_eager=False)

    assert not any("lora" in argument for argument in listed)
    assert "--enforce-eager" not in listed


def test_switches_keep_vllms_names():
    listed = arguments(enable_prefix_caching=False, enable_auto_tool_choice=True, tool_call_parser="hermes")

    assert "--no-enable-prefix-caching" in listed
    assert "--enable-auto-tool-choice" in listed


@pytest.mark.parametrize(("free", "expected"), [(0, GIB // 2), (3 * GIB, GIB), (900 * GIB, 16 * GIB)])
def test_the_kv_cache_takes_a_share_of_what_is_free(free, expected):
    assert kv_cache_bytes(bundle().engine, free) == expected
    assert kv_cache_bytes(bundle(kv_cache_memory_bytes=5).engine, free) == 5


def test_the_child_does_not_inherit_bentomls_metrics_folder():
    listed = command(["--port", "1"], {"OMP_NUM_THREADS": "2"})

    assert listed[:4] == ["env", "-u", "PROMETHEUS_MULTIPROC_DIR", "OMP_NUM_THREADS=2"]
    assert "services.child" in listed


def test_a_containers_limit_bounds_what_is_free(tmp_path):
    assert free_memory_bytes(tmp_path) > GIB // 8
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    unlimited = free_memory_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("1005\n")

    assert free_memory_bytes(tmp_path) == 1000 < unlimited
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("70")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("80")
    assert free_memory_bytes(tmp_path) == 0


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    """VLLM compiles the counting of logprobs at the first request for them, and its engine dies where it cannot."""
    monkeypatch.setattr(engines, "compiler_missing", lambda: "torch.compile needs a C++ compiler")
    assert vllm_environment("cpu", 2)["TORCH_COMPILE_DISABLE"] == "1"
    monkeypatch.setattr(engines, "compiler_missing", lambda: None)
    assert "TORCH_COMPILE_DISABLE" not in vllm_environment("cpu", 2)
