"""A model behind an OpenAI-compatible server as lm-eval's LM: the suites' protocols, as far as a server follows them.

Notable choices: with a tokenizer prompts are cut here, as the protocol says, before they are sent; without one they go
out whole, and a server that refuses one has failed that sample. The chat interface puts its own template around every
prompt, and offers no way to begin the answer, so a request's prefix goes to the prompt's end; the completions interface
gets the finished text. Log-likelihoods are not to be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from longloom.evals.endpoint import Endpoint, Question, Reply
from longloom.evals.ledger import Ledger
from longloom.evals.protocol import CUTS, Failure, encode
from longloom.evals.suite_lm import Job, Row, SuiteLM


class EndpointLM(SuiteLM):
    """Greedy generation by a server.

    Args:
        endpoint: the server.
        tokenizer: of its model, to cut prompts by, and for the completions interface to render the chat template; None:
            prompts go out whole and without a template.
        batch_size: has no effect, for the endpoint itself knows how many requests are sent at once.
        max_length, suite_length, ledger, progress: as `SuiteLM` takes them. The model's window is not known: a prompt
            is cut by these alone.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        batch_size: int,
        max_length: int | None,
        suite_length: int | None = None,
        ledger: Ledger | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> None:
        super().__init__(
            tokenizer,
            window=None,
            ends=(),
            batch_size=batch_size,
            max_length=max_length,
            suite_length=suite_length,
            ledger=ledger,
            progress=progress,
        )
        self._endpoint = endpoint

    def _batches(self, jobs: Sequence[Job], waiting: Sequence[int]) -> Iterable[Sequence[int]]:
        """All at once: none waits for the slowest of a batch."""
        if waiting:
            yield waiting

    def _answer(self, batch: Sequence[Job]) -> list[Row | Failure]:
        answers: dict[int, Row | Failure] = {}
        asked = []
        for index, job in enumerate(batch):
            row = self._kept(job)
            if row is None:
                asked.append(index)
            else:
                answers[index] = row

        def note(number: int, reply: Reply) -> None:
            index = asked[number]
            answers[index] = answer = _row(batch[index], reply)
            if not isinstance(answer, Failure):
                self._keep([answer])
            self._progress(len(answers), len(batch))

        self._endpoint.ask([self._question(batch[index]) for index in asked], on_reply=note)
        return [answers[index] for index in range(len(batch))]

    def _question(self, job: Job) -> Question:
        until = job.instance.args[1].get("until") or []
        longest, *_ = job.settings
        return Question(self._text(job), max_tokens=longest, stop=[until] if isinstance(until, str) else until)

    def _text(self, job: Job) -> str:
        """What is sent for a request."""
        request, document = job.request, job.request.document
        if job.truncated:  # by `max_length`, since no window is known; the text of `job.ids` before the template
            assert self.tokenizer is not None
            assert self._limit is not None
            document = CUTS[request.cut](self.tokenizer, document, encode(self.tokenizer, document), self._limit)
        prompt = request.before + document + request.after
        if self._endpoint.api == "chat" or self.tokenizer is None:
            return prompt + request.prefix
        if not (request.chat and self.tokenizer.chat_template):
            return prompt + request.prefix
        text = self.apply_chat_template([{"role": "user", "content": prompt}]) + request.prefix
        bos = str(self.tokenizer.bos_token or "")
        # The server's tokenizer is the same, and adds once more what this one adds to every text.
        adds_bos = bool(bos) and encode(self.tokenizer, "")[:1] == [self.tokenizer.bos_token_id]
        return text.removeprefix(bos) if adds_bos else text


def _row(job: Job, reply: Reply) -> Row | Failure:
    if reply.error is not None:
        return Failure(reply.error)
    text = reply.text
    if job.request.newline_stops:  # a server can stop at a line end, but not be kept from beginning with one
        text = text.lstrip("\n").split("\n")[0]
    counts = {"prompt_tokens": reply.prompt_tokens, "new_tokens": reply.new_tokens}
    return job.row(text, seconds=reply.seconds, **{name: count for name, count in counts.items() if count is not None})
