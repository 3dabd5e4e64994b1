"""Random crops: the same for the same seed, whatever seed that is."""

import numpy as np
import pytest
import torch
from PIL import Image

from dna_deploy.crops import Crops, crops
from dna_deploy.data import Images
from dna_deploy.sources import Source


@pytest.mark.parametrize("seed", [1, 2**31 - 1])
def test_crops_repeat_with_any_seed_the_command_takes(seed):
    """Seeds of images are their place in all epochs: of the largest --seed, the 9,000th image's is above 2^64."""
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8))
    images = Images(Source("x", ("a", "b"), (0, 1) * 4500, lambda _: drawn), range(9000), 8)
    first, again, other = (
        next(crops(Crops(images, "crop", 0.0), [[8999, 1]], (seed - less) * 1_000_003, torch.device("cpu"))) for less in (0, 0, 1)
    )
    assert first.shape == (2, 3, 8, 8) and first.dtype == torch.uint8
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])
