"""Every distinct report asked once: several at a time, within a budget, from where an earlier command stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from cardialign.cluster.completion.answers import AnswerStore
from cardialign.cluster.completion.endpoint import Endpoint, ReportRefused, estimated_tokens
from cardialign.cluster.completion.prompt import features_of, messages
from cardialign.data_shards.errors import DataError, UserError

PROSE_LIMIT = 10
"""So many answers, and not one of them a list: the model does not do what it is asked."""


@dataclass(frozen=True)
class Budget:
    """What all answers of a model to this prompt may take together, those of earlier commands included.

    tokens: of prompts and answers; cost: in the unit of the prices, which are per million tokens of prompts and of
    answers. None: no limit.
    """

    tokens: int | None = None
    cost: float | None = None
    prices: tuple[float, float] = (0.0, 0.0)

    def price(self, prompt: int, answer: int) -> float:
        return (prompt * self.prices[0] + answer * self.prices[1]) / 1e6

    def allows(self, prompt: int, answer: int) -> bool:
        """Whether so many tokens in all are within it."""
        within = self.tokens is None or prompt + answer <= self.tokens
        return within and (self.cost is None or self.price(prompt, answer) <= self.cost)

    @property
    def said(self) -> str:
        limits = [] if self.tokens is None else [f"{self.tokens} tokens"]
        return " and ".join(limits + ([] if self.cost is None else [f"a cost of {self.cost:g}"]))


NO_LIMIT = Budget()


@dataclass(frozen=True)
class Asked:
    """What came of asking. asked: now, by this command; refused: reports whose request the endpoint did not take, and
    its words for the first of them."""

    asked: int
    refused: int
    first_refusal: str = ""


def ask_all(
    reports: Sequence[str],
    endpoint: Endpoint,
    store: AnswerStore,
    budget: Budget,
    concurrency: int,
    progress: Callable[[int, int], None] | None = None,
) -> Asked:
    """Ask for every report that the store has no answer to, or one that was cut off at fewer tokens than are allowed
    now. Answers are in the store when this returns, or raises.

    A question is only sent where the budget holds even if all that are under way take the longest answer. Raises
    UserError: the budget is reached, or the endpoint cannot be used; DataError for a model that answers in prose.
    """
    waiting = [report for report in reports if not store.settles(report, endpoint.answer_tokens)]
    work = _Work(endpoint, store, budget, len(reports), len(reports) - len(waiting), progress)
    with ThreadPoolExecutor(concurrency, thread_name_prefix="ask") as pool:
        try:
            for report in waiting:
                while len(work.under_way) >= concurrency or (work.under_way and not work.affords(report)):
                    work.settle()
                if not work.affords(report):
                    work.stop_for_budget()
                work.under_way[pool.submit(work.ask, report)] = report
            while work.under_way:
                work.settle()
        except BaseException:
            endpoint.stop.set()  # no more waits between attempts: what is under way ends, and is kept
            raise
    return Asked(work.asked, work.refused, work.first_refusal)


class _Work:
    """What is under way, and what has come back."""

    def __init__(
        self,
        endpoint: Endpoint,
        store: AnswerStore,
        budget: Budget,
        total: int,
        known: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.endpoint, self.store, self.budget = endpoint, store, budget
        self.total, self.known, self.progress = total, known, progress
        self.under_way: dict[Future[bool | None], str] = {}
        self.spent = store.spent
        self.asked = self.refused = self.lists = 0
        self.first_refusal = self.first_prose = ""
        self.cut = 0

    def ask(self, report: str) -> bool | None:
        """Runs in a thread. Whether the answer is a list; None where the request was not taken."""
        try:
            answer = self.endpoint.ask(messages(report))
        except ReportRefused as refusal:
            self.first_refusal = self.first_refusal or str(refusal)
            return None
        self.store.add(report, answer)
        listed = features_of(answer.content) is not None
        if not listed:
            self.cut += answer.cut_at > 0
            self.first_prose = self.first_prose or answer.content
        return listed

    def affords(self, report: str) -> bool:
        """Whether the budget holds when all questions under way, and this one, get the longest answer."""
        if self.budget.tokens is None and self.budget.cost is None:
            return True
        asked = [report, *self.under_way.values()]
        prompts = sum(2 * estimated_tokens(messages(each)) for each in asked)  # an estimate may be half the truth
        return self.budget.allows(self.spent[0] + prompts, self.spent[1] + len(asked) * self.endpoint.answer_tokens)

    def settle(self) -> None:
        """Wait for one or more, and judge what came."""
        done, _ = wait(self.under_way, return_when=FIRST_COMPLETED)
        for future in done:
            self.under_way.pop(future)
        for future in done:
            listed = future.result()
            self.refused += listed is None
            self.asked += listed is not None
            self.lists += bool(listed)
        self.spent = self.store.spent
        if self.progress is not None:
            self.progress(self.known + self.asked + self.refused, self.total)
        if self.asked >= PROSE_LIMIT and not self.lists:
            self.stop_for_prose()
        if self.refused >= PROSE_LIMIT and not self.asked:
            raise UserError(
                f"the endpoint refuses every request ({self.refused} so far): {self.first_refusal}",
                "see that it serves the model and takes chat completions with temperature and max_tokens",
            )

    def stop_for_prose(self) -> None:
        shown = f"one of them begins {self.first_prose[:60]!r}" if self.first_prose else "they are empty"
        remedy = "choose a model that follows instructions; what it answered is kept and not asked again"
        if self.cut:
            shown += f", and {self.cut} were cut off at {self.endpoint.answer_tokens} tokens"
            remedy = "give them more room, for thoughts, too: raise --answer-tokens; these are then asked again"
        raise DataError(
            f"{self.endpoint.model}: the first {self.asked} answers are no JSON lists of strings; {shown}", remedy
        )

    def stop_for_budget(self) -> None:
        prompt, answer = self.spent
        left = self.total - self.known - self.asked - self.refused
        prices = f", cost {self.budget.price(prompt, answer):.4g}" if any(self.budget.prices) else ""
        raise UserError(
            f"the budget of {self.budget.said} is reached: {prompt + answer} tokens are spent{prices}, and the next "
            f"question could exceed it; {left} of {self.total} reports are not answered yet",
            "raise it and run the same command again (no answer is paid twice), or add --answered-only to complete the "
            "reports that are answered",
        )
