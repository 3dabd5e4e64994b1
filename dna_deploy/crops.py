"""Training images as timm's own transforms give them: random crops, mirrored and recoloured, the same for the same seed."""

import os
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from dna_deploy.data import Images
from dna_deploy.errors import RequestError


class Crops(Dataset[torch.Tensor]):
    """`images` varied anew; an item is a place among them and a seed, and gives uint8 (3, size, size)."""

    def __init__(self, images: Images, augmentation: str, color_jitter: float) -> None:
        auto = None if augmentation == "crop" else augmentation
        self.images = images
        try:
            self.transform = create_transform(
                images.size,
                is_training=True,
                color_jitter=color_jitter,
                auto_augment=auto,
                interpolation="bicubic",
                use_prefetcher=True,  # leaves the pixels as bytes
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise RequestError(
                f'augmentation = "{augmentation}": timm knows no such; expected shift, crop or rand-m9-...'
            ) from error

    def __getitem__(self, item: tuple[int, int]) -> torch.Tensor:
        place, seed = item
        random.seed(seed)  # timm draws from all three
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return torch.as_tensor(self.transform(self.images.open(place)))


def crops(varied: Crops, batches: Sequence[Sequence[int]], seed: int, device: torch.device) -> Iterator[torch.Tensor]:
    """A uint8 batch for each list of places; for a GPU made ahead by processes beside it, into pinned memory."""
    gpu = device.type == "cuda"
    items = [[(place, (seed * len(varied.images) + place) % 2**64) for place in places] for places in batches]
    workers = min(8, os.cpu_count() or 1) if gpu else 0
    loader: DataLoader[torch.Tensor] = DataLoader(varied, batch_sampler=items, num_workers=workers, pin_memory=gpu)
    return (batch.to(device, non_blocking=True) for batch in loader)
