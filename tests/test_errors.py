"""What an error says to the person at the keyboard."""

import errno

import numpy as np
import pytest
import torch

from solo_mim.errors import ConfigError, is_out_of_memory, out_of_memory


def _raised_by(call):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory: lower optimizer.batch_size"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
            "out of memory of the GPU (2.00 GiB more were needed): lower optimizer.batch_size",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory of the GPU: lower"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: lower"),
        (_raised_by(lambda: torch.empty(10**14)), "out of memory (400000000000000 bytes more"),
        (_raised_by(lambda: np.zeros(10**14)), "out of memory (728. TiB more were needed): lower"),
    ],
    ids=str,
)
def test_out_of_memory_is_told_from_other_errors(error, message):
    assert is_out_of_memory(error)
    assert out_of_memory(error).startswith(message)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Storage size calculation overflowed with sizes=[10000000000, 10000000000]"),
        OSError(errno.ENOSPC, "No space left on device"),
        ConfigError("data: a folder called out of memory"),
    ],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)
