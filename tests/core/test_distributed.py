"""Two gloo processes agree with one: means, gathered gradients and broadcast objects."""

import forked

from equitools.core import distributed

PROGRAM = """
import torch
from equitools.core import distributed

assert distributed.broadcast_object({"from": distributed.rank()}) == {"from": 0}
rank, world = distributed.rank(), distributed.world_size()
assert world == 2
assert distributed.mean_across(torch.tensor(float(rank))) == 0.5
assert distributed.any_across(rank == 1) and not distributed.any_across(False)

# A loss over the gathered batch, averaged over processes, has the gradient of one process.
whole = torch.arange(8.0).reshape(4, 2)
mine = whole[2 * rank : 2 * rank + 2].clone().requires_grad_()
(distributed.gather(mine).prod(dim=0).sum() / world).backward()
alone = whole.clone().requires_grad_()
alone.prod(dim=0).sum().backward()
assert torch.allclose(mine.grad, alone.grad[2 * rank : 2 * rank + 2])
distributed.stop()
"""


def test_two_processes_agree_with_one():
    forked.programs(PROGRAM)


def test_on_one_process_everything_is_the_identity():
    assert distributed.world_size() == 1
    assert distributed.is_main()
    assert distributed.broadcast_object("x") == "x"
    assert distributed.any_across(True)
