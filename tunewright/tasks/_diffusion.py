"""A latent diffusion model as one module: what it is told, what it should answer, and how noise is mixed in.

Shapes: B images, C channels of a latent, H and W its height and width, L tokens of a caption, N timesteps,
K of them asked of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Schedule(NamedTuple):
    """How an image drowns in noise: x_t = signal·x₀ + noise·ε.

    Attributes:
        signal_N, noise_N: the two factors at each timestep.
        told_N: what the U-Net is told of each timestep.
        predicts: what it should answer: epsilon (ε), v_prediction (signal·ε − noise·x₀; arXiv 2202.00512), sample (x₀)
            or flow (ε − x₀; arXiv 2210.02747).
    """

    signal_N: Tensor
    noise_N: Tensor
    told_N: Tensor
    predicts: str


def schedule_of(scheduler: Any) -> Schedule:
    """What a scheduler of diffusers' was trained with. Raises ValueError for a kind that is not known."""
    if hasattr(scheduler, "alphas_cumprod"):
        signal2_N = torch.as_tensor(scheduler.alphas_cumprod, dtype=torch.float32, device="cpu")
        steps_N = torch.arange(len(signal2_N))
        return Schedule(signal2_N.sqrt(), (1 - signal2_N).sqrt(), steps_N, scheduler.config.prediction_type)
    if type(scheduler).__name__.startswith("FlowMatch"):
        fresh = type(scheduler).from_config(scheduler.config)
        told_N = fresh.timesteps.float().cpu()
        noise_N = told_N / scheduler.config.num_train_timesteps
        return Schedule(1 - noise_N, noise_N, told_N, "flow")
    raise ValueError(f"{type(scheduler).__name__} says neither alphas_cumprod nor that it matches flows")


def answer(predicts: str, x0_BCHW: Tensor, epsilon_BCHW: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """What the model should answer, [B, C, H, W]: see `Schedule`."""
    if predicts == "epsilon":
        return epsilon_BCHW
    if predicts == "v_prediction":
        return signal * epsilon_BCHW - noise * x0_BCHW
    return x0_BCHW if predicts == "sample" else epsilon_BCHW - x0_BCHW


def min_snr(predicts: str, snr_B: Tensor, gamma: float) -> Tensor:
    """The weight of each image's error, [B] (Hang et al. 2023, arXiv 2303.09556, section 3.4): min(SNR, γ) for x₀.

    An error in ε is SNR times that in x₀, one in v SNR + 1 times, so their weights are divided by that.
    """
    if predicts == "epsilon":
        return (gamma / snr_B).clamp(max=1)  # without 0 / 0 where nothing of the image is left
    clipped_B = snr_B.clamp(max=gamma)
    return clipped_B / (snr_B + 1) if predicts == "v_prediction" else clipped_B


class Denoised(NamedTuple):
    """The mean squared error of each image's prediction, and the signal-to-noise ratio at its timesteps, [B, K]."""

    error_BK: Tensor
    snr_BK: Tensor


class Diffusion(nn.Module):
    """U-Net and text encoders under their names in diffusers' folder, in the order in which they compute.

    The VAE only feeds them: it goes to their device, and is no submodule, so that no method can train it.

    Args:
        encoders: text encoders by name; the last one's projection conditions an SDXL U-Net as a whole.
        zeros: whether no caption is told by zeros, or by the embedding of an empty one.
    """

    signal_N: Tensor
    noise_N: Tensor
    told_N: Tensor

    def __init__(
        self, unet: nn.Module, encoders: Mapping[str, nn.Module], vae: nn.Module, schedule: Schedule, zeros: bool
    ) -> None:
        super().__init__()
        for name, encoder in encoders.items():
            self.add_module(name, encoder)
        self.unet: Any = _in_order(unet)
        self.__dict__["vae"] = vae.requires_grad_(False).eval()
        self.names, self.predicts, self.zeros = tuple(encoders), schedule.predicts, zeros
        self.wide = getattr(unet.config, "addition_embed_type", None) == "text_time"
        for name in ("signal_N", "noise_N", "told_N"):
            self.register_buffer(name, getattr(schedule, name), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Diffusion:
        super()._apply(fn, recurse)
        self.__dict__["vae"]._apply(fn)
        return self

    def gradient_checkpointing_enable(self, options: Any = None) -> None:
        """Of the U-Net: compute activations again in the backward pass."""
        self.unet.enable_gradient_checkpointing()

    def moments(self, pixels_B3XY: Tensor) -> Tensor:
        """The mean and standard deviation of an image's latent, [B, 2·C, H, W], scaled as the U-Net knows latents."""
        vae = self.__dict__["vae"]
        with _plain(pixels_B3XY), torch.no_grad():
            found = vae.encode(pixels_B3XY.to(vae.dtype)).latent_dist
            shift, scale = _scaling(vae.config, pixels_B3XY.device)
            return torch.cat([(found.mean - shift) * scale, found.std * scale], dim=1).float()

    def pixels(self, latents_BCHW: Tensor) -> Tensor:
        """The images of latents, [B, 3, X, Y] in −1 … 1: what `moments` began with. One at a time, as memory wants."""
        vae = self.__dict__["vae"]
        shift, scale = _scaling(vae.config, latents_BCHW.device)
        with _plain(latents_BCHW):
            found = (latents_BCHW.float() / scale + shift).to(vae.dtype)
            return torch.cat([vae.decode(one_1CHW).sample for one_1CHW in found.split(1)]).float()

    def embeddings(self, tokens_BEL: Tensor) -> tuple[Tensor, Tensor]:
        """What E text encoders make of captions, [B, L, width] side by side; and the last one's projection, [B, P].

        As diffusers' pipelines do it: the last hidden state; for SDXL the one before, without the last norm.
        """
        found, pooled = [], None
        for i, name in enumerate(self.names):
            encoder = self.get_submodule(name)
            with _plain(tokens_BEL):
                said = encoder(tokens_BEL[:, i], output_hidden_states=self.wide)
            found.append(said.hidden_states[-2] if self.wide else said.last_hidden_state)
            pooled = said.text_embeds if self.wide and hasattr(said, "text_embeds") else pooled
        states_BLW = torch.cat(found, dim=-1)
        return states_BLW, states_BLW[:, 0, :0] if pooled is None else pooled

    def forward(self, noise_offset: float = 0.0, **given: Tensor) -> Denoised:
        """How well the noise of each image is told from the image.

        Args:
            noise_offset: how much of `offset` is added to the noise.
            step: which timesteps [B, K]; they are asked one after the other.
            noise, spread: draws of the noise [B, K, C, H, W], and of a latent around its mean [B, C, H, W].
            offset: a draw for each channel [B, K, C, 1, 1].
            pixels, or moments: an image [B, 3, X, Y] in −1 … 1, or what `moments` made of it.
            tokens, or states and pooled: captions [B, E, L], or what `embeddings` made of them.
            kept: 0 where there is to be no caption [B].
            sizes: SDXL's conditions [B, 6]: original, crop and target, height before width (arXiv 2307.01952).
        """
        moments = given["moments"] if "moments" in given else self.moments(given["pixels"])
        states, pooled = self.embeddings(given["tokens"]) if "tokens" in given else (given["states"], given["pooled"])
        if self.zeros:
            states, pooled = states * given["kept"][:, None, None], pooled * given["kept"][:, None]
        mean_BCHW, std_BCHW = moments.chunk(2, dim=1)
        x0_BCHW = mean_BCHW + std_BCHW * given["spread"]
        epsilon_BKCHW = given["noise"] + noise_offset * given["offset"]
        added = {"text_embeds": pooled, "time_ids": given["sizes"]} if self.wide else None
        pairs = zip(given["step"].unbind(1), epsilon_BKCHW.unbind(1), strict=True)
        found = [self._denoised(x0_BCHW, step_B, epsilon_BCHW, states, added) for step_B, epsilon_BCHW in pairs]
        return Denoised(*(torch.stack(each, dim=1) for each in zip(*found, strict=True)))

    def _denoised(
        self, x0_BCHW: Tensor, step_B: Tensor, epsilon_BCHW: Tensor, states: Tensor, added: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Error and signal-to-noise ratio at one timestep, [B]."""
        signal, level = (table[step_B].view(-1, 1, 1, 1) for table in (self.signal_N, self.noise_N))
        noisy_BCHW = signal * x0_BCHW + level * epsilon_BCHW
        said_BCHW = self.unet(noisy_BCHW, self.told_N[step_B], states, added_cond_kwargs=added).sample
        error_BCHW = said_BCHW.float() - answer(self.predicts, x0_BCHW, epsilon_BCHW, signal, level)
        return error_BCHW.square().mean(dim=(1, 2, 3)), (signal / level).square().flatten()


def _in_order(unet: nn.Module) -> nn.Module:
    """The U-Net with its modules in the order in which they compute: diffusers has the middle behind the way up."""
    for name in ("up_blocks", "conv_norm_out", "conv_act", "conv_out"):
        if name in unet._modules:
            unet._modules[name] = unet._modules.pop(name)
    return unet


def _plain(tensor: Tensor) -> Any:
    """Inside, nothing is cast: what only feeds the U-Net computes as it was loaded, whether or not it is kept."""
    return torch.autocast(tensor.device.type, enabled=False)


def _scaling(config: Any, device: Any) -> tuple[Any, Any]:
    """The latents' mean and factor, as a pipeline undoes them before it decodes."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        columns: Sequence[Tensor] = [torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std)]
        return columns[0], config.scaling_factor / columns[1]
    return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
