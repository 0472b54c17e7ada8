"""Functions that tests run on every rank of a job."""

from mt.core.config import UserError
from mt.eval.results import map_over_ranks
from mt.train.parallel.mesh import ParallelConfig, launch


def squares_of_ranks(bad):
    """(the squares of 0 to 6, or the message of an error; the blocks that this rank worked on).

    bad: a number whose square is a user's mistake.
    """
    with launch(ParallelConfig()) as mesh:
        blocks = []

        def work(block):
            blocks.append(block)
            if bad in block:
                raise UserError(f"{bad} is bad")
            return [item**2 for item in block]

        try:
            return list(map_over_ranks(mesh, range(7), work, 2)), blocks
        except UserError as error:
            return str(error), blocks
