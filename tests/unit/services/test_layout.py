"""A layout follows from the machine, and becomes vLLM's arguments and environment."""

import pytest

from services import layout as layouts
from services.layout import Layout, Machine, compiler_missing, cpu_name, default_layout, processor_share, this_machine


def machine(cores, *, node_cores=None, limited=False):
    return Machine(cpu="x", cores=cores, processors=cores, node_cores=node_cores or cores, limited=limited, memory_gib=16)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 4), (8, 7)])
def test_a_small_machine_has_one_process_and_threads_on_all_or_nearly_all_cores(cores, threads):
    assert default_layout(machine(cores)) == Layout(processes="joined", threads=threads)


@pytest.mark.parametrize("cores", [16, 32, 64])
def test_a_large_machine_keeps_the_stock_layout(cores):
    """There the core that stock vLLM keeps back is a small share, and its binding to one memory node pays."""
    assert default_layout(machine(cores)) == Layout(processes="apart")


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 4), (8, 7), (16, 15), (32, 31)])
def test_a_limited_share_of_time_is_never_spent_on_spinning_between_processes(cores, threads):
    assert default_layout(machine(cores, limited=True)) == Layout(processes="joined", threads=threads)


def test_threads_do_not_reach_over_memory_nodes():
    assert default_layout(machine(8, node_cores=4)).threads == 4


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 16, 32, 64])
def test_nothing_is_compiled_unless_it_was_measured_or_asked_for(cores):
    assert not default_layout(machine(cores)).compiled


def test_joined_is_one_process_with_threads_that_vllm_does_not_bind():
    layout = Layout(processes="joined", threads=2)

    assert layout.arguments == ["--distributed-executor-backend", "uni"]
    assert layout.environment == {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
    }


def test_apart_is_stock_or_bound_to_the_processors_named():
    assert Layout(processes="apart").arguments == []
    assert Layout(processes="apart").environment == {"VLLM_CPU_OMP_THREADS_BIND": "auto"}
    assert Layout(processes="apart", cpus="0-3,8").environment == {"VLLM_CPU_OMP_THREADS_BIND": "0-3,8"}
    with pytest.raises(ValueError, match="cpus"):
        Layout(processes="apart", cpus="all")


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_containers_share_of_time_is_read_from_either_version_of_cgroups(tmp_path, files, share):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert processor_share(tmp_path) == share


def system(root, *, cpus, siblings=1, nodes=1):
    for cpu in range(cpus):
        first = cpu - cpu % siblings
        topology = root / f"cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{first}-{first + siblings - 1}" if siblings > 1 else str(cpu))
    each = cpus // nodes
    for node in range(nodes):
        folder = root / f"node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{node * each}-{node * each + each - 1}\n")
    return root


def test_the_machine_is_counted_in_physical_cores_that_this_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts.os, "sched_getaffinity", lambda _: set(range(12)))
    found = this_machine(tmp_path / "none", system(tmp_path, cpus=16, siblings=2, nodes=2))

    assert (found.cores, found.processors, found.node_cores, found.limited) == (6, 12, 4, False)


def test_a_containers_share_bounds_the_cores_rounded_down(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts.os, "sched_getaffinity", lambda _: set(range(16)))
    (tmp_path / "cpu.max").write_text("350000 100000")
    found = this_machine(tmp_path, system(tmp_path, cpus=16))
    assert (found.cores, found.processors, found.node_cores, found.limited) == (3, 3, 3, True)

    (tmp_path / "cpu.max").write_text("50000 100000")
    assert this_machine(tmp_path, tmp_path).cores == 1


def test_a_machine_that_tells_nothing_of_its_topology_is_counted_by_its_processors(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts.os, "sched_getaffinity", lambda _: {0, 1, 2})

    assert this_machine(tmp_path, tmp_path).cores == 3


def test_processors_of_one_name_and_several_generations_are_told_apart(tmp_path):
    text = (
        "processor: 0\nmodel name\t: Xeon\ncpu family\t: 6\nmodel\t: 207\nstepping\t: 2\nflags\t: avx2 amx_tile\n\nprocessor: 1\n"
    )
    (tmp_path / "cpuinfo").write_text(text)

    assert cpu_name(tmp_path / "cpuinfo") == "Xeon 6/207/2 amx"


def test_compiling_needs_a_compiler_and_pythons_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(layouts.shutil, "which", lambda _: None)
    assert "g++" in compiler_missing()

    monkeypatch.setattr(layouts.shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(layouts.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "python3-dev" in compiler_missing()
    (tmp_path / "Python.h").touch()
    assert compiler_missing() is None
