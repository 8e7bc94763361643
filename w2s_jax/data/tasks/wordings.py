"""The templates of the built-in tasks, in our own words."""

from w2s_jax.data.templates import Template

NO_YES = ("no", "yes")

#: Of documents that end in a question to be answered with yes or no.
QUESTIONS = {
    "answer": Template("{text}\nAnswer:", NO_YES),
    "instruction": Template(
        'Answer the question at the end with "yes" or "no".\n\n{text}\nThe answer is', NO_YES
    ),
}

#: Of reviews and messages.
OPINIONS = {
    "opinion": Template("{text}\nIs the writer's opinion favourable?\nAnswer:", NO_YES),
    "tone": Template("{text}\nOverall, the tone is", ("negative", "positive")),
}

#: Of a single conversation.
REPLIES = {
    "reply": Template("{text}\n\nIs the last reply a good one?\nAnswer:", NO_YES),
    "quality": Template("{text}\n\nThe quality of the last reply is", ("bad", "good")),
}


def comparisons(one: str, question: str, claim: str) -> dict[str, Template]:
    """Return templates of pairs.

    Args:
      one: what each of the two texts is.
      question: which asks for one of them.
      claim: the beginning of a sentence that ends in 'first' or 'second'.
    """
    return {
        "letters": Template(
            f"{one} A:\n{{text_a}}\n\n{one} B:\n{{text_b}}\n\n{question}\nAnswer:", ("A", "B")
        ),
        "ordinals": Template(
            f"First {one.lower()}:\n{{text_a}}\n\nSecond {one.lower()}:\n{{text_b}}\n\n{claim}",
            ("first", "second"),
        ),
    }
