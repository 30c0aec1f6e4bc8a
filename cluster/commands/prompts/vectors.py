"""`cardialign prompts vectors`: the vectors that stand for the classes of a prompt set, for scoring without a text
encoder.

The file is safetensors: `vectors` float32 (P, e), unit rows, and `first` int64 (C,), the row with which each class
begins. The score of a class is the largest product of an ECG's embedding with its rows, for most sets one a class:

    np.maximum.reduceat(embedding @ vectors.T, first, axis=1)

Its metadata say which encoder and which words: encoder, prompts, digest, label_set, combine; codes and names as JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from cardialign.cluster.cli.options import add_encoder, add_prompt_words, add_tracking_uri, file_to_write
from cardialign.cluster.cli.result_file import check_place, named_out
from cardialign.data_shards.errors import UsageError

if TYPE_CHECKING:
    from cardialign.pretrain.evaluation.prompts import PromptSet
    from cardialign.pretrain.evaluation.zero_shot import ClassWords
    from cardialign.pretrain.export.usable import UsableEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", help="name of a prompt set (`cardialign prompts list`), or a YAML file")
    add_encoder(parser)
    add_tracking_uri(parser)
    add_prompt_words(parser)
    parser.add_argument(
        "--out", type=file_to_write, required=True, metavar="FILE", help="the file to write (.safetensors)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    from safetensors.numpy import save

    from cardialign.cluster.registry.open_encoder import open_encoder
    from cardialign.data_shards.files import commit_file
    from cardialign.pretrain.evaluation.prompts import load_prompts, said

    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} does not end in .safetensors", "name the file so: it is that format")
    check_place(args.out)
    prompts = said(load_prompts(args.prompts), args.words)
    with open_encoder(args.encoder, args.tracking_uri, args.trust_remote_code) as encoder:
        words = _words(encoder, prompts)
        digest = encoder.digest
    first = np.arange(len(words.vectors)) if words.first is None else words.first
    facts = {
        "encoder": digest, "prompts": prompts.name, "digest": prompts.digest, "label_set": prompts.label_set,
        "combine": prompts.combine, "codes": json.dumps(prompts.codes),
        "names": json.dumps([each.name for each in prompts.classes]),
    }  # fmt: skip
    content = save({"vectors": words.vectors.astype(np.float32), "first": first.astype(np.int64)}, facts)
    with named_out(args.out):
        commit_file(args.out, lambda temporary: temporary.write_bytes(content))
    return {"path": str(args.out), "classes": len(first), "vectors": len(words.vectors), "encoder": digest}


def _words(encoder: UsableEncoder, prompts: PromptSet) -> ClassWords:
    from cardialign.pretrain.evaluation.zero_shot import class_words
    from cardialign.pretrain.methods.parts.scoring import COSINE

    if encoder.scorings[0] != COSINE:
        raise UsageError(
            f"encoder {encoder.digest[:24]} scores a text by {encoder.scorings[0]}, for which no vector can stand",
            "score its classes with `evaluate zero-shot`, or from Python with encoder.class_scores",
        )
    return class_words(encoder, prompts)
