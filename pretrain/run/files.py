"""The name of everything that a run directory holds. Who writes or reads one of them takes its name from here.

config.resolved.json   the configuration with every default filled in
metrics.jsonl          the loss trace, one line per step: the training loop's spool
metrics.jsonl.unreadable   the trace as it was found when lines of it could not be read
system.jsonl           the driver's spool: figures of the machines
evaluations.jsonl      one line per checkpoint that was looked at beside the training: the evaluation worker's spool
best/                  the encoder that is best by the criterion of `evaluation:`
best.json              which checkpoint that is, and by which figure
checkpoints/           committed checkpoints (`cardialign.pretrain.training.checkpoints.files`)
committed.json         the first checkpoint that was committed: a run without any that has it has lost them
quarantine.jsonl       records that could not be read, and from which step on they count as unreadable
bad_steps/STEP.json    a step whose numbers went bad: its records, rank by rank, and whether its update was left out
start/                 the registered encoder that a run starts from (`init_from: models:/...`)
start.json             name, version and digest of that encoder in the registry
initialised.json       what a run took from the weights that it started from, tensor by tensor
export/                the finished encoder
exposure.salt          the salt of the exposure certificates of this run's encoders: its owner's alone, never exported
result.json            figures of the finished (or stopped) run
page.html              the page of the run as it ended: what `cardialign runs page` writes, without records
memory.json            the most memory that a step held, rank by rank, as the newest start measured it
compute.json           FLOPs of a record and the peak of a device, where that is known: for MFU
tracking.json          MLflow store, run id and cursors
attempts.jsonl         one line per start of the worker group
starts.jsonl           one line per command that took the run: when, by whom, with which code, on which machine
deaths.jsonl           one line per worker group that died: when, and of what
decisions.jsonl        one line per decision about the run: to go on, with how many workers, or to end, and why
attempt.json           which start and worker group holds the run now (`cardialign.pretrain.run.fence`)
logs/START/rank-K.log  what each worker of a group wrote to stdout and stderr; logs/START/ray: Ray's own, when it failed
logs/START/rank-K.stacks   where each rank of a group stood that hung
workers/rank-K.json    process and host of each worker; rank-K.moved beside it is touched while its loop moves on
workers/group.json     the worker group that is being started: how many workers, and for how many there was room
survivors/             which ranks keep copies, and what they and the controller say when a worker has died
figures/rank-K.json    where the time of each rank went, renewed every few seconds (`cardialign.pretrain.run.figures`)
ray/                   what Ray Train notes of a start; nothing reads it again
failure.json           an error that repeating cannot cure, from whichever rank met it first
driver.lock            held by the driver while it lives: its process and host (`cardialign.pretrain.run.lock`)
STOP                   somebody asked for a stop at a committed checkpoint
RESIZE                 the worker group shall stop at one for a larger group; then the step where it has
earlier/N/             a run that `--start-over` moved aside
started-over.json      when that was: a command that is repeated then goes on instead of starting over again
"""

from __future__ import annotations

CONFIG = "config.resolved.json"
METRICS, SYSTEM, EVALUATIONS = "metrics.jsonl", "system.jsonl", "evaluations.jsonl"
BEST, BEST_NOTE, BAD_STEPS = "best", "best.json", "bad_steps"
CHECKPOINTS, FIRST_COMMIT, QUARANTINE, EXPORT = "checkpoints", "committed.json", "quarantine.jsonl", "export"
RESULT, TRACKING, ATTEMPTS, WORKERS = "result.json", "tracking.json", "attempts.jsonl", "workers"
MEMORY, COMPUTE, DEATHS, DECISIONS = "memory.json", "compute.json", "deaths.jsonl", "decisions.jsonl"
STARTS, PAGE = "starts.jsonl", "page.html"
ATTEMPT, LOGS, RAY, FIGURES = "attempt.json", "logs", "ray", "figures"
SURVIVORS = "survivors"
START, START_NOTE, INITIALISED = "start", "start.json", "initialised.json"
EXPOSURE_SALT = "exposure.salt"
FAILURE, LOCK, STOP, RESIZE = "failure.json", "driver.lock", "STOP", "RESIZE"
NEXT_GROUP = "group.json"
EARLIER, STARTED_OVER = "earlier", "started-over.json"
