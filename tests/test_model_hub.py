"""Models by hub id: from the hub's cache, without a network, and what the hub says."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from checkpoints import tiny
from refusals import error

from w2s_jax.core import hf_hub
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.hf_models import local_folder

HUB = """
import sys
import time
from w2s_jax.core.errors import InputError
from w2s_jax.models.hf_models import local_folder
for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        print(local_folder(name).name[:3])
    except InputError as error:
        print(error)
    assert time.monotonic() - start < 10
assert "jax" not in sys.modules
"""


@pytest.mark.parametrize("offline", ("1", "0"))
def test_hub_ids_and_revisions_come_from_the_cache(tmp_path, offline):
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    for ref, commit in (("main", "a" * 40), ("step3000", "b" * 40)):
        (repository / "refs" / ref).write_text(commit)
        tiny("gpt_neox", repository / "snapshots" / commit)
    env = os.environ | {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"}
    env |= {"HF_HOME": str(tmp_path)}
    env.pop("HF_HUB_CACHE", None)
    names = ("org/name", "org/name@step3000", "org/name@step7", "org/other", "/no/such")
    done = subprocess.run(
        [sys.executable, "-c", HUB, *names], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    main, step, revision, other, folder = done.stdout.splitlines()
    assert (main, step) == ("aaa", "bbb")
    reason = "HF_HUB_OFFLINE" if offline == "1" else "http://127.0.0.1:9 is not reachable"
    assert revision.startswith("org/name@step7: no such folder, and not in the hub's cache")
    assert other.startswith("org/other: no such folder") and reason in other
    assert folder.startswith("/no/such: no such folder; allowed: a folder, or a hub id")


def test_what_the_hub_says_is_passed_on(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub import errors as hub_errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def info(siblings=(), raises=None):
        def model_info(self, name, revision=None, timeout=None):
            if raises is not None:
                # Its arguments differ between versions.
                failure = raises.__new__(raises)
                failure.args = ("no",)
                raise failure
            files = [huggingface_hub.hf_api.RepoSibling(rfilename=s) for s in siblings]
            return type("Info", (), {"siblings": files, "sha": "c" * 40})

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)

    def download(name, **options):
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for kind, word in (
        (hub_errors.GatedRepoError, "gated; accept its terms"),
        (hub_errors.RevisionNotFoundError, "has no revision 'r'"),
        (hub_errors.RepositoryNotFoundError, "no such model"),
        (hub_errors.HfHubHTTPError, "org/n@r: HfHubHTTPError: no"),
    ):
        info(raises=kind)
        assert word in error(local_folder, "org/n@r")
    info(["pytorch_model.bin", "config.json", "onnx/model.safetensors"])
    assert "org/n: it has 'pytorch_model.bin' but no safetensors" in error(local_folder, "org/n")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    extra = ["config.json", "tokenizer.json", "consolidated.safetensors", "original/x.safetensors"]
    info([*extra, *shards, files.INDEX, "rust_model.ot"])
    assert local_folder("org/n@step3000") == tmp_path
    assert asked[-1]["revision"] == "step3000" and not asked[-1]["local_files_only"]
    wanted = ["config.json", "tokenizer.json", files.INDEX, *shards]
    assert asked[-1]["allow_patterns"] == wanted


def test_a_repository_is_pinned_by_its_commit(monkeypatch):
    """By a server on this machine, for each kind of repository, with the address that was asked."""
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = {"id": "a/b", "sha": "c" * 40, "siblings": [{"rfilename": "config.json"}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    api = huggingface_hub.HfApi
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint=endpoint))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for kind in ("model", "dataset"):
            found = hf_hub.ask(kind, "a/b", "here", "v1")
            assert found == hf_hub.Repository("c" * 40, ("config.json",))
        assert hf_hub.answers("model", "a/b")
        server.shutdown()
    assert [path.partition("?")[0] for path in asked] == [
        "/api/models/a/b/revision/v1",
        "/api/datasets/a/b/revision/v1",
        "/api/models/a/b",
    ]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hf_hub.Unreachable, match="^offline mode .HF_HUB_OFFLINE.$"):
        hf_hub.ask("model", "a/b", "here")
    assert len(asked) == 3
