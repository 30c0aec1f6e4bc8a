"""`cardialign embed`: one ECG through an exported or registered encoder, as a consumer would.

A WFDB record is read from its header: leads by name, units by gain, its own sampling rate. What does not fit the encoder's signal contract is refused
with the option that would allow it; nothing is resampled, cropped or masked in silence.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.lines import aligned
from cardialign.cluster.cli.options import add_tracking_uri
from cardialign.data_shards.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ecg", nargs="?", type=Path, help="WFDB record without suffix, or .npy in mV (leads x samples)")
    parser.add_argument("--shards", type=Path, help="take the record from a shard set instead, with --key")
    parser.add_argument("--key", help="record of the shard set")
    parser.add_argument("--encoder", required=True, help="exported folder, or models:/NAME@ALIAS")
    parser.add_argument("--leads", help="lead names of a .npy file, comma-separated (default: the standard 12)")
    parser.add_argument(
        "--sampling-rate", type=float, metavar="HZ", help="of a .npy file; a WFDB record says so itself"
    )
    parser.add_argument("--resample", action="store_true", help="allow another sampling rate than the encoder's")
    parser.add_argument("--crop", action="store_true", help="allow longer records: the first seconds are used")
    parser.add_argument("--allow-missing-leads", action="store_true", help="mask leads that are not there")
    parser.add_argument("--derive-limb-leads", action="store_true", help="compute III, aVR, aVL, aVF from I and II")
    parser.add_argument("--out", type=Path, help="write the embedding there (.npy, float32)")
    add_tracking_uri(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.registry.open_encoder import embed_signal, open_encoder, read_signal

    if (args.ecg is None) == (args.key is None) or (args.key is not None and args.shards is None):
        raise UsageError("name one ECG", "give a WFDB record or .npy file, or --shards FOLDER --key KEY")
    signal = read_signal(args.ecg, shards=args.shards, key=args.key, leads=args.leads, sampling_rate=args.sampling_rate)
    allowed = {name: getattr(args, name) for name in ("resample", "crop", "allow_missing_leads", "derive_limb_leads")}
    with open_encoder(args.encoder, args.tracking_uri) as encoder:
        result = embed_signal(encoder, signal, allowed)
    if args.out is not None:
        import numpy as np

        args.out.parent.mkdir(parents=True, exist_ok=True)
        np.save(args.out, np.asarray(result["embedding"], dtype=np.float32))
        result["out"] = str(args.out)
    return result


def summary(result: dict[str, Any]) -> list[str]:
    return aligned({**result, "embedding": [*result["embedding"][:4], f"... {result['dimensions']} numbers"]})
