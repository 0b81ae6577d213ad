"""vLLM's arguments follow from the bundle and the machine."""

from pathlib import Path

import pytest

from services.bundle import Bundle
from services.engine import GIB, command, free_memory_bytes, kv_cache_bytes, vllm_arguments, vllm_environment

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


def arguments(device="cpu", adapters=ADAPTERS, **engine):
    return vllm_arguments(
        bundle(**engine), model=Path("/store/m"), adapters=adapters, device=device, port=8421, free_bytes=12 * GIB
    )


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
    assert value(listed, "--worker-extension-cls") == "adapters.cpu_lora.GroupedLora"
    assert value(listed, "--distributed-executor-backend") == "uni"
    assert "--enforce-eager" in listed
    assert int(value(listed, "--kv-cache-memory-bytes")) == 4 * GIB


def test_a_gpu_engine_keeps_vllms_layout_and_kernels():
    listed = arguments("cuda", gpu_memory_utilization=0.8, tensor_parallel_size=2)

    assert "--worker-extension-cls" not in listed
    assert "--distributed-executor-backend" not in listed
    assert (value(listed, "--gpu-memory-utilization"), value(listed, "--tensor-parallel-size")) == ("0.8", "2")
    assert "OMP_NUM_THREADS" not in vllm_environment("cuda", 4)


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
