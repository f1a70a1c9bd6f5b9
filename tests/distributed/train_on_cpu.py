"""`examples/train.py` under DeepSpeed on a machine without GPU: all that is added is `prepare_for_cpu`."""

import runpy
from pathlib import Path

from tests.distributed.worker import prepare_for_cpu


prepare_for_cpu()
runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train.py"), run_name="__main__")
