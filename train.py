"""Train a x4 generator: PSNR-oriented, or against a discriminator that may be conditioned on semantics (SeD)."""

import argparse
import os
from functools import partial

from sed_sr.options.arguments import option_parser, options_from
from sed_sr.options.cli import run


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__, folders=("data_root", "data_test_root", "out_root"))
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="generator weights in any released format to start from, or a training state to go on with; "
        "`auto`: the newest state of this run that is whole, or a new start where there is none",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at everything that the run will need, down to every image and one step, and train nothing",
    )
    # Launchers set LOCAL_RANK; torch.distributed.launch passes this as well, spelled by its age.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    read_options = partial(options_from, arguments)
    if "RANK" not in os.environ:
        read_options()  # one process alone says what is wrong with them before seconds of imports
    from sed_sr.utils.train_run import run_training

    run_training(read_options, resume=arguments.resume, only_check=arguments.check, local_rank=arguments.local_rank)
    return 0


if __name__ == "__main__":
    run(main)
