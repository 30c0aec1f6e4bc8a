"""`cardialign text stub`: a rule-based stand-in for a language model, for work without one; not a language model."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from cardialign.cluster.cli.options import LOCAL, whole_number
from cardialign.cluster.commands.text.complete import share
from cardialign.data_shards.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=whole_number(0, 65535), default=8766, metavar="N", help="on 127.0.0.1; 0: any (default 8766)"
    )
    parser.add_argument(
        "--made-up", type=share, default=0.0, metavar="P", help="chance of a feature that no rule gives (default 0)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.cluster.cli.streams import say
    from cardialign.cluster.completion.stub import MODEL, StubServer

    try:
        server = StubServer(LOCAL, args.port, args.made_up)
    except OSError as error:
        raise UserError(
            f"port {args.port} cannot be used: {error.strerror or error}", "name another with --port"
        ) from None
    with server, contextlib.suppress(KeyboardInterrupt):
        say([f"rules, no language model: --endpoint {server.address} --model {MODEL}; Ctrl-C ends it"])
        server.serve_forever()
    return {"answered": server.answered}
