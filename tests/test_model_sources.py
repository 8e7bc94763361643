"""Pretrained models: found and pinned without JAX, and refused in one line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import one, tensors_of, tiny
from refusals import error
from safetensors.numpy import save_file
from test_import_export import DAMAGES

from w2s_jax import models
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import network, sources
from w2s_jax.models.config import embedded_model
from w2s_jax.models.convert import convert
from w2s_jax.models.sources import check_fits, find
from w2s_jax.store import checksums, trees

LONG_AGO = 1_000_000_000 * 10**9

# Finds each given model, and prints its fields or the error.
CHILD = """
import json, sys
from w2s_jax.core.errors import InputError
from w2s_jax.models.sources import find
for given in sys.argv[1:]:
    try:
        found = find(given)
        print(json.dumps([found.name, str(found.folder), found.digest, str(found.tokenizer)]))
    except InputError as error:
        print(json.dumps(str(error)))
assert "jax" not in sys.modules
"""


def in_child(*given, **env):
    """Return the output of `find` in a separate process, in which JAX is not imported."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, given)],
        env=os.environ | {"W2S_CACHE_DIR": ""} | env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_tokenizer(folder, tokens):
    folder.mkdir(parents=True, exist_ok=True)
    record = {"model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(tokens)}}}
    (folder / "tokenizer.json").write_text(json.dumps(record))


def configure(folder, **fields):
    record = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(record))


def flip(path, at=-1):
    """Invert a byte without changing the file's size and time."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def shard(folder, count=2):
    """Split a folder's file into several with an index."""
    tensors = tensors_of(folder)
    names = sorted(tensors)
    groups = [names[i::count] for i in range(count)]
    for file, group in zip(files.shard_names(count), groups, strict=True):
        save_file({name: tensors[name] for name in group}, folder / file)
    files.write_index(folder, groups, 0)
    (folder / files.SINGLE).unlink()


def make_phase(folder, kind="pretrain"):
    """Write a phase folder; return its model."""
    config = embedded_model("gpt-d8", vocab_size=11, max_positions=9)
    trees.save_tree(sources.final_of(folder), {"backbone": network.init_params(config, 0, one())})
    record = {"kind": kind, "spec": {"model": config.to_dict()}, "execution": {}}
    (folder / "config.json").write_text(json.dumps(record))
    return config


def fake_hub(root, refs, commits):
    """Write a cache of the hub: refs to commits, whose files are links to blobs named by hash."""
    repository = root / "models--org--name"
    for folder in ("refs", "blobs"):
        (repository / folder).mkdir(parents=True)
    for ref, commit in refs.items():
        (repository / "refs" / ref).write_text(commit)
    for commit, model in commits.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for path in model.iterdir():
            how = hashlib.sha256 if path.suffix == ".safetensors" else hashlib.sha1
            blob = repository / "blobs" / how(path.read_bytes()).hexdigest()
            shutil.copyfile(path, blob)
            (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return repository


def test_find_agrees_with_load_for_each_kind_of_model(tmp_path):
    tiny("llama", tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs", 64)
    convert(str(tmp_path / "theirs"), tmp_path / "ours", "orbax")
    phase = make_phase(tmp_path / "pretrain-0123")
    for name in ("theirs", "ours", "pretrain-0123"):
        found = find(tmp_path / name)
        assert (found.given, found.name) == (str(tmp_path / name), name)
        assert found.folder == tmp_path / name
        assert found.config == models.load(tmp_path / name, one())[0]
        assert len(bytes.fromhex(found.digest)) == 32
    theirs, ours, pretrained = (find(tmp_path / n) for n in ("theirs", "ours", "pretrain-0123"))
    assert theirs.tokenizer == tmp_path / "theirs"
    assert ours.tokenizer == tmp_path / "ours" / "tokenizer"
    assert theirs.huggingface["model_type"] == "llama" and theirs.huggingface == ours.huggingface
    assert (pretrained.tokenizer, pretrained.huggingface) == (None, None)
    assert pretrained.config == phase
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    assert find(tmp_path / "theirs").tokenizer is None


def test_relative_paths_are_resolved_and_named(tmp_path, monkeypatch):
    tiny("gpt2", tmp_path / "a" / "model")
    monkeypatch.chdir(tmp_path / "a" / "model")
    # A generic name is shown with its parent folder.
    for given in (".", "../model/", str(tmp_path / "a" / "model")):
        found = find(given)
        assert (found.given, found.name) == (given, "a/model")
        assert found.folder.is_absolute() and found.folder.samefile(tmp_path / "a" / "model")


def test_hub_ids_are_found_in_the_hubs_cache_and_pinned(tmp_path):
    """Without a network, by the name of the blob, which is not read."""
    main, step = tmp_path / "main", tmp_path / "step"
    tiny("gpt_neox", main)
    write_tokenizer(main, 64)
    tiny("gpt_neox", step, seed=1)
    shard(step)
    commits = {"a" * 40: main, "b" * 40: step}
    repository = fake_hub(tmp_path / "hub", {"main": "a" * 40, "step3000": "b" * 40}, commits)
    given = ("org/name", "org/name@step3000", "org/name@" + "b" * 40, main, step)
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    first, second, third, copy, other = in_child(*given, **env)
    snapshot = repository / "snapshots" / ("a" * 40)
    assert first[:2] == ["name", str(snapshot)] and first[3] == str(snapshot)
    assert second[:2] == ["name@step3000", str(repository / "snapshots" / ("b" * 40))]
    assert second[3] == "None"
    assert third == ["name@" + "b" * 40, *second[1:]]
    assert first[2] == copy[2] != other[2] == second[2]
    for blob in (repository / "blobs").iterdir():
        if len(blob.name) == 64:
            flip(blob)  # shows that the blob is not read
    assert in_child("org/name", **env)[0] == first


def test_links_elsewhere_are_read(tmp_path):
    """Only the hub's cache names files by their contents."""
    for folder in ("snapshots", "blobs"):
        (tmp_path / folder).mkdir()
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.write_bytes(b"content")
    wanted = hashlib.sha256(b"content").hexdigest()
    for name in ("mine/model.safetensors", "snapshots/c/copy.safetensors"):
        (tmp_path / name).parent.mkdir()
    (tmp_path / "mine/model.safetensors").symlink_to(blob)
    shutil.copyfile(blob, tmp_path / "snapshots/c/copy.safetensors")
    assert checksums.kept_sha256(tmp_path / "mine/model.safetensors") == wanted
    assert checksums.kept_sha256(tmp_path / "snapshots/c/copy.safetensors") == wanted
    assert checksums.kept_sha256(blob) == wanted
    (tmp_path / "snapshots/c/sha1").symlink_to(tmp_path / "blobs" / ("1" * 40))
    (tmp_path / "blobs" / ("1" * 40)).write_bytes(b"content")
    assert checksums.kept_sha256(tmp_path / "snapshots/c/sha1") == wanted


def test_the_digest_depends_only_on_what_determines_the_parameters(tmp_path):
    folder = tmp_path / "model"
    tiny("llama", folder)
    digest = find(folder).digest
    moved = folder.rename(tmp_path / "elsewhere")
    os.utime(moved / files.SINGLE, ns=(LONG_AGO, LONG_AGO))
    write_tokenizer(moved, 64)
    configure(moved, transformers_version="0", eos_token_id=7, _name_or_path="x/y")
    assert find(moved).digest == digest
    shutil.copytree(moved, folder)
    assert find(folder).digest == digest
    configure(folder, rope_theta=123.0, rope_parameters=None)
    assert find(folder).digest != digest
    shutil.copyfile(moved / "config.json", folder / "config.json")
    assert find(folder).digest == digest
    flip(folder / files.SINGLE)
    assert find(folder).digest != digest
    flip(folder / files.SINGLE)
    assert find(folder).digest == digest


def test_every_shard_counts(tmp_path):
    tiny("llama", tmp_path)
    shard(tmp_path, 3)
    digests = {find(tmp_path).digest}
    for file in files.shard_names(3):
        flip(tmp_path / file)
        digests.add(find(tmp_path).digest)
    assert len(digests) == 4
    (tmp_path / "optimizer.bin").write_bytes(b"not the model's")
    assert find(tmp_path).digest in digests


def test_digests_are_stable_across_versions(golden):
    """Existing phases are found by the digest of their model."""
    wanted = "722eff30dda1c45f08904f7264219293573ad80b4e2601ce6d4b92557c53d411"
    assert find(golden / "llama").digest == wanted


def test_the_digest_of_a_converted_folder_is_that_of_its_manifest(tmp_path):
    tiny("llama", tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), tmp_path / "a", "orbax")
    digest = find(tmp_path / "a").digest
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert find(tmp_path / "b").digest == digest
    final = sources.final_of(tmp_path / "b")
    flip(next(path for path in final.rglob("*") if path.is_file()), 0)
    assert find(tmp_path / "b").digest == digest  # found out by load
    trees.write_manifest(final)
    assert find(tmp_path / "b").digest != digest


def test_the_digest_of_a_phase_is_that_of_its_spec(tmp_path):
    make_phase(tmp_path / "a")
    digest = find(tmp_path / "a").digest
    make_phase(tmp_path / "b")
    configure(tmp_path / "b", execution={"mesh": [8]})
    assert find(tmp_path / "b").digest == digest
    record = json.loads((tmp_path / "a" / "config.json").read_text())
    record["spec"]["model"] |= {"name": "another"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(record))
    assert find(tmp_path / "a").digest == digest
    record["spec"]["model"] |= {"activation": "relu"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(record))
    assert find(tmp_path / "a").digest != digest


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A folder with a model whose checksum is cached, and the list of files that are hashed."""
    monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path / "cache"))
    read, sha256 = [], checksums.sha256

    def spy(path):
        read.append(path.name)
        return sha256(path)

    monkeypatch.setattr(checksums, "sha256", spy)
    tiny("gpt2", tmp_path / "model")
    os.utime(tmp_path / "model" / files.SINGLE, ns=(LONG_AGO, LONG_AGO))
    find(tmp_path / "model")
    assert read == [files.SINGLE]
    read.clear()
    return tmp_path / "model", read


def test_a_file_is_hashed_once(cached, tmp_path):
    model, read = cached
    digest = find(model).digest
    (tmp_path / "link").symlink_to(model)
    configure(model, transformers_version="0")
    assert find(tmp_path / "link").digest == digest
    assert read == []
    assert [path.suffix for path in (tmp_path / "cache" / "sums").iterdir()] == [".json"]


@pytest.mark.parametrize("change", ["time", "size", "inode", "path"])
def test_a_changed_file_is_hashed_again(cached, change):
    model, read = cached
    path = model / files.SINGLE
    before = find(model).digest
    if change == "time":
        flip(path)
        os.utime(path, ns=(LONG_AGO + 1, LONG_AGO + 1))
    elif change == "size":
        tensors = tensors_of(model)
        with_head = tensors | {"score.weight": tensors["transformer.wte.weight"][:2]}
        save_file(with_head, model / "copy")
        path.write_bytes((model / "copy").read_bytes())  # in place: the inode stays
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    elif change == "inode":
        copy = shutil.copy2(path, model / "copy")
        flip(Path(copy))
        Path(copy).replace(path)
        assert path.stat().st_mtime_ns == LONG_AGO
    else:
        model = model.rename(model.with_name("moved"))
    assert (find(model).digest == before) == (change == "path")
    assert read == [files.SINGLE]


def test_the_checksum_of_a_file_just_written_is_not_cached(cached):
    model, read = cached
    os.utime(model / files.SINGLE)
    for _ in range(2):
        find(model)
    assert read == [files.SINGLE] * 2


@pytest.mark.parametrize("damage", ["garbage", "other", "off", "unwritable"])
def test_an_unusable_cache_is_ignored(cached, damage, tmp_path, monkeypatch):
    model, read = cached
    digest = find(model).digest
    (kept,) = (tmp_path / "cache" / "sums").iterdir()
    if damage == "garbage":
        kept.write_bytes(b"\xff{")
    elif damage == "other":
        kept.write_text(json.dumps({"/another/file": "0" * 64}))
    elif damage == "off":
        monkeypatch.setenv("W2S_CACHE_DIR", "")
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path / "file"))
    assert find(model).digest == digest and read == [files.SINGLE]


def test_damage_gives_the_same_error_without_jax_as_on_loading(tmp_path):
    for name, (damage, _) in DAMAGES.items():
        tiny("llama", tmp_path / name)
        damage(tmp_path / name)
    tiny("llama", tmp_path / "shards")
    shard(tmp_path / "shards", 3)
    (tmp_path / "shards" / "model-00002-of-00003.safetensors").unlink()
    names = [*DAMAGES, "shards"]
    words = [words for _, words in DAMAGES.values()]
    words.append(("the file 'model-00002-of-00003.safetensors'", "is missing"))
    lines = in_child(*(tmp_path / name for name in names))
    for name, parts, line in zip(names, words, lines, strict=True):
        assert line == error(models.load, tmp_path / name, one()), name
        for part in parts:
            assert part in line


def test_damaged_phase_folders_are_refused_in_one_line(tmp_path):
    def drop_manifest(folder):
        trees.manifest_path(sources.final_of(folder)).unlink()

    def drop_file(folder):
        (sources.final_of(folder) / "manifest.ocdbt").unlink()

    def empty_manifest(folder):
        trees.manifest_path(sources.final_of(folder)).write_text("[]")

    def edit(**model):
        def change(folder):
            record = json.loads((folder / "config.json").read_text())
            record["spec"]["model"] |= model
            (folder / "config.json").write_text(json.dumps(record))

        return change

    cases = {
        "unfinished": (
            lambda f: shutil.rmtree(sources.final_of(f)),
            "is not a model: it is neither the folder of a trained",
        ),
        "no_config": (
            lambda f: (f / "config.json").unlink(),
            "(config.json and checkpoints/final)",
        ),
        "manifest": (drop_manifest, "final: damaged (it has no readable manifest)"),
        "list": (empty_manifest, "final: damaged (it has no readable manifest)"),
        "file": (drop_file, "final: damaged (manifest.ocdbt is missing)"),
        "model": (
            lambda f: configure(f, spec={}),
            "config.json: does not describe a model (KeyError",
        ),
        "field": (edit(colour="red"), "config.json: does not describe a model (TypeError"),
        "value": (edit(norm="batch"), "config.json: model.norm: unknown value 'batch'"),
        "json": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
        "tokenizer": (
            lambda f: write_tokenizer(f / "tokenizer", 12),
            "tokenizer.json: token 't11' has id 11, but the embedding has 11 rows (",
        ),
    }
    make_phase(tmp_path / "whole")
    for name, (damage, _) in cases.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        damage(tmp_path / name)
    lines = in_child(tmp_path / "whole", *(tmp_path / name for name in cases))
    assert lines[0][0] == "whole"
    for (name, (_, part)), line in zip(cases.items(), lines[1:], strict=True):
        assert part in line and f"{tmp_path / name}" in line and "\n" not in line


def test_errors_say_where_a_missing_model_was_searched(tmp_path):
    (tmp_path / "file").write_text("")
    given = ("gpt-d9", "rotary-d64@x", "org/gpt-d8", "qqqq", "/no/such", "no such")
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    *lines, file = in_child(*given, tmp_path / "file", **env)
    near, revision, organisation, far, path, odd = lines
    for line in (near, revision, organisation, far):
        assert "no such folder, and not in the hub's cache" in line and "HF_HUB_OFFLINE" in line
    assert near.startswith("gpt-d9: ") and near.endswith("(did you mean 'gpt-d8'?)")
    assert revision.endswith("(did you mean 'rotary-d64'?)")
    for line in (organisation, far, path, odd, file):
        assert "did you mean" not in line
    assert "/no/such: no such folder; give a folder, or a hub id such as" in path
    assert odd.startswith("no such: no such folder; give")
    assert file.endswith("file: is a file; give the folder of a model, or a .gguf file")


def test_a_tokenizer_must_fit_the_embedding(tmp_path):
    tiny("llama", tmp_path / "theirs")
    make_phase(tmp_path / "ours")
    theirs, ours = find(tmp_path / "theirs"), find(tmp_path / "ours")
    check_fits(theirs, 64, "t")
    check_fits(ours, 11, "t")
    assert error(check_fits, theirs, 65, "task.tokenizer: 'x/y'") == (
        "task.tokenizer: 'x/y': has 65 tokens, but the embedding has 64 rows "
        f"({tmp_path}/theirs/model.safetensors: tensor 'model.embed_tokens.weight'); this "
        "tokenizer does not belong to this model"
    )
    line = error(check_fits, ours, 12, "bytes")
    assert line.startswith("bytes: has 12 tokens, but the embedding has 11 rows")
    assert f"({tmp_path}/ours/checkpoints/final)" in line
