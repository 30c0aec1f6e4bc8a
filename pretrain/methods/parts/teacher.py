"""Teachers: copies of what trains that follow it slowly and learn nothing themselves.

teacher <- m teacher + (1 - m) student, after every update
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def teacher_of(module: nn.Module) -> nn.Module:
    """The module with buffers in place of its parameters: ZeRO neither trains them nor cuts them up, checkpoints carry
    them, and they start where the module stands.
    """
    teacher = copy.deepcopy(module)
    for child in teacher.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach().clone())
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: Mapping[str, Tensor], momentum: float) -> None:
    """Move the teacher towards the student's updated parameters, by name; other buffers stay."""
    own = dict(teacher.named_buffers())
    for name, parameter in student.items():
        own[name].lerp_(parameter.to(own[name]), 1.0 - momentum)


def rising(momentum: float, step: int, steps: int | None, last: float = 1.0) -> float:
    """The momentum at a step (0-based): last - (last - momentum) (cos(pi step / steps) + 1) / 2.

    From `steps` on it is `last`. steps None: it stays. Source: BYOL (Grill et al. 2020).
    """
    if steps is None:
        return momentum
    return last - (last - momentum) * (math.cos(math.pi * min(1.0, step / steps)) + 1.0) / 2.0
