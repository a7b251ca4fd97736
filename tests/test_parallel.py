"""Two gloo processes agree with one: means, gathered gradients and broadcast objects."""

import forked

from equitools import parallel

PROGRAM = """
import torch
from equitools import parallel

assert parallel.broadcast_object({"from": parallel.rank()}) == {"from": 0}
rank, world = parallel.rank(), parallel.world_size()
assert world == 2
assert parallel.mean_across(torch.tensor(float(rank))) == 0.5
assert parallel.any_across(rank == 1) and not parallel.any_across(False)

# A loss over the gathered batch, averaged over processes, has the gradient of one process.
whole = torch.arange(8.0).reshape(4, 2)
mine = whole[2 * rank : 2 * rank + 2].clone().requires_grad_()
(parallel.gather(mine).prod(dim=0).sum() / world).backward()
alone = whole.clone().requires_grad_()
alone.prod(dim=0).sum().backward()
assert torch.allclose(mine.grad, alone.grad[2 * rank : 2 * rank + 2])
parallel.stop()
"""


def test_two_processes_agree_with_one():
    forked.programs(PROGRAM)


def test_on_one_process_everything_is_the_identity():
    assert parallel.world_size() == 1
    assert parallel.is_main()
    assert parallel.broadcast_object("x") == "x"
    assert parallel.any_across(True)
