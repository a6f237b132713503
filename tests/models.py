"""Small real models with random weights, shared by the tests and the benches.

Each function returns `(model, example_kwargs)`: the model in eval mode, and the
keyword arguments of one call. Sizes default to tiny; layer kinds are all there.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

Example = dict[str, Tensor]


def gpt2(layers: int = 2, width: int = 32) -> tuple[nn.Module, Example]:
    """GPT-2 language model; ids of shape (2, 8)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=4, vocab_size=101, n_positions=32, use_cache=False
    )
    return GPT2LMHeadModel(config).eval(), {"input_ids": _ids(101)}


def bert(layers: int = 2, width: int = 32) -> tuple[nn.Module, Example]:
    """BERT encoder; ids and attention mask of shape (2, 8)."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=4,
        intermediate_size=2 * width,
        vocab_size=101,
        max_position_embeddings=32,
    )
    mask = torch.ones(2, 8, dtype=torch.int64)
    return BertModel(config).eval(), {"input_ids": _ids(101), "attention_mask": mask}


def t5(layers: int = 2, width: int = 32) -> tuple[nn.Module, Example]:
    """T5 encoder-decoder; source ids of shape (2, 8), target ids of shape (2, 6)."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        num_layers=layers,
        num_decoder_layers=layers,
        d_model=width,
        d_kv=8,
        num_heads=4,
        d_ff=2 * width,
        vocab_size=101,
        use_cache=False,
        decoder_start_token_id=0,
    )
    example = {"input_ids": _ids(101), "decoder_input_ids": _ids(101, length=6)}
    return T5ForConditionalGeneration(config).eval(), example


def llama(layers: int = 2, width: int = 32) -> tuple[nn.Module, Example]:
    """Llama language model with grouped-query attention; ids of shape (2, 8)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * width,
        vocab_size=101,
        max_position_embeddings=32,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval(), {"input_ids": _ids(101)}


def resnet50(width: int = 8, classes: int = 10) -> tuple[nn.Module, Example]:
    """ResNet-50 (all 53 convolutions, narrow); image of shape (2, 3, 32, 32)."""
    torch.manual_seed(0)
    model = ResNet((3, 4, 6, 3), width, classes).eval()
    return model, {"image": torch.randn(2, 3, 32, 32)}


def resnet() -> tuple[nn.Module, Example]:
    """A ResNet of every kind of block that ResNet-50 has, and a fourth of its calls."""
    torch.manual_seed(0)
    return ResNet((2, 1, 1, 1), 8, 10).eval(), {"image": torch.randn(2, 3, 32, 32)}


def vit(layers: int = 2, width: int = 32) -> tuple[nn.Module, Example]:
    """Vision transformer with a classification head; image of shape (2, 3, 32, 32)."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=4,
        intermediate_size=2 * width,
        image_size=32,
        patch_size=8,
    )
    model = ViTForImageClassification(config).eval()
    return model, {"pixel_values": torch.randn(2, 3, 32, 32)}


def _ids(vocabulary: int, length: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (2, length), generator=generator)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False),
                nn.BatchNorm2d(4 * width),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet(nn.Module):
    """A bottleneck ResNet: stem, four stages, a linear head."""

    def __init__(self, blocks: tuple[int, int, int, int], width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, stages = width, []
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(channels, width << stage, stride))
                channels = 4 * (width << stage)
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        y = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        return self.fc(torch.flatten(self.avgpool(y), 1))
