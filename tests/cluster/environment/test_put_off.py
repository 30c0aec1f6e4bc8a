"""Ray's processes do not import what nobody calls, and who calls it gets the package itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cardialign.cluster.environment.put_off import STAND_INS

IMPORTED = "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'lark', 'rfc3987_syntax'}))"
ASKED = (
    "from jsonschema import FormatChecker\n"
    "check = FormatChecker(formats=['iri', 'iri-reference'])\n"
    "print(*(check.conforms(text, 'iri') for text in ('https://ex.org/ä', 'no iri', 'ä/b')), "
    "check.conforms('ä/b', 'iri-reference'), check.conforms('<>', 'iri-reference'))\n"
)
ANSWER = "True False False True False"


def answer_of(code: str, *words: str, path: str = str(STAND_INS)) -> list[str]:
    program, environment = [sys.executable, *words, "-c", f"import sys\n{code}"], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True, timeout=180)
    return done.stdout.splitlines()


def test_ray_is_imported_without_the_grammar_and_addresses_are_checked_as_ever() -> None:
    pytest.importorskip("rfc3987_syntax", reason="the extra `sign` is not installed")
    told = answer_of(f"import ray\n{IMPORTED}\n{ASKED}{IMPORTED}\nfrom rfc3987_syntax.utils import load_grammar")
    assert told == ["rfc3987_syntax", ANSWER, "lark rfc3987_syntax"]


def test_it_is_so_in_a_process_that_puts_it_off_itself() -> None:
    pytest.importorskip("rfc3987_syntax", reason="the extra `sign` is not installed")
    ours = os.pathsep.join(path for path in sys.path if path)
    start = "from cardialign.cluster.environment.put_off import put_off\nput_off()\n"
    assert answer_of(f"{start}{ASKED}{IMPORTED}", path=ours) == [ANSWER, "lark rfc3987_syntax"]


def test_who_has_not_installed_it_finds_no_module() -> None:
    tried = "try:\n    import rfc3987_syntax\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    assert answer_of(tried, "-S") == ["rfc3987_syntax"]
