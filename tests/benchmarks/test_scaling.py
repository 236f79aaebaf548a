"""What is predicted of several GPUs agrees with DistributedDataParallel, and with what can be said without a model."""

import pytest
import torch
from torch.distributed import _DEFAULT_FIRST_BUCKET_BYTES, _compute_bucket_assignment_by_size

from benchmarks.scaling import LINKS, bucket_bytes, not_hidden_s

TENSORS = [torch.empty(4096, device="meta")] * 1000  # 16 KiB each


@pytest.mark.parametrize("count", [10, 64, 65, 500, 1000])
def test_buckets_are_those_of_distributed_data_parallel(count):
    limits = [_DEFAULT_FIRST_BUCKET_BYTES, 25 * 2**20]  # bucket_cap_mb is 25
    buckets, _ = _compute_bucket_assignment_by_size(TENSORS[:count], limits)
    theirs = [sum(TENSORS[index].nbytes for index in bucket) for bucket in buckets]
    assert bucket_bytes(count * TENSORS[0].nbytes) == theirs


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_long_backward_pass_hides_all_but_the_last_bucket_and_none_hides_nothing(link):
    sizes = bucket_bytes(100 * 2**20)
    each_s = [link.all_reduce_s(size, 8) for size in sizes]
    assert not_hidden_s(sizes, backward_s=60.0, link=link, gpus=8) == pytest.approx(each_s[-1])
    assert not_hidden_s(sizes, backward_s=0.0, link=link, gpus=8) == pytest.approx(sum(each_s))
