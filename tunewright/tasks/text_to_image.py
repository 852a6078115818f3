"""`text-to-image`: Stable Diffusion 1, 2 and XL; the U-Net learns to tell noise from images with captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunewright.data.batches import Example
from tunewright.data.buckets import Fit, bucket, buckets
from tunewright.data.pictures import Picture
from tunewright.data.rendered import Fitted
from tunewright.errors import DAMAGED, BaseModelError, DataError, RecipeError, counted, them
from tunewright.tasks._captioned import Caption, Chance, View, shape_of
from tunewright.tasks._kept import Keeper
from tunewright.tasks._pipeline import Feed, load_parts, make_pipeline, read_index, silence
from tunewright.tasks.base import Batch, Encoded, Likelihood, Model, Predictions, Task, in_batches

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


class TextToImage(Task):
    """An image from a text, by a U-Net in the latent space of a VAE (Rombach et al., arXiv 2112.10752).

    A row has one position, and its loss is the mean squared error of what the scheduler says that the U-Net predicts:
    noise, velocity, image or flow. Timestep and noise are part of the encoded row: those of a training row are drawn
    anew at each step, and a row that is measured on has several, always the same.

    Automatic learning rates are those that are usual for Stable Diffusion, whatever the width: 1e-5 for its own
    weights, and for LoRA 1e-4 with alpha = rank, which is 5e-5 with alpha = 2 · rank, as it is by default.
    """

    name: ClassVar[str] = "text-to-image"
    data_kinds: ClassVar[tuple[str, ...]] = ("captioned_image",)
    diffuses: ClassVar[bool] = True
    trunk: ClassVar[str] = "unet"
    rates: ClassVar[Mapping[str, float]] = {"full": 1e-5, "freeze": 1e-5, "lora": 5e-5, "peft": 1e-4}
    adapted: ClassVar[str] = r"unet\..*\.(to_q|to_k|to_v|to_out\.0)"

    def load(self, base: str, *, seed: int = 0, dtype: str | None = None, weights: bool = True) -> Model:
        """A folder or hub name of diffusers'; the VAE stays in fp32."""
        index = read_index(base)
        parts = load_parts(base, index, dtype, weights)

        from tunewright.tasks._diffusion import Diffusion, schedule_of

        unet, vae, scheduler = parts["unet"], parts["vae"], parts["scheduler"]
        try:
            schedule = schedule_of(scheduler)
        except ValueError as error:
            raise BaseModelError(f"{base}: how noise is mixed in is not known: {error}.") from error
        if unet.config.in_channels != vae.config.latent_channels:
            raise BaseModelError(
                f"{base}: the U-Net reads {unet.config.in_channels} channels and the VAE makes "
                f"{vae.config.latent_channels}: inpainting and other such pipelines cannot be tuned."
            )
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = unet.config.sample_size
        feed = Feed(
            index=index,
            tokenizers=tuple(parts[name] for name in ("tokenizer", "tokenizer_2") if name in parts),
            scheduler=scheduler,
            resolution=factor * (side if isinstance(side, int) else min(side)),
            factor=factor,
            unit=factor * 2 ** (len(unet.config.block_out_channels) - 1),
        )
        module = Diffusion(unet, {name: parts[name] for name in feed.encoders}, vae, schedule, feed.zeros)
        return Model(module.eval(), feed.as_in(Path(base)), self, base)

    def encode(self, model: Model, records: Sequence[Any], data: Any) -> Encoded:
        """Images stay files until a step needs them; each is decoded here once, to be sure that it can be.

        A caption that is longer than the text encoders read is cut, and counted. `data.resolution` becomes the model's.
        """
        feed = model.processor
        if data.resolution is not None:
            feed = model.processor = replace(feed, resolution=data.resolution)
        if not buckets(feed.resolution, feed.unit):
            raise RecipeError(
                f"data.resolution: {feed.resolution} is below {feed.unit}, the least that the U-Net reads."
            )
        if data.augment is not None and data.augment.mixup:
            raise RecipeError("data.augment.mixup mixes labels, and captions cannot be mixed. Leave it out.")
        usable, fits, faults = self._usable(feed, records, skip=data.on_bad_rows == "skip")
        captions, cut = self._captions(feed, usable, data.caption_dropout)
        steps, channels = len(model_of(model.module).told_N), model_of(model.module).unet.config.in_channels
        examples = []
        for i, (record, fit, caption) in enumerate(zip(usable, fits, captions, strict=True)):
            width, height = (side // feed.factor for side in fit.target)
            view = View(record.image, fit, data.augment)
            chance = Chance.fixed(i, steps, (channels, height, width))
            inputs = {"view": view, "caption": caption, "chance": chance}
            weight = np.array([record.weight], dtype=np.float32)
            examples.append(Example(inputs, np.zeros(1, np.float32), weight, record.source, width * height))
        longest = max((e.length for e in examples), default=0)
        return Encoded(examples, longest, Fitted([], truncated=cut), faults)

    def _usable(self, feed: Feed, records: Sequence[Any], skip: bool) -> tuple[list[Any], list[Fit], list[str]]:
        """The rows whose images can be read, how each fits its bucket, and the faults of others, if skipped."""
        usable, fits, faults = [], [], []
        sizes: dict[Picture, tuple[int, int]] = {}  # an image may be several rows
        for record in records:
            try:
                size = sizes.get(record.image) or sizes.setdefault(record.image, record.image.pixels().size)
            except DataError as error:
                faults.append(f"{record.source}: {error}")
                continue
            usable.append(record)
            fits.append(Fit.of(size, bucket(size, feed.resolution, feed.unit)))
        if faults and not (skip and usable):
            cannot = f"{len(faults):,} of {counted(len(records), 'image')} cannot be read"
            otherwise = ", or set data.on_bad_rows: skip" if usable else ""
            raise DataError(f"{cannot}: mend {them(len(faults))}{otherwise}.", faults)
        return usable, fits, faults

    def _captions(self, feed: Feed, records: Sequence[Any], dropout: float) -> tuple[list[Caption], list[str]]:
        """The tokens of each caption, and the sources of those that were cut."""
        tokens_NEL, empty_EL = tokenized(feed, [r.text for r in records]), tokenized(feed, [""])[0]
        captions = [Caption(tokens_EL, empty_EL, dropout) for tokens_EL in tokens_NEL]
        tokenizer = feed.tokenizers[0]
        texts = spelled([r.text for r in records], tokenizer)
        whole = tokenizer(texts, verbose=False).input_ids if texts else []
        most = tokenizer.model_max_length
        return captions, [r.source for r, ids in zip(records, whole, strict=True) if len(ids) > most]

    def vary(self, examples: Sequence[Example], random: np.random.Generator) -> list[Example]:
        """Timestep and noise anew, images as `data.augment` says, captions left out as `data.caption_dropout` says."""
        return [replace(e, inputs={name: part.drawn(random) for name, part in e.inputs.items()}) for e in examples]

    def keep(
        self, model: Model, sets: Sequence[Sequence[Example]], data: Any, device: Any, *, stand_in: bool = False
    ) -> list[list[Example]]:
        """The rows with what is computed once and kept, as `data` says. Arguments and errors: see `Keeper`."""
        if not (data.cache_latents or data.cache_captions):
            return [list(examples) for examples in sets]
        folders = data.cache_latents, data.cache_captions
        keeper = Keeper(model_of(model.module), *folders, device, stand_in=stand_in)
        kept = [[_with_kept(e, keeper) for e in examples] for examples in sets]
        model.notices += keeper.notices()
        return kept

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Rows of one shape are stacked; a batch of several shapes has each on its own, in this order."""
        import torch

        ordered = sorted(examples, key=lambda e: shape_of(e.inputs))
        inputs: dict[str, Tensor] = {}
        for shape, rows in groupby(ordered, key=lambda e: shape_of(e.inputs)):
            inputs |= {f"{shape}.{name}": torch.from_numpy(array) for name, array in _stacked(list(rows)).items()}
        weight = torch.from_numpy(np.stack([e.weight for e in ordered]))
        return Batch(
            inputs,
            target=torch.from_numpy(np.stack([e.target for e in ordered])),
            weight=weight,
            mask=torch.ones_like(weight, dtype=torch.bool),
            sequence=torch.arange(len(ordered))[:, None],
            sources=tuple(e.source for e in ordered),
            prior=None if ordered[0].prior is None else torch.tensor([[bool(e.prior)] for e in ordered]),
        )

    def nll(
        self,
        module: nn.Module,
        batch: Batch,
        *,
        smoothing: float = 0.0,
        router: bool = False,
        min_snr: float | None = None,
        noise_offset: float = 0.0,
    ) -> Likelihood:
        """The mean squared error of each image over its timesteps, [B, 1], weighted by min-SNR-γ where asked for.

        Args:
            min_snr: γ, see `_diffusion.min_snr`.
            noise_offset: how much of a draw for each channel is added to the noise, so that a model learns to make
                images that are dark or bright as a whole.
        """
        import torch

        from tunewright.tasks._diffusion import min_snr as weight_of

        found = [module(**group, noise_offset=noise_offset) for group in _groups(batch.inputs)]
        error_BK = torch.cat([one.error_BK for one in found])
        if min_snr is not None:
            snr_BK = torch.cat([one.snr_BK for one in found])
            error_BK = error_BK * weight_of(model_of(module).predicts, snr_BK, min_snr)
        return Likelihood(error_BK.mean(dim=1, keepdim=True))

    def predict(self, model: Model, examples: Sequence[Example]) -> Predictions:
        """The mean squared error of each row over its own timesteps, with noise that is always the same."""
        import torch

        device = next(model.module.parameters()).device
        error_N = np.zeros(len(examples))
        model.module.eval()
        with torch.inference_mode():
            for rows in in_batches(examples):
                ordered = sorted(rows, key=lambda i: shape_of(examples[i].inputs))
                batch = self.collate([examples[i] for i in ordered]).to(device)
                error_N[ordered] = self.nll(model.module, batch).nll_BT[:, 0].double().cpu().numpy()
        sources = [e.source for e in examples]
        return Predictions("likelihood", sources, nll_N=error_N, count_N=np.ones(len(examples)))

    def images(
        self,
        model: Model,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int = 30,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        negative: str | None = None,
        together: int = 1,
        between: Callable[[], None] | None = None,
    ) -> list[Image]:
        """An image for each prompt, by the base's own pipeline of diffusers' with the model's weights.

        Args:
            seed: of the noise that an image begins with, the same for all of them or one each: whatever else is asked
                for, an image depends on its prompt and seed alone.
            guidance: how strongly the prompt counts (classifier-free guidance, arXiv 2207.12598); 1: no guidance.
            size: width and height in pixels; by default a square of the resolution that was trained with.
            together: how many share the forward passes, which then round in another way.
            between: called after each step; what it raises ends the drawing.

        Raises:
            RecipeError: a size that the U-Net cannot halve, or more steps than the scheduler has timesteps.
            BaseModelError: an image that is not finite.
        """
        import torch

        self.refuse_steps(model, steps, "steps")
        width, height = self._size(model, size)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        pipeline, module = self.pipeline(model), model_of(model.module)
        module.eval()
        made: list[Image] = []

        def after_step(_: Any, __: int, ___: Any, kept: dict[str, Any]) -> dict[str, Any]:
            if between:
                between()
            return kept

        with silence(), torch.inference_mode():
            for first in range(0, len(prompts), together):
                part = slice(first, first + together)
                latents_BCHW = pipeline(
                    list(prompts[part]),
                    negative_prompt=None if negative is None else [negative] * len(prompts[part]),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    width=width,
                    height=height,
                    generator=[torch.Generator("cpu").manual_seed(one) for one in seeds[part]],
                    output_type="latent",
                    callback_on_step_end=after_step,
                ).images
                pixels_B3XY = module.pixels(latents_BCHW)
                if not pixels_B3XY.isfinite().all():
                    raise BaseModelError(_overflowed(latents_BCHW) or DAMAGED)
                shown = pipeline.image_processor.postprocess(pixels_B3XY, output_type="np")
                made += pipeline.image_processor.numpy_to_pil(shown)
        return made

    def refuse_steps(self, model: Model, steps: int, option: str) -> None:
        """Raise RecipeError for an image in more steps than the scheduler has timesteps."""
        config = model.processor.scheduler.config
        most = config.num_train_timesteps - config.get("steps_offset", 0)  # it begins so far on, and ends within them
        if steps > most:
            raise RecipeError(
                f"{option}: {steps:,} is too many for the base's scheduler, which has {config.num_train_timesteps:,} "
                f"timesteps. Give {most:,} at most; 20 to 50 are usual."
            )

    def _size(self, model: Model, size: tuple[int, int] | None) -> tuple[int, int]:
        """Width and height of an image that is drawn. Raises RecipeError for what the U-Net cannot halve."""
        feed = model.processor
        width, height = size or bucket((1, 1), feed.resolution, feed.unit)
        if width % feed.unit or height % feed.unit or width < 1 or height < 1:
            raise RecipeError(f"An image's sides are multiples of {feed.unit} pixels here, not {width} × {height}.")
        return width, height

    def pipeline(self, model: Model) -> Any:
        """The pipeline of diffusers' with the model's own modules, and a scheduler of its own."""
        feed, module = model.processor, model_of(model.module)
        scheduler = type(feed.scheduler).from_config(feed.scheduler.config)
        if not hasattr(scheduler, "init_noise_sigma"):  # flows begin with plain noise
            scheduler.init_noise_sigma = 1.0
        names = [name.replace("text_encoder", "tokenizer") for name in feed.encoders]
        tokenizers = dict(zip(names, feed.tokenizers, strict=True))
        encoders = {name: module.get_submodule(name) for name in feed.encoders}
        parts = {"unet": module.unet, "vae": module.vae, "scheduler": scheduler, **encoders, **tokenizers}
        return make_pipeline(feed.index, parts)

    def pieces(self, model: Model, example: Example) -> list[tuple[str, float]]:
        """The caption as the first text encoder reads it, and the size that the image is given."""
        caption, (_, height, width) = example.inputs["caption"], shape_of(example.inputs)
        tokens = getattr(caption, "of", caption).tokens[0]
        said = model.processor.tokenizers[0].decode(tokens, skip_special_tokens=True)
        factor = model.processor.factor
        return [(said, 0.0), (f" → {width * factor} × {height * factor} pixels", float(example.weight[0]))]

    def width(self, module: nn.Module) -> int:
        return int(max(model_of(module).unet.config.block_out_channels))

    def head(self, module: nn.Module) -> list[str]:
        return []

    def blocks(self, module: nn.Module) -> list[tuple[str, nn.Module]]:
        """The U-Net's blocks on the way down, in the middle, and on the way up."""
        unet = "unet" if hasattr(module, "unet") else next(n for n, m in module.named_modules() if n.endswith(".unet"))
        names = [name for name, _ in module.get_submodule(unet).named_modules()]
        inside = [n for n in names if n == "mid_block" or (n.count(".") == 1 and n.split(".")[0] in LISTS)]
        return [(f"{unet}.{name}", module.get_submodule(f"{unet}.{name}")) for name in inside]

    def channels(self, model: Model, blocks: Sequence[nn.Module]) -> list[int]:
        """How many channels leave each of these blocks: those of its last convolution."""
        from torch import nn

        return [[m for m in block.modules() if isinstance(m, nn.Conv2d)][-1].out_channels for block in blocks]

    def predicts(self, model: Model) -> str:
        """What the U-Net predicts: epsilon, v_prediction, sample or flow."""
        return str(model_of(model.module).predicts)

    def save(self, model: Model, folder: Path) -> None:
        """A folder of diffusers', whole."""
        with silence():
            self.pipeline(model).save_pretrained(folder, safe_serialization=True)
        model.processor.save_pretrained(folder)


LISTS = ("down_blocks", "up_blocks")


def model_of(module: Any) -> Any:
    """The `Diffusion` within what a method has wrapped around it."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def spelled(texts: list[str], tokenizer: Any) -> list[str]:
    """Texts with all tokens of a word that was learned as several: see `textual_inversion`."""
    from diffusers.loaders import TextualInversionLoaderMixin

    return list(TextualInversionLoaderMixin().maybe_convert_prompt(texts, tokenizer))


def tokenized(feed: Feed, texts: Sequence[str]) -> list[np.ndarray]:
    """Tokens for each text encoder, [E, L] for each text, filled up and cut to what they read."""
    if not texts:
        return []
    each = [
        tokenizer(
            spelled(list(texts), tokenizer),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
        ).input_ids
        for tokenizer in feed.tokenizers
    ]
    return [np.array(rows, dtype=np.int64) for rows in zip(*each, strict=True)]


def _overflowed(latents: Tensor) -> str:
    """Why numbers are not finite where they were computed in fp16; nothing in another precision."""
    import torch

    kind = latents.device.type
    computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else latents.dtype
    if computed != torch.float16:
        return ""
    return "The image is not finite (NaN): fp16 has no numbers above 65,504. Compute in bf16 or fp32 (precision)."


def _with_kept(example: Example, keeper: Keeper) -> Example:
    view, caption = keeper.view(example.inputs["view"]), keeper.caption(example.inputs["caption"])
    return replace(example, inputs={**example.inputs, "view": view, "caption": caption})


def _stacked(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """The arguments of `Diffusion` for rows of one shape."""
    rows: list[Mapping[str, np.ndarray]] = [
        {name: array for part in e.inputs.values() for name, array in part.arrays().items()} for e in examples
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _groups(inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The stacks of a batch, one shape after the other."""
    for _, names in groupby(inputs, key=lambda name: name.rpartition(".")[0]):
        yield {name.rpartition(".")[2]: inputs[name] for name in list(names)}


TASK = TextToImage
