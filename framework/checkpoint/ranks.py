"""Which of the processes of a run this one is, before they know of one another."""

from __future__ import annotations

import os

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment


def is_first() -> bool:
    """Return whether this process is rank zero, by what its launcher put into the environment.

    Lightning's own launcher, ``torchrun``, SLURM's ``srun``, and processes started by hand on several machines
    (``NODE_RANK``) are known. Only the first process may make or change a run's folder.
    """
    own = os.environ.get
    if own("TORCHELASTIC_RUN_ID") is not None and own("RANK") is not None:
        return int(own("RANK", "0")) == 0
    if SLURMEnvironment.detect():
        return int(own("SLURM_PROCID", "0")) == 0
    return int(own("NODE_RANK") or own("GROUP_RANK") or 0) == 0 and int(own("LOCAL_RANK") or 0) == 0
