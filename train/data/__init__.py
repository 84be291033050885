"""Data for training: sources, captions, augmentation, and the batches that they make."""

from edgeclip.train.data.batch import Batch, TeacherStore
from edgeclip.train.data.sample import Sample, Shard
from edgeclip.train.data.sources import open_shards

__all__ = ["Batch", "Sample", "Shard", "TeacherStore", "open_shards"]
