#!/usr/bin/env bash
# Train every row of the paper's Table 1 one after the other, on all GPUs of this machine, score all of them on the five
# benchmarks, and write the table with the paper's scores beside ours. Needs the data and the Python environment of the
# README. The same command again continues where it was.
#
#     bash examples/reproduce_table1.sh --dry-run            # commands, hours and disk space; needs neither data nor weights
#     bash examples/reproduce_table1.sh --data_root /data/DF2K --data_test_root /data/Evaluation --out_root /runs
#     bash examples/reproduce_table1.sh --rows RRDB+P RRDB+P+SeD --set train.precision=bf16
#
# `--help` lists the arguments; what it does is in reproduce_table1.py.
exec python "$(dirname "${BASH_SOURCE[0]}")/reproduce_table1.py" "$@"
