"""The published networks: the paper's figures by our counts and by torch's, and by their names in timm."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from dna_deploy import zoo
from dna_deploy.errors import RequestError

FIGURES = {"dna_a": (4.24, 335.1), "dna_b": (4.92, 392.5), "dna_c": (5.27, 450.1), "dna_d": (6.41, 592.8)}  # of the paper, M


def _counted(model):
    """(parameters, multiply-adds) in M, counted by torch while the network runs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    return sum(weight.numel() for weight in model.parameters()) / 1e6, counter.get_total_flops() / 2e6


@pytest.mark.parametrize("name", FIGURES)
def test_the_papers_figures(name):
    arch = zoo.architecture(name)
    assert (round(arch.params / 1e6, 2), round(arch.macs / 1e6, 1)) == FIGURES[name]
    model = timm.create_model(name)
    assert _counted(model) == (arch.params / 1e6, arch.macs / 1e6)
    assert set(arch.ops) <= set(arch.space.ops)


def test_the_same_count_gives_efficientnet_b0s_figures():
    params, macs = _counted(timm.create_model("efficientnet_b0"))
    assert (round(params, 2), round(macs, 1)) == (5.29, 385.8)


def test_timm_treats_them_as_its_own():
    model = timm.create_model("dna_b", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 1280, 2, 2)
        torch.testing.assert_close(model.forward_head(features), model(x))
        assert model(x).shape == (2, 7) and model.forward_head(features, pre_logits=True).shape == (2, 1280)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model(x).shape == (2, 1280)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 224, 224) and config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert model.pretrained_cfg["classifier"] == "head.1.fc"
    assert set(FIGURES) <= set(timm.list_models("dna_*"))


def test_later_branches_are_left_out_more_often():
    model = timm.create_model("efficientnet_b0")
    zoo.drop_connect(model, 0.2)
    rates = [block.drop_path.drop_prob for stage in model.blocks for block in stage]
    assert rates == pytest.approx([0.2 * at / 16 for at in range(1, 17)])


def test_what_timms_train_script_asks_for_is_done():
    model = timm.create_model("dna_a", drop_rate=0.3, drop_path_rate=0.2)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, timm.layers.DropPath)]
    assert rates == pytest.approx([0.2 * at / len(rates) for at in range(1, len(rates) + 1)]) and len(rates) > 15
    dropped = model.forward_head(torch.ones(1, 1280, 1, 1), pre_logits=True) == 0
    assert 0.2 < float(dropped.float().mean()) < 0.4
    assert not (model.eval().forward_head(torch.ones(1, 1280, 1, 1), pre_logits=True) == 0).any()
    plain = timm.create_model("dna_a", drop_rate=0.0, drop_path_rate=0.0)
    assert not [module for module in plain.modules() if isinstance(module, timm.layers.DropPath)]


def test_what_there_is_not_is_refused():
    with pytest.raises(RequestError, match="none of the published networks: dna_a, dna_b"):
        zoo.architecture("dna_e")
    with pytest.raises(RequestError, match="no trained weights"):
        timm.create_model("dna_a", pretrained=True)
    with pytest.raises(RequestError, match="dna_a: has no drop_block_rate; expected num_classes, drop_rate or"):
        timm.create_model("dna_a", drop_block_rate=0.1)
