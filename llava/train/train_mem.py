"""LLaVA's other name for `train.py`."""

from torch.distributed.elastic.multiprocessing.errors import record

from llava.errors import run_command
from llava.train.train import main

if __name__ == "__main__":
    run_command(record(main))
