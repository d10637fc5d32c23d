"""L-Eval's metrics, to the letter: `exam` for closed-ended tasks, `f1` and `rouge` for open-ended ones.

Source: L-Eval (arXiv 2307.11088), OpenLMLab/LEval, `Evaluation/auto_eval.py`, `em.py`. Kept quirks: multiple choice
takes the first of the letters A-D, wherever it stands ("Answer: C" is A), and A where there is none; a proper subset of
the right letters scores .25, and so does an answer of nothing but articles and punctuation; numbers are cut at their
point ("$1,200.50" is 1200); code loses every ".0", so 1.05 is 15; texts are rated by containment.
"""

from __future__ import annotations

import re

from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer

from longloom.evals.lcs import lcs_length
from longloom.evals.matching import ARTICLES, WITHOUT_PUNCTUATION, bag_f1, normalize_answer
from longloom.evals.suite import Parts

#: Multiple choice; the names that the official script looks for.
WITH_OPTIONS = ("coursera", "quality", "tpo")
LETTERS = "ABCD"
RANKS = ("first", "second", "third")
FILLERS = ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed")


def rate(metric: str, task: str, prediction: str, answer: str, *, position: int) -> Parts:
    """Rates an answer by one of the official metrics.

    Args:
        metric: exam, f1 or rouge.
        task, prediction, answer, position: as for `exam`.
    """
    if metric == "exam":
        return exam(task, prediction, answer, position=position)
    return {"score": f1(prediction, answer) if metric == "f1" else rouge_l(prediction, answer)}


def exam(task: str, prediction: str, answer: str, *, position: int) -> Parts:
    """Rates an answer to a closed-ended question.

    Args:
        task: its official name decides how both texts are cleaned.
        prediction: the model's text.
        answer: the official answer.
        position: the question's place in the file, from 0: topic retrieval is averaged by first, second, third topic.

    Returns:
        The parts that the task's score averages.
    """
    if task in WITH_OPTIONS:
        return {"score": exact_match(chosen_letters(task, prediction), right_letters(answer))}
    if task == "gsm100":
        return {"score": exact_match(final_number(prediction), final_number(answer))}
    if task == "codeU":
        return {"score": exact_match(_code_output(prediction, words=len(answer.split())), clean_code(answer))}
    if task == "topic_retrieval_longchat":
        return {RANKS[position % 3]: exact_match(prediction, answer)}
    assert task == "sci_fi", task
    parts = {}
    for name, said, right in zip(("loyalty", "fact"), verdicts(prediction), official_verdicts(answer), strict=True):
        parts[name] = exact_match(said, right)
    return parts


def check_answer(task: str, answer: str, where: str) -> None:
    """Raises ValueError for an official answer to a closed-ended question that nothing can be compared with.

    Args:
        task, answer: as for `exam`.
        where: file, line and field, for the error.
    """
    if not answer.strip():
        raise ValueError(f"{where} is {answer!r}, expected an answer that is not blank")
    if task == "sci_fi":
        official_verdicts(answer, where)


def exact_match(prediction: str, answer: str) -> float:
    """1, .25 or 0: letters by their set, numbers as floats, other texts by containment.

    Containment looks at the prediction's first line of more than one character, without spaces, in lower case.
    """
    right, said = _squeeze(answer), _squeeze(prediction)
    if set(right) <= set(LETTERS):
        return 1.0 if said == right else 0.25 if set(said) <= set(right) else 0.0
    try:
        return float(float(prediction) == float(answer))
    except ValueError:
        line = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
        return float(answer.lower().replace(" ", "") in line.lower().replace(" ", ""))


def chosen_letters(task: str, response: str) -> str:
    """The options that an answer chooses: one letter, or for coursera several in order; "None" for an empty answer."""
    if not response.strip():
        return "None"
    if response in LETTERS:
        return response
    if task != "coursera":
        letter = next((char for char in response if char in LETTERS), None)
        if letter is not None:
            return letter
    rest = response.lstrip(LETTERS)
    leading = response[: len(response) - len(rest)]
    if len(leading) > 1:
        return _in_order(leading)
    rest = rest.split("Question")[0]
    letters = _in_order(leading + "".join(re.findall(r"[A-Z](?=[\s.)])", rest)))
    if not letters:
        run = re.search(rf"[{LETTERS}]+", rest)
        letters = run[0] if run else "A"
    return letters


def right_letters(answer: str) -> str:
    """The letters in the first word of an official answer; A where there is none."""
    return "".join(char for char in answer.split()[0] if char in LETTERS) or "A"


def final_number(text: str) -> str:
    """The digits of the number after "The answer is", or of the last word of the first paragraph that has a digit.

    Digits are read up to a point; everything else in the word is left out.
    """
    told = re.search(r"The answer is (\S+)", text)
    if told:
        word = told[1]
    else:
        words = text.split("\n\n")[0].split(" ")
        word = next((word for word in reversed(words) if any(map(str.isdigit, word))), "")
    return "".join(char for char in word.split(".")[0] if char.isdigit())


def clean_code(text: str) -> str:
    """A program's output without what is written in several ways: white space, quotes, commas, ".0"."""
    text = re.sub(r"\s+", " ", text)
    for old, new in ((",", ""), ("'", ""), ("\\", ""), (".0", ""), ("] [", "]["), ("[ [", "[["), ("] ]", "]]")):
        text = text.replace(old, new)
    return text


def verdicts(prediction: str) -> tuple[str, str]:
    """What is said by the story and, in `[fact: ...]`, in fact: "true", "false" or "<error>" each."""
    # The official script fails without `[fact:`; here what is missing is an error of the answer.
    told, _, fact = prediction.lower().partition("[fact:")
    return _verdict(told), _verdict(fact.partition("[fact:")[0][:-1])


def official_verdicts(answer: str, where: str = "sci_fi: the answer") -> tuple[str, str]:
    """The same two of an official answer; `where` it stands, for the error.

    Raises:
        ValueError: it has no `[fact: ...]`.
    """
    told, label, fact = answer.lower().partition("[fact:")
    if not label:
        raise ValueError(f"{where} is {answer!r}, expected 'True [fact: False]' or the like")
    return told.strip(), fact[:-1].strip()


def f1(prediction: str, answer: str) -> float:
    """F1 over the words of the normalized texts (SQuAD's)."""
    return bag_f1(normalize_answer(prediction).split(), normalize_answer(answer).split())


def rouge_l(prediction: str, answer: str) -> float:
    """F of ROUGE-L as the package rouge_score gives it without stemming: the leaderboard's `rouge`."""
    said, right = _TOKENIZER.tokenize(prediction), _TOKENIZER.tokenize(answer)
    if not said or not right:
        return 0.0
    common = lcs_length(said, right)  # the package's words and formula; its own table of all pairs is the slow part
    return float(fmeasure(common / len(said), common / len(right)))


_TOKENIZER = DefaultTokenizer(use_stemmer=False)


def _squeeze(text: str) -> str:
    """SQuAD's normalization without its lower case: the letters of options would not survive that."""
    return " ".join(ARTICLES.sub(" ", text.translate(WITHOUT_PUNCTUATION)).split())


def _in_order(letters: str) -> str:
    return "".join(letter for letter in LETTERS if letter in letters)


def _code_output(response: str, words: int) -> str:
    """The last words of an answer (or the first after "the final output"), three more than the official output has."""
    response = clean_code(response)
    for filler in FILLERS:
        response = response.replace(filler, "")
    _, told, output = response.rpartition("the final output")
    parts = re.split(r"\s+", output)
    return " ".join(parts[: words + 3] if told else parts[-(words + 3) :])


def _verdict(text: str) -> str:
    for word in text.split():
        for verdict in ("true", "false"):
            if verdict in word:
                return verdict
    return "<error>"
