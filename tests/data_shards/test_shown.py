"""What may be seen of outside text: nothing that a terminal, a spreadsheet or a page obeys, and no secret."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from cardialign import cluster, data_shards, kernels, pretrain
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.shown import between, cell, has_secret, public, shown, without_secrets

FLOORS = (cluster, pretrain, data_shards, kernels)
SECRET = "Pl4nted-S3cret"
ADDRESSES = [
    f"http://bob:{SECRET}@host/set",
    f"https://host/set?X-Amz-Signature={SECRET}&X-Amz-Date=20260101",
    f"https://account.blob.core.windows.net/c/set?sv=2022&sig={SECRET}",
    f"https://host/set?X-Goog-Signature={SECRET}",
    f"ftp://me:{SECRET}@host/set",
    f"s3://AKIA:{SECRET}@bucket/set",
    f"http://host/set?access_token={SECRET}",
    f"https://{SECRET}@host/set",
    f"webdavs://{SECRET}@host/set",
    f"https://host/set#access_token={SECRET}",
    f"http://host/set;token={SECRET}",
    f"https://host/set?page=2#token={SECRET}",
    f"http://bob:p#w=x{SECRET}@host/set",
    f"postgresql://host/db?password={SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_shown_without_its_secret_wherever_it_stands(address: str) -> None:
    assert has_secret(address)
    for text in (address, f"cannot read {address}: no such file", f"('{address}', 403)", f"<{address}>"):
        assert SECRET not in shown(text) and SECRET not in without_secrets(text)
    assert SECRET not in public(address) and public(address).startswith(address.partition(":")[0])


@pytest.mark.parametrize(
    "plain",
    [
        "https://host/a?b=c&page=2",
        "https://host/a#part",
        "s3://bucket/set",
        "a@b.de wrote: 3:/4",
        "C:/x",
        "see http://host/x.",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(plain: str) -> None:
    assert shown(plain) == plain and not has_secret(plain)


@pytest.mark.parametrize("address", ["sftp://me@host/set", "abfs://box@account.dfs.core.windows.net/set"])
def test_a_user_or_a_container_is_no_secret_where_it_must_stand(address: str) -> None:
    assert not has_secret(address) and url_of(address) == address


@pytest.mark.parametrize("address", [each for each in ADDRESSES if not each.startswith("postgresql")])
def test_no_address_of_shards_may_hold_a_secret_for_recipes_runs_and_stores_keep_addresses(address: str) -> None:
    for given in (address, Path(address)):  # an option's `Path` folds the slashes
        with pytest.raises(UsageError) as caught:
            url_of(given)
        assert SECRET not in str(caught.value) and "in the environment" in caught.value.remedy


def test_secrets_of_the_environment_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "CARDIALIGN_SALT", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MY_API_KEY"):
        monkeypatch.setenv(name, f"{SECRET}-{name}")
        assert shown(f"it said {SECRET}-{name}") == "it said ***"
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert shown("/tmp/agent disabled") == "/tmp/agent disabled"


def test_a_variable_called_key_hides_no_record_but_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {
        "KEY": "wfdb-00017_hr",
        "RECORD_KEY": "ptb-xl-21837",
        "PRIMARY_KEY": "study_id",
        "TOKENIZER": "minilm",
        "GIT_AUTHOR_NAME": "Willem Einthoven",
        "KEYMAP": "de-latin1",
    }
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
        assert shown(f"record {value}: bad") == f"record {value}: bad", name
    for drawn in ("sk-aB3xY9qLm2Tz8Kp5Rw0V", "9f86d081884c7d659a2feaa0c55ad015"):
        monkeypatch.setenv("KEY", drawn)
        assert shown(f"it said {drawn}") == "it said ***"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd|x", "@SUM(1)", "\tx", "=cmd\x1b[2J", "\u202e=1"])
def test_a_cell_is_no_formula_and_moves_no_cursor(text: str) -> None:
    told = cell(text)
    assert told[0] not in "=+-@\t\u202e" and "\x1b" not in told
    row = io.StringIO()
    csv.writer(row).writerow([told])
    assert next(csv.reader(io.StringIO(row.getvalue()))) == [told]


@pytest.mark.parametrize("number", ["-1.5", "+3", "-1e-9", "-inf", "0"])
def test_numbers_stay_numbers(number: str) -> None:
    assert cell(number) == number


def test_the_alias_of_a_registered_model_is_no_user_of_an_address() -> None:
    said = "models:/a@b and models:/team-a.enc@candidate are one encoder"
    assert shown(said) == said
    assert shown("s3:/token@host/x") == "s3:/host/x"


def test_an_interval_that_is_not_there_is_told_by_a_word() -> None:
    assert between(-0.01, 0.0321) == "-0.010 to +0.032" and between(1.44, 2.9, ".1f") == "1.4 to 2.9"
    assert between(float("nan"), float("nan")) == between(0.5, float("nan")) == "n/a"


def test_no_difference_is_a_negative_zero() -> None:
    assert (
        between(-0.0, 0.0) == between(-4e-4, 4e-4) == "+0.000 to +0.000" and between(-0.0, 0.0, ".1f") == "0.0 to 0.0"
    )


def test_whatever_writes_a_sign_has_the_option_that_takes_it_from_zero() -> None:
    signed = re.compile(r"""[:}]\+\.\d[fg]""")  # `between` sees to the formats that are given to it
    files = [path for floor in FLOORS for path in Path(str(floor.__file__)).parent.rglob("*.py")]
    assert len(files) > 300 and signed.search("{gain:+.3f}") and not signed.search("{gain:+z.3f}")
    found = [f"{path.name}: {line}" for path in files for line in path.read_text().split("\n") if signed.search(line)]
    assert found == []


def test_an_error_of_ours_says_no_secret_and_moves_no_cursor_in_a_traceback_either() -> None:
    error = UsageError(f"https:/me:{SECRET}@host/e is no encoder\n  - \x1b[2Jname", f"see {ADDRESSES[1]}")
    assert SECRET not in str(error) and SECRET not in repr(error) and "\x1b" not in str(error)
    assert str(error).startswith("https:/") and "\n  - \\x1b[2Jname\n  remedy: see https://host/set" in str(error)
