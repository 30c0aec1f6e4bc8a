"""`cardialign exposure prove`: was a record, a patient or a test set in the training of an exported encoder?

Answered from the export alone, without a network. Names that are asked for need the salt of its certificate; a shard
set can also be asked for without it, by the contamination ledger.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import add_folds, add_split, json_to_write, place
from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.files import read_text, write_json
from cardialign.data_shards.secret import Secret
from cardialign.data_shards.shown import shown

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.overlap import Overlap
    from cardialign.pretrain.export.exposure.certificate import Certificate
    from cardialign.pretrain.export.exposure.hashes import Group

LARGEST_LIST = 1 << 30
"""Bytes of a list of names."""
EXAMPLES = 20
Asked = list[tuple["Group", Sequence[str]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=place, help="folder of an exported encoder")
    parser.add_argument("names", nargs="*", metavar="RECORD", help="keys of records, as a shard set has them")
    parser.add_argument("--records", type=place, metavar="FILE", help="a key of a record on each line")
    parser.add_argument("--patients", type=place, metavar="FILE", help="a patient's id on each line, as the source has")
    parser.add_argument("--source", help="whose patients these are, where the encoder was trained on several sources")
    parser.add_argument(
        "--patient-salt-file", type=place, metavar="FILE", help="the salt that the shard set was built with, if any"
    )
    parser.add_argument("--shards", type=place, metavar="SHARDS", help="all records and patients of this shard set")
    add_folds(parser, "of --shards, only these folds")
    add_split(parser, "of --shards, only this part")
    parser.add_argument("--salt-file", type=place, metavar="FILE", help="the certificate's salt: RUN_DIR/exposure.salt")
    parser.add_argument(
        "--out", type=json_to_write, metavar="FILE", help="a proof of each answer, for `cardialign exposure check`"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.pretrain.export.exposure.certificate import Certificate
    from cardialign.pretrain.export.exposure.proof import prove

    if args.shards is None and (args.folds or args.split):
        raise UsageError("--folds and --split say which part of --shards", "give --shards")
    certificate = Certificate.read(args.export)
    result = _about(certificate)
    opened, rows = _part(args)
    if opened is not None:
        result["ledger"] = _ledger(args.export, opened, rows).to_dict()
    asked = list(_asked(args, certificate, opened, rows))
    given = None if args.salt_file is None else Secret.of_file(args.salt_file, "--salt-file")
    if asked and not (opened is not None and given is None and certificate.facts["salt"] is None and _only_set(args)):
        salt = certificate.salt(given)
        result |= _answers(certificate, asked, salt)
        if args.out is not None:
            single = ((group, name) for group, names in asked for name in names)
            write_json(args.out, prove(certificate, single, salt))
            result["proof"] = str(args.out)
    elif args.out is not None:
        raise UsageError("--out has nothing to prove", "name records or patients, with --salt-file")
    return result


def _only_set(args: argparse.Namespace) -> bool:
    """Whether the ledger alone can answer."""
    return not args.names and args.records is None and args.patients is None and args.out is None


def _about(certificate: Certificate) -> dict[str, Any]:
    facts = certificate.facts
    return {
        "root": certificate.root,
        "records_are": facts["records_are"],
        "records": facts["lists"]["record"]["rows"],
        "patients": facts["lists"]["patient"]["rows"],
        "sets": facts["sets"],
        "unknown": facts["unknown"],
    }


def _part(args: argparse.Namespace) -> tuple[ShardSet | None, Any]:
    if args.shards is None:
        return None, None
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    opened = ShardSet.open(args.shards)
    return opened, opened.select(folds=args.folds, split=args.split).rows


def _ledger(export: Path, opened: ShardSet, rows: Any) -> Overlap:
    """What an evaluation would say beside its figures."""
    from cardialign.pretrain.evaluation.overlap import overlap_of
    from cardialign.pretrain.export.trained_on import TrainedOn
    from cardialign.pretrain.run.integrity import PROVENANCE, TRAINED_ON, listed_names, read_parts

    parts = read_parts(export, [name for name in (PROVENANCE, TRAINED_ON) if name in listed_names(export)])
    known = TrainedOn.read(parts) or TrainedOn(unknown=("the export does not say what it was trained on",))
    return overlap_of(known, opened, rows)


def _asked(
    args: argparse.Namespace, certificate: Certificate, opened: ShardSet | None, rows: Any
) -> Iterator[tuple[Group, Sequence[str]]]:
    """Names that were asked for, each group of them by itself."""
    from cardialign.pretrain.export.exposure.certificate import patient_salt_check
    from cardialign.pretrain.export.exposure.hashes import PATIENT, RECORD, Group

    records = [*args.names, *_lines(args.records, "--records")]
    if opened is not None:
        records += opened.index.column("key").take(rows).to_pylist()
        name = str(opened.manifest["source"].get("name"))
        group = Group(PATIENT, name, patient_salt_check(opened.manifest))
        if group in certificate.patient_groups():
            yield group, [each for each in opened.index.column("patient").take(rows).unique().to_pylist() if each]
    if records:
        yield Group(RECORD), records
    if args.patients is not None:
        yield _hashed(args, certificate)


def _hashed(args: argparse.Namespace, certificate: Certificate) -> tuple[Group, list[str]]:
    """Patients as the set that was trained on has them. Raises UsageError where it is not known how that is."""
    from cardialign.data_shards.sources.shared.patients import patient_hash, salt_check

    file = args.patient_salt_file
    salt = Secret("") if file is None else Secret.of_file(file, "--patient-salt-file")
    told = salt_check(salt)
    groups = certificate.patient_groups(args.source)
    fitting = [group for group in groups if group.salt_check == told]
    if len(fitting) != 1:
        known = ", ".join(f"{each.source} ({'salted' if each.salt_check else 'without a salt'})" for each in groups)
        raise UsageError(
            f"patients cannot be asked for: it was trained on those of {shown(known) or 'no source of this name'}, and "
            f"{len(fitting)} of these fit {'no salt' if file is None else 'the salt'}",
            "name the one with --source, and give the salt that its shard set was built with: --patient-salt-file",
        )
    return fitting[0], [patient_hash(name, salt) for name in _lines(args.patients, "--patients")]


def _lines(file: Path | None, option: str) -> list[str]:
    if file is None:
        return []
    try:
        text = read_text(file, LARGEST_LIST)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {file} cannot be read: {error}", "name a text file in UTF-8") from None
    return [line for each in text.splitlines() if (line := each.strip())]


def _answers(certificate: Certificate, asked: Asked, salt: Secret) -> dict[str, Any]:
    """Of each kind how many names are in the certificate, and the first of them."""
    counts: dict[str, dict[str, int]] = {}
    found: list[str] = []
    absent = "not_in_training" if certificate.complete else "unknown"
    for group, names in asked:
        places = certificate.find(names, group, salt)
        there = (places >= 0).nonzero()[0]
        told = counts.setdefault(f"{group.kind}s", {"asked": 0, "in_training": 0, absent: 0})
        told["asked"] += len(names)
        told["in_training"] += len(there)
        told[absent] += len(names) - len(there)
        found += [f"{group.kind} {names[at]}" for at in there[: EXAMPLES - len(found)].tolist()]
    return {"answers": counts, "found": found}


def summary(result: dict[str, Any]) -> list[str]:
    lines = aligned({key: result[key] for key in ("root", "records_are", "records", "patients")})
    for kind, counts in result.get("answers", {}).items():
        lines.append(f"{kind}: " + ", ".join(f"{word.replace('_', ' ')} {count}" for word, count in counts.items()))
    lines += [f"  - {shown(name)}" for name in result.get("found", [])]
    if "ledger" in result:
        lines.append(f"ledger: {result['ledger']['note']}")
    lines += [f"may be more: {shown(why)}" for why in result["unknown"]]
    return lines + ([f"proof {result['proof']}"] if "proof" in result else [])
