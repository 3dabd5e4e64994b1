"""What torchrun tells a process: which one it is of how many. Alone it is the first of one."""

import os

WORLD, RANK = int(os.environ.get("WORLD_SIZE") or 1), int(os.environ.get("RANK") or 0)  # schedulers leave them set to nothing
