"""What `ray start --resources` is given on a machine that is to train: one unit for each core.

ray start --address HEAD:6379 --resources "$(ml-trainer resources)"
"""

from __future__ import annotations

import argparse
import json

from ml_trainer_env.server import trainer
from ml_trainer_env.server.runtime.cores import available
from ml_trainer_env.server.runtime.ray.nodes import label


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, help="that it gives at most; left out: all")
    options = parser.parse_args()
    trainer.configure_process()
    print(json.dumps({label(trainer.engine("fp32")): available(options.cores)}))


if __name__ == "__main__":
    main()
