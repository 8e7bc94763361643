"""The clock of `w2s compile`: a program's time by the compiler's estimates, in closed form."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from w2s_jax.perf.aot import hlo, search
from w2s_jax.perf.aot.clocks import HOP, TpuClock
from w2s_jax.perf.aot.collectives import group_of
from w2s_jax.perf.aot.hlo_sizes import hbm_bytes, product_flops
from w2s_jax.perf.aot.parts import part_of
from w2s_jax.profiling.devices import Chip

#: 1 GHz, 1 GB/s of memory, 1 MB/s a link, so that times are easy to tell apart.
CHIP = Chip(hertz=1e9, memory=1e9, link=1e6, num_links=4, wraps_from=4)


def cycles(count):
    return f'backend_config={{"estimated_cycles":"{count}"}}'


def program(entry, *computations):
    """Return the HLO of a program whose entry computation has these lines."""
    return hlo.parse(
        "HloModule m, is_scheduled=true\n\n"
        + "\n\n".join(computations)
        + "\n\nENTRY %main (p: f32[8]) -> f32[8] {\n"
        + "\n".join(f"  {line}" for line in entry)
        + "\n}\n"
    )


def clock(torus=(2, 2)):
    places = [(x, y) for y in range(torus[1]) for x in range(torus[0])]
    return TpuClock(CHIP, 1e12, places, torus)


LOOP = """\
%cond (p: (u32[], f32[8])) -> pred[] {{
  %p = (u32[], f32[8]) parameter(0)
  %counter = u32[] get-tuple-element(%p), index=0
  %bound = u32[]{{:T(128)}} constant({bound})
  ROOT %lt = pred[] compare(%counter, %bound), direction=LT
}}

%body (p: (u32[], f32[8])) -> (u32[], f32[8]) {{
  %p = (u32[], f32[8]) parameter(0)
  %counter = u32[]{{:S(6)}} get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %step = u32[]{{:S(6)}} constant({step})
  %next = u32[]{{:S(6)}} add(%counter, %step)
  %y = f32[8] negate(%x), {cycles}
  ROOT %out = (u32[], f32[8]) tuple(%next, %y)
}}"""


@pytest.mark.parametrize("bound,step,trips", [(8, 1, 8), (8, 2, 4), (7, 2, 4), (1, 1, 1)])
def test_a_loop_runs_its_bound_over_its_step_times(bound, step, trips):
    """Loops around collective products count parts, and handle several in an iteration."""
    module = program(
        ["%t = (u32[], f32[8]) tuple(%a, %b)", "ROOT %w = f32[8] while(%t), condition=%cond, "
         "body=%body"],
        LOOP.format(bound=bound, step=step, cycles=cycles(1000)),
    )  # fmt: skip
    estimate = clock().estimate(module)
    assert estimate.seconds == pytest.approx(trips * 1e-6)
    assert estimate.longest(1)[0].times == trips


def test_a_loop_to_a_bound_that_is_an_argument_counts_once():
    text = LOOP.format(bound=8, step=1, cycles=cycles(1000))
    text = text.replace("%bound = u32[]{:T(128)} constant(8)", "%bound = u32[] parameter(1)")
    module = program(["ROOT %w = f32[8] while(%t), condition=%cond, body=%body"], text)
    assert clock().estimate(module).seconds == pytest.approx(1e-6)


def test_line_breaks_in_attributes_do_not_end_a_computation():
    module = program(
        [
            '%k = f32[8] custom-call(%x), custom_call_target="tpu_custom_call", '
            'frontend_attributes={kernel={\n"a": 1\n}}, metadata={op_name="jit(f)/attention/k"}',
            f"ROOT %y = f32[8] negate(%k), {cycles(500)}",
        ]
    )
    assert [op.name for op in module.computations["main"]] == ["k", "y"]
    assert module.computations["main"][0].op_name == "jit(f)/attention/k"


def gather(name, opcode, extra=""):
    return (
        f"%{name} = f32[1000]{{0}} {opcode}(%x), channel_id=3, replica_groups={{{{0,1}},{{2,3}}}}"
        f"{extra}"
    )


def test_collectives_cost_what_nothing_else_hides():
    """4 kB gathered by two neighbours: each sends 2 kB over one link, 2 ms and a hop."""
    alone = 2e-3 + HOP
    start = "%s = (f32[500]{0}, f32[1000]{0}) all-gather-start(%x), replica_groups={{0,1},{2,3}}"
    done = "%d = f32[1000]{0} all-gather-done(%s)"
    for work, exposed in ((500, alone - 5e-7), (3_000_000, 0.0)):
        lines = [start, f"%w = f32[8] negate(%x), {cycles(work)}", done]
        estimate = clock().estimate(program([*lines, "ROOT %r = f32[8] tuple(%d)"]))
        assert estimate.by_part().get("collectives", (0.0, 0.0))[0] == pytest.approx(exposed)
        assert estimate.all_hidden == pytest.approx(work / 1e9)
        assert estimate.seconds == pytest.approx(exposed + work / 1e9)
    blocking = program([gather("g", "all-gather"), f"ROOT %w = f32[8] negate(%x), {cycles(500)}"])
    estimate = clock().estimate(blocking)
    assert estimate.seconds == estimate.no_overlap == pytest.approx(alone + 5e-7)
    assert estimate.fallback_share == pytest.approx(alone / (alone + 5e-7))
    # On a ring of four, data go both ways, and at most two links far.
    four = gather("g", "all-gather").replace("{0,1},{2,3}", "0,1,2,3".join("{}"))
    ring = clock((4, 1)).estimate(program([four, "ROOT %r = f32[8] tuple(%g)"]))
    assert ring.seconds == pytest.approx(3e-3 / 2 + 2 * HOP)


def test_links_carry_one_collective_at_a_time():
    alone = 2e-3 + HOP
    start = "(f32[500]{0}, f32[1000]{0}) all-gather-start(%x), replica_groups={{0,1},{2,3}}"
    root = "ROOT %r = f32[8] tuple(%x)"
    done = "%d = f32[1000]{0} all-gather-done(%t)"
    work = f"%w = f32[8] negate(%x), {cycles(3_000_000)}"
    queued = program([f"%s = {start}", f"%t = {start}", done, work, root])
    assert clock().estimate(queued).seconds == pytest.approx(2 * alone + 3e-3)
    behind = program([f"%s = {start}", gather("g", "all-gather"), root])
    assert clock().estimate(behind).seconds == pytest.approx(2 * alone)
    # What an iteration starts and the next one awaits: no faster than the links.
    body = LOOP.format(bound=5, step=1, cycles=cycles(1000))
    body = body.replace("  %y = f32[8] negate", f"  %s = {start}\n  %y = f32[8] negate")
    loop = program(["ROOT %w = f32[8] while(%t), condition=%cond, body=%body"], body)
    assert clock().estimate(loop).seconds == pytest.approx(5 * alone)


def test_asynchronous_collectives_in_fusions_start_go_on_and_end():
    called = [
        f"%{name} (q: f32[500]) -> f32[1000] {{\n  %q = f32[500] parameter(0)\n"
        f"  {gather('g' + name, 'all-gather')}\n"
        f"  ROOT %r{name} = f32[1000] {end}\n}}"
        for name, end in (
            ("begin", 'custom-call(%gbegin), custom_call_target="AsyncCollectiveStart"'),
            ("carry", "negate(%q)"),
            ("finish", 'custom-call(%gfinish), custom_call_target="AsyncCollectiveDone"'),
        )
    ]
    lines = [
        "%a = f32[1000] fusion(%x), kind=kCustom, calls=%begin",
        f"%b = f32[1000] fusion(%a), kind=kOutput, calls=%carry, {cycles(500_000)}",
        "%c = f32[1000] fusion(%b), kind=kCustom, calls=%finish",
        "ROOT %r = f32[8] tuple(%c)",
    ]
    estimate = clock().estimate(program(lines, *called))
    assert estimate.all_hidden == pytest.approx(5e-4)
    assert estimate.seconds == pytest.approx(2e-3 + HOP)
    assert estimate.no_overlap == pytest.approx(2e-3 + HOP + 5e-4)


def test_copies_beside_other_work_cost_what_exceeds_it():
    """1 MB at 1 GB/s takes 1 ms."""
    for work, exposed in ((400_000, 6e-4), (2_000_000, 0.0)):
        lines = [
            "%s = (f32[250000]{0:S(1)}, f32[250000]{0}, u32[]) copy-start(%x)",
            f"%w = f32[8] negate(%x), {cycles(work)}",
            "%d = f32[250000]{0:S(1)} copy-done(%s)",
            "ROOT %r = f32[8] tuple(%d)",
        ]
        seconds = clock().estimate(program(lines)).seconds
        assert seconds == pytest.approx(work / 1e9 + exposed)


FUSED = """\
%fused (a: f32[10,4], b: f32[1,4], i: s32[]) -> f32[10,4] {
  %a = f32[10,4]{1,0} parameter(0)
  %b = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %read = f32[1,4]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,4}
  %sum = f32[1,4]{1,0} add(%read, %b)
  ROOT %write = f32[10,4]{1,0} dynamic-update-slice(%a, %sum, %i, %i)
}"""


def test_bytes_are_those_of_slices_that_are_read_or_updated_in_place():
    module = program(
        [
            "%x = f32[10,4]{1,0} parameter(0)",
            "%y = f32[1,4]{1,0:S(1)} parameter(1)",
            "%i = s32[]{:S(6)} parameter(2)",
            "%f = f32[10,4]{1,0} fusion(%x, %y, %i), kind=kLoop, calls=%fused",
            "ROOT %c = f32[10,4]{1,0} copy(%f)",
        ],
        FUSED,
    )
    ops = module.named("main")
    # A row of 16 bytes is read and written; %y is in a core's memory.
    assert hbm_bytes(module, ops["f"], "main") == 32
    assert hbm_bytes(module, ops["c"], "main") == 320


@pytest.mark.parametrize(
    "line,flops",
    [
        (
            "dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            2 * 6 * 5 * 4,
        ),
        ("convolution(%x, %y), dim_labels=bf_io->bf", 2 * 6 * 5 * 4),
        # A batch of 3 products, written as a window that is 1 in 3 valid.
        (
            "convolution(%u, %v), window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf",
            2 * 3 * 6 * 5 * 4,
        ),
        # 2 x 4 contracted numbers.
        ("convolution(%s, %t), window={size=2}, dim_labels=b0f_0io->bf0", 2 * 6 * 5 * 8),
    ],
)
def test_flops_of_products_however_they_are_written(line, flops):
    result = "f32[3,6,5]" if "lhs_dilate" in line else "f32[6,5]"
    module = program(
        [
            "%x = f32[6,4] parameter(0)",
            "%y = f32[4,5] parameter(1)",
            "%u = f32[3,6,4] parameter(2)",
            "%v = f32[3,4,5] parameter(3)",
            "%s = f32[6,2,4] parameter(4)",
            "%t = f32[2,4,5] parameter(5)",
            f"ROOT %p = {result} {line}",
        ]
    )
    assert product_flops(module, module.named("main")["p"], "main") == flops


@pytest.mark.parametrize(
    "groups,first",
    [
        ("replica_groups={{0,3},{1,2}}", [0, 3]),
        ("replica_groups=[4,2]<=[8]", [0, 1]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [0, 1]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", [0, 2]),
        ("channel_id=1", list(range(8))),
    ],
)
def test_replica_groups_in_all_notations(groups, first):
    module = program([f"ROOT %g = f32[8] all-gather(%x), {groups}, dimensions={{0}}"])
    assert group_of(module.named("main")["g"], 8) == first


@pytest.mark.parametrize(
    "name,part",
    [
        ("jit(train_block)/while/body/jvp(embed)/gather", "embed"),
        ("a/jvp()/while/body/closed_call/block/mlp/projection/dot_general", "mlp"),
        ("a/jvp()/while/body/closed_call/block/projection/dot_general", "projections"),
        ("a/checkpoint/block/norm/mul", "norms and residuals"),
        ("a/checkpoint/block/add", "norms and residuals"),
        ("a/block/rotary/concatenate", "rotary"),
        ("a/block/attention/transpose", "attention layout"),
        ("a/block/attention/exp", "attention kernel"),
        ("a/jvp(final_norm)/norm/mul", "read-out and head"),
        ("a/transpose(jvp(loss))/neg", "loss"),
        ("jit(decode)/while/body/sampling/argmax", "read-out and head"),
        ("a/gradient_norm/reduce_sum", "gradient norm"),
        ("a/update/jit(_where)/select_n", "update"),
        ("a/jvp()/split", "other copies and casts"),
        ("", "other copies and casts"),
    ],
)
def test_operations_belong_to_the_part_of_their_scope(name, part):
    module = program([f'ROOT %y = f32[8] negate(%x), metadata={{op_name="{name}"}}'])
    assert part_of(module.named("main")["y"], module) == part


def test_all_options_are_all_meshes_microbatches_and_remat_policies_that_divide():
    current = search.MemoryOptions("none", 8, 1, 1)
    found = search.all_options(current, batch_size=8, chips=4, heads=6)
    shapes = {(one.fsdp, one.tensor) for one in found}
    assert shapes == {(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)}  # 4 does not divide 6 heads
    # 4 chips of which none or pairs share layers: at least 4 or 2 documents at a time.
    assert {one.microbatch_size for one in found if one.tensor == 1} == {8, 4}
    assert {one.microbatch_size for one in found if one.tensor == 2} == {8, 4, 2}
    assert {one.remat for one in found} == set(search.REMATS)
    assert len(found) == len(set(found)) == 3 * (3 * 2 + 2 * 3)
    fixed = search.all_options(current, batch_size=8, chips=4, heads=6, mesh=False)
    assert {(one.fsdp, one.tensor) for one in fixed} == {(1, 1)}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, libtpu, is not installed"
)
def test_the_file_of_figures_and_the_search_for_time(tmp_path):
    """A wide model on four chips: the estimates add up, and the search is at least as fast."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from w2s_jax.config import default_config\ndef get_config():\n"
        "    config = default_config()\n    config.task.name = 'sst2'\n"
        "    config.losses = ('xent',)\n    config.weak.model = config.strong.model = 'gpt2'\n"
        "    config.train.compute_dtype = 'bfloat16'\n    return config\n"
    )
    found = []
    for more in ((), ("--search=time", "--search_limit=3")):
        target = tmp_path / f"figures{len(more)}.json"
        done = subprocess.run(
            [sys.executable, "-m", "w2s_jax.cli.main", "compile", f"--config={recipe}", *more,
             "--topology=v5e:2x2", "--documents=400", "--tokens=128", f"--json={target}"],
            capture_output=True, text=True, env=os.environ,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "compiler's estimate" in done.stdout
        programs = json.loads(target.read_text())["programs"]
        step = next(p for p in programs if p["title"].startswith("weak,"))
        parts = sum(part["seconds"] for part in step["parts"].values())
        assert parts == pytest.approx(step["estimated_seconds"])
        assert step["estimated_seconds_all_hidden"] <= step["estimated_seconds"] * (1 + 1e-9)
        assert step["estimated_seconds"] <= step["estimated_seconds_no_overlap"] * (1 + 1e-9)
        assert 0.01 < step["predicted_mfu"] < 1 and 0 <= step["fallback_share"] < 0.5
        assert step["chips"] == 4 and step["peak_bytes"] < 15.75 * 2**30
        # Products alone take at least their FLOPs at the peak.
        for part in ("mlp", "projections"):
            assert step["parts"][part]["seconds"] >= 0.95 * step["parts"][part]["ideal_seconds"] > 0
        found.append(step["estimated_seconds"])
    assert found[1] <= found[0]
    assert "left out" in done.stdout and "overrides:" in done.stdout
