"""Every sentence of ours in the demo's data: one table that the pool (training) and the records (evaluation) share.

A user's turn is always a context, a blank line and a question. The answer of a look-up begins with the words that stand
right before the value in the context, so that a model that can only copy what followed the same words can answer.
"""

from __future__ import annotations

#: The user's turn, in LongBench's own templating.
PROMPT = "{context}\n\n{input}"

#: Kind of task -> ways to ask for it; `{name}` is what is asked about.
QUESTIONS = {
    "next_line": (
        "What is the next line of this code?",
        "Write the line that comes next.",
        "Continue this code by one line.",
    ),
    "docstring": (
        "Write the first line of its docstring.",
        "What does the docstring say first?",
        "Describe it in one line.",
    ),
    "signature": (
        "Write the line that defines it.",
        "Which signature has this docstring?",
        "Give the signature that fits.",
    ),
    "constant": (
        "What is the value of {name}?",
        "Which value does {name} have?",
        "Look up the value of {name}.",
    ),
    "definition": (
        "Which paragraph defines {name}?",
        "In which paragraph is {name} defined?",
        "Find the paragraph that defines {name}.",
    ),
    "passkey": (
        "What is the pass key for {name}?",
        "Which pass key belongs to {name}?",
        "Tell me the pass key for {name}.",
    ),
    "copy": (
        "Repeat the marked passage.",
        "Copy the passage between the marks.",
        "Write out what is marked.",
    ),
}

CONSTANT = "{name} = {value}"
PASSKEY = "The pass key for {name} is {key}."
LABEL = "Paragraph {number}"
MARKS = ("<<<", ">>>")

#: Answers that say nothing, as pools of real data hold them.
HOLLOW = ("...", "TODO", "See above.", "None", "No docstring.", "Fix me.")

# The names of pass keys: an adjective and a noun. The two sides share no word.
_TRAINING_WORDS = (
    "amber brisk coral dusty early faint gentle hollow icy jolly keen lively misty narrow olive plain quiet rapid",
    "anchor basin canyon desert ember forest garden harbor island jungle kettle lantern meadow orchard pebble quarry",
)
_HELD_OUT_WORDS = (
    "azure bright crimson distant eager frosty golden humble ivory mellow noble proud rusty shady velvet wild",
    "arrow bridge castle drum engine falcon glacier hammer insect jacket kingdom ladder mirror needle palace rocket",
)


def questions(kind: str, *, name: str = "") -> list[str]:
    """All wordings of a kind's question about a name."""
    return [wording.format(name=name) for wording in QUESTIONS[kind]]


def user_turn(context: str, question: str) -> str:
    """What the user says: the context, then the question."""
    return PROMPT.format(context=context, input=question)


def passkey_names(*, held_out: bool) -> list[str]:
    """All names of pass keys of one side, such as `amber-river`."""
    adjectives, nouns = (words.split() for words in (_HELD_OUT_WORDS if held_out else _TRAINING_WORDS))
    return [f"{adjective}-{noun}" for adjective in adjectives for noun in nouns]
