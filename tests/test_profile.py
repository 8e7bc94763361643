"""Profiles: intervals, traces of three kinds of devices, named scopes, programs as files."""

import functools
import json
import re
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from w2s_jax import phases, testing
from w2s_jax.cli.main import main
from w2s_jax.execution import execute
from w2s_jax.profiling import hlo, profile, xplane
from w2s_jax.profiling.xplane import Op
from w2s_jax.store import artifacts

QUIET = Console(quiet=True)


# --- intervals -----------------------------------------------------------------------------------


def test_unions_of_intervals_are_those_of_a_grid():
    rng = np.random.default_rng(0)
    for _ in range(200):
        grid = np.zeros(60, bool)
        intervals = np.sort(rng.integers(0, 60, (rng.integers(0, 8), 2)), axis=1).tolist()
        for start, stop in intervals:
            grid[start:stop] = True
        merged = profile.union((a, b) for a, b in intervals)
        assert profile.length(merged) == grid.sum()
        # Disjoint, in order, none empty, and they do not even touch.
        ends = [end for interval in merged for end in interval]
        assert ends == sorted(set(ends))
        again = np.zeros(60, bool)
        for start, stop in merged:
            again[int(start) : int(stop)] = True
        np.testing.assert_array_equal(again, grid)


def test_the_split_of_a_device_is_that_of_a_grid_and_adds_up_to_the_window():
    rng = np.random.default_rng(1)
    for _ in range(100):
        ops, grids = {}, {}
        for device in ("GPU:0", "GPU:1"):
            grids[device] = {True: np.zeros(60, bool), False: np.zeros(60, bool)}
            ops[device] = []
            for _ in range(rng.integers(1, 9)):
                start, stop = np.sort(rng.choice(60, 2, replace=False)).tolist()
                moving = bool(rng.integers(2))
                name = "all-gather.3" if moving else "fusion.3"
                ops[device].append(Op("jit_step", name, "", "", start * 1e9, stop * 1e9))
                grids[device][moving][start:stop] = True
        used = np.any([g for both in grids.values() for g in both.values()], axis=0).nonzero()[0]
        summary = profile.summarize(ops)
        assert summary["window_seconds"] == used[-1] + 1 - used[0]
        for device, both in grids.items():
            split = summary["devices"][device]
            assert split["compute"] == both[False].sum()
            assert split["communication"] == (both[True] & ~both[False]).sum()
            assert split["hidden_communication"] == (both[True] & both[False]).sum()
            parts = split["compute"] + split["communication"] + split["idle"]
            assert parts == summary["window_seconds"]


def test_scopes_and_operations_add_up_to_all_that_ran():
    def op(name, path, start, stop):
        return Op("jit_step", name, "fusion", path, start * 1e9, stop * 1e9)

    ops = [
        op("fusion.1", "jit(step)/jvp(block)/mlp/dot_general", 0, 4),
        op("fusion.2", "jit(step)/transpose(jvp(block))/mlp/dot_general", 4, 10),
        op("fusion.1", "jit(step)/jvp(block)/mlp/dot_general", 10, 15),
        op("copy", "", 15, 16),
    ]
    summary = profile.summarize({"CPU:0": ops})
    assert summary["scopes"] == [
        {"scope": "block/mlp", "forward_seconds": 9, "backward_seconds": 6, "share": 15 / 16},
        {"scope": "", "forward_seconds": 1, "backward_seconds": 0, "share": 1 / 16},
    ]
    rows = [(r["operation"], r["count"], r["seconds"]) for r in summary["operations"]]
    assert rows == [("fusion.1", 2, 9), ("fusion.2", 1, 6), ("copy", 1, 1)]
    assert [r["backward"] for r in summary["operations"]] == [False, True, False]


@pytest.mark.parametrize(
    "path,expected",
    [
        ("jit(step)/jvp(block)/mlp/while/body/closed_call/inner/tanh", ("block/mlp/inner", False)),
        ("jit(step)/transpose(jvp(block))/attention/vmap(BNTS,BSNH->BTNH)/dot_general",
         ("block/attention", True)),
        ("jit(step)/jvp(block)/rlhe,hed->rld/dot_general", ("block", False)),
        ("jit(step)/transpose(jvp())/checkpoint/rematted_computation/block/mlp/mul",
         ("block/mlp", True)),
        ("jit(step)/update/jit(_where)/select_n", ("update", False)),
        ("jit(_fun)/shard_map/embed/gather", ("embed", False)),
        ("jit(step)/jvp(block)/attention/vmap()/transpose;jit(step)/jvp(block)/mlp/add",
         ("block/attention", False)),
        ("jit(step)/(transpose(jvp(embed))/scatter-add:transpose(jvp(block))/mlp/reduce_sum:)",
         ("(several)", True)),
        ("x", ("", False)),
        ("", ("", False)),
    ],
)  # fmt: skip
def test_named_scopes_are_found_in_name_stacks(path, expected):
    assert profile.scope_of(path) == expected


@pytest.mark.parametrize(
    "name,opcode,moving",
    [
        ("all-reduce.5", "all-reduce", True),
        ("renamed", "reduce-scatter", True),
        ("all-gather-start.1", "all-gather-start", True),
        ("all-to-all-done", "async-done", True),
        ("collective-permute-done", "", True),
        ("send.2", "send", True),
        ("recv-done", "", True),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "", True),
        ("sendable_fusion", "fusion", False),
        ("reduce.3", "reduce", False),
        ("gather.1", "gather", False),
    ],
)
def test_communication_is_told_by_opcode_or_name(name, opcode, moving):
    assert profile.is_communication(Op("jit_step", name, opcode, "", 0, 1)) == moving


# --- traces --------------------------------------------------------------------------------------


def write_trace(path, planes, module=b"", program_id=7):
    """A .xplane.pb made of {plane: {line: [(event, start us, us, stats)]}} and a program."""
    names = ["hlo_op", "hlo_module", "program_id", "Hlo Proto"]
    text = ""
    for plane, lines in planes.items():
        text += f'planes {{ name: "{plane}"\n'
        events = sorted({event[0] for line in lines.values() for event in line})
        for number, (line, found) in enumerate(lines.items()):
            text += f'lines {{ id: {number} name: "{line}" timestamp_ns: 5000\n'
            for event, start, duration, stats in found:
                text += f"events {{ metadata_id: {events.index(event) + 1} "
                text += f"offset_ps: {start * 10**6} duration_ps: {duration * 10**6} "
                for key, value in stats.items():
                    kind = "int64_value" if isinstance(value, int) else "str_value"
                    shown = value if isinstance(value, int) else f'"{value}"'
                    text += f"stats {{ metadata_id: {names.index(key) + 1} {kind}: {shown} }} "
                text += "}\n"
            text += "}\n"
        for number, event in enumerate(events, 1):
            text += f'event_metadata {{ key: {number} value {{ id: {number} name: "{event}" }} }}\n'
        for number, name in enumerate(names, 1):
            text += f'stat_metadata {{ key: {number} value {{ id: {number} name: "{name}" }} }}\n'
        text += "}\n"
    if module:
        # An HloProto has the module as its field 1.
        size, digits = len(module), []
        while size:
            digits.append(size % 128 + (128 if size >= 128 else 0))
            size //= 128
        proto = "".join(f"\\{byte:03o}" for byte in bytes([10, *digits]) + module)
        text += (
            'planes { name: "/host:metadata" event_metadata { key: 1 value { '
            f'id: {program_id} name: "jit_step({program_id})" '
            f'stats {{ metadata_id: 4 bytes_value: "{proto}" }} }} }} }}'
        )
    path.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(text))


@pytest.fixture(scope="module")
def compiled():
    """A step with a loop, its gradient, and an all-reduce over all devices."""

    @jax.jit
    def step(w, x):
        def loss(w):
            with jax.named_scope("block"):
                hidden = jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ w), x)
            with jax.named_scope("loss"):
                return (hidden**2).mean()

        gradient = jax.grad(loss)(w)
        with jax.named_scope("update"):
            return w - 0.1 * gradient

    mesh = jax.make_mesh((8,), ("data",))
    w = jax.device_put(jnp.ones((64, 64)) / 64, NamedSharding(mesh, PartitionSpec()))
    x = jax.device_put(jnp.ones((128, 64)), NamedSharding(mesh, PartitionSpec("data")))
    return step, step.lower(w, x).compile(), (w, x)


def printed_instructions(text):
    """Instruction -> (opcode, path) of a compiled program, from its text."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = .*?[})\]] ([a-z][a-z\-]*)\(", line)
        if match:
            path = re.search(r'op_name="([^"]*)"', line)
            found[match[1]] = match[2], path[1] if path else ""
    return found


def test_programs_within_a_trace_are_read_as_they_are_printed(compiled, tmp_path):
    module = compiled[1].runtime_executable().hlo_modules()[0]
    write_trace(tmp_path / "t.xplane.pb", {}, module.as_serialized_hlo_module_proto(), 300)
    found = xplane.instructions((tmp_path / "t.xplane.pb").read_bytes())
    printed = printed_instructions(compiled[1].as_text())
    assert len(printed) > 40
    assert {name: found["jit_step", name] for name in printed} == printed
    assert {name: found[300, name] for name in printed} == printed


def test_a_gpu_trace_counts_kernels_of_all_streams_once(compiled, tmp_path):
    module = compiled[1].runtime_executable().hlo_modules()[0]
    printed = printed_instructions(compiled[1].as_text())
    scoped = next(name for name, (_, path) in printed.items() if "jvp(block)" in path)
    reduce = next(name for name, (opcode, _) in printed.items() if opcode == "all-reduce")
    own = {"hlo_module": "jit_step", "program_id": 7}
    streams = {
        "Stream #7(Compute)": [
            ("gemm_kernel", 0, 10, {"hlo_op": scoped, **own}),
            ("other_kernel", 10, 5, {"hlo_op": "fusion.77", **own}),
        ],
        "Stream #8(Compute)": [("ncclDevKernel_AllReduce", 12, 8, {"hlo_op": reduce, **own})],
        "Stream #9(MemcpyH2D)": [("MemcpyH2D", 30, 2, {})],
        "Steps": [("0", 0, 100, {})],
        "XLA Modules": [("jit_step", 0, 50, {})],
    }
    host = {"python": [("f", 0, 500, {}), ("gemm", 0, 500, {"hlo_module": "jit_step"})]}
    planes = {"/device:GPU:0": streams, "/host:CPU": host}
    write_trace(tmp_path / "t.xplane.pb", planes, module.as_serialized_hlo_module_proto())
    ops = xplane.read(tmp_path / "t.xplane.pb")
    assert list(ops) == ["GPU:0"]
    assert [op.name for op in ops["GPU:0"]] == [scoped, "fusion.77", reduce, "MemcpyH2D"]
    assert (ops["GPU:0"][0].opcode, ops["GPU:0"][0].path) == printed[scoped]
    summary = profile.summarize(ops)
    assert summary["window_seconds"] == pytest.approx(32e-6)
    assert summary["devices"]["GPU:0"] == pytest.approx(
        {"compute": 17e-6, "communication": 5e-6, "idle": 10e-6, "hidden_communication": 3e-6}
    )


def test_a_tpu_trace_counts_its_operations_and_not_the_loops_around_them(tmp_path):
    lines = {
        "XLA Ops": [
            ("%while.1 = (f32[]) while(%tuple), condition=%c, body=%b", 0, 20, {}),
            ("%fusion.1 = f32[8]{0} fusion(%p), kind=kLoop", 1, 9, {}),
            ("%all-gather-start.2 = (f32[]) all-gather-start(%p)", 10, 1, {}),
            ("%all-gather-done.2 = f32[] all-gather-done(%s)", 15, 5, {}),
        ],
        "Async XLA Ops": [("%all-gather-start.2 = (f32[]) all-gather-start(%p)", 10, 10, {})],
        "XLA Modules": [("jit_step(7)", 0, 20, {})],
        "Steps": [("1", 0, 25, {})],
    }
    planes = {f"/device:TPU:{n}": lines for n in (10, 2)}
    planes["/device:TPU:2 SparseCore 0"] = lines
    write_trace(tmp_path / "t.xplane.pb", planes)
    summary = profile.summarize(xplane.read(tmp_path / "t.xplane.pb"))
    assert list(summary["devices"]) == ["TPU:2", "TPU:10"]
    split = {"compute": 9e-6, "communication": 6e-6, "idle": 4e-6, "hidden_communication": 0.0}
    for found in summary["devices"].values():
        assert found == pytest.approx(split, abs=1e-12)
    names = {row["operation"]: row["count"] for row in summary["operations"]}
    assert names == {"fusion.1": 2, "all-gather-start.2": 2, "all-gather-done.2": 2}


def test_a_cpu_trace_has_each_operation_of_each_device(compiled, tmp_path):
    step, program, (w, x) = compiled
    jax.block_until_ready(step(w, x))
    profiler = profile.Profiler(3, 5, tmp_path / "profile", QUIET)
    for _ in range(2):  # a second one replaces the first
        started = time.monotonic()
        profiler.begin()
        for _ in range(2):
            w = step(w, x)
        profiler.end()
        seconds = time.monotonic() - started
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))
    summary = json.loads((tmp_path / "profile" / "summary.json").read_text())
    assert summary["steps"] == [3, 5]
    assert 0 < summary["window_seconds"] < seconds
    assert list(summary["devices"]) == [f"CPU:{n}" for n in range(8)]
    for split in summary["devices"].values():
        assert split["compute"] > 0 and split["communication"] > 0
        parts = split["compute"] + split["communication"] + split["idle"]
        assert parts == pytest.approx(summary["window_seconds"])
    printed = printed_instructions(program.as_text())
    counts = {row["operation"]: row["count"] for row in summary["operations"]}
    assert not {printed[name][0] for name in counts} & {"while", "conditional", "call"}
    reduces = [name for name, (opcode, _) in printed.items() if opcode == "all-reduce"]
    assert reduces and sum(counts[name] for name in reduces) % (8 * 2) == 0
    assert all(count % (8 * 2) == 0 for count in counts.values()), counts
    by_scope = {row["scope"]: row for row in summary["scopes"]}
    assert by_scope["block"]["forward_seconds"] > 0 < by_scope["block"]["backward_seconds"]
    assert by_scope["update"]["backward_seconds"] == 0 < by_scope["update"]["forward_seconds"]
    for rows in (summary["scopes"], summary["operations"]):
        assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_a_profile_has_the_steps_that_the_phase_has(tmp_path):
    def profiler_of(total_steps, steps):
        console = Console(record=True, quiet=True)
        phase = types.SimpleNamespace(title="weak", total_steps=total_steps)
        context = types.SimpleNamespace(profile=steps, console=console)
        return phases.training.make_profiler(phase, context, artifacts.PhaseFolder(tmp_path))

    assert profiler_of(10, None) is None and profiler_of(10, (10, 12)) is None
    made = [profiler_of(10, steps) for steps in ((9, 12), (2, 5))]
    assert [(p.start, p.stop) for p in made] == [(9, 10), (2, 5)]
    assert made[0].folder == tmp_path / "profile"


def test_an_empty_trace_is_reported_as_empty(capsys):
    summary = {"steps": [0, 1], **profile.summarize({})}
    profile.print_summary(summary, Console())
    assert "no operation" in capsys.readouterr().out


# --- programs as files ---------------------------------------------------------------------------


def test_programs_are_written_once_a_shape_and_consume_nothing(tmp_path):
    calls = []

    def traced(scale, state, batch):
        calls.append(batch.shape)
        return jax.tree.map(lambda x: scale * x + batch.sum(), state)

    step = functools.partial(jax.jit(traced, donate_argnums=1), jnp.float32(2))
    call = hlo.dumping(step, tmp_path / "hlo")
    state = {"w": jnp.ones((4, 4))}
    for width in (3, 5, 3):
        state = call(state, jnp.ones(width))
    np.testing.assert_array_equal(state["w"], 2 * (2 * (2 * 1 + 3) + 5) + 3)
    assert sorted(p.name for p in (tmp_path / "hlo").iterdir()) == [
        f"step_{n}.{ending}" for n in (0, 1) for ending in ("hlo.txt", "json", "stablehlo.mlir")
    ]
    texts = [(tmp_path / "hlo" / f"step_{n}.stablehlo.mlir").read_text() for n in (0, 1)]
    assert "tensor<3xf32>" in texts[0] and "tensor<5xf32>" in texts[1]
    assert (tmp_path / "hlo" / "step_0.hlo.txt").read_text().startswith("HloModule jit_traced")
    record = json.loads((tmp_path / "hlo" / "step_0.json").read_text())
    # The scale, the state and the batch come in; the state goes out where it came in.
    assert record["memory"]["argument_size_in_bytes"] == 4 + 64 + 12
    assert record["memory"]["output_size_in_bytes"] == 64
    assert record["memory"]["alias_size_in_bytes"] == 64
    assert record["cost"]["flops"] >= 32


# --- whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_a_profile_has_the_same_results_and_says_where_time_went(tmp_path, capsys):
    data = testing.write_tiny_task(tmp_path / "data")
    config = testing.tiny_config(data)
    config.losses = ("xent",)
    config.train.steps, config.pretrain.steps = 8, 4
    results = {}
    for name, options in {"plain": {}, "profiled": {"profile": (3, 6), "dump_hlo": True}}.items():
        results[name] = execute.run(config, tmp_path / name, console=Console(), **options)
    same = ("weak", "ceiling", "students", "stages")
    assert all(results["plain"][k] == results["profiled"][k] for k in same)
    for stage in results["plain"]["stages"]:
        folder = tmp_path / "profiled" / "phases" / stage["phase"]
        steps = [3, 4] if stage["kind"] == "pretrain" else [3, 6]
        summary = json.loads((folder / "profile" / "summary.json").read_text())
        assert summary["steps"] == steps
        names = {row["scope"] for row in summary["scopes"]}
        assert {"embed", "block/attention", "block/mlp", "update"} <= names
        # The programs as written have the operations of the trace; each ran on all devices.
        printed = set()
        for path in (folder / "hlo").glob("step_*.hlo.txt"):
            printed |= printed_instructions(path.read_text()).keys()
        programs = {row["program"] for row in summary["operations"] if row["scope"] == "update"}
        ran = [row for row in summary["operations"] if row["program"] in programs]
        assert ran and {row["operation"] for row in ran} <= printed
        assert all(row["count"] % 8 == 0 for row in ran)
        assert not (tmp_path / "plain" / "phases" / stage["phase"] / "profile").exists()
        rows = [tmp_path / n / "phases" / stage["phase"] / "metrics.jsonl" for n in results]
        assert rows[0].read_bytes() == rows[1].read_bytes()
        phase = json.loads((folder / "result.json").read_text())
        assert 0 <= phase["compile_seconds"] <= phase["seconds"]
    timing = results["plain"]["timing"]
    assert 0 < timing["compile_seconds"] < timing["seconds"]
    assert "block/attention" in capsys.readouterr().out


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps", ["5", "5:", "a:b", "5:5", "7:3", "-1:4", "1:2:3", "1.5:2", " 1:2"]
)
def test_steps_that_are_no_range_are_refused_in_one_line(steps, capsys, tmp_path):
    workdir = tmp_path / "run"
    command = ["run", "--config=none.py", f"--workdir={workdir}", f"--profile={steps}"]
    assert main(command) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "--profile" in text and repr(steps) in text
    assert "START:STOP" in text and not workdir.exists()
