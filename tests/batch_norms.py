"""A classifier with batch norms, which no text model of transformers has: words averaged, then blocks over features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from tests.tiny import encoder_tokenizer


class NormsConfig(hf.PretrainedConfig):
    model_type = "tunewright-norms"

    def __init__(
        self,
        vocab_size: int = 300,
        hidden_size: int = 16,
        num_hidden_layers: int = 3,
        norm_in_head: bool = False,
        statistics: bool = True,
        **rest: Any,
    ) -> None:
        self.norm_in_head, self.statistics = norm_in_head, statistics
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.max_position_embeddings = 256
        super().__init__(**rest)


class Block(nn.Module):
    def __init__(self, size: int, statistics: bool) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(size, size), nn.Dropout(0.3)
        self.norm = nn.BatchNorm1d(size, track_running_stats=statistics)

    def forward(self, x_BH: Tensor) -> Tensor:
        return x_BH + self.dropout(self.norm(self.dense(x_BH)).relu())


class Trunk(nn.Module):
    def __init__(self, config: NormsConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = (Block(config.hidden_size, config.statistics) for _ in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(blocks)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        x_BH = (self.words(ids_BT) * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
        for block in self.layers:
            x_BH = block(x_BH)
        return x_BH


class NormsForSequenceClassification(hf.PreTrainedModel):
    config_class = NormsConfig
    base_model_prefix = "trunk"

    def __init__(self, config: NormsConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(config)
        norm = [nn.BatchNorm1d(config.hidden_size)] if config.norm_in_head else []
        self.classifier = nn.Sequential(*norm, nn.Linear(config.hidden_size, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.classifier(self.trunk(input_ids, attention_mask)))


hf.AutoConfig.register(NormsConfig.model_type, NormsConfig)
hf.AutoModelForSequenceClassification.register(NormsConfig, NormsForSequenceClassification)


def make_base(folder: Path, classes: int = 3, norm_in_head: bool = False, statistics: bool = True) -> str:
    """A base with a head, whose batch norms have seen data."""
    tokenizer = encoder_tokenizer("distilbert")
    labels = [f"class {i}" for i in range(classes)]
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = NormsConfig(len(tokenizer), norm_in_head=norm_in_head, statistics=statistics, **names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = NormsForSequenceClassification(config)
        for parameter in module.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        module.train()
        for _ in range(20):
            ids_BT = torch.randint(5, len(tokenizer), (16, 12))
            module(ids_BT, torch.ones_like(ids_BT))
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
