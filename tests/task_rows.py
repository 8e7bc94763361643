"""One row per task: a record in the hub's form, and its documents."""

from dataclasses import dataclass, field
from typing import Any

RIGHT = "Is the proposed answer right?"


@dataclass
class Row:
    """A record and its documents.

    Attributes:
      record: as on the hub.
      expected: what the text of each candidate contains (of a pair: both texts), and its label.
      ends: how every text ends.
      group: of all candidates.
      tfds: the same record in TFDS's form, where it differs.
      skipped: changes with which the task skips it.
      unlabelled: changes that take its label away, so that all candidates have -1.
      bad: changes and the one line that they lead to.
    """

    record: dict[str, Any]
    expected: list[tuple[Any, int]]
    ends: str = ""
    group: str | None = None
    tfds: dict[str, Any] | None = None
    skipped: list[dict[str, Any]] = field(default_factory=list)
    unlabelled: list[dict[str, Any]] = field(default_factory=list)
    bad: list[tuple[dict[str, Any], str]] = field(default_factory=list)


LABEL = [({"label": 7}, "field 'label': 7; allowed: 0 or 1")]
EMPTY = "empty document"


def choices(*texts, letters="ABCD"):
    return {"text": list(texts), "label": list(letters[: len(texts)])}


def ethics(scenario, text, group, **extra):
    record = {"label": 1, "scenario": scenario, **extra}
    return Row(record, [(text, 1)], group=group, unlabelled=[{"label": -1}], bad=LABEL)


HH = Row(
    {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tea?\n\nAssistant: Gladly.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tea?\n\nAssistant: Go away.",
    },
    [(("Go away.", "Gladly."), 1), (("Gladly.", "Go away."), 0)],
    group="Human: Hi",
    skipped=[{"rejected": "Human: Hi\n\nAssistant: Hello.\n\nHuman: Tea?\n\nAssistant: Gladly."}],
    bad=[({"chosen": None}, "field 'chosen': empty document: None"), ({"rejected": " "}, EMPTY)],
)

ROWS = {
    "sst2": Row(
        {"idx": 0, "sentence": "fine film ", "label": 1},
        [("fine film", 1)],
        unlabelled=[{"label": -1}],
        bad=LABEL,
    ),
    "imdb": Row({"text": "One.<br />Two.", "label": 0}, [("One.\nTwo.", 0)], bad=LABEL),
    "rotten_tomatoes": Row({"text": "so so", "label": 0}, [("so so", 0)], bad=LABEL),
    "amazon_polarity": Row(
        {"label": 1, "title": "Good", "content": "Bought it."},
        [("Good\nBought it.", 1)],
        bad=[*LABEL, ({"title": "", "content": " "}, EMPTY)],
    ),
    "amazon_blitzer": Row(
        {"label": 0, "title": "Bad", "content": "Sold it.", "domain": "books"},
        [("Bad\nSold it.", 0)],
        bad=LABEL,
    ),
    "twitter_sentiment": Row(
        {"text": "nice day", "label": 2},
        [("nice day", 1)],
        skipped=[{"label": 1}, {"label": "1"}],
        unlabelled=[{"label": -1}],
        bad=[
            ({"label": 3}, "field 'label': unknown value 3"),
            ({"label": True}, "field 'label': unknown value True"),
        ],
    ),
    "cola": Row(
        {"sentence": "Dogs bark.", "label": 1, "idx": 3},
        [("Dogs bark.", 1)],
        "?",
        unlabelled=[{"label": -1}],
        bad=LABEL,
    ),
    "anli_r2": Row(
        {"uid": "u", "premise": "It rains.", "hypothesis": "It is dry.", "label": 2, "reason": ""},
        [(("It rains.", "It is dry."), 0)],
        "?",
        "It rains.",
        tfds={"uid": "u", "context": "It rains.", "hypothesis": "It is dry.", "label": 2},
        unlabelled=[{"label": -1}],
        bad=[({"label": 3}, "field 'label': unknown value 3"), ({"premise": ""}, EMPTY)],
    ),
    "paws": Row(
        {"id": 1, "sentence1": "B beats A .", "sentence2": "A beats B .", "label": 0},
        [(("B beats A .", "A beats B ."), 0)],
        "?",
        ". a b beats",
        tfds={"sentence1": "B beats A .", "sentence2": "A beats B .", "label": 0},
        bad=LABEL,
    ),
    "wic": Row(
        {
            "word": "Bank",
            "sentence1": "A bank lends.",
            "sentence2": "The bank floods.",
            "start1": 2,
            "start2": 4,
            "end1": 6,
            "end2": 8,
            "idx": 0,
            "label": 0,
        },
        [(("A bank lends.", "The bank floods.", '"Bank"'), 0)],
        "?",
        "bank",
        unlabelled=[{"label": -1}],
        bad=LABEL,
    ),
    "sciq": Row(
        {
            "question": "What burns?",
            "correct_answer": "wood",
            "distractor1": "Wood",
            "distractor2": "ash",
            "distractor3": "sand",
            "support": "Wood is fuel.",
        },
        [(("What burns?", "wood"), 1), (("What burns?", "ash"), 0), (("What burns?", "sand"), 0)],
        RIGHT,
        "What burns?",
        bad=[({"correct_answer": 3}, "field 'correct_answer': not text: 3")],
    ),
    "openbookqa": Row(
        {
            "id": "7-980",
            "question_stem": "The sun gives",
            "choices": choices("light", "rain", "LIGHT", ""),
            "answerKey": "A",
        },
        [(("The sun gives", ": light"), 1), (("The sun gives", ": rain"), 0)],
        RIGHT,
        "The sun gives",
        tfds={
            "question": {
                "stem": "The sun gives",
                "choice_A": "light",
                "choice_B": "rain",
                "choice_C": "LIGHT",
                "choice_D": "",
            },
            "fact1": "",
            "humanScore": 1.0,
            "clarity": 2.0,
            "turkIdAnonymized": "b",
            "answerKey": 0,
        },
        skipped=[{"choices": choices("light", "Light")}, {"answerKey": "D"}],
        unlabelled=[{"answerKey": ""}],
        bad=[
            ({"answerKey": "E"}, "field 'answerKey': unknown value 'E'; allowed: A, B, C, D"),
            ({"choices": ["light"]}, "field 'choices': not a record with text, label"),
            ({"choices": {"text": "light", "label": ["A"]}}, "field 'text': not a list of texts"),
            ({"choices": choices("light") | {"label": ["A", "B"]}}, "1 texts, but 2 labels"),
        ],
    ),
    "piqa": Row(
        {"goal": "Dry wood", "sol1": "bake it", "sol2": "soak it", "label": 1},
        [(("Dry wood", "soak it"), 1), (("Dry wood", "bake it"), 0)],
        "?",
        "Dry wood",
        tfds={"id": "", "goal": "Dry wood", "sol1": "bake it", "sol2": "soak it", "label": 1},
        skipped=[{"sol1": "Soak it "}, {"sol1": ""}],
        unlabelled=[{"label": -1}],
        bad=[({"label": 2}, "field 'label': unknown value 2; allowed: 0, 1, -1")],
    ),
    "hellaswag": Row(
        {
            "ind": 4,
            "activity_label": "Roofing",
            "ctx_a": "A man climbs.",
            "ctx_b": "he",
            "ctx": "A man climbs. he",
            "endings": ["falls.", "sings.", "flies.", "sings."],
            "source_id": "video~1",
            "split": "train",
            "split_type": "indomain",
            "label": "0",
        },
        [((" he\n", "falls."), 1), ((" he\n", "sings."), 0), ((" he\n", "flies."), 0)],
        "?",
        "video~1",
        tfds={
            "context": "A man climbs. he",
            "endings": ["falls.", "sings.", "flies.", "sings."],
            "activity_label": "Roofing",
            "label": 0,
            "split_type": "indomain",
            "source_id": "video~1",
        },
        unlabelled=[{"label": ""}, {"label": None}],
        bad=[
            ({"label": "4"}, "field 'label': unknown value '4'"),
            ({"endings": "falls."}, "field 'endings': not a list of texts: 'falls.'"),
            ({"endings": ["a", 2]}, "field 'endings': not a list of texts"),
        ],
    ),
    "boolq": Row(
        {"question": "is ice cold", "passage": "Ice is cold.", "answer": True},
        [(("Ice is cold.\n", "is ice cold?"), 1)],
        "?",
        "Ice is cold.",
        tfds={"question": "is ice cold", "title": "Ice", "passage": "Ice is cold.", "answer": True},
        unlabelled=[{"answer": -1}],
        bad=[
            ({"answer": "maybe"}, "field 'answer': unknown value 'maybe'"),
            ({"answer": 2}, "field 'answer': unknown value 2"),
        ],
    ),
    "cosmos_qa": Row(
        {
            "id": "3Q9",
            "context": "I ran home.",
            "question": "Why did I run ?",
            "answer0": "None of the above choices .",
            "answer1": "It rained .",
            "answer2": "I was full .",
            "answer3": "I was asleep .",
            "label": 1,
        },
        [("It rained .", 1), ("I was full .", 0), ("I was asleep .", 0)],
        RIGHT,
        "I ran home.",
        unlabelled=[{"label": -1}],
        bad=[({"label": 4}, "field 'label': unknown value 4; allowed: 0, 1, 2, 3, -1")],
    ),
    "dream": Row(
        {
            "id": 0,
            "dialogue_id": "4-199",
            "dialogue": ["W: Tea?", "M: No."],
            "question": "What does he want?",
            "choice": ["Tea.", "No tea.", "Milk."],
            "answer": "No tea.",
        },
        [("Answer: No tea.", 1), ("answer: Tea.", 0), ("answer: Milk.", 0)],
        RIGHT,
        "W: Tea?\nM: No.",
        unlabelled=[{"answer": ""}],
        bad=[
            ({"answer": "No tea"}, "field 'answer': 'No tea' is not one.*mean 'No tea.'"),
            ({"dialogue": "W: Tea?"}, "field 'dialogue': not a list of texts"),
            ({"answer": 1}, "field 'answer': not text: 1"),
        ],
    ),
    "quail": Row(
        {
            "id": "f001_0",
            "context_id": "f001",
            "question_id": "0",
            "domain": "fiction",
            "metadata": {"author": "", "title": "", "url": ""},
            "context": "Ann left.",
            "question": "Who left?",
            "question_type": "Factual",
            "answers": ["not enough information", "Bob", "Ann", "Cy"],
            "correct_answer_id": 2,
        },
        [("Ann", 1), ("not enough", 0), ("Bob", 0), ("Cy", 0)],
        RIGHT,
        "Ann left.",
        bad=[({"correct_answer_id": 4}, "field 'correct_answer_id': unknown value 4")],
    ),
    "quartz": Row(
        {
            "id": "Q1",
            "question": "More heat makes ice melt",
            "choices": choices("slower", "faster"),
            "answerKey": "B",
            "para": "Heat melts ice.",
            "para_id": "P1",
            "para_anno": {},
            "question_anno": {},
        },
        [("faster", 1), ("slower", 0)],
        RIGHT,
        "Heat melts ice.",
        bad=[({"answerKey": "C"}, "field 'answerKey': unknown value 'C'; allowed: A, B, -1")],
    ),
    "social_i_qa": Row(
        {
            "context": "Al gave Bo tea.",
            "question": "How does Bo feel?",
            "answerA": "angry",
            "answerB": "tired",
            "answerC": "glad",
            "label": "3",
        },
        [("glad", 1), ("angry", 0), ("tired", 0)],
        RIGHT,
        "Al gave Bo tea.",
        unlabelled=[{"label": ""}],
        bad=[
            ({"label": "0"}, "field 'label': unknown value '0'; allowed: 1, 2, 3, -1"),
            ({"question": ""}, EMPTY),
        ],
    ),
    "multirc": Row(
        {
            "paragraph": "Ann and Bob left.",
            "question": "Who left?",
            "answer": "Bob",
            "idx": {"paragraph": 0, "question": 0, "answer": 1},
            "label": 1,
        },
        [(("Ann and Bob left.\n", "Who left?", ": Bob"), 1)],
        RIGHT,
        "Ann and Bob left.",
        unlabelled=[{"label": -1}],
        bad=LABEL,
    ),
    "mc_taco": Row(
        {
            "sentence": "He slept.",
            "question": "For how long?",
            "answer": "1 second",
            "label": 0,
            "category": 1,
        },
        [(("He slept.\n", "For how long?", "1 second"), 0)],
        RIGHT,
        "He slept.\nFor how long?",
        bad=[({"label": "yes"}, "field 'label': 'yes'; allowed: 0 or 1")],
    ),
    "ethics_deontology": ethics(
        "Could you cook?",
        ("Could you cook?", "But I am six."),
        "Could you cook?",
        excuse="But I am six.",
    ),
    "ethics_justice": ethics(
        "I used to run, but I stopped, because I fell.",
        "because I fell.",
        "i used to run, but i stopped",
    ),
    "ethics_virtue": ethics(
        "Ann shared her tea. [SEP] generous",
        ("Ann shared her tea.\n", "generous"),
        "Ann shared her tea.",
    ),
    "ethics_utilitarianism": Row(
        {"baseline": "I had tea. It was hot.", "less_pleasant": "I had tea. It was cold!"},
        [("First: I had tea. It was hot.\n", 1), ("First: I had tea. It was cold!\n", 0)],
        "?",
        "i had tea",
        skipped=[{"less_pleasant": "I had tea. it was hot. "}],
        bad=[({"baseline": ""}, EMPTY), ({"less_pleasant": 0}, "field 'less_pleasant': not text")],
    ),
    "gsm8k": Row(
        {"question": "Two and two?", "answer": "So 2 + 2 = <<2+2=4>>4 apples.\n#### 4"},
        [("Two and two?", None)],
        "?",
        tfds={
            "question": " Two and two?",
            "answer": "So 2 + 2 = <<2+2=4>>4 apples.\n#### 4",
            "annotation": "",
            "short_answer": "4",
        },
        bad=[
            ({"answer": "So 4."}, "field 'answer': must end with #### and a number"),
            ({"answer": "#### four"}, "field 'answer': must end with #### and a number"),
        ],
    ),
    "gsm8k_verification": Row(
        {"question": "Two and two?", "answer": "So 2 + 2 = <<2+2=4>>4 apples.\n#### 4"},
        [(("So 2 + 2 = 4 apples.\n", ": 4\n"), 1), ("So 2 + 2 = ", 0)],
        "?",
        "Two and two?",
        tfds={
            "question": "Two and two?",
            "answer": "So 2 + 2 = <<2+2=4>>4 apples.\n#### 4",
            "annotation": "",
            "short_answer": "4",
        },
        bad=[
            ({"answer": "So 4."}, "field 'answer': must end with #### and a number"),
            ({"answer": "So 4.\n#### four"}, "field 'answer': must end with #### and a number"),
            ({"answer": "So 4.\n#### 1.2.3"}, "field 'answer': must end with #### and a number"),
        ],
    ),
    "hh_rlhf_helpful": HH,
    "hh_rlhf_harmless": HH,
    "anthropic_hh": Row(
        HH.record,
        [("Gladly.", 1), ("Go away.", 0)],
        group="Human: Hi",
        skipped=HH.skipped,
        bad=HH.bad,
    ),
    "summarize_from_feedback": Row(
        {
            "info": {
                "id": "t3_1",
                "post": "I lost my hat.",
                "title": "Hat",
                "subreddit": "r",
                "site": None,
                "article": None,
            },
            "summaries": [
                {"text": " Hat gone.", "policy": "a", "note": None},
                {"text": "Cats.", "policy": "b", "note": None},
            ],
            "choice": 0,
            "worker": "w",
            "batch": "batch3",
            "split": "train",
            "extra": {},
        },
        [
            (("Hat\n\nI lost my hat.\n\nSummary: Cats.", "my hat.\n\nSummary: Hat gone."), 1),
            (("Hat\n\nI lost my hat.\n\nSummary: Hat gone.", "my hat.\n\nSummary: Cats."), 0),
        ],
        group="I lost my hat.",
        skipped=[{"summaries": [{"text": "Same."}, {"text": "Same. "}]}],
        unlabelled=[{"choice": -1}],
        bad=[
            ({"choice": 2}, "field 'choice': unknown value 2; allowed: 0, 1, -1"),
            ({"summaries": [{"text": "One."}]}, "field 'summaries': not a list of two"),
            ({"summaries": [{"text": "One."}, "Two."]}, "field 'summaries': not a record with"),
            ({"info": {"id": "t3_1"}}, "field 'info': not a record with post"),
            ({"info": {"post": None, "article": ""}}, "field 'article': empty"),
        ],
    ),
}
ROWS["sciq_with_support"] = Row(
    ROWS["sciq"].record,
    [(("Wood is fuel.\n", *texts), label) for texts, label in ROWS["sciq"].expected],
    RIGHT,
    "What burns?",
    bad=[({"support": 1}, "field 'support': not text: 1")],
)
