"""L-Eval's tasks, and its protocol strings as they are.

Source: OpenLMLab/LEval, `Baselines/LEval_config.py` (task names, instructions, 512 new tokens) and
`Baselines/llama2-chat-test.py` (how document, question and instruction are put together).
"""

from __future__ import annotations

CLOSED = ("coursera", "quality", "topic_retrieval_longchat", "tpo", "gsm100", "codeU", "sci_fi")

#: Open-ended tasks: only their files of predictions are scored so far.
OPEN = (
    *("financial_qa", "gov_report_summ", "legal_contract_qa", "meeting_summ", "multidoc_qa", "narrative_qa"),
    *("natural_question", "news_summ", "paper_assistant", "patent_summ", "review_summ", "scientific_qa"),
    "tv_show_summ",
)

MAX_NEW_TOKENS = 512

#: The `evaluation` of records that are rated by a metric; others ("LLM", "human") repeat some of them for a judge.
METRICS = ("exam", "f1", "rouge")

_CHOICE = (
    "Now you are given a very long document. Please follow the instruction based on this document. For multi-choice "
    "questions, there is only a sinlge correct option. Please only provide the letter corresponding to the answer "
    "(like A or B) when answering. For other questions, please directly give the concise and accurate answer. "
)

#: Task -> what is said before the document ("sinlge" is official).
INSTRUCTIONS = {
    "quality": _CHOICE,
    "tpo": _CHOICE,
    "coursera": (
        "Now you are given a very long document. Please follow the instruction based on this document. For "
        "multi-choice questions, there could be a sinlge correct option or multiple correct options. Please only "
        "provide the letter corresponding to the answer (like A or AB) when answering. "
    ),
    "gsm100": (
        "Given several question answer pairs, you need to follow a similar format to answer the last question. Make "
        "sure the response is end with The answer is _ . "
    ),
    "topic_retrieval_longchat": (
        "Below is a record of our previous conversation on many different topics. You are the ASSISTANT, and I am the "
        "USER. At the beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. "
        "Memorize each <TOPIC>. At the end of the record, I will ask you to retrieve the first/second/third topic "
        "names. Now the record start. "
    ),
    "codeU": (
        "Now you are given a code base consisting of a large amount of functions and the corresponding comments. In "
        "the end, I will call some functions defined in the code base. Please carefully read these codes and comments "
        "and answer the question."
    ),
    "sci_fi": (
        'Now you are given a scientific fiction. I will ask you some questions and the answer should be "True" or '
        '"False". Notice that you should answer the question based on the evidence in the document instead of your '
        "background knowledge."
    ),
}

#: Tasks whose question follows the document plainly; the others use QUESTION_AFTER and ANSWER_PREFIX.
PLAIN = ("gsm100", "codeU", "topic_retrieval_longchat")
DOCUMENT_BEFORE = "Document is as follows. "
QUESTION_AFTER = " \nQuestion: {question}.  Please directly give answer without any additonal output or explanation "
ANSWER_PREFIX = "\nAnswer:"

#: sci_fi asks each question again about the real world, without the document; the reply goes into `[fact: ...]`.
STORY = "based on the world described in the document."
REALITY = "based on the real-world knowledge and facts up until your last training"
