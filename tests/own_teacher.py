"""A teacher of the user's own: a plain module, its layers in a chain, without anything of timm's."""

import torch
from torch import nn


def stage(cin, cout, layers):
    first = [nn.Sequential(nn.Conv2d(cin, cout, 3, 2, 1), nn.BatchNorm2d(cout), nn.ReLU())]
    more = [nn.Sequential(nn.Conv2d(cout, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.ReLU()) for _ in range(layers - 1)]
    return nn.Sequential(*first, *more)


class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(stage(3, 8, 1), stage(8, 16, 2), stage(16, 24, 1), stage(24, 40, 2))
        self.fc = nn.Linear(40, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


torch.manual_seed(0)
MODEL = Own
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)
