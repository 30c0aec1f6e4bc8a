"""`cardialign embed`: one ECG through an exported or registered encoder, as a consumer would.

A WFDB record is read from its header: leads by name, units by gain, its own sampling rate. What does not fit the
encoder's signal contract is refused with the option that would allow it. Nothing is resampled, cropped or masked in
silence.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import add_encoder, add_tracking_uri, amount, array_to_write, place
from cardialign.data_shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from cardialign.cluster.registry.read_signal import Signal
    from cardialign.pretrain.export.usable import UsableEncoder

UNITS = ("mV", "uV")
ALLOWANCES = ("resample", "crop", "allow_missing_leads", "derive_limb_leads")
"""Options that are arguments of `UsableEncoder.embed` of the same name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ecg", nargs="?", type=place, help="WFDB record without suffix, or .npy in mV (leads x samples)"
    )
    parser.add_argument("--shards", type=place, help="take the record from a shard set instead, with --key")
    parser.add_argument("--key", help="record of the shard set")
    add_encoder(parser)
    parser.add_argument("--leads", help="lead names of a .npy file, comma-separated (default: the standard 12)")
    parser.add_argument(
        "--sampling-rate", type=amount, metavar="HZ", help="of a .npy file; a WFDB record says so itself"
    )
    parser.add_argument("--units", choices=UNITS, help="of a .npy file (default mV); others say so themselves")
    parser.add_argument(
        "--age",
        type=float,
        metavar="YEARS",
        help="of the patient, for an encoder that reads it; a shard, or a WFDB header, may say so itself",
    )
    parser.add_argument("--resample", action="store_true", help="allow another sampling rate than the encoder's")
    parser.add_argument("--crop", action="store_true", help="allow longer records: the first seconds are used")
    parser.add_argument("--allow-missing-leads", action="store_true", help="mask leads that are not there")
    parser.add_argument("--derive-limb-leads", action="store_true", help="compute III, aVR, aVL, aVF from I and II")
    parser.add_argument("--out", type=array_to_write, help="write the embedding there (.npy, float32)")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.cluster.registry.read_signal import read_signal

    if (args.ecg is None) == (args.key is None) or (args.key is not None and args.shards is None):
        raise UsageError("name one ECG", "give a WFDB record or .npy file, or --shards FOLDER --key KEY")
    signal = read_signal(
        args.ecg,
        shards=args.shards,
        key=args.key,
        leads=args.leads,
        sampling_rate=args.sampling_rate,
        units=args.units,
        age=args.age,
    )
    with open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder:
        age = args.age if args.age is not None or not encoder.reads_age else signal.age
        result = _embedded(encoder, signal, {name: getattr(args, name) for name in ALLOWANCES} | {"age": age})
    if args.out is not None:
        import numpy as np

        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("wb") as file:  # by its name alone, numpy would give it a suffix
                np.save(file, np.asarray(result["embedding"], dtype=np.float32))
        except OSError as error:
            raise UserError(
                f"--out {args.out} cannot be written: {error.strerror or error}", "name another file, or free space"
            ) from None
        result["out"] = str(args.out)
    return result


_OPTIONS = {
    'units="uV"': "--units uV",
    "leads=[...]": "--leads",
    "leave age out": "leave --age out",
    "hide the lead with lead_mask": "take the lead out of the file, and name the others with --leads and "
    "--allow-missing-leads",
}
"""What remedies of the library call what is an option here."""


def _embedded(encoder: UsableEncoder, signal: Signal, allowed: dict[str, Any]) -> dict[str, Any]:
    """The embedding of one ECG and what it was made with."""
    import numpy as np

    masks: dict[str, Any] = {}
    if signal.lead_mask is not None:
        masks["lead_mask"] = signal.lead_mask[None]
    if signal.valid_samples is not None:
        masks["valid_samples"] = np.array([signal.valid_samples])
    try:
        embedding = encoder.embed(
            signal.millivolts[None], sampling_rate=signal.sampling_rate, leads=signal.leads, **masks, **allowed
        )[0]
    except UserError as error:  # the library names its arguments; here they are options
        remedy = re.sub(r"\b([a-z_]+)=True\b", lambda match: "--" + match[1].replace("_", "-"), error.remedy)
        for argument, option in _OPTIONS.items():
            remedy = remedy.replace(argument, option)
        raise UserError(f"{signal.origin}: {error.problem}", remedy) from None
    return {
        "ecg": signal.origin,
        "leads": list(signal.leads),
        "sampling_rate": signal.sampling_rate,
        **({} if allowed["age"] is None else {"age": allowed["age"]}),
        **({"remarks": list(signal.remarks)} if signal.remarks else {}),
        "encoder": encoder.digest,
        "dimensions": len(embedding),
        "embedding": [float(value) for value in embedding],
    }


def summary(result: dict[str, Any]) -> list[str]:
    return aligned({**result, "embedding": [*result["embedding"][:4], f"... {result['dimensions']} numbers"]})
