"""Batches from any point of a run on, prepared in the background.

The data cursor is one integer: how many samples the run has consumed so far. With ``drop_remainder`` a pass
over the data consumes as many as make full batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from runformer.data.batch import TokenBatch
from runformer.data.dataset import TokenDataset
from runformer.data.order import Order, SampleOrder
from runformer.errors import DataError

_PREFETCHED = 4  # batches; tokens are small, and reading one is far faster than a training step


class BatchLoader:
    """The batches of a run: the samples of every pass over the data in order, ``batch_size`` at a time.

    Args:
        dataset: where samples come from.
        order: the order of each pass, over as many samples as the dataset has.
        batch_size: rows of a batch.
        drop_remainder: leave out the last batch of a pass where it is not full.
        num_samples: of each pass only so many are used; None: all.
        repeat: passes over the dataset in an epoch.
        rank: which of several processes this is; of each batch it gets rows ``rank``, ``rank + world_size``, ….
        world_size: how many processes share each batch.
        pin: whether batches are made ready for an accelerator to copy.

    Raises:
        DataError: there are not enough samples for one batch.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        order: SampleOrder,
        batch_size: int,
        drop_remainder: bool,
        *,
        num_samples: int | None = None,
        repeat: int = 1,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ) -> None:
        self._pin = pin
        self._share = slice(rank, None, world_size)
        self._dataset = dataset
        self._order = order
        self._drop_remainder = drop_remainder
        self.batch_size = batch_size
        self.sequence_length = dataset.sequence_length
        self.num_samples = samples = order.num_samples if num_samples is None else num_samples
        self.samples_per_pass = self.samples_of_pass(batch_size)
        self.steps_per_pass = -(-self.samples_per_pass // batch_size)
        self.samples_per_epoch, self.steps_per_epoch = repeat * self.samples_per_pass, repeat * self.steps_per_pass
        if self.steps_per_pass == 0:
            message = f"{dataset.name} holds {samples} samples, fewer than the {batch_size} of one batch"
            owner = "runner_config" if dataset.section == "train_dataset" else dataset.section
            hint = f"lower {owner}.batch_size, use more data, or set {dataset.section}.drop_remainder to False"
            raise DataError(message, hint=hint)

    def samples_of_pass(self, batch_size: int) -> int:
        """How many samples of a pass batches of a size have."""
        return self.num_samples - (self.num_samples % batch_size if self._drop_remainder else 0)

    def batch_samples(self, cursor: int) -> int:
        """How many samples, over all processes, the batch at this cursor has."""
        return min(self.batch_size, self.samples_per_pass - cursor % self.samples_per_pass)

    def batches(self, start_sample: int = 0) -> BatchStream:
        """All batches from the cursor ``start_sample`` on, epoch after epoch without end."""
        return BatchStream(self._rows, self._sample_runs(start_sample))

    def _rows(self, samples: Order) -> TokenBatch:
        """This process's rows of a batch; where there are none for it, one row in which nothing counts."""
        share = samples[self._share]
        batch = self._dataset.rows(share) if len(share) else self._dataset.rows(samples[:1]).without_labels()
        return batch.pinned() if self._pin else batch

    def _sample_runs(self, cursor: int) -> Iterator[Order]:
        number, offset = divmod(cursor, self.samples_per_pass)
        while True:
            yield from self._order.runs(number, offset, self.samples_per_pass, self.batch_size)
            number, offset = number + 1, 0


class BatchStream:
    """An iterator of batches that reads ahead in a thread; close it, or leave its ``with`` block, to end that.

    An error of a batch is raised when its turn comes, not before.
    """

    def __init__(self, rows: Callable[[Order], TokenBatch], sample_runs: Iterator[Order]) -> None:
        self._rows = rows
        self._sample_runs = sample_runs
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: deque[Future[TokenBatch]] = deque(self._submit() for _ in range(_PREFETCHED))

    def _submit(self) -> Future[TokenBatch]:
        return self._thread.submit(lambda: self._rows(next(self._sample_runs)))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenBatch:
        batch = self._ahead.popleft()
        self._ahead.append(self._submit())
        return batch.result()

    def close(self) -> None:
        """End the thread; batches not yet taken are dropped."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
