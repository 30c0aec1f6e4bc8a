"""Ranks of these tests start engines: let the fork server import what an engine needs once, not every rank."""

from tests.support.processes import PRELOAD

PRELOAD += [
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "cardialign.pretrain.training.loop",
]
