"""RULER's generated tasks: exact lengths, and answers that a reader of the prompt alone can find.

Each task has a solver of its own here, which knows the prompt's wording and nothing of the generator.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from longloom.evals.harness import task_of
from longloom.evals.protocol import Request, render
from longloom.evals.ruler import tasks as protocol
from longloom.evals.ruler.suite import Ruler
from longloom.evals.ruler.tasks import TASKS
from longloom.evals.suite import Source

ESSAYS = Path(__file__).resolve().parents[2] / "../shared/data/needle/PaulGrahamEssays"

LENGTHS = [2600, 12000]  # cwe asks otherwise from 4096 on
GENERATED = [task for task in TASKS if not task.startswith("qa")]
WITHOUT_DATA = ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe"]
IN_ESSAYS = ["niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of essays."""
    folder = tmp_path_factory.mktemp("ruler")
    sentences = [f"On day {day} the dog\nslept by the  door number {day}." for day in range(60)]
    (folder / "a.txt").write_text(" ".join(sentences[:40]))
    (folder / "b.txt").write_text("\n\n".join(sentences[40:]))
    return folder


def suite(data: Path | None, tokenizer: PreTrainedTokenizerFast | None, seed: int = 0, **options: Any) -> Ruler:
    return Ruler(
        Source(data=data, tokenizer=tokenizer, seed=seed, options={"lengths": LENGTHS, "samples": 2, **options})
    )


def request_of(record: dict[str, Any]) -> Request:
    (fields,) = record["requests"]
    return Request.from_dict(fields)


def niah(prompt: str) -> list[str]:
    """The values of the keys that the question names."""
    asked = re.findall(r"What (?:is|are all) the special magic (number|uuid)s? for (.+) mentioned in", prompt)
    ((kind, keys),) = asked
    text = prompt[: prompt.rindex("\nWhat ")]
    pairs = re.findall(rf"One of the special magic {kind}s for (.+?) is: ([0-9a-f-]+)\.", text)
    return [value for query in re.split(r", (?:and )?", keys) for key, value in pairs if key == query]


def chain(prompt: str) -> list[str]:
    """The variables that come to hold the value asked for; the example's are not among them."""
    text, value = re.fullmatch(r"(.*)\nQuestion: .* value (\d+) in the text above\.", prompt, flags=re.DOTALL).groups()
    holds: dict[str, str] = {}
    for name, number, source in re.findall(r"VAR (\w+) = (?:(\d+)|VAR (\w+))", text):
        holds[name] = number or holds[source]
    return [name for name, held in holds.items() if held == value]


def counted(prompt: str) -> list[str]:
    """The ten words that stand most often in the second list."""
    listed = prompt.split("the ones that appear most often.\n")[2].split("\nQuestion")[0]
    counts = Counter(re.split(r" ?\d+\. ", listed)[1:])
    ten = counts.most_common(11)
    assert ten[9][1] > ten[10][1]
    return [word for word, _ in ten[:10]]


def frequent(prompt: str) -> list[str]:
    """The three most frequent coded words."""
    listed = prompt.split("most frequently appeared coded words. ")[1].split("\nQuestion")[0]
    (dots, _), *four = Counter(listed.split()).most_common(5)
    assert dots == "..."
    assert len({count for _, count in four}) == 4
    return [word for word, _ in four[:3]]


SOLVERS: dict[str, Callable[[str], list[str]]] = {
    **{task: niah for task in TASKS if task.startswith("niah")},
    "vt": chain,
    "cwe": counted,
    "fwe": frequent,
}

SOME_UUID = "7a73ed8b-aa4f-4474-a73d-f0ee7c55f2e9"
#: What one unit of a task's context takes at most: a prompt may fall short of its length by it.
UNITS = {
    **dict.fromkeys(IN_ESSAYS, "understanding "),
    "niah_single_1": protocol.NOISE + "\n",
    "niah_multikey_2": "One of the special magic numbers for preposterous-understanding is: 1234567.\n",
    "niah_multikey_3": f"One of the special magic uuids for {SOME_UUID} is: {SOME_UUID}.\n",
    "vt": protocol.NOISE + "\n",
    "cwe": "10000. self-understanding " * 3,
    "fwe": "abcdef " * 4,
}


@pytest.mark.parametrize("task", GENERATED)
def test_lengths_are_exact_and_answers_stand_in_the_prompt(
    data: Path, tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    made = suite(data, tokenizer)
    records = made.records(task)
    assert [(record["length"], record["group"]) for record in records] == [
        (length, str(length)) for length in LENGTHS for _ in range(2)
    ]
    unit = len(tokenizer(UNITS[task])["input_ids"])
    for record in records:
        request = request_of(record)
        tokens = len(render(request, tokenizer, request.document)) + made.max_new_tokens(task)
        assert record["length"] - unit - 8 <= tokens <= record["length"]
        assert request.cut == "never"
        found = SOLVERS[task](request.prompt)
        assert sorted(found) == sorted(record["references"])
        assert made.rate(task, f"They are {' and '.join(found)}.", record) == {"score": 1.0}
        assert made.rate_fixed(task, f"They are {' and '.join(found)}.", record) == {"score": 1.0}
        assert made.rate(task, "I do not know.", record) == {"score": 0.0}


@pytest.mark.parametrize("task", [task for task in GENERATED if task not in ("cwe", "fwe")])
def test_gold_passages_stand_in_the_context_that_retrieval_may_replace(
    data: Path, tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    for record in suite(data, tokenizer).records(task):
        request = request_of(record)
        begin, end = request.context
        assert record["gold"]
        assert all(passage in request.document[begin:end] for passage in record["gold"])
        assert request.query.rstrip("?.").split()[-1] in request.after
        # With nothing but the passages, the answer can still be found.
        few = request.with_context("\n" + "\n".join(record["gold"]))
        assert sorted(SOLVERS[task](few.prompt)) == sorted(record["references"])


@pytest.mark.parametrize("task", GENERATED)
def test_the_seed_draws_and_lengths_share_the_answers(
    data: Path, tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    records = suite(data, tokenizer).records(task)
    assert suite(data, tokenizer).records(task) == records
    references = [record["references"] for record in records]
    assert references[:2] == references[2:]
    other = suite(data, tokenizer, seed=1).records(task)
    assert [r["requests"] for r in other] != [r["requests"] for r in records]
    assert [r["references"] for r in other] != references
    assert references[0] != references[1]
    # The samples of one length do not depend on the other lengths.
    assert suite(data, tokenizer, lengths=LENGTHS[:1]).records(task) == records[:2]


def test_niah_word_by_word(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    (record, *_) = suite(data, tokenizer).records("niah_single_1")
    request = request_of(record)
    (value,) = record["references"]
    (gold,) = record["gold"]
    key = re.fullmatch(rf"One of the special magic numbers for (.+-.+) is: {value}\.", gold)[1]
    assert re.fullmatch(r"[1-9]\d{6}", value)
    assert request.before == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        "the number afterwards.\n"
    )
    assert request.after == f"\nWhat is the special magic number for {key} mentioned in the provided text?"
    assert request.prefix == f" The special magic number for {key} mentioned in the provided text is"
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert set(request.document.split("\n")) == {noise, gold}
    # The answer's beginning stands after the template.
    text = tokenizer.decode(render(request, tokenizer, request.document))
    assert text.endswith(f"provided text?<|end|><|assistant|>{request.prefix}")


def test_several_keys_and_values(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    made = suite(data, tokenizer)
    for record in made.records("niah_multivalue"):
        assert len(set(record["references"])) == 4
        assert "What are all the special magic numbers for" in record["requests"][0]["after"]
        assert made.rate("niah_multivalue", record["references"][2], record) == {"score": 0.25}
    for record in made.records("niah_multiquery"):
        after = record["requests"][0]["after"]
        assert re.search(r"numbers for [^,]+, [^,]+, [^,]+, and [^,]+ mentioned", after)
        assert record["requests"][0]["prefix"].endswith("mentioned in the provided text are")
    for record in made.records("niah_multikey_1"):
        assert record["requests"][0]["document"].count("special magic") == 4
        assert len(record["references"]) == 1
    for record in made.records("niah_multikey_3"):
        pattern = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
        line = rf"One of the special magic uuids for {pattern} is: {pattern}\."
        assert all(re.fullmatch(line, each) for each in record["requests"][0]["document"].split("\n"))


def test_essays_are_words_with_needles_between_sentences(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    whole = " ".join(" ".join((data / name).read_text().split()) for name in ("a.txt", "b.txt"))
    for record in suite(data, tokenizer).records("niah_multikey_1"):
        context = record["requests"][0]["document"]
        needle = re.compile(r"One of the special magic numbers for .+? is: \d+\.")
        for match in needle.finditer(context):
            assert context[: match.start()].rstrip().endswith(".") or not match.start()
        hay = " ".join(needle.sub("", context).split())
        assert (f"{whole} " * 9).startswith(hay)
    assert len(hay) > len(whole)  # they begin again


def test_the_official_haystack_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "PaulGrahamEssays.json"
    path.write_text(json.dumps({"text": "Work  hard.\nSleep well. " * 9}))
    (record, *_) = suite(tmp_path, tokenizer).records("niah_single_2")
    assert "Work hard. Sleep well. Work hard." in record["requests"][0]["document"]
    path.write_text(json.dumps({"text": " "}))
    with pytest.raises(ValueError, match=r"PaulGrahamEssays.json: field 'text' is .*, expected a string that is not"):
        suite(tmp_path, tokenizer).records("niah_single_2")
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"PaulGrahamEssays.json: holds a JSON "):
        suite(tmp_path, tokenizer).records("niah_single_2")


def test_vt_has_an_example_and_one_chain(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    for record in suite(data, tokenizer).records("vt"):
        request = request_of(record)
        names = record["references"]
        assert all(re.fullmatch("[A-Z]{5}", name) for name in names)
        statements = [line for line in request.document.split("\n") if line.startswith("VAR")]
        value = re.search(r"\d{5}", statements[0])[0]
        assert statements == [
            f"VAR {names[0]} = {value}",
            *(f"VAR {names[number]} = VAR {names[number - 1]} " for number in range(1, 5)),
        ]
        assert request.prefix.endswith(f"text above, 5 variables are assigned the value {value}, they are: ")
        example, rest = request.before.split("\n\nMemorize")
        assert rest.endswith("hidden in the following text.\n\n")
        shown = re.search(r"5 variables are assigned the value (\d{5}), they are:  ((?:[A-Z]{3} ?){5})$", example)
        assert chain(example.split(" Answer:")[0]) == shown[2].split()


@pytest.mark.parametrize(
    ("length", "repeats", "in_example"), [(2600, (6, 1), (3, 1, 20)), (12000, (30, 3), (10, 3, 40))]
)
def test_cwe_repeats_its_words(
    tokenizer: PreTrainedTokenizerFast, length: int, repeats: tuple[int, int], in_example: tuple[int, int, int]
) -> None:
    (record,) = suite(None, tokenizer, lengths=[length], samples=1).records("cwe")
    _, *parts = request_of(record).prompt.split("the ones that appear most often.\n")
    example, listed = (numbered(part.split("\nQuestion")[0]) for part in parts)
    assert sorted(set(Counter(listed).values())) == sorted(repeats)
    assert [count for _, count in Counter(listed).most_common(11)].count(repeats[0]) == 10
    often, seldom, different = in_example
    counts = Counter(example)
    assert sorted(counts.values()) == [seldom] * (different - 10) + [often] * 10
    answer = re.search(r"list are: (1\. .*)\n", parts[0])[1]
    assert set(numbered(answer)) == {word for word, count in counts.items() if count == often}


def numbered(text: str) -> list[str]:
    """The words of a list whose numbers are 1, 2, 3, ..."""
    parts = re.split(r" ?(\d+)\. ", text)[1:]
    assert parts[::2] == [str(number) for number in range(1, len(parts) // 2 + 1)]
    return parts[1::2]


def test_tasks_are_those_with_data(tokenizer: PreTrainedTokenizerFast, data: Path, tmp_path: Path) -> None:
    assert sorted(suite(data, tokenizer).tasks()) == sorted([*WITHOUT_DATA, *IN_ESSAYS])
    assert sorted(suite(None, tokenizer).tasks()) == sorted(WITHOUT_DATA)
    with pytest.raises(ValueError, match=r"has neither essays \(.txt, a corpus\) nor squad.json nor hotpotqa.json"):
        suite(tmp_path, tokenizer).tasks()
    with pytest.raises(ValueError, match=r"niah_single_2 needs a haystack \(.txt files, .*\) in the folder of data"):
        suite(tmp_path, tokenizer).records("niah_single_2")
    with pytest.raises(ValueError, match="suite 'ruler' has no task 'qa_3'; known: niah_single_1, "):
        suite(data, tokenizer).records("qa_3")


@pytest.mark.parametrize("task", GENERATED)
def test_impossible_lengths(tokenizer: PreTrainedTokenizerFast, data: Path, task: str) -> None:
    with pytest.raises(ValueError, match=rf"length 40 is too short for {task}: .* expected at least \d+") as error:
        suite(data, tokenizer, lengths=[40]).records(task)
    # The length that the error names is possible, and one less is not.
    least = int(str(error.value).split()[-1])
    assert suite(data, tokenizer, lengths=[least], samples=1).records(task)
    with pytest.raises(ValueError, match="is too short"):
        suite(data, tokenizer, lengths=[least - 1], samples=1).records(task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": None}, "suite 'ruler': lengths is None, expected a list of numbers from 1"),
        ({"lengths": [0]}, "lengths holds 0, expected numbers from 1"),
        ({"lengths": [4096.5]}, "lengths holds 4096.5"),
        ({"samples": 0}, "samples holds 0"),
        ({"depths": [0]}, "suite 'ruler' has no option 'depths'; its options: lengths, samples"),
    ],
)
def test_bad_options(tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(None, tokenizer, **options)


def test_bad_sources(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    with pytest.raises(ValueError, match="needs the tokenizer of the model under test"):
        suite(None, None).records("vt")
    with pytest.raises(ValueError, match=r"a.txt is no folder, expected one with essays or question files"):
        suite(data / "a.txt", tokenizer)


def test_lm_eval_runs_it(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    for name in ("vt", "cwe"):
        task = task_of(suite(data, tokenizer, lengths=[2600]), name)
        task.build_all_requests()
        first = task.instances[0]
        assert first.args[1]["max_gen_toks"] == TASKS[name].max_new_tokens
        parts = task.process_results(first.doc, [" ".join(first.doc["references"])])
        assert task.aggregation()["score"]([parts["score"], {"score": 0.0}]) == 50.0


def literals(module: str) -> dict[str, Any]:
    """The constants of a module of lm_eval's port, read without running it (it would download)."""
    spec = find_spec("lm_eval")
    source = (Path(spec.origin).parent / "tasks/ruler" / f"{module}.py").read_text()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def test_templates_are_those_of_lm_eval_s_port() -> None:
    def whole(template: protocol.Template) -> str:
        return template.before + "{context}" + template.after

    cwe, fwe = literals("cwe_utils")["CONFIG"], literals("fwe_utils")["CONFIG"]
    assert (whole(protocol.CWE), protocol.CWE.prefix) == (cwe["template"], cwe["answer_prefix"])
    assert (whole(protocol.FWE), protocol.FWE.prefix) == (fwe["template"], fwe["answer_prefix"])
    assert TASKS["cwe"].max_new_tokens == cwe["tokens_to_generate"]
    assert TASKS["fwe"].max_new_tokens == fwe["tokens_to_generate"]
    vt = literals("vt_utils")["CONFIG"]["variable_tracking"]
    assert whole(protocol.VT) == vt["template"]
    assert protocol.VT.prefix == vt["answer_prefix"].replace("assgined", "assigned").replace("{num_v}", "{count}")
    assert TASKS["vt"].max_new_tokens == vt["tokens_to_generate"]
    niah = literals("niah_utils")["TEMPLATE"].replace("{type_needle_v}", "{values}")
    assert whole(protocol.NIAH_MANY) == niah
    one = niah.replace("Some", "A").replace("are all", "is").replace("are", "is")
    assert whole(protocol.NIAH_ONE) == one
    qa = literals("qa_utils")
    assert (whole(protocol.QA), protocol.QA.prefix.strip()) == (qa["CONFIG"]["template"], qa["CONFIG"]["answer_prefix"])
    assert qa["DOCUMENT_PROMPT"].format(i=1, document="x") == protocol.DOCUMENT.format(number=1, text="x")


@pytest.mark.skipif(not ESSAYS.is_dir(), reason="the shared data is not beside the checkout")
def test_real_essays(tokenizer: PreTrainedTokenizerFast) -> None:
    made = suite(ESSAYS, tokenizer, lengths=[4096, 32768], samples=1)
    for task in IN_ESSAYS:
        for record in made.records(task):
            request = request_of(record)
            tokens = len(render(request, tokenizer, request.document)) + 128
            assert record["length"] - 40 <= tokens <= record["length"]
            assert sorted(niah(request.prompt)) == sorted(record["references"])
            assert all(passage in request.document for passage in record["gold"])
