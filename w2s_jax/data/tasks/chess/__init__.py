"""Chess: which move solves a puzzle? As positions (`chess_puzzles`) or transcripts (`chess_pgn`).

The rules come from the package `chess`, an optional extra that is imported when a document is made
or scored.
"""

from w2s_jax.data.task import Origin, Task
from w2s_jax.data.tasks.chess import games, notation, puzzles, transcripts
from w2s_jax.data.tokenizers import register_tokenizer

register_tokenizer(notation.TOKENIZER, notation.board_tokenizer)

TASKS: tuple[Task, ...] = (
    Task(
        name="chess_puzzles",
        description="Puzzles of Lichess as positions of 64 squares: the move that solves it.",
        licence="CC0 1.0 (Lichess open database)",
        fields=puzzles.FIELDS,
        expand=puzzles.expand_puzzle,
        kind="generation",
        folder="lichess_puzzles",
        hub=Origin("Lichess/chess-puzzles"),
        answer=notation.move_in,
        correct=puzzles.is_correct,
        scores=puzzles.SCORES,
        tokenizer=notation.TOKENIZER,
        pretraining={games.SOURCE: games.position_documents},
    ),
    Task(
        name="chess_pgn",
        description="Puzzles of Lichess as transcripts of the games: the move that solves it.",
        licence="CC0 1.0 (Lichess open database)",
        fields=transcripts.FIELDS,
        optional_fields=("id",),
        expand=transcripts.expand_transcript,
        kind="generation",
        hub=Origin("EleutherAI/lichess-puzzles"),
        answer=transcripts.san_in,
        correct=transcripts.is_correct,
        scores=transcripts.SCORES,
        pretraining={games.SOURCE: games.transcript_documents},
    ),
)
