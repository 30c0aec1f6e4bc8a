"""A rank of these tests starts an engine: the fork server imports what that needs once."""

from tests.support.processes import PRELOAD

PRELOAD += [
    name
    for name in (
        "torch._dynamo",
        "torch._inductor.compile_fx",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "cardialign.pretrain.training.loop",
    )
    if name not in PRELOAD
]
