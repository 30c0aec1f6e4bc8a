"""Answers of a language model as they came, kept on disk the moment they are there: nothing is paid twice.

FOLDER/prompt-V-MODEL-HASH.jsonl: one line per answered report, added and flushed one by one. The key of an answer
follows from the version of the prompt, the model and the report; the text of a report is not kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from cardialign.cluster.completion.endpoint import ChatAnswer
from cardialign.cluster.completion.prompt import PROMPT_VERSION
from cardialign.data_shards.errors import DataError, UserError, disk_error
from cardialign.data_shards.files import is_count, parse_json, read_bytes

log = logging.getLogger(__name__)


def answer_key(model: str, report: str) -> str:
    """sha256 over prompt version, model and report (surplus space and letter case aside)."""
    content = json.dumps([PROMPT_VERSION, model, " ".join(report.casefold().split())], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerStore:
    """The answers of one model to this version of the prompt. Open with `AnswerStore.opened`; threads may share it."""

    def __init__(self, path: Path, model: str, descriptor: int) -> None:
        self.path, self.model = path, model
        self._descriptor, self._lock = descriptor, threading.Lock()
        self._answers: dict[str, ChatAnswer] = {}
        self._spent = [0, 0]
        damaged = self._load()
        if damaged:
            log.warning("answers=%s lines=%d remark=cut off or damaged, asked again", path, damaged)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, model: str) -> Iterator[AnswerStore]:
        """For one process at a time. Raises UserError while another one adds to it, DataError when it cannot be
        written."""
        word = re.sub(r"[^A-Za-z0-9.-]+", "_", model)[:60]
        path = folder / f"prompt-{PROMPT_VERSION}-{word}-{hashlib.sha256(model.encode()).hexdigest()[:8]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk_error(error, path) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another process adds to {path}", "wait for it, or name another folder with --answers"
                ) from None
            yield cls(path, model, descriptor)
        finally:
            os.close(descriptor)

    def _load(self) -> int:
        try:
            content = read_bytes(self.path)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error}", "check the file and its disk") from error
        damaged = 0
        for line in content.split(b"\n"):
            if not line:
                continue
            try:
                values = parse_json(line)
                key, answer = values.pop("key"), ChatAnswer(**values)
                if not (isinstance(answer.content, str) and isinstance(key, str) and isinstance(answer.counted, bool)):
                    raise ValueError
                if not all(map(is_count, (answer.prompt_tokens, answer.answer_tokens, answer.cut_at))):
                    raise ValueError
            except (ValueError, TypeError, KeyError, AttributeError):
                damaged += 1
                continue
            self._note(key, answer)
        if content and not content.endswith(b"\n"):  # a kill cut the last line: the next one must not join it
            os.write(self._descriptor, b"\n")
        return damaged

    def get(self, report: str) -> ChatAnswer | None:
        return self._answers.get(answer_key(self.model, report))

    def settles(self, report: str, answer_tokens: int) -> bool:
        """Whether there is an answer, and more room for it could not make another: none that was cut off at fewer
        tokens."""
        answer = self.get(report)
        return answer is not None and not 0 < answer.cut_at < answer_tokens

    def add(self, report: str, answer: ChatAnswer) -> None:
        """On the disk when this returns. Raises DataError when it is full."""
        key = answer_key(self.model, report)
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
                os.fsync(self._descriptor)
            except OSError as error:
                raise disk_error(error, self.path) from error
            self._note(key, answer)

    def _note(self, key: str, answer: ChatAnswer) -> None:
        self._answers[key] = answer
        self._spent[0] += answer.prompt_tokens
        self._spent[1] += answer.answer_tokens

    @property
    def spent(self) -> tuple[int, int]:
        """Tokens of all prompts and of all answers that were paid for."""
        with self._lock:
            return self._spent[0], self._spent[1]
