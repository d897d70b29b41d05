from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedspk.errors import FedspkError
from fedspk.store import BlobStore
from fedspk.weights import WeightStore


def test_a_blob_comes_back_by_its_hash_until_it_is_removed(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.uint32)
    digest = BlobStore(tmp_path).put(values.view(np.uint8))
    found = BlobStore(tmp_path).get(digest)
    np.testing.assert_array_equal(found.view(np.uint32), values)
    BlobStore(tmp_path).remove(digest)
    np.testing.assert_array_equal(found.view(np.uint32), values)
    with pytest.raises(FedspkError, match="a blob is missing"):
        BlobStore(tmp_path).get(digest)


def test_blobs_and_weights_share_a_folder(tmp_path: Path) -> None:
    vector = np.ones(3, np.float32)
    digest = WeightStore(tmp_path).put(vector)
    assert BlobStore(tmp_path).put(vector.view(np.uint8)) == digest
    WeightStore(tmp_path).remove(digest)
    assert digest in BlobStore(tmp_path)
