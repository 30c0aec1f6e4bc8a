"""`cardialign checkpoints prune`: old checkpoints of a run that nobody drives go; one that is sound always stays."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from cardialign.cluster.cli.options import existing_folder, place, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=place, help="folder of the run")
    parser.add_argument(
        "--keep", type=whole_number(1, 10**6), metavar="N",
        help="the newest that stay (default: training.keep_checkpoints of the run)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from cardialign.data_shards.errors import UserError
    from cardialign.pretrain.config.training import TrainingConfig
    from cardialign.pretrain.run import files
    from cardialign.pretrain.run.layout import write_error
    from cardialign.pretrain.run.lock import locked_run
    from cardialign.pretrain.training.checkpoints.files import committed, list_checkpoints, remove
    from cardialign.pretrain.training.checkpoints.retention import fates, not_ours, prune, unfinished
    from cardialign.pretrain.training.checkpoints.state import stored_config

    existing_folder(args.run_dir, "run directory", "give the --run-dir of `cardialign pretrain`")
    if not any((args.run_dir / name).is_file() for name in (files.CONFIG, files.FIRST_COMMIT, files.METRICS)):
        raise UserError(
            f"{args.run_dir} is no run: it has neither {files.CONFIG} nor {files.FIRST_COMMIT} nor {files.METRICS}",
            "nothing is deleted there; give the --run-dir of `cardialign pretrain`",
        )
    keep = args.keep
    if keep is None:
        config = stored_config(args.run_dir)
        keep = TrainingConfig.model_fields["keep_checkpoints"].default if config is None else (
            config.training.keep_checkpoints
        )  # fmt: skip
    size = {one.path: one.bytes for one in list_checkpoints(args.run_dir)}
    way_out = "the run prunes by itself (training.keep_checkpoints): wait for it, or stop it with SIGTERM"
    with nullcontext() if args.dry_run else locked_run(args.run_dir, way_out):
        try:
            found = fates(args.run_dir, keep)
            left = [
                {"path": str(path), "why": why}
                for step, path in committed(args.run_dir)
                if (why := not_ours(step, path)) is not None
            ]
            if not args.dry_run:
                for path in unfinished(args.run_dir):
                    remove(path)
                prune(args.run_dir, keep)
        except UserError:
            raise
        except OSError as error:
            raise write_error(args.run_dir, error) from None
    rows = [
        {"step": each.step, "path": str(each.path), "bytes": size.get(each.path, 0), "stays": each.stays,
         "why": each.why}
        for each in found
    ]  # fmt: skip
    freed = sum(size.get(each.path, 0) for each in found if not each.stays)
    return {"run_dir": str(args.run_dir), "keep": keep, "dry_run": args.dry_run, "freed_bytes": freed,
            "checkpoints": rows, "left_alone": left}  # fmt: skip


def summary(result: dict[str, Any]) -> list[str]:
    gone = "would be deleted" if result["dry_run"] else "deleted"
    rows = [
        f"step {row['step']:>8}  {row['bytes'] / 2**20:8.1f} MiB  "
        + (f"stays ({row['why']})" if row["stays"] else gone)
        for row in result["checkpoints"]
    ]
    rows.append(f"{result['freed_bytes'] / 2**20:.1f} MiB {'would be freed' if result['dry_run'] else 'freed'}")
    rows = rows if result["checkpoints"] else ["no committed checkpoint"]
    return rows + [f"left alone: {each['path']}: {each['why']}" for each in result["left_alone"]]
