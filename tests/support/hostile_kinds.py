"""Every kind of file that comes in from outside: a whole example of it, how it is read, and when another content may be
taken for what it says."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import savemat

from cardialign.data_shards.build.commit import content_fingerprint
from cardialign.data_shards.checks.verify import verify
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.reading.arrays import read_array
from cardialign.data_shards.reading.tables import read_table, rows_of
from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shard_set.layout import read_manifest, spec_of
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.cpsc2018 import _read_struct
from cardialign.data_shards.sources.shared.labels import read_labels
from cardialign.data_shards.text.bank import TextBank
from cardialign.pretrain.run.integrity import write_digests
from tests.support.exposed import SALT

Result = Any
Read = Callable[[Path], Result]


MACHINE = "name: box\nbf16_tflops: 100\nfp32_tflops: 10\nmemory_gib: 80\nrecords_per_second: 5\n"


@dataclass(frozen=True)
class Kind:
    """file: below the folder of its example, which is changed. read: what is made of it; raises what an input may
    cause. seal: writes the digests anew, as anybody can. legal(content, result): whether a result that differs from
    that of the whole file is what the changed one says; None: there is no such result."""

    name: str
    example: str
    file: str
    read: Read
    seal: Callable[[Path], object] | None = None
    legal: Callable[[bytes, Result], bool] | None = None


def digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode("utf-8", "backslashreplace"))
    return found.hexdigest()


# ---- shard sets


def reseal_set(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["tables"]:
        manifest["tables"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for shard in manifest["shards"]:
        content = (folder / shard["name"]).read_bytes()
        shard["sha256"], shard["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    manifest["fingerprint"] = content_fingerprint(spec_of(manifest), manifest["codec"], manifest["shards"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def whole_set(folder: Path) -> Result:
    opened = ShardSet.open(folder)
    columns = [opened.shard, opened.offset, opened.size, opened.crc32, opened.fold, opened.report, opened.patients]
    columns += [opened.age_years, opened.sex, opened.quality, opened.lead_mask_bits]
    records = [opened.read_record(row) for row in (0, len(opened) - 1)]
    told = [[each.counts, each.statements, each.labels, each.patient, each.extra, each.acquired] for each in records]
    flat = [part for each in told for part in each]
    return digest(*columns, *flat, opened.reports.to_pydict(), opened.select(folds=[1, 2, 3]).rows, opened.label_sets)


def manifest_of(folder: Path) -> Result:
    manifest = read_manifest(folder)
    whole_set(folder)
    return manifest


def same_json(content: bytes, result: Result) -> bool:
    """The reader says what plain JSON says: nothing is misread. (What must not be said is refused before.)"""
    return repr(json.loads(content)) == repr(result)


def verified_set(folder: Path) -> Result:
    report = verify(folder)
    assert report.ok or report.problems
    return report.ok


def finite_set(content: bytes, result: Result) -> bool:
    return isinstance(result, str | dict)


def bank_of(folder: Path) -> Result:
    bank = TextBank.open(folder)
    bank.check_contents()
    rows = np.arange(len(bank))
    tokens, lengths = bank.tokens(rows)
    return digest(bank.embedding(rows), bank.centred(rows), tokens, lengths, bank.statements)


# ---- signals and tables


def signal_of(folder: Path) -> Result:
    found = read_wfdb(folder / "r")
    return digest(found.counts, found.gain, found.sampling_rate, found.lead_names)


def plausible_signal(content: bytes, result: Result) -> bool:
    return isinstance(result, str)


def array_of(name: str) -> Read:
    def read(folder: Path) -> Result:
        found = read_array(folder / name)
        assert found.values.ndim == 2 and found.values.nbytes <= 1 << 26
        return digest(found.values, found.columns)

    return read


def struct_of(folder: Path) -> Result:
    data, age, sex = _read_struct(folder / "s.mat")
    assert data.nbytes <= 1 << 26
    return digest(data, age, sex)


def table_of(name: str) -> Read:
    def read(folder: Path) -> Result:
        whole = read_table(folder / name, ("record", "label_set", "label")).to_pylist()
        assert len(list(rows_of(folder / name, ("record",)))) == len(whole)
        return digest(whole)

    return read


def any_text(content: bytes, result: Result) -> bool:
    """A table is text: other text is another table. That as many rows come out is asserted where it is read."""
    return True


def labels_of(folder: Path) -> Result:
    return repr(read_labels(folder / "t.csv", "record"))


def write_signals(folder: Path) -> None:
    from tests.support.wfdb_files import ecg_counts, write_record

    counts = ecg_counts(250, rate=100.0)
    write_record(folder / "r", counts, rate="100", comments=("Age: 61", "Sex: F", "Dx: 426783006"))
    np.save(folder / "a.npy", counts.astype(np.float32))
    np.savez_compressed(folder / "a.npz", signal=counts, fs=np.array(500), leads=np.array(["I", "II"]))
    (folder / "a.csv").write_text("I,II,V1\n" + "".join(f"{k / 7:.4f},{k},-{k}\n" for k in range(120)))
    savemat(folder / "s.mat", {"ECG": {"data": counts / 200.0, "age": 61.0, "sex": "Female"}}, do_compression=True)
    table = "record,label_set,label\n" + "".join(f"r{k},scp,NORM\n" for k in range(40)) + 'r9,scp,"a, ""b"""\n'
    (folder / "t.csv").write_text(table)
    (folder / "t.csv.gz").write_bytes(gzip.compress(table.encode(), mtime=0))


# ---- recipes and other YAML


def recipe_of(folder: Path) -> Result:
    from cardialign.pretrain.config import load_config

    config = load_config(folder / "recipe.yaml")
    resolved = config.resolved()
    assert numbers_are_finite(resolved)
    return json.dumps(resolved, sort_keys=True, default=str)


def numbers_are_finite(values: Any) -> bool:
    if isinstance(values, dict | list | tuple):
        inner = values.values() if isinstance(values, dict) else values
        return all(map(numbers_are_finite, inner))
    return not isinstance(values, float) or math.isfinite(values)


def prompts_of(folder: Path) -> Result:
    from cardialign.pretrain.evaluation.prompts import load_prompts

    return repr(load_prompts(folder / "prompts.yaml"))


def study_of(folder: Path) -> Result:
    from cardialign.cluster.studies.design import load_design

    return repr(load_design(folder / "study.yaml"))


def policy_of(folder: Path) -> Result:
    from cardialign.cluster.registry.requirements import Policy

    return repr(Policy.of((), None, folder / "policy.yaml", {}))


def outside_of(folder: Path) -> Result:
    from cardialign.pretrain.export.outside.contract import read_contract

    return repr(read_contract(folder / "outside.yaml", "an encoder"))


def machine_of(folder: Path) -> Result:
    from cardialign.cluster.planning.question import machine_of as read

    return repr(read(str(folder / "machine.yaml")))


def tag_of(folder: Path) -> Result:
    from cardialign.cluster.registry.versioned import finite, json_object

    text = (folder / "tag.json").read_bytes().decode("utf-8", "replace")
    values = json_object(text)
    return repr((values, None if values is None else finite(values.get("macro"))))


def completed_of(folder: Path) -> Result:
    from cardialign.cluster.completion.prompt import features_of

    return repr(features_of((folder / "answer.json").read_bytes().decode("utf-8", "replace")))


def prompt_file_of(folder: Path) -> Result:
    from cardialign.pretrain.evaluation.label_files import read_prompt_file

    return repr(read_prompt_file(folder / "published.json", ("NORM", "MI"), "published"))


def write_texts(folder: Path) -> None:
    import cardialign.pretrain as pretrain

    home = Path(next(iter(pretrain.__path__)))
    (folder / "recipe.yaml").write_bytes((home / "recipes" / "cardialign-ptb-xl.yaml").read_bytes())
    (folder / "prompts.yaml").write_bytes((home / "prompts" / "ptb-xl-super-v2.yaml").read_bytes())
    studies = sorted((home / "studies").glob("*.yaml"))
    (folder / "study.yaml").write_bytes(studies[0].read_bytes())
    (folder / "policy.yaml").write_text("require: [zero-shot:clean-v2:ptb-xl-super]\nmargin: 0.01\n")
    (folder / "tag.json").write_text(json.dumps({"digest": "a" * 64, "name": "x", "macro": 0.5, "n": 3}))
    (folder / "answer.json").write_text(json.dumps(["Sinus rhythm", "ST elevation"]))
    (folder / "machine.yaml").write_text(MACHINE)
    (folder / "published.json").write_text(json.dumps({"NORM": "Normal ECG", "MI": "Myocardial infarction"}))
    from cardialign.pretrain.export.outside.contract import EXAMPLE

    (folder / "outside.yaml").write_text(EXAMPLE)


# ---- runs


def checkpoint_of(folder: Path) -> Result:
    from cardialign.pretrain.training.checkpoints.condition import newest_sound
    from cardialign.pretrain.training.checkpoints.files import list_checkpoints
    from cardialign.pretrain.training.checkpoints.state import TrainerState

    listed = list_checkpoints(folder)
    sound, _ = newest_sound(folder)
    if sound is None:
        return None
    state = TrainerState.read(sound.path)
    return repr((len(listed), state.step, state.config, state.loss, state.world_size, state.digest))


def reseal_checkpoint(folder: Path) -> None:
    from tests.support.checkpoints import resealed

    path = next((folder / "checkpoints").glob("step-*"))
    resealed(path, (path / "trainer_state.json").read_bytes())


def rng_of(folder: Path) -> Result:
    from cardialign.pretrain.run.tensors import load_state

    found = load_state(folder / "rng.pt")
    return repr({key: digest(value.numpy()) for key, value in found.items()}) if isinstance(found, dict) else "other"


def weights_of(folder: Path) -> Result:
    from cardialign.pretrain.run.tensors import load_numbers, load_tensors

    content = (folder / "w.safetensors").read_bytes()
    tensors, numbers = load_tensors(content), load_numbers(content)
    assert set(tensors) == set(numbers) and sum(each.nbytes for each in tensors.values()) <= len(content)
    return repr({key: digest(value.float().numpy()) for key, value in tensors.items()})


def run_of(folder: Path) -> Result:
    """What `status` and the tracking make of the files of a run."""
    from cardialign.cluster.runs.failure import read_failure
    from cardialign.cluster.tracking.spool import SpoolReader
    from cardialign.cluster.tracking.state import TrackingState
    from cardialign.cluster.watching.state import run_state
    from cardialign.pretrain.run import fence
    from cardialign.pretrain.run.trace import read_trace
    from cardialign.pretrain.training.checkpoints.state import stored_config

    failure = read_failure(folder)
    state = run_state(folder, now=1_800_000_000.0)
    json.dumps(state.to_dict())
    lines = SpoolReader(folder / "metrics.jsonl").read()
    trace = read_trace(folder)
    newest = fence.holder(folder)
    tracking, config = TrackingState.load(folder), stored_config(folder)
    return repr((str(failure), state.step, state.loss, len(lines), len(trace), newest, tracking, config))


def write_run(folder: Path) -> None:
    from cardialign.cluster.runs.failure import write_failure
    from cardialign.cluster.tracking.state import TrackingState
    from tests.support.checkpoints import write_checkpoint
    from tests.support.small_encoder import small_config

    config = small_config()
    write_checkpoint(folder, 3, config)
    (folder / "config.resolved.json").write_text(json.dumps(config.resolved(), default=str))
    lines = [json.dumps({"step": step, "loss": 5.0 / step, "records_per_second": 9.0}) for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "result.json").write_text(json.dumps({"step": 8, "loss": 0.6, "finished": True}))
    (folder / "attempt.json").write_text(json.dumps({"start": "a" * 8, "group": 1, "pid": 3, "host": "h"}))
    write_failure(folder, UserError("it failed", "do this"), 0)
    TrackingState("sqlite:///x.db", "e", "r", run_id="1" * 32).save(folder)
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng.pt")
    from safetensors.torch import save_file

    save_file(
        {"a": torch.arange(12.0).reshape(3, 4), "b.c": torch.ones(2, dtype=torch.float16)}, folder / "w.safetensors"
    )


def encoder_of(folder: Path) -> Result:
    from cardialign.pretrain.export.loaded import load_encoder

    encoder = load_encoder(folder)
    signal = np.sin(np.arange(12 * 200).reshape(12, 200) / 9).astype(np.float32)
    return digest(encoder.embed(signal, sampling_rate=100.0))


def reseal_export(folder: Path) -> None:
    (folder / "digests.json").unlink(missing_ok=True)
    write_digests(folder)


def embeds(content: bytes, result: Result) -> bool:
    """A sealed export is another encoder, which says its own numbers."""
    return isinstance(result, str)


def no_checkpoint(content: bytes, result: Result) -> bool:
    return result is None


def not_whole(content: bytes, result: Result) -> bool:
    return result is False


MANIFEST, STATE = "checkpoints/step-*/manifest.json", "checkpoints/step-*/trainer_state.json"
# ---- exposure certificates


def certificate_of(folder: Path) -> Result:
    from cardialign.pretrain.export.exposure.certificate import Certificate

    found = Certificate.read(folder)
    return found.root, digest(*found.lists.values())


def proof_of(folder: Path) -> Result:
    from cardialign.data_shards.files import read_json_object
    from cardialign.pretrain.export.exposure.proof import check

    try:
        values = read_json_object(folder / "proof.json")
    except (OSError, ValueError) as error:
        raise UserError(f"no proof: {error}", "ask again") from None
    return repr(check(values, (folder / "root").read_text(), Secret(SALT)))


def write_proof(folder: Path, export: Path) -> None:
    from cardialign.pretrain.export.exposure.certificate import Certificate
    from cardialign.pretrain.export.exposure.hashes import RECORD, Group
    from cardialign.pretrain.export.exposure.proof import prove

    certificate = Certificate.read(export)
    asked = [(Group(RECORD), name) for name in ("tiny-003", "tiny-059")]
    (folder / "proof.json").write_text(json.dumps(prove(certificate, asked, Secret(SALT))))
    (folder / "root").write_text(certificate.root)


KINDS = (
    Kind("set: manifest", "set", "manifest.json", manifest_of, legal=same_json),
    Kind("set: manifest, sealed", "set", "manifest.json", manifest_of, reseal_set, legal=finite_set),
    Kind("set: index", "set", "index.parquet", whole_set),
    Kind("set: index, sealed", "set", "index.parquet", whole_set, reseal_set, finite_set),
    Kind("set: reports, sealed", "set", "reports.parquet", whole_set, reseal_set, finite_set),
    Kind("set: shard", "set", "shard-000000.tar", verified_set, legal=not_whole),
    Kind("set: shard, sealed", "set", "shard-000000.tar", whole_set, reseal_set, finite_set),
    Kind("bank: description", "set", "text_bank/*/bank.json", bank_of, legal=finite_set),
    Kind("bank: embeddings", "set", "text_bank/*/embeddings.npy", bank_of),
    Kind("bank: tokens", "set", "text_bank/*/token_ids.npy", bank_of),
    Kind("WFDB: header", "signals", "r.hea", signal_of, legal=plausible_signal),
    Kind("WFDB: signal", "signals", "r.dat", signal_of, legal=plausible_signal),
    Kind("array: npy", "signals", "a.npy", array_of("a.npy"), legal=plausible_signal),
    Kind("array: npz", "signals", "a.npz", array_of("a.npz"), legal=plausible_signal),
    Kind("array: csv", "signals", "a.csv", array_of("a.csv"), legal=plausible_signal),
    Kind("array: mat", "signals", "s.mat", struct_of, legal=plausible_signal),
    Kind("table: csv", "signals", "t.csv", table_of("t.csv"), legal=any_text),
    Kind("table: csv.gz", "signals", "t.csv.gz", table_of("t.csv.gz"), legal=any_text),
    Kind("table: labels", "signals", "t.csv", labels_of, legal=any_text),
    Kind("recipe", "texts", "recipe.yaml", recipe_of, legal=any_text),
    Kind("prompts", "texts", "prompts.yaml", prompts_of, legal=any_text),
    Kind("prompts: published", "texts", "published.json", prompt_file_of, legal=any_text),
    Kind("study", "texts", "study.yaml", study_of, legal=any_text),
    Kind("policy", "texts", "policy.yaml", policy_of, legal=any_text),
    Kind("contract of others", "texts", "outside.yaml", outside_of, legal=any_text),
    Kind("answer of a language model", "texts", "answer.json", completed_of, legal=any_text),
    Kind("machine", "texts", "machine.yaml", machine_of, legal=any_text),
    Kind("registry: tag", "texts", "tag.json", tag_of, legal=any_text),
    Kind("checkpoint: manifest", "run", MANIFEST, checkpoint_of, legal=no_checkpoint),
    Kind("checkpoint: state", "run", STATE, checkpoint_of, legal=no_checkpoint),
    Kind(
        "checkpoint: state, sealed", "run", STATE, checkpoint_of, reseal_checkpoint,
        legal=any_text,
    ),
    Kind("checkpoint: random state", "run", "rng.pt", rng_of, legal=plausible_signal),
    Kind("checkpoint: weights", "run", "w.safetensors", weights_of, legal=plausible_signal),
    *(
        Kind(f"run: {name}", "run", name, run_of, legal=any_text)
        for name in ("failure.json", "attempt.json", "result.json", "tracking.json", "metrics.jsonl",
                     "config.resolved.json")
    ),
    *(
        Kind(f"export: {name}", "export", name, encoder_of)
        for name in ("digests.json", "config.json", "signal_contract.json", "provenance.json", "model.safetensors")
    ),
    *(
        Kind(f"export: {name}, sealed", "export", name, encoder_of, reseal_export, embeds)
        for name in ("config.json", "signal_contract.json", "provenance.json", "model.safetensors")
    ),
    *(
        Kind(f"export: {name}{word}", "export", name, certificate_of, seal)
        for name in ("exposure.json", "exposure.safetensors")
        for word, seal in (("", None), (", sealed", reseal_export))
    ),
    Kind("exposure proof", "proof", "proof.json", proof_of),
)  # fmt: skip
