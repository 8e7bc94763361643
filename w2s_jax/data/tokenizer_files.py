"""Read fast tokenizers of Hugging Face, and derive their properties."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, first_line

# Tokenizers without files, by name; `tokenizers.register_tokenizer` fills it.
BUILT_IN: dict[str, Callable[[], Any]] = {}
# Values of `task.tokenizer` besides those.
OTHERS = (
    "a folder in Hugging Face's layout",
    "a tokenizer.json file",
    "the hub id of a repository with a fast tokenizer",
)
# A noncharacter, which occurs in no text, so that a token spelt with it never matches.
_UNSPELLABLE = "\U0010ffff"


def read_backend(name: str, source: str, local_only: bool) -> tuple[Any, int | None]:
    """Return the `tokenizers.Tokenizer`, and the end of text named in its files (or None)."""
    path = Path(source)
    backend: Any
    if path.is_dir() and not is_described(path) and not (path / "tokenizer.json").is_file():
        raise refused(name, "the folder has no tokenizer.json")
    try:
        if path.exists() and not (path.is_dir() and is_described(path)):
            from tokenizers import Tokenizer as Backend

            backend = Backend.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
            end_of_text = None
        else:
            auto = _auto_tokenizer().from_pretrained(
                source, trust_remote_code=False, local_files_only=local_only
            )
            backend = getattr(auto, "backend_tokenizer", None)
            known = (auto.eos_token_id, auto.sep_token_id, auto.bos_token_id)
            end_of_text = next((token for token in known if token is not None), None)
    except Exception as error:  # bad files, or no network, raise errors of many types
        hub = "in the hub's cache, and the hub is not reachable" if local_only else "on the hub"
        where = "cannot be read" if path.exists() else f"no such folder, and none {hub}"
        raise refused(name, f"{where} ({first_line(error)})") from error
    if not hasattr(backend, "encode_batch_fast"):
        raise refused(name, "it is not a fast tokenizer")
    backend.no_truncation()
    backend.no_padding()
    return backend, end_of_text


def is_described(folder: Path) -> bool:
    """Return whether a folder describes its tokenizer beyond tokenizer.json."""
    names = ("tokenizer_config.json", "config.json", "special_tokens_map.json")
    return any((folder / name).is_file() for name in names)


def _auto_tokenizer() -> Any:
    # Importing transformers without PyTorch prints an advice that does not apply here.
    variable = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    ours = variable not in os.environ
    os.environ.setdefault(variable, "1")
    try:
        from transformers import AutoTokenizer
    finally:
        if ours:
            del os.environ[variable]
    return AutoTokenizer


def refused(name: str, reason: str) -> InputError:
    """Return the error for a `task.tokenizer` that cannot be used."""
    return InputError(
        f"task.tokenizer: {name!r}: {reason}; allowed: {', '.join((*BUILT_IN, *OTHERS))}"
    )


def ends(name: str, backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens before and after a text."""
    try:
        encoding = backend.encode("0 a", add_special_tokens=True)
    except Exception as error:  # the library raises nothing narrower
        raise refused(name, f"it cannot encode a text ({first_line(error)})") from error
    text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    if not len(text):
        raise refused(name, "it gives no tokens for the text '0 a'")
    first, last = int(text[0]), int(text[-1])
    if last - first + 1 != len(text):
        raise refused(name, "it puts special tokens inside a text")
    return tuple(encoding.ids[:first]), tuple(encoding.ids[last + 1 :])


def without_specials(spec: dict[str, Any], special: set[str]) -> dict[str, Any]:
    """Return a tokenizer's JSON with the same ids in which no text can match a special token.

    Not searching for special tokens is not enough: models whose vocabulary lists them (Unigram)
    treat them as ordinary pieces. So they get spellings that occur in no text. Special tokens of a
    single character are ordinary characters too, and unchanged.
    """
    respelt = {t: f"{_UNSPELLABLE}{t}{_UNSPELLABLE}" for t in special if len(t) > 1}
    model = dict(spec["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {respelt.get(piece, piece): id_ for piece, id_ in model["vocab"].items()}
    else:
        model["vocab"] = [[respelt.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = respelt.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        continuing = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if respelt.keys().isdisjoint((left, right, left + right.removeprefix(continuing)))
        ]
    if "dropout" in model:
        model["dropout"] = None
    added = [
        token | {"content": respelt[token["content"]], "special": True}
        if token["content"] in respelt
        else token
        for token in spec["added_tokens"]
    ]
    return spec | {"model": model, "added_tokens": added, "post_processor": None}


def ids_of_texts(spec: dict[str, Any], vocab: dict[str, int], special: set[str]) -> list[int]:
    """Return the ids of tokens that `without_specials` leaves to texts, without prefix and suffix.

    Those are ordinary tokens, special ones of a single character, and that of unknown characters.
    """
    model = spec["model"]
    unknown = model.get("unk_token")
    if unknown is None and model.get("unk_id") is not None:
        unknown = model["vocab"][model["unk_id"]][0]
    unused = {token for token in special if len(token) > 1 and token != unknown}
    return [id_ for token, id_ in vocab.items() if token not in unused]


def begins_inside(spec: dict[str, Any], vocab: dict[str, int], vocab_size: int) -> np.ndarray:
    """Return whether each token begins with a byte that continues a character, bool [V]."""
    # Byte-level tokenizers (since GPT-2) write each byte as a character: itself if it is printable,
    # else the next one from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    spelt = {byte: chr(byte) for byte in printable}
    spelt |= {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    starts: tuple[str, ...] = ()
    if '"type": "ByteLevel"' in json.dumps([spec["pre_tokenizer"], spec["decoder"]]):
        starts = tuple(spelt[byte] for byte in range(0x80, 0xC0))
    elif spec["model"].get("byte_fallback"):
        starts = tuple(f"<0x{byte:02X}>" for byte in range(0x80, 0xC0))
    inside_V = np.zeros(vocab_size, bool)
    inside_V[[id_ for piece, id_ in vocab.items() if piece.startswith(starts)]] = True
    return inside_V


def single_token(encoder: Any, text: str) -> int | None:
    """Return the token of `text` if it is a single one, else None."""
    token = encoder.token_to_id(text)
    if token is None:
        ids = encoder.encode(text, add_special_tokens=False).ids
        # The token of unknown characters does not count.
        if len(ids) == 1 and encoder.decode(ids).strip() == text:
            token = ids[0]
    return token
