"""Many images to a file of rows."""

from masksim.batch.run import analyse, flat_columns, flatten, run_batch, score_dataset

__all__ = ["analyse", "flat_columns", "flatten", "run_batch", "score_dataset"]
