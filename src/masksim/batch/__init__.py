"""Many images to a file of rows."""

from masksim.batch.ray import score_dataset
from masksim.batch.rows import analyse, flat_columns, flatten
from masksim.batch.run import run_batch

__all__ = ["analyse", "flat_columns", "flatten", "run_batch", "score_dataset"]
