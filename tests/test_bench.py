"""`w2s bench`: formulas against slow references, records, command line, the gain from packing."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from w2s_jax import sharding, testing
from w2s_jax.cli.main import main
from w2s_jax.config import TrainSettings
from w2s_jax.core import errors
from w2s_jax.data import packing
from w2s_jax.models import budget
from w2s_jax.perf import (
    bench,
    checkpointing,
    compiling,
    data,
    first_step,
    measuring,
    peer,
    population_bench,
    programs,
    recipes,
    throughput,
    workloads,
)
from w2s_jax.perf.aot import inputs as aot_inputs
from w2s_jax.profiling import devices

RECORD = {
    *("bench", "model", "parameters", "mix", "dtype", "loss", "backend", "device_kind"),
    *("device_count", "versions", "documents", "batch_size", "useful_tokens", "rows"),
    *("row_lengths", "padding_share", "repeats", "seconds", "tokens_per_second"),
    *("documents_per_second", "model_flops_per_token", "tflops", "mfu", "compile_seconds"),
    *("peak_memory", "peak_memory_of"),
}


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("TPU v4", "bfloat16", 275e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "float32", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        ("NVIDIA H200", "bfloat16", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-40GB", "float32", 156e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA L400", "bfloat16", None),
        ("cpu", "bfloat16", None),
    ],
)
def test_the_peak_is_that_of_the_device_kind_or_unknown(kind, dtype, peak):
    assert devices.peak_flops(kind, dtype) == peak


def test_mfu_is_a_share_of_all_devices_and_never_above_one():
    half = devices.utilisation(4 * 275e12 / 2, "TPU v4", 4, "bfloat16")
    assert half == {"mfu": pytest.approx(0.5)}
    assert devices.utilisation(1e12, "cpu", 1, "bfloat16") == {"mfu": None}
    impossible = devices.utilisation(300e12, "TPU v4", 1, "bfloat16")
    assert impossible["mfu"] is None and "109%" in impossible["mfu_note"]


@pytest.mark.parametrize("labels", [False, True])
def test_flops_are_summed_over_the_documents_own_lengths(labels):
    model = workloads.find_model("16m")
    documents = data.mix_documents("long", 50)
    total = workloads.model_flops(model, TrainSettings(), documents, labels=labels)
    # A block: 4 attention matrices, 2 MLP matrices; scores and mixing over the tokens up to each
    # token. The last block: keys, values and one query per document.
    d, f = 256, 1024
    matrices, slow = 4 * d * d + 2 * d * f, 0
    for i in range(50):
        n = len(documents.document(i))
        seen = sum(range(1, n + 1))
        slow += 3 * (2 * matrices * n + 2 * 2 * d * seen)
        slow += 2 * 2 * d * d * n + 2 * (matrices - 2 * d * d) + 2 * 2 * d * n
    assert total == pytest.approx(slow * (1 if labels else 3), rel=1e-12)
    mean = round(documents.lengths_N.mean())
    assert total > 1.01 * documents.lengths_N.sum() * (
        budget.flops_per_token(model, mean, last_only=True) * (1 if labels else 3)
    ), "attention is quadratic: the mean length is not enough"


def test_a_ratio_is_the_median_of_pairs_not_the_ratio_of_medians():
    # A slow moment of the machine affects both sides of a pair.
    ours, peer = [1.0, 10.0, 2.0], [2.0, 30.0, 3.0]
    found = measuring.paired_ratio(ours, peer)
    assert found["ratio"] == found["ratio_spread"]["median"] == 2.0
    assert (found["ratio_spread"]["min"], found["ratio_spread"]["max"]) == (1.5, 3.0)
    assert found["ratio_of_fastest"] == 2.0


def test_runs_take_turns():
    order = []

    def run(name):
        order.append(name)
        return float(len(order))

    seconds = measuring.interleaved([lambda: run("ours"), lambda: run("peer")], 3)
    assert order == ["ours", "peer"] * 3
    assert seconds == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]


def test_nested_traces_count_once():
    assert first_step.covered([(0.0, 4.0), (1.0, 2.0), (3.0, 5.0), (7.0, 8.0)]) == 6.0


def test_a_recipe_is_measured_as_its_ceiling_is_trained(tmp_path):
    config = testing.tiny_config(testing.write_tiny_task(tmp_path))
    config.strong.model = "gpt-d8"
    config.train.optimizer = "adamw"
    workload = recipes.recipe_workload(config)
    assert (workload.mix, workload.model.name) == ("tiny slice2", "gpt-d8")
    assert (workload.train.batch_size, workload.train.optimizer) == (16, "adamw")
    record = throughput.measure("train", workload, repeats=1)
    assert record["documents"] == 80 and record["batch_size"] == 16
    with pytest.raises(errors.InputError, match="adamw"):
        peer.check_workload("torch", workload)


@pytest.mark.parametrize(
    ("labels", "columns", "program"), [((0, 1), 2, "confidence"), ((1, 2, 3), 3, "xent")]
)
def test_the_measured_step_is_that_of_a_run(tmp_path, labels, columns, program):
    config = testing.tiny_config(testing.write_tiny_task(tmp_path, labels=labels))
    workload = recipes.recipe_workload(config)
    spec = programs.spec_of(workload, 5)
    assert (spec.columns, spec.program_key().loss[0]) == (columns, program)


def test_pairs_have_a_head_of_one_column():
    model = dataclasses.replace(workloads.find_model("gpt-d8"), vocab_size=300)
    documents = aot_inputs.synthetic_documents(model, 4, 8, num_texts=2)
    workload = workloads.mix_workload(model, "short", dtype="float32", documents=32)
    workload = dataclasses.replace(workload, documents=documents)
    assert programs.spec_of(workload, 1).columns == 1


def test_compile_checkpoint_and_all_take_no_config(capsys, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from w2s_jax.testing import tiny_config\n"
        f"def get_config():\n    return tiny_config({str(tmp_path)!r})\n"
    )
    for what in ("compile", "checkpoint", "all"):
        assert main(["bench", what, f"--config={recipe}"]) == 2
        assert "--config works with train, label and data only" in capsys.readouterr().err


def test_peers_exist_for_throughput_only():
    pytest.importorskip("torch")
    for what in ("data", "population", "compile"):
        with pytest.raises(errors.InputError, match=f"bench {what}: --peer=torch works with train"):
            bench.run(what, bench.Options(peer="torch"), Console())


def first_lengths(count):
    """Return the lengths of the first documents of an epoch of the short mix."""
    documents = data.mix_documents("short", workloads.EPOCH_DOCUMENTS)
    order_SB = packing.training_order(documents.ids_N, batch_size=32, num_steps=count // 32, seed=0)
    return documents.lengths_N[order_SB.reshape(-1)]


def test_all_runs_every_benchmark_quickly(monkeypatch):
    calls = []

    def measure(name, workload, *, repeats, peer):
        calls.append((name, workload.mix, 32 * workload.steps if workload.steps else 0, repeats))
        return {"bench": name}

    monkeypatch.setattr(throughput, "measure", measure)
    monkeypatch.setattr(throughput, "print_records", lambda *_: None)
    monkeypatch.setattr(data, "bench", lambda *_: [{"bench": "data"}])
    monkeypatch.setattr(bench, "_generate", lambda *_: [{"bench": "generate"}])
    monkeypatch.setattr(bench, "_compile", lambda *_: [{"bench": "compile"}])
    monkeypatch.setattr(bench, "_population", lambda *_: [{"bench": "population"}])
    monkeypatch.setattr(bench, "_checkpoint", lambda *_: [{"bench": "checkpoint"}])
    records = bench.run("all", bench.Options(), Console())
    others = ["generate", "data", "population", "compile", "checkpoint"]
    assert [r["bench"] for r in records] == ["train"] * 2 + ["label"] * 2 + others
    assert calls[0] == ("train", "short", bench.QUICK_DOCUMENTS, bench.QUICK_REPEATS)


@pytest.mark.slow
def test_a_population_is_measured_against_its_members_alone():
    model = dataclasses.replace(workloads.find_model("gpt-d8"), vocab_size=300)
    workload = workloads.mix_workload(model, "short", dtype="float32", documents=32)
    record = population_bench.measure(workload, repeats=1, members=2)
    assert set(record["ways"]) == {"one after another", "vmap", "loop"}
    assert record["documents"] == 32
    assert record["useful_tokens"] == 2 * first_lengths(32).sum()
    first = record["ways"]["one after another"]
    assert first["ratio"] == 1
    for way in record["ways"].values():
        assert way["tokens_per_second"] * way["seconds"]["median"] == pytest.approx(
            record["useful_tokens"]
        )
        assert way["ratio"] == pytest.approx(first["seconds"]["median"] / way["seconds"]["median"])


@pytest.mark.slow
def test_a_second_start_compiles_less(tmp_path):
    records = compiling.measure("gpt-d8", "short", "float32", "xent")
    assert [r["program"] for r in records] == ["train", "label"]
    for record in records:
        assert record["warm"]["compile_seconds"] < record["cold"]["compile_seconds"] / 2
        for start in ("cold", "warm"):
            parts = [record[start][part] for part in compiling.PARTS]
            assert min(parts) > 0 and sum(parts[:-1]) < parts[-1]


@pytest.mark.medium
def test_bench_train_and_label_write_what_they_print(capsys, tmp_path):
    for what, documents in (("train", 64), ("label", 64)):
        path = tmp_path / f"{what}.json"
        arguments = ["--model=gpt-d8", "--mix=short", f"--documents={documents}", "--repeats=2"]
        assert main(["bench", what, *arguments, f"--json={path}"]) == 0
        out = capsys.readouterr().out
        (record,) = json.loads(path.read_text())["records"]
        assert set(record) == RECORD
        assert (record["bench"], record["model"], record["mix"]) == (what, "gpt-d8", "short")
        assert record["documents"] == documents and record["repeats"] == 2
        label = what == "label"
        lengths_N = (
            data.mix_documents("short", documents).lengths_N if label else first_lengths(documents)
        )
        assert record["useful_tokens"] == lengths_N.sum()
        rate = record["useful_tokens"] / record["seconds"]["median"]
        assert record["tokens_per_second"] == pytest.approx(rate)
        assert f"{rate:,.0f}" in out and "n/a" in out
        assert record["mfu"] is None and record["device_kind"] == "cpu"
        assert 0 < record["padding_share"] < 1
        # FLOPs of the documents, divided by time.
        flops = record["model_flops_per_token"] * record["useful_tokens"]
        assert record["tflops"] == pytest.approx(flops / record["seconds"]["median"] / 1e12)
        assert record["compile_seconds"] > 0 and record["peak_memory"] > 1e7


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model=gpt3"], ["--model", "gpt3", "'gpt2'"]),
        (["--mix=shrt"], ["--mix", "shrt", "'short'"]),
        (["--dtype=float16"], ["--dtype", "float16", "bfloat16"]),
        (["--loss=product"], ["--loss", "product", "confidence"]),
        (["--repeats=0"], ["--repeats", "0", "at least 1"]),
        (["--documents=31"], ["--documents", "31", "32"]),
        (["--peer=tensorflow"], ["--peer", "tensorflow", "torch-released"]),
        (["--modle=16m"], ["--modle=16m", "w2s bench --help"]),
        (["--json=/none/there/x.json"], ["--json", "/none/there"]),
    ],
)
def test_bad_values_are_one_line_before_anything_is_measured(capsys, monkeypatch, arguments, parts):
    monkeypatch.setattr(throughput, "measure", lambda *_, **__: pytest.fail("measured"))
    assert main(["bench", "train", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("w2s: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


def test_the_error_for_missing_pytorch_says_how_to_install_it(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.InputError, match=r"pip install 'w2s_jax\[torch\]'"):
        bench.Options(peer="torch").check()


def test_documents_beyond_a_models_positions_are_refused():
    model = workloads.find_model("gpt-d8")
    with pytest.raises(errors.InputError, match="has only 100 positions"):
        workloads.mix_workload(
            dataclasses.replace(model, max_positions=100), "long", dtype="float32"
        )


def padded(workload):
    """Return the batches with one document per row."""
    order_SB = packing.training_order(
        workload.documents.ids_N,
        batch_size=32,
        num_steps=len(workload.documents) // 32,
        seed=0,
    )
    longest = int(workload.documents.longest)
    lengths = workload.documents.lengths_N
    steps_S = np.arange(len(order_SB), dtype=np.int32)
    tokens = np.zeros((len(order_SB), 1, 32, longest), np.uint16)
    for s, order_B in enumerate(order_SB):
        for b, i in enumerate(order_B):
            tokens[s, 0, b, : lengths[i]] = workload.documents.document(i)
    used = np.arange(longest) < lengths[order_SB][:, None, :, None]
    read_outs = np.arange(32) * longest + lengths[order_SB] - 1
    bucket = packing.PackedBucket(
        steps_S,
        tokens,
        used.astype(np.uint16),
        read_outs[:, None, :, None].astype(np.int32),
        (lengths[order_SB] - 1)[:, None, :, None].astype(np.uint16),
        (),
        None,
    )
    return packing.PackedBatches((bucket,), order_SB)


@pytest.mark.slow
def test_packing_is_faster_than_padding():
    """Compare tokens per second of the same step on packed and on padded batches."""
    model = workloads.find_model("gpt-d32")
    model = dataclasses.replace(model, d_mlp=256, vocab_size=300, max_positions=128)
    workload = workloads.mix_workload(model, "short", dtype="float32", documents=128)
    one_shape = dataclasses.replace(workload.train, max_shapes=1)
    workload = dataclasses.replace(workload, train=one_shape)
    mesh = sharding.mesh_of((1, 1, 1))
    packed = programs.training(workload, mesh)
    rows = programs.training(workload, mesh, lambda given, _: padded(given))
    packed.run(), rows.run()
    # The same documents and losses; only the layout differs.
    np.testing.assert_allclose(packed.outputs[0], rows.outputs[0], rtol=1e-3)
    assert packed.facts["padding_share"] < 0.3 < rows.facts["padding_share"]
    seconds = measuring.interleaved([packed.run, rows.run], 7)
    ratio = min(seconds[1]) / min(seconds[0])
    print(f"{ratio:.2f}", seconds)
    assert ratio > 1.2, f"packed batches are {ratio:.2f} times as fast as padded ones"


@pytest.mark.slow
def test_a_save_stalls_training_for_part_of_its_duration(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = workloads.find_model("gpt-d8")
    record = checkpointing.measure(model, repeats=2)
    # Parameters and two moments in float32, and the optimiser's counters.
    assert 0 <= record["bytes"] - 12 * model.num_parameters() <= 64
    stall, whole = record["stall_seconds"], record["save_seconds"]
    assert 0 < stall["min"] <= stall["max"] < whole["max"] and record["read_seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    console = Console(record=True, width=160)
    checkpointing.print_records([record], console)
    assert "gpt-d8" in console.export_text()
