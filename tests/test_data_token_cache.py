"""The cache of tokens on disk: keyed by content, never trusted, never in the way."""

import logging
import os

import numpy as np
import pytest

from w2s_jax.core.files import cache_folder
from w2s_jax.data import token_cache
from w2s_jax.data.token_cache import encode_cached
from w2s_jax.data.tokenizers import ByteTokenizer


def split(tokens_T, lengths_N):
    """The tokens of each text, as lists."""
    return [part.tolist() for part in np.split(tokens_T, np.cumsum(lengths_N)[:-1])]


class Spy:
    """Count the calls; the tokens of a text are its length and 300."""

    name, vocab_size, prefix, suffix, end_of_text, label_tokens = "spy", 301, (), (), None, (0, 1)

    def __init__(self, digest="spy"):
        self.digest, self.calls = digest, 0

    def encode_batch(self, texts):
        self.calls += 1
        tokens = [[len(text), 300][: len(text)] for text in texts]
        lengths = np.array([len(t) for t in tokens], np.int64)
        return np.array([t for ts in tokens for t in ts], np.int32), lengths

    def cut(self, tokens_L, end):
        return end


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and nothing known of earlier trouble."""
    monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "_UNWRITABLE", set())
    token_cache._warn_once.cache_clear()
    return tmp_path / "cache" / "tokens"


def test_the_cache_is_keyed_by_content(cache):
    spy, texts = Spy(), ["ab", "c", "", "\ud800 d"]
    expected = split(*spy.encode_batch(texts))
    spy.calls = 0
    for _ in range(3):
        assert split(*encode_cached(spy, texts)) == expected
    assert spy.calls == 1
    assert split(*encode_cached(Spy(), list(texts))) == expected  # another object, the same digest
    others = [["ab", "c", ""], ["c", "ab", "", "\ud800 d"], ["a", "bc", "", "\ud800 d"], ["abc"]]
    others += [["ab", "c", "\ud800 d", ""], []]
    for calls, other in enumerate(others, 2):
        encode_cached(spy, other)
        assert spy.calls == calls
    changed = Spy("other")
    encode_cached(changed, texts)
    assert changed.calls == 1 and len(list(cache.iterdir())) == 8
    with np.load(min(cache.glob("*.npz")), allow_pickle=False) as arrays:
        assert arrays["tokens_T"].dtype in (np.uint8, np.uint16)
    encode_cached(ByteTokenizer(), ["not worth it"])
    assert len(list(cache.iterdir())) == 8


def test_damaged_files_are_made_again(cache, caplog):
    spy, texts = Spy(), ["ab", "c", "dddd"]
    expected = split(*encode_cached(spy, texts))
    (path,) = cache.iterdir()
    good = path.read_bytes()
    np.savez(cache / "objects", tokens_T=np.array([{}], object))
    objects = (cache / "objects.npz").read_bytes()
    damaged = [b"", good[:-30], good[: len(good) // 2], b"junk" * 99, objects]
    for data in damaged:
        path.write_bytes(data)
        spy.calls = 0
        token_cache._warn_once.cache_clear()
        caplog.clear()
        for _ in range(2):
            assert split(*encode_cached(spy, texts)) == expected
        assert spy.calls == 1
        assert [(r.levelno, str(path) in r.message) for r in caplog.records] == [
            (logging.WARNING, True)
        ]
    caplog.clear()
    remade = 0
    flipped = range(0, len(good), 3)
    for i in flipped:
        path.write_bytes(good[:i] + bytes([good[i] ^ 0x41]) + good[i + 1 :])
        spy.calls = 0
        assert split(*encode_cached(spy, texts)) == expected
        remade += spy.calls
    # Some bytes (dates, padding) say nothing; none of the others is trusted when it has changed.
    assert remade > len(flipped) / 2


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, cache, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path / "file"))
    spy = Spy()
    for texts in (["a"], ["a"], ["b"]):
        assert split(*encode_cached(spy, texts)) == [[1]]
    assert spy.calls == 3 and len(caplog.records) == 1
    assert "W2S_CACHE_DIR" in caplog.text and str(tmp_path / "file") in caplog.text
    monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path / "full"))

    tries = []

    def full(*_, **__):
        tries.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    for texts in (["a"], ["b"]):
        assert split(*encode_cached(spy, texts)) == [[1]]
    assert list((tmp_path / "full" / "tokens").iterdir()) == [] and len(tries) == 1


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("W2S_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    spy = Spy()
    for variables, expected in (
        ({}, "home/.cache/w2s_jax/tokens"),
        ({"XDG_CACHE_HOME": "relative"}, "home/.cache/w2s_jax/tokens"),
        ({"XDG_CACHE_HOME": str(tmp_path / "xdg")}, "xdg/w2s_jax/tokens"),
        ({"W2S_CACHE_DIR": str(tmp_path / "own")}, "own/tokens"),
        ({"W2S_CACHE_DIR": "~/own"}, "home/own/tokens"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        encode_cached(spy, [f"text {variables}"])
        assert cache_folder("tokens") == tmp_path / expected
        assert any((tmp_path / expected).iterdir())
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("W2S_CACHE_DIR", "")
    for calls in (1, 2):
        off = Spy()
        encode_cached(off, ["text"])
        assert off.calls == 1 and calls
    assert sorted(tmp_path.rglob("*")) == before


def test_the_cache_is_bounded_and_forgets_the_least_lately_used(cache, monkeypatch):
    spy = Spy()
    paths = []
    for i in range(4):
        encode_cached(spy, [f"text {i}"])
        paths.append(cache / f"{token_cache._key(spy, [f'text {i}'])}.npz")
        os.utime(paths[-1], (1000 + i, 1000 + i))
    left = cache / ".left.tmp"
    left.write_text("of a killed process")
    os.utime(left, (1000, 1000))
    encode_cached(spy, ["text 0"])  # a hit: now the latest
    size = paths[0].stat().st_size
    monkeypatch.setattr(token_cache, "CACHE_BYTES", 3 * size + size // 2)
    encode_cached(spy, ["text 4"])
    new = cache / f"{token_cache._key(spy, ['text 4'])}.npz"
    assert sorted(cache.iterdir()) == sorted([paths[0], paths[3], new])
    monkeypatch.setattr(token_cache, "CACHE_BYTES", 0)
    encode_cached(spy, ["text 5"])
    assert len(list(cache.iterdir())) == 1 and spy.calls == 6
