"""Documents to pretrain on, from games: records with their moves in UCI (`moves_uci`)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, listed, shown
from w2s_jax.data.documents import Document, hash_keys, stable_id
from w2s_jax.data.tasks.chess.notation import words_of_move
from w2s_jax.data.tasks.chess.position import Position
from w2s_jax.data.tasks.chess.transcripts import transcript_of
from w2s_jax.data.tasks.fields import text_of
from w2s_jax.data.tokenized import offsets_of
from w2s_jax.data.tokenizers import Tokenizer

SOURCE = "chess_games"
FIELD = "moves_uci"

# Positions tokenised at once.
_BATCH = 10_000

Records = Iterable[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Game:
    """A game.

    Attributes:
      where: names the record in errors.
      id: stable hash of its moves; equal games have distinct ids.
      moves: in UCI, separated by spaces.
    """

    where: str
    id: int
    moves: str

    @property
    def plies(self) -> int:
        """Number of moves of both sides."""
        return len(self.moves.split())


def read_games(records: Records) -> list[Game]:
    """Return the games of (where, record), in their order.

    Raises:
      InputError: a record has no moves; names it.
    """
    seen: Counter[str] = Counter()
    games = []
    for where, record in records:
        if FIELD not in record:
            raise InputError(
                f"{where}: field {FIELD!r} is missing; the record has: {listed(record)}"
            )
        moves = text_of(record, FIELD, where)
        games.append(Game(where, stable_id("chess game", moves, seen[moves]), moves))
        seen[moves] += 1
    return games


def _drawn(keys_N: np.ndarray, count: int | None) -> np.ndarray:
    """Return the indices, ascending, of the `count` smallest of different keys (None: all)."""
    if count is None or count >= len(keys_N):
        return np.arange(len(keys_N))
    return np.sort(np.argpartition(keys_N, count)[:count])


def position_documents(
    records: Records, tokenizer: Tokenizer, *, max_docs: int | None = None
) -> list[Document]:
    """Return positions of games and the moves played there, as documents of tokens.

    A document is the tokenizer's prefix, the position, the move and the end token, as in a puzzle;
    only the move and the end token have a loss. The positions after all moves but the last of each
    game, and the first one, are equally likely to be drawn.

    Args:
      records: (where, record) with the field `moves_uci`: legal games from the usual start.
      tokenizer: 'chess_board', or one that can spell positions.
      max_docs: number of positions, drawn by a hash of the game and the number of the move; None:
        all.

    Raises:
      InputError: a record has no moves, a move cannot be played, or the tokenizer has no end token.
    """
    if tokenizer.end_of_text is None:
        raise InputError(
            f"task.tokenizer: {tokenizer.name!r} has no end token, which ends a move; use "
            "'chess_board'"
        )
    games = read_games(records)
    plies_G = np.array([game.plies for game in games], np.int64)
    ids_G = np.array([game.id for game in games], np.uint64)
    first_G = offsets_of(plies_G)
    ply_N = np.arange(first_G[-1]) - np.repeat(first_G[:-1], plies_G)
    ids_N = hash_keys(np.repeat(ids_G, plies_G) + ply_N.astype(np.uint64), SOURCE)
    drawn_D = _drawn(ids_N, max_docs)
    bounds = np.searchsorted(drawn_D, first_G).tolist()
    documents: list[Document] = []
    prompts: list[str] = []
    moves: list[str] = []

    def flush() -> None:
        ids = ids_N[drawn_D[len(documents) : len(documents) + len(prompts)]].tolist()
        documents.extend(_token_documents(ids, prompts, moves, tokenizer))
        prompts.clear()
        moves.clear()

    for game, start, stop in zip(games, bounds[:-1], bounds[1:], strict=True):
        for prompt, move in _positions(game, ply_N[drawn_D[start:stop]].tolist()):
            prompts.append(prompt)
            moves.append(move)
        if len(prompts) >= _BATCH:
            flush()
    flush()
    return documents


def _positions(game: Game, plies: list[int]) -> Iterator[tuple[str, str]]:
    """Yield the position before each of some moves, ascending, and the move, in words."""
    if not plies:
        return
    position, wanted = Position(), set(plies)
    for ply, uci in enumerate(game.moves.split()[: plies[-1] + 1]):
        prompt = position.prompt() if ply in wanted else None
        try:
            position.push(uci)
        except ValueError as error:
            raise InputError(
                f"{game.where}: field {FIELD!r}: move {ply + 1}, {shown(uci)}: {error}"
            ) from error
        if prompt is not None:
            yield prompt, words_of_move(uci)


def _token_documents(
    ids: list[int], prompts: list[str], moves: list[str], tokenizer: Tokenizer
) -> Iterator[Document]:
    """Yield documents of a prompt's and a move's tokens, with loss on the latter."""
    assert tokenizer.end_of_text is not None
    prefix, end = tuple(tokenizer.prefix), (tokenizer.end_of_text,)
    prompts_T, prompt_lengths_N = tokenizer.encode_batch(prompts)
    moves_T, move_lengths_N = tokenizer.encode_batch(moves)
    prompt_ends, move_ends = (
        offsets_of(lengths_N).tolist() for lengths_N in (prompt_lengths_N, move_lengths_N)
    )
    prompt_tokens, move_tokens = prompts_T.tolist(), moves_T.tolist()
    weights: dict[tuple[int, int], tuple[float, ...]] = {}
    for i, id_ in enumerate(ids):
        prompt = prompt_tokens[prompt_ends[i] : prompt_ends[i + 1]]
        move = move_tokens[move_ends[i] : move_ends[i + 1]]
        lengths = len(prefix) + len(prompt), len(move) + 1
        # Few different tuples, shared by all documents.
        weight = weights.setdefault(lengths, (0.0,) * lengths[0] + (1.0,) * lengths[1])
        yield Document(id=id_, tokens=(*prefix, *prompt, *move, *end), loss_weights=weight)


def transcript_documents(
    records: Records, tokenizer: Tokenizer, *, max_docs: int | None = None
) -> list[Document]:
    """Return games as transcripts in SAN, as documents of text; any tokenizer will do.

    Args:
      records: (where, record) with the field `moves_uci`: legal games from the usual start.
      tokenizer: not used, as the caller tokenises text.
      max_docs: number of games, drawn by a hash of the game; None: all.

    Raises:
      InputError: a record has no moves, or a move is illegal.
    """
    del tokenizer
    games = read_games(records)
    keys_N = hash_keys(np.array([game.id for game in games], np.uint64), SOURCE)
    documents = []
    for i in _drawn(keys_N, max_docs).tolist():
        try:
            text = transcript_of(games[i].moves.split())
        except ValueError as error:
            raise InputError(f"{games[i].where}: field {FIELD!r}: {error}") from error
        documents.append(Document(id=games[i].id, text=text))
    return documents
