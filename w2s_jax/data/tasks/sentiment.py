"""Is a review or message favourable? Label 1: yes."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import empty_text, expand_text_and_label, index_of, text_of
from w2s_jax.data.tasks.wordings import OPINIONS


def expand_sst2(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The sentence."""
    return [Candidate(text_of(record, "sentence", where), record["label"])]


def expand_imdb(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The review, with HTML line breaks as line breaks."""
    text = text_of(record, "text", where).replace("<br />", "\n").strip()
    if not text:
        raise empty_text(record, "text", where)
    return [Candidate(text, record["label"])]


def expand_amazon(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Title and content on separate lines; one of them may be empty."""
    parts = [text_of(record, name, where, may_be_empty=True) for name in ("title", "content")]
    if not any(parts):
        raise empty_text(record, "content", where)
    return [Candidate("\n".join(part for part in parts if part), record["label"])]


def expand_twitter(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The message, if it is positive (2) or negative (0); neutral ones (1) are skipped."""
    label = index_of(record, "label", where, 3)
    if label == 1:
        return []
    return [Candidate(text_of(record, "text", where), 1 if label == 2 else label)]


# Both catalogues of IMDB have a third split, without labels.
IMDB_SPLITS = {"train": "train", "test": "test"}

TASKS: tuple[Task, ...] = (
    Task(
        name="sst2",
        description="Sentences and phrases of film reviews (Stanford Sentiment Treebank, GLUE).",
        licence="not stated",
        fields=("sentence", "label"),
        classes=("negative", "positive"),
        expand=expand_sst2,
        hub=Origin("stanfordnlp/sst2"),
        tfds=Origin("glue/sst2"),
        templates=OPINIONS,
    ),
    Task(
        name="amazon_polarity",
        description="Amazon reviews of all kinds of products; three stars are left out.",
        licence="Apache-2.0 as stated on the hub; Amazon's terms may apply",
        fields=("title", "content", "label"),
        classes=("negative", "positive"),
        expand=expand_amazon,
        hub=Origin("fancyzhx/amazon_polarity"),
        templates=OPINIONS,
    ),
    Task(
        name="amazon_blitzer",
        description="Amazon reviews of books, DVDs, electronics and kitchenware (Blitzer et al.); "
        "local files only, as neither catalogue has them in this form.",
        licence="not stated",
        fields=("title", "content", "label"),
        classes=("negative", "positive"),
        expand=expand_amazon,
        templates=OPINIONS,
    ),
    Task(
        name="imdb",
        description="Long film reviews (Maas et al.).",
        licence="not stated; released for research",
        fields=("text", "label"),
        classes=("negative", "positive"),
        expand=expand_imdb,
        hub=Origin("stanfordnlp/imdb", splits=IMDB_SPLITS),
        tfds=Origin("imdb_reviews", splits=IMDB_SPLITS),
        templates=OPINIONS,
    ),
    Task(
        name="rotten_tomatoes",
        description="Sentences of film reviews (Pang and Lee); SST-2 has the same: do not mix.",
        licence="CC BY 4.0 as distributed with NLTK",
        fields=("text", "label"),
        classes=("negative", "positive"),
        expand=expand_text_and_label,
        hub=Origin("cornell-movie-review-data/rotten_tomatoes"),
        templates=OPINIONS,
    ),
    Task(
        name="twitter_sentiment",
        # Files with labels 0 and 1 only would lose label 1 as neutral; they do not pass unnoticed,
        # because training data of one class are an error.
        description="Messages on Twitter (TweetEval: 0 negative, 2 positive; 1, neutral, is left "
        "out).",
        licence="not stated; Twitter's terms may apply",
        fields=("text", "label"),
        classes=("negative", "positive"),
        expand=expand_twitter,
        hub=Origin("cardiffnlp/tweet_eval", config="sentiment"),
        templates=OPINIONS,
    ),
)
