"""The PyTorch peers compute what we compute, and answer as their protocol says (extra `torch`)."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest

from w2s_jax import cli, errors, sharding
from w2s_jax.models import adapting
from w2s_jax.perf import peer, programs, throughput, workloads
from w2s_jax.training import step
from w2s_jax.training.spec import StepSpec

torch = pytest.importorskip("torch")

from w2s_jax.perf import torch_gpt2, torch_peer, torch_programs  # noqa: E402


def make(bench="train", dtype="float32", loss="xent", which="torch"):
    """(workload, our program, the peer's task)."""
    model = dataclasses.replace(workloads.find_model("gpt-d64"), vocab_size=300, max_positions=128)
    workload = workloads.mix_workload(model, "short", dtype=dtype, loss=loss, documents=96)
    mesh = sharding.mesh_of((1, 1, 1))
    program = (programs.training if bench == "train" else programs.labelling)(workload, mesh)
    return workload, program, which


@pytest.fixture
def handed_over(tmp_path):
    def hand(bench, workload, program, which="torch"):
        path = tmp_path / "task.npz"
        peer.write_task(path, bench, which, workload, program)
        return torch_peer.read_task(str(path))

    return hand


VARIANTS = [
    *[torch_programs.Variant(layout, n, "") for layout in ("packed", "padded") for n in (1, 4)],
    torch_programs.Variant("packed", 2, "autocast"),
    torch_programs.Variant("packed", 1, "", adam="foreach"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_first_loss_and_gradient_norm_are_ours(handed_over, variant, dtype):
    workload, program, _ = make(dtype=dtype)
    program.run()
    task = handed_over("train", workload, program)
    if not variant.precision:
        how = "manual" if dtype == "bfloat16" else "float32"
        variant = dataclasses.replace(variant, precision=how)
    trainer = torch_programs.Trainer(task, variant)
    loss = trainer.loss(*trainer.batches[0], 0.0)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in trainer.weights.parameters()]).norm().item()
    limit = {"float32": 1e-4, "bfloat16": 3e-2}[dtype]
    assert loss.item() == pytest.approx(program.outputs[0][0], rel=limit)
    assert norm == pytest.approx(our_gradient_norm(workload, program), rel=limit)


def our_gradient_norm(workload, program):
    """Of the first batch, in float32."""
    float32 = dataclasses.replace(workload.train, compute_dtype="float32")
    workload = dataclasses.replace(workload, train=float32)
    mesh = sharding.mesh_of((1, 1, 1))
    again = dataclasses.replace(workload, params=lambda _: jax.device_put(program.params))
    packed = programs.packed_batches(again, mesh)
    batches = programs.put(again, packed, mesh)
    trained, frozen = adapting.split(again.train, again.model, again.params(mesh))
    state = programs.fresh_state(again, 3, trained, mesh)
    spec = programs.spec_of(again, 3)
    assert isinstance(spec, StepSpec)
    state = step.train_step(spec, mesh, frozen)(state, batches.at(0))
    return float(state.history[0, 1])


@pytest.mark.parametrize("which", ["torch", "torch-released"])
@pytest.mark.parametrize("loss", ["xent", "confidence"])
def test_training_goes_on_as_ours_does(handed_over, which, loss):
    workload, program, _ = make(loss=loss)
    program.run()
    task = handed_over("train", workload, program, which)
    if which == "torch":
        trainer = torch_programs.Trainer(task, torch_programs.Variant("packed", 2, "float32"))
    else:
        trainer = torch_programs.ReleasedTrainer(task)
    _, losses_S = trainer.run()
    assert len(losses_S) == 3
    np.testing.assert_allclose(losses_S, program.outputs[0], rtol=2e-5)


@pytest.mark.parametrize("which", ["torch", "torch-released"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_labels_are_ours(handed_over, which, dtype):
    if (which, dtype) == ("torch-released", "bfloat16"):
        pytest.skip("the released code computes in float32")
    workload, program, _ = make("label", dtype)
    program.run()
    task = handed_over("label", workload, program, which)
    if which == "torch":
        precision = "float32" if dtype == "float32" else "manual"
        labeller = torch_programs.Labeller(task, torch_programs.Variant("packed", 16, precision))
    else:
        labeller = torch_programs.ReleasedLabeller(task)
    _, logits_NC = labeller.run()
    (ours_NC,) = program.outputs
    limit = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(logits_NC, ours_NC, atol=limit * np.abs(ours_NC).max())


def test_nested_attention_is_the_same_where_it_runs():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 99, n) for n in (5, 1, 9, 9)]
    qkv = torch.from_numpy(rng.standard_normal((24, 3 * 32)).astype(np.float32))
    nested = torch_gpt2.make_batch(documents, "nested", 1, "cpu")
    groups = torch_gpt2.make_batch(documents, "packed", 2, "cpu")
    expected = torch_gpt2._attention(qkv, groups, 4)
    try:
        found = torch_gpt2._attention(qkv, nested, 4)
    except (RuntimeError, NotImplementedError):
        pytest.skip("this build of PyTorch has no kernel for it")
    torch.testing.assert_close(found, expected)


def test_the_strongest_variant_is_the_one_with_the_shortest_trial(handed_over, monkeypatch):
    workload, program, _ = make(dtype="bfloat16")
    task = handed_over("train", workload, program)
    times = {"packed 2, manual, fused": 1.0, "packed 2, manual, foreach": 0.5}

    def tried(make, variant, trials):
        trials[variant.name] = times.get(variant.name, 2.0)
        return trials[variant.name]

    monkeypatch.setattr(torch_programs, "_tried", tried)
    _, best, trials = torch_programs.strongest(task)
    assert best == torch_programs.Variant("packed", 2, "manual", "foreach")
    assert {"packed 1", "padded 8", "nested 1"} <= {name.split(",")[0] for name in trials}
    assert any("autocast" in name for name in trials)


def test_the_child_answers_one_line_a_request(handed_over, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_programs, "TRIALS", 1)
    workload, program, _ = make()
    peer.write_task(tmp_path / "task.npz", "train", "torch-released", workload, program)
    requests = [
        {"command": "prepare", "task": str(tmp_path / "task.npz")},
        {"command": "run"},
        {"command": "outputs", "to": str(tmp_path / "out.npy")},
    ]
    replies = io.StringIO()
    torch_peer.serve(io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), replies)
    prepared, run, outputs = map(json.loads, replies.getvalue().splitlines())
    assert prepared["variant"] == "minibatch 1, float32" and prepared["torch"]
    assert run["seconds"] > 0 and outputs["peak_memory"] > 1e7
    assert np.load(tmp_path / "out.npy").shape == (3,)


def test_a_peer_that_computes_something_else_is_no_peer():
    workload, program, _ = make()
    program.run()

    class Wrong:
        def outputs(self):
            return program.outputs[0] + 0.1, 0

    with pytest.raises(RuntimeError, match="computes something else"):
        throughput._agreement("train", workload, program, Wrong())


def test_models_that_the_peers_do_not_know_are_refused():
    for name in ("rotary-d64", "facebook/opt-125m", "EleutherAI/pythia-70m", "bert-base-uncased"):
        workload = workloads.mix_workload(workloads.find_model(name), "short", dtype="float32")
        with pytest.raises(errors.InputError, match="not of GPT-2's form"):
            peer.check_workload("torch", workload)


def test_a_failing_child_is_reported_with_its_last_line(tmp_path):
    workload, program, _ = make()
    broken = dataclasses.replace(program, params={"head": program.params["head"]})
    with (
        pytest.raises(RuntimeError, match="--peer=torch: the peer's process failed: KeyError"),
        peer.Peer("train", "torch", workload, broken),
    ):
        pass


def test_bench_with_a_peer_writes_a_ratio(capsys, tmp_path):
    path = tmp_path / "bench.json"
    arguments = ["--model=gpt-d8", "--mix=short", "--documents=32", "--repeats=2"]
    peers = ["--peer=torch-released", "--dtype=float32", f"--json={path}"]
    assert cli.main(["bench", "train", *arguments, *peers]) == 0
    out = capsys.readouterr().out
    (record,) = json.loads(path.read_text())["records"]
    spread = record["ratio_spread"]
    assert spread["min"] <= record["ratio"] <= spread["max"]
    assert f"{record['ratio']:.2f} (" in out
    assert record["peer"]["name"] == "torch-released" and record["peer"]["dtype"] == "float32"
    assert record["peer"]["first_loss_difference"] < 1e-4
