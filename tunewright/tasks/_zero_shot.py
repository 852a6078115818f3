"""Image classifiers whose head is made of words: what the text tower of a CLIP-like model says of each class.

The model is the image tower, its projection, and a linear head on features of length 1 (CLIP, arXiv 2103.00020,
section 3.1.4; WiSE-FT tunes it as a whole, arXiv 2109.01903):

    logits_BC = normalize(features_BD) · W_CDᵀ + b_C,   W_c = exp(logit_scale) · normalize(meanₜ normalize(text(t, c)))

with b = SigLIP's logit bias, and 0 for CLIP. transformers has no class for that: its `CLIPForImageClassification`
averages patches in front of the projection. So the saved folder is the image tower as transformers loads it by itself,
`CLIPVisionModelWithProjection` or `SiglipVisionModel`, with the head beside it in the same file:

    features = tower(pixel_values).image_embeds     # SigLIP: .pooler_output
    logits = F.linear(F.normalize(features, dim=-1), state["prompt_head.weight"], state["prompt_head.bias"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError, RecipeError
from tunewright.tasks._pretrained import load_tokenizer, load_weights

if TYPE_CHECKING:
    from torch import Tensor

TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
"""transformers' class of the image tower with its projection, for the kinds of model that have a text tower too."""
HEAD = "prompt_head"
ARCHITECTURE = "PromptHeadForImageClassification"


def has_prompt_head(config: Any) -> bool:
    """Whether a saved model is one of these, by its configuration."""
    return ARCHITECTURE in (config.architectures or [])


def refuse_without_text(base: str, config: Any) -> None:
    """Raises BaseModelError where there is nothing that could read a prompt."""
    if has_prompt_head(config) or config.model_type not in TOWERS:
        raise BaseModelError(
            f"training.zero_shot: {base} has no text tower to read prompts with (it is {config.model_type}). Begin "
            f"from a whole model of the type {' or '.join(TOWERS)}, or leave zero_shot out."
        )


def prompt_head_class(config: Any) -> Any:
    """The class of such a model, as transformers' own classes are: with `from_pretrained` and `save_pretrained`."""
    import torch.nn.functional as F  # noqa: N812
    from torch import nn
    from transformers import MODEL_MAPPING, AutoModel
    from transformers.modeling_outputs import ImageClassifierOutput

    class PromptHeadForImageClassification(MODEL_MAPPING[type(config)].__bases__[0]):  # type: ignore[misc]
        main_input_name = "pixel_values"

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            vision = config.vision_config
            width = vision.hidden_size
            self.vision_model = AutoModel.from_config(vision)
            if config.model_type == "clip":
                width = vision.projection_dim = config.projection_dim
                self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
            self.prompt_head = nn.Linear(width, config.num_labels)
            self.post_init()

        def get_input_embeddings(self) -> nn.Module:
            found: nn.Module = self.vision_model.get_input_embeddings()
            return found

        def forward(self, pixel_values: Tensor, **options: Any) -> ImageClassifierOutput:
            features_BD = self.vision_model(pixel_values=pixel_values, **options).pooler_output
            if config.model_type == "clip":
                features_BD = self.visual_projection(features_BD)
            return ImageClassifierOutput(logits=self.prompt_head(F.normalize(features_BD, dim=-1)))

    return PromptHeadForImageClassification


def put_prompts(module: Any, base: str, labels: Sequence[str], templates: Sequence[str]) -> None:
    """Make the head of the prompts, in place: the zero-shot classifier of the base, from its text tower.

    Raises RecipeError for prompts that the text tower cannot read whole.
    """
    import torch

    weight_CD, bias = prompt_weights(base, module.config, labels, templates)
    with torch.no_grad():
        module.prompt_head.weight.copy_(weight_CD)
        module.prompt_head.bias.fill_(bias)


def prompt_weights(base: str, config: Any, labels: Sequence[str], templates: Sequence[str]) -> tuple[Tensor, float]:
    """The weights [C, D] and the bias that make a base a classifier of these labels."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from transformers import AutoModel

    both, _ = load_weights(AutoModel, base, config, dtype="float32")
    tokenizer, length = load_tokenizer(base), config.text_config.max_position_embeddings
    rows = []
    with torch.inference_mode():
        for label in labels:
            prompts = [template.replace("{label}", label.replace("_", " ")) for template in templates]
            fed = _tokens(tokenizer, prompts, length)
            texts_TD = F.normalize(both.eval().get_text_features(**fed).pooler_output, dim=-1)
            rows.append(F.normalize(texts_TD.mean(0), dim=-1))
        return both.logit_scale.exp() * torch.stack(rows), float(getattr(both, "logit_bias", 0.0))


def _tokens(tokenizer: Any, prompts: list[str], length: int) -> dict[str, Tensor]:
    """Padded to the whole context, as SigLIP learned to read; to CLIP what follows the end makes no difference."""
    import torch

    found = tokenizer(prompts, padding="max_length", max_length=length)
    for prompt, ids in zip(prompts, found["input_ids"], strict=True):
        if len(ids) > length:
            raise RecipeError(f"training.zero_shot: {prompt!r} has {len(ids)} tokens, of {length} at most: shorten it.")
    return {name: torch.tensor(found[name]) for name in ("input_ids", "attention_mask") if name in found}
