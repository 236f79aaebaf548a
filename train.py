"""Train a generator: PSNR-oriented, or against a discriminator that may be conditioned on semantics (SeD)."""

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
        help="generator weights in any supported format to start from, or a training state to resume; "
        "`auto`: resume the newest intact state of this run, or start a new run if there is none",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check everything that the run needs, read every image, take one step, and write nothing but missing "
        "pretrained weights",
    )
    # Launchers set LOCAL_RANK; torch.distributed.launch also passes this argument, with `-` or `_` by its version.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    read_options = partial(options_from, arguments)
    if "RANK" not in os.environ:
        read_options()  # a single process reports mistakes in them before the imports, which take seconds
    from sed_sr.utils.train_run import run_training

    run_training(read_options, resume=arguments.resume, only_check=arguments.check, local_rank=arguments.local_rank)
    return 0


if __name__ == "__main__":
    run(main)
