"""The ECG encoder as an ONNX file in its export, `encoder.onnx`: for onnxruntime, in whatever language.

    session = onnxruntime.InferenceSession("encoder.onnx")
    embedding, = session.run(None, {"signal": ..., "lead_mask": ..., "valid_samples": ...})

It takes what `encoder.pt2` takes, of any batch, is traced from the same module and refuses the same: a row that is no
ECG in mV comes back as NaN. It holds a graph of operators of the standard and weights, no code and no word of the
machine that wrote it. It is added to an export that is whole, and held to the ten ECGs of that export at once.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cardialign.data_shards.errors import UserError
from cardialign.data_shards.extras import needed_by
from cardialign.data_shards.files import parse_json, read_bytes
from cardialign.data_shards.shown import shown
from cardialign.pretrain.encoders.base import EcgEncoder
from cardialign.pretrain.export.doors.check import ONNX_DOOR, check_door
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.export.model_card import model_card
from cardialign.pretrain.export.program import example_of, program_of
from cardialign.pretrain.run.integrity import (
    CARD,
    CONTRACT,
    DIGESTS,
    ONNX,
    PROGRAM,
    PROVENANCE,
    SETTINGS,
    read_parts,
    write_digests,
)

log = logging.getLogger(__name__)

INSTEAD = "export it without --onnx; encoder.pt2 and the safetensors hold the same encoder"


def check_onnx() -> None:
    """Raises MissingPackageError where the packages are not installed that write and run the file."""
    with needed_by("encoder.onnx", "onnx"):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            importlib.import_module(name)


def add_onnx(folder: Path) -> None:
    """Write `encoder.onnx` into an export that nobody reads yet, name it in its card and its digests, and run it on the
    ten ECGs.

    Raises MissingPackageError, and UserError for an encoder that ONNX cannot hold or whose file gives other numbers.
    """
    check_onnx()
    encoder = load_encoder(folder).ecg
    save_onnx(encoder, folder / ONNX)
    parts = read_parts(folder, (SETTINGS, CONTRACT, PROVENANCE))
    config, contract, provenance = (parts.json(name) for name in (SETTINGS, CONTRACT, PROVENANCE))
    card = model_card(config, contract, provenance, program=PROGRAM in parts.listed, onnx=True)
    (folder / CARD).write_text(card, encoding="utf-8")
    created = parse_json(read_bytes(folder / DIGESTS)).get("created")
    (folder / DIGESTS).unlink()
    write_digests(folder, created)
    door = check_door(folder, ONNX_DOOR)
    if door.wrong or door.closed:
        raise UserError(f"{ONNX} of encoder {encoder.word!r} {door.wrong or door.closed}", INSTEAD)
    log.info("onnx=%s bytes=%d difference=%.1e", folder / ONNX, (folder / ONNX).stat().st_size, door.difference)


def save_onnx(encoder: EcgEncoder, path: Path) -> None:
    """Trace the encoder on the CPU with a dynamic batch and write it to `path`. Raises UserError where it cannot be."""
    example, dynamic = example_of(encoder)
    try:
        with torch.no_grad(), _quietly():
            made = torch.onnx.export(
                program_of(encoder.without_fft()),
                tuple(example.values()),
                input_names=list(example),
                output_names=["embedding"],
                dynamic_shapes=dynamic,
                dynamo=True,
                verbose=False,
            )
            assert made is not None
            _forget_places(made.model)
            made.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:  # whatever torch and onnxscript say of an operator that ONNX has not
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise UserError(
            f"encoder {encoder.word!r} cannot be written as ONNX: {shown((lines or [type(error).__name__])[0])[:300]}",
            INSTEAD,
        ) from error


def _forget_places(model: Any) -> None:
    """The file says neither where on the machine that wrote it the code lay, nor which line of it made an operator."""
    model.metadata_props.clear()
    graphs = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph.all_nodes() if hasattr(graph, "all_nodes") else graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in graph.inputs:
            value.metadata_props.clear()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """In this block the tracer neither warns nor reports of its steps."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
