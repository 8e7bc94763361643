"""Features of documents from files of every format and from functions, and each refusal."""

import json
import re

import numpy as np
import pytest
from feature_files import softmax, write, write_task
from refusals import error

from w2s_jax import data
from w2s_jax.config import default_config
from w2s_jax.config.validation import validate
from w2s_jax.data import feature_formats as formats
from w2s_jax.data.documents import Document
from w2s_jax.data.feature_sources import FEATURES, find_features, register_features
from w2s_jax.planning.costs import phase_flops
from w2s_jax.planning.external import normalised
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.training.batches import feature_bucket

SUFFIXES = (".npz", ".npy", ".safetensors", ".parquet")
#: Of all sizes, some of which are negative as signed integers.
IDS = np.array([5, 2**63 + 11, 2**64 - 1, 7, 2**32, 12, 13], np.uint64)
VALUES = np.arange(7 * 3, dtype=np.float32).reshape(7, 3) / 8


def documents(ids, **meta):
    own = [{name: value[n] for name, value in meta.items()} for n in range(len(ids))]
    return [
        Document(int(id_), text="x", label=0, meta=own[n], where=f"d.jsonl, line {n + 1}")
        for n, id_ in enumerate(ids)
    ]


def bound(path, *splits, num_texts=1):
    return find_features(f"features:{path}").bind(
        {f"s{n}": split for n, split in enumerate(splits)}, num_texts
    )


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int16"])
def test_rows_are_joined_by_id_in_the_order_of_the_documents(tmp_path, suffix, dtype):
    values = (8 * VALUES).astype(dtype)
    path = write(tmp_path / f"f{suffix}", IDS, values)
    found = bound(path, documents(IDS[[3, 0]]), documents(IDS[[6, 1, 2]]))
    assert (found.name, found.width) == (f"features:f{suffix}", 3)
    for split, rows in (("s0", [3, 0]), ("s1", [6, 1, 2])):
        read = found.read(split)
        assert read.dtype == np.float32 and read.shape == (len(rows), 1, 3)
        np.testing.assert_array_equal(read[:, 0], values[rows].astype(np.float32))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
@pytest.mark.parametrize(
    "spell",
    [str, "{:#018x}".format, "{:#x}".format, lambda i: i - 2**64 if i >= 2**63 else i],
    ids=["decimal", "0x padded", "0x", "signed"],
)
def test_ids_of_every_spelling(tmp_path, suffix, spell):
    path = write(tmp_path / f"f{suffix}", [spell(int(i)) for i in IDS], VALUES)
    np.testing.assert_array_equal(bound(path, documents(IDS)).read("s0")[:, 0], VALUES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_digest_is_that_of_the_rows_whatever_their_order_format_and_company(tmp_path, suffix):
    first = bound(write(tmp_path / "a.npz", IDS, VALUES), documents(IDS[:3])).digests
    order = [6, 2, 0, 1, 3]
    path = write(tmp_path / f"b{suffix}", IDS[order], VALUES[order])
    assert bound(path, documents(IDS[:3])).digests == first
    changed = VALUES + np.float32(1e-6) * (np.arange(7) == 1)[:, None]
    path = write(tmp_path / f"c{suffix}", IDS, changed)
    assert bound(path, documents(IDS[:3])).digests != first


def test_bfloat16_in_safetensors(tmp_path):
    import ml_dtypes

    path = write(tmp_path / "f.safetensors", IDS, VALUES.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(bound(path, documents(IDS)).read("s0")[:, 0], VALUES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_far_apart_in_a_large_file(tmp_path, suffix):
    """Safetensors and Parquet are read in blocks."""
    count = 3 * formats._BLOCK + 5
    values = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    path = write(tmp_path / f"f{suffix}", np.arange(count), values)
    rows = np.array([count - 1, 0, formats._BLOCK, formats._BLOCK - 1, 2 * formats._BLOCK + 7, 0])
    np.testing.assert_array_equal(formats.read_rows(path, "features", rows), values[rows])


def test_a_folder_is_read_file_by_file(tmp_path):
    for n, suffix in enumerate((".npz", ".npy", ".parquet")):
        rows = slice(2 * n, 2 * n + 3 - (n < 2))
        write(tmp_path / f"{n}{suffix}", IDS[rows], VALUES[rows])
    (tmp_path / "README.txt").write_text("other files do not matter")
    found = bound(tmp_path, documents(IDS[::-1]))
    assert found.name == f"features:{tmp_path.name}"
    np.testing.assert_array_equal(found.read("s0")[:, 0], VALUES[::-1])
    write(tmp_path / "z.npz", IDS[:1], VALUES[:1])
    text = error(bound, tmp_path, documents(IDS))
    assert "id 5 occurs twice (0.npz, row 0; z.npz, row 0)" in text
    write(tmp_path / "z.npz", [1], VALUES[:1, :2])
    assert "z.npz: 2 numbers per row, but 0.npz has 3" in error(bound, tmp_path, documents(IDS))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pairs_have_a_row_for_each_text(tmp_path, suffix):
    pairs = np.stack([VALUES, -VALUES], axis=1)
    path = write(tmp_path / f"f{suffix}", IDS, pairs)
    np.testing.assert_array_equal(bound(path, documents(IDS), num_texts=2).read("s0"), pairs)
    text = error(bound, path, documents(IDS))
    assert text == f"{path}: features of shape [7, 2, 3]; allowed: [N, D]"
    path = write(tmp_path / f"g{suffix}", IDS, VALUES)
    text = error(bound, path, documents(IDS), num_texts=2)
    assert "features of shape [7, 3]; allowed: [N, 2, D]" in text


# --- ids of records -------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [list("gfedcba"), [70, 60, 50, 40, 30, 20, 10]])
def test_ids_of_records_serve_if_all_are_found(tmp_path, own):
    path = write(tmp_path / "f.npz", own, VALUES)
    found = bound(path, documents(IDS[:2], id=own[:2]), documents(IDS[2:], id=own[2:]))
    np.testing.assert_array_equal(found.read("s1")[:, 0], VALUES[2:])
    text = error(bound, path, documents(IDS, id=[*own[:4], "x", "y", own[6]]))
    assert text.startswith(f"features:{path}: no features for 2 of 7 documents (the first: d.jsonl")
    assert "line 5, id 'x')" in text and "0 are found by document id and 5 by" in text
    assert "w2s data ids" in text


def test_an_id_of_a_record_that_two_documents_have_is_refused(tmp_path):
    path = write(tmp_path / "f.npz", list("ab"), VALUES[:2])
    text = error(bound, path, documents(IDS[:3], id=["a", "b", "a"]))
    assert "2 of 3 documents share theirs with another one (the first: d.jsonl, line 1" in text


# --- refusals of files ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_ids_are_counted_and_the_first_is_named(tmp_path, suffix):
    path = write(tmp_path / f"f{suffix}", IDS[:5], VALUES[:5])
    text = error(bound, path, documents(IDS[:5]), documents(IDS[[5, 0, 6]]))
    assert text.startswith(f"features:{path}: no features for 2 of 8 documents")
    assert "(the first: d.jsonl, line 1, id 0x000000000000000c)" in text
    assert "6 are found by document id and 0 by" in text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_that_are_not_finite_are_counted(tmp_path, suffix):
    values = VALUES.astype(np.float64)
    values[2, 1], values[4, 0], values[5, 2] = np.nan, np.inf, 1e300
    path = write(tmp_path / f"f{suffix}", IDS, values)
    text = error(bound, path, documents(IDS))
    assert text == (
        f"features:{path}: s0: the features of 3 of 7 documents are not finite in float32 (the "
        "first: d.jsonl, line 3, id 0xffffffffffffffff)"
    )
    # Others do not matter.
    assert bound(path, documents(IDS[[0, 1, 3, 6]])).width == 3


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
def test_other_numbers_of_ids_and_rows(tmp_path, suffix):
    path = write(tmp_path / f"f{suffix}", IDS[:6], VALUES)
    assert "6 ids and 7 rows of features; there must be one id per row" in error(
        bound, path, documents(IDS)
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_repeated_id(tmp_path, suffix):
    path = write(tmp_path / f"f{suffix}", [1, 2, 3, 2, 5, 6, 7], VALUES)
    text = error(bound, path, documents(IDS))
    assert f"id 2 occurs twice (f{suffix}, row 1; f{suffix}, row 3)" in text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ids_that_are_doubles(tmp_path, suffix):
    path = write(tmp_path / f"f{suffix}", IDS.astype(np.float64), VALUES)
    text = error(bound, path, documents(IDS))
    assert "ids of dtype float64; allowed: integers or text (doubles round ids" in text


def test_an_id_that_is_spelt_in_two_ways(tmp_path):
    path = write(tmp_path / "f.npz", ["5", "0x5"], VALUES[:2])
    text = error(bound, path, documents(IDS[:1]))
    assert "id 5 occurs twice (f.npz, row 0; f.npz, row 1)" in text


def test_a_file_that_changes_during_a_run_is_not_read(tmp_path):
    path = write(tmp_path / "f.npz", IDS, VALUES)
    found = bound(path, documents(IDS))
    write(path, IDS, VALUES + 1)
    assert "has changed since the run began" in error(found.read, "s0")


def test_python_objects_are_never_loaded(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, ids=np.array(["a", 1], object), features=VALUES[:2])
    assert "cannot be read: it has Python objects" in error(bound, path, documents(IDS))


@pytest.mark.parametrize(
    ("suffix", "what"), [(".npz", "array"), (".safetensors", "tensor"), (".parquet", "column")]
)
def test_a_missing_array_is_named_with_those_there(tmp_path, suffix, what):
    path = write(tmp_path / f"f{suffix}", IDS, VALUES, "embeddings")
    text = error(bound, path, documents(IDS))
    assert f"has no {what} 'features'; it has: embeddings, id" in text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_shapes_and_types(tmp_path, suffix):
    path = write(tmp_path / f"f{suffix}", IDS, VALUES[:, 0])
    assert "features of shape [7]; allowed: [N, D]" in error(bound, path, documents(IDS))
    if suffix == ".npy":
        path = write(tmp_path / "g.npy", IDS, VALUES.astype(np.complex64))
        assert "dtype complex64; they must be real" in error(bound, path, documents(IDS))


def test_rows_of_different_lengths_in_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "features": [[1.0, 2.0], [1.0], [1.0, 2.0]]}), path)
    text = error(bound, path, documents([1, 2, 3]))
    assert "rows have different lengths" in text
    pq.write_table(pa.table({"id": [1, 2, 3], "features": [[1.0], [None], [3.0]]}), path)
    assert "1 numbers at row 0 or after are null" in error(bound, path, documents([1, 2, 3]))
    pq.write_table(pa.table({"id": [1, None, 3], "features": [[1.0], [2.0], [3.0]]}), path)
    assert "1 rows have no id" in error(bound, path, documents([1, 2, 3]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_one_line(tmp_path, suffix):
    path = write(tmp_path / f"f{suffix}", IDS, VALUES)
    path.write_bytes(path.read_bytes()[:40])
    text = error(bound, path, documents(IDS))
    assert str(path) in text and ("cannot be read" in text or "is not an .npz file" in text)


def test_names_of_files(tmp_path):
    path = write(tmp_path / "vitb8.npz", IDS, VALUES)
    text = error(find_features, f"features:{tmp_path}/vitb.npz")
    assert "no such file (did you mean 'vitb8.npz'?)" in text
    text = error(find_features, f"features:{tmp_path}/no/vitb8.npz")
    assert f"there is no folder {tmp_path / 'no'}" in text
    text = error(find_features, f"features:{path.rename(tmp_path / 'vitb8.pt')}")
    assert "its ending: unknown value '.pt'" in text and ".npz, .npy" in text
    text = error(find_features, f"features:{tmp_path}")
    assert "no files of features in this folder (it has: vitb8.pt)" in text
    assert "give a local file" in error(find_features, "features:gs://bucket/f.npz")
    np.save(tmp_path / "f.npy", VALUES)
    text = error(bound, tmp_path / "f.npy", documents(IDS))
    assert "the file with its ids is missing: f.ids.npy, beside it" in text
    assert find_features("gpt-d8") is None


# --- functions ------------------------------------------------------------------------------------


@pytest.fixture
def lengths():
    declared = register_features(
        "lengths", lambda docs: [[len(d.text), d.label] for d in docs], version=1
    )
    yield declared
    FEATURES.pop("lengths")


def test_a_function_makes_features_of_documents(lengths):
    found = find_features("features:lengths").bind({"s0": documents(IDS), "s1": documents(IDS[:2])})
    assert (found.name, found.width) == ("features:lengths", 2)
    np.testing.assert_array_equal(found.read("s1"), np.array([[[1, 0]], [[1, 0]]], np.float32))
    text = error(register_features, "lengths", len, version=1)
    assert "already registered" in text
    assert "is not a name" in error(register_features, "a/b", len, version=1)
    assert "did you mean 'lengths'" in error(find_features, "features:length")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda docs: np.zeros((3, 2)), r"shape \[3, 2\] for 1 documents"),
        (lambda docs: 1.0, r"shape \[\] for 1 documents"),
        (lambda docs: np.zeros(len(docs)), r"features of shape \[1\]; allowed: \[N, D\]"),
        (lambda docs: [[np.nan] for _ in docs], "the features of 1 of 1 documents are not finite"),
        (lambda docs: docs[5], "the function failed: IndexError"),
        (lambda docs: np.zeros((len(docs), len(docs))), "2 numbers per text; for a single"),
    ],
)
def test_what_a_function_returns_is_checked(function, message):
    register_features("odd", function, version=1)
    try:
        source = find_features("features:odd")
        text = error(lambda: source.bind({"s0": documents(IDS[:2])}).read("s0"))
        assert text.startswith("features:odd: s0: ") and re.search(message, text), text
    finally:
        FEATURES.pop("odd")


def test_looked_up_soft_labels_are_those_of_batches_that_have_them():
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(24, dtype=np.int32), (5, 1)), axis=1)[:, :8]
    soft = softmax(rng.normal(size=(24, 6))).astype(np.float32)
    whole, table = (feature_bucket(order, soft, table=table) for table in (False, True))
    assert table.batches.targets_BC is None and table.targets_NC.shape == (24, 6)
    for step in range(5):
        ours, theirs = (bucket.batch_at(step) for bucket in (table, whole))
        np.testing.assert_array_equal(ours.targets_BC, soft[order[step]])
        np.testing.assert_array_equal(ours.targets_BC, theirs.targets_BC)


# --- runs, before any work ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    ids, features, labels = write_task(folder, train=90, test=30)
    write(folder / "f.npz", ids, features)
    return folder, ids, features, labels


def config_of(folder, **changes):
    config = default_config()
    config.task.name = "images"
    config.task.data_dir = str(folder)
    config.task.validation_docs = 12
    config.weak.model = config.strong.model = f"features:{folder}/f.npz"
    config.train.adapt = "probe"
    config.probe.batch_size = 16
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def refused(folder, **changes):
    return error(lambda: plan(resolve(validate(config_of(folder, **changes)))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strong__train__adapt": "full"},
            "strong.train.adapt: 'full', but .* no network",
        ),
        ({"weak__train__adapt": "lora"}, "weak.train.adapt: 'lora', but features:.* no network"),
        ({"strong__pretrain__source": "task"}, "strong.pretrain.source: 'task', but features:"),
        ({"weak__tokenizer": "bytes"}, "weak.tokenizer: 'bytes', but features:.* read no text"),
        ({"weak__read_out": "mean"}, "weak.read_out: 'mean', but features:"),
        ({"strong__model": "features:f.npx"}, "strong.model: features:f.npx: no such file"),
        ({"method__name": "generative"}, "'generative' needs a strong model with a network"),
        ({"method__name": "imitation"}, "'imitation' needs a strong model with a network"),
        ({"method__name": "prompting"}, "'prompting' needs a strong model with a network"),
        ({"method__name": "saliency"}, "'saliency' needs a strong model with a network"),
        ({"method__name": "controls"}, "'controls' needs a strong model with a network"),
        ({"method__name": "trust_filter"}, "'trust_filter' needs a weak model with a network"),
        ({"method__name": "synthetic"}, "'synthetic' needs documents with tokens"),
        ({"protocol__halves": "none"}, "protocol.halves: 'none', but the weak model is trained"),
    ],
)
def test_settings_that_features_do_not_have_are_refused(images, changes, message):
    assert re.search(message, refused(images[0], **changes))


def test_a_file_without_the_prefix_gets_a_hint(images):
    path = images[0] / "f.npz"
    text = refused(images[0], strong__model=str(path))
    assert text.endswith(f"is a file; if it has features of documents, give features:{path}")


def test_features_cost_no_flops_and_only_their_memory(images):
    config = config_of(images[0], protocol__balance=False, protocol__balance_test=False)
    resolved = resolve(validate(config))
    for phase in plan(resolved).phases:
        assert phase_flops(phase, resolved).total == 0
        if phase.kind == "features":
            assert memory_estimate(phase, resolved)["total"] == 4 * 12 * 120


def test_what_features_do_not_have_is_not_asked_for(images):
    """No tokenizer, no start from an unembedding; the model's name does not count."""
    folder, ids, features, _ = images
    resolved = resolve(validate(config_of(folder)))
    strong = resolved.roles["strong"]
    assert strong.tokenizer is None and strong.head_init == "zeros" and strong.label_tokens == ()
    assert all(len(split.tokens_T) == 0 for split in strong.splits.values())
    first = {phase.name for phase in plan(resolved).phases}
    order = np.random.default_rng(0).permutation(len(ids))
    other = write(folder / "other.parquet", ids[order], features[order])
    resolved = resolve(validate(config_of(folder, weak__model=f"features:{other}")))
    assert {phase.name for phase in plan(resolved).phases} == first
    json.dumps([phase.spec for phase in plan(resolved).phases], allow_nan=False)


def test_a_version_of_a_function_is_part_of_fingerprints(images):
    names = []
    for version in (1, 2, "1"):
        register_features("ones", lambda docs: np.ones((len(docs), 2)), version=version)
        try:
            resolved = resolve(validate(config_of(images[0], strong__model="features:ones")))
        finally:
            FEATURES.pop("ones")
        names.append({phase.name for phase in plan(resolved).phases if phase.role == "strong"})
    assert names[0].isdisjoint(names[1]) and names[0] == names[2]


# --- labels as arrays -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_labels_may_be_arrays(images, tmp_path, suffix):
    folder, ids, features, _ = images
    soft = softmax(features[:, :3]).astype(np.float32)
    documents_of = data.loading.load("images", data_dir=str(folder), keep=("id",)).documents
    every = [*documents_of["train"], *documents_of["test"]]
    keys = ids
    if suffix == ".safetensors":  # which has no text
        id_of = {d.meta["id"]: d.id for d in every}
        keys = np.array([id_of[id_] for id_ in ids], np.uint64)
    path = write(tmp_path / f"p{suffix}", keys, soft, "p")
    config = config_of(folder, weak__labels=str(path), protocol__halves="none")
    config.protocol.balance = False
    resolved = resolve(validate(config))
    splits = resolved.roles["strong"].splits
    assert set(splits) == {"slice2", "validation", "test"} and len(splits["slice2"]) == 78
    number = {d.id: int(d.meta["id"][4:]) for d in every}
    rows = [number[int(id_)] for id_ in splits["slice2"].ids_N]
    np.testing.assert_array_equal(resolved.labels.read("slice2")[:, 0], soft[rows])
    text = refused(folder, weak__labels=str(path), protocol__halves="none", method__name="bagging")
    assert "'bagging' needs ground truth of slice 1; protocol.halves=none" in text


def test_rows_that_are_no_probabilities_are_refused(images, tmp_path):
    folder, ids, features, _ = images
    soft = softmax(features[:, :3])
    for change, message in (
        (lambda p: p * 1.01, "120 of 120|108 of 108|are no probabilities"),
        (lambda p: p - 0.5, "are no probabilities"),
        (lambda p: p[:, :2], "2 probabilities per row; allowed: 3, those of cat, dog, emu"),
        (lambda p: np.where(p > 0.9, np.nan, p), "probabilities of .* documents are not finite"),
    ):
        path = write(tmp_path / "p.npz", ids, change(soft), "p")
        text = refused(folder, weak__labels=str(path))
        assert text.startswith("weak.labels: ") and re.search(message, text), text
    path = write(tmp_path / "p.npz", ids[:100], soft[:100], "p")
    text = refused(folder, weak__labels=str(path))
    assert "weak.labels" in text and "no probabilities for" in text
    assert "weak.labels: x.npz: no such file" in refused(folder, weak__labels="x.npz")


def test_probabilities_are_normalised_as_those_of_records():
    rng = np.random.default_rng(0)
    p = softmax(rng.normal(size=(50, 4))).astype(np.float32)
    p[:25] *= 1 + rng.uniform(-9e-4, 9e-4, size=(25, 1)).astype(np.float32)
    found = normalised(p, documents(np.arange(50)), "x")
    expected = [
        data.values.parse_probabilities(row, "x", ("a", "b", "c", "d")) for row in p.tolist()
    ]
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=2e-7)
    np.testing.assert_array_equal(found[25:], p[25:])
