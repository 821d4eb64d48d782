"""ControlNets: networks whose residuals another network adds to its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Self, cast

from torch import Tensor, nn

from sdediff.calls import let_check
from sdediff.guidance.conditions import names_of
from sdediff.interop.called import Called, config_of
from sdediff.solvers.arithmetic import along
from sdediff.solvers.given import described

__all__ = ["Controlled"]

_IMAGE: Final = "controlnet_cond"
_DOWN, _MID = "down_block_additional_residuals", "mid_block_additional_residual"
_SHARED: Final = ("in_channels", "block_out_channels", "layers_per_block")
"""What decides of the shapes of residuals."""


class Controlled(nn.Module):
    """``network`` with the residuals of ControlNets, each controlled by an image (Zhang et al.
    2023, arXiv 2302.05543):

        net(x, t, **condition) = network(x, t, **condition; h_i + sum_k s_k r_ki)

    h_i are what the network's blocks hand on, r_ki the residuals of net k at x, t, its image and
    the other conditions, and s_k its scale. ``controls`` has the ControlNets by name: the
    condition of that name is the image, (B, C, f H, f W) for states (B, *, H, W), f being 2 to the
    number of times that the ControlNet halves it; ``<name>_scale``, (B,), is s_k, 1 where it is not
    given. Without an image, which a scale has to stand in for, the net is left out: so
    `sdediff.guidance.Control` does, which sets scales by noise level.

    A ControlNet is diffusers' ``ControlNetModel``, or a module with its call, which returns
    residuals ((r_1, ..., r_n), r_mid). ``network`` takes the conditions
    ``down_block_additional_residuals`` and ``mid_block_additional_residual``, as diffusers'
    ``UNet2DConditionModel`` does. At the start of its training a ControlNet's last layers are 0, so
    that its residuals are.

    The network is locked, as in the paper: its parameters require no gradient from here on, and it
    stays in evaluation mode while the ControlNets train.

    Raises ValueError or TypeError where a ControlNet is for another network, and, before any
    network is called, where an image is missing or has the wrong shape.
    """

    def __init__(self, network: Callable[..., Any], controls: Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(controls, Mapping) or not controls:
            raise TypeError(
                "Controlled: controls must have ControlNets by the names of their images, "
                f"controls={{'edges': controlnet}} say; got {described(controls)}"
            )
        taken = getattr(network, "known", names_of(network))
        if taken is not None and _DOWN not in taken:
            raise TypeError(
                f"Controlled: {type(network).__name__} takes no residuals of a ControlNet, which "
                f"are the conditions {_DOWN!r} and {_MID!r}; it takes {', '.join(sorted(taken))}"
            )
        self.network = network
        self.controls = nn.ModuleDict()
        for name, control in controls.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"Controlled: a name of a condition is expected, got {name!r}")
            self.controls[name] = called = Called(control)
            if _IMAGE not in called.known:
                raise TypeError(
                    f"Controlled: {name!r} is {type(control).__name__}, which has no argument "
                    f"{_IMAGE!r}, and so is no ControlNet: build one by "
                    "diffusers.ControlNetModel.from_unet(network)"
                )
            _check_base(name, called.config, config_of(network))
        if isinstance(network, nn.Module):
            network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the ControlNets; the network stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.network, nn.Module):
            self.network.eval()
        return self

    def check_condition(
        self, condition: Mapping[str, Tensor], event: tuple[int, ...] | None = None
    ) -> None:
        """A ValueError unless each ControlNet has an image of the right shape for states of shape
        ``event``.
        """
        self._check_images(condition, event)
        let_check(self.network, condition, event)

    def _check_images(self, condition: Mapping[str, Tensor], event: tuple[int, ...] | None) -> None:
        for name, control in self._each().items():
            image = condition.get(name)
            if image is None and f"{name}_scale" not in condition:
                raise ValueError(
                    f"the condition lacks {name!r}, the image of a ControlNet: pass "
                    f"condition={{{name!r}: image}}, (B, C, H, W), or use the network alone"
                )
            if image is not None:
                _check_image(name, image, control.config, event)

    def _each(self) -> dict[str, Called]:
        return cast(dict[str, Called], dict(self.controls.items()))

    def forward(self, x: Tensor, t: Tensor, /, **condition: Tensor) -> Any:
        """The network's output at states x (B, *, H, W) and network times t (B,)."""
        self._check_images(condition, tuple(x.shape[1:]))
        images = {name: condition.pop(name) for name in self.controls if name in condition}
        scales = {name: condition.pop(f"{name}_scale", None) for name in self.controls}
        found: tuple[list[Tensor], Tensor] | None = None
        for name, image in images.items():
            control, scale = self._each()[name], scales[name]
            known = {key: value for key, value in condition.items() if key in control.known}
            down, mid = control.outputs(x, t, {**known, _IMAGE: image})
            if scale is not None:
                down, mid = [r * along(scale, r) for r in down], mid * along(scale, mid)
            found = (list(down), mid) if found is None else _added(found, (down, mid))
        residuals = {} if found is None else {_DOWN: tuple(found[0]), _MID: found[1]}
        return self.network(x, t, **condition, **residuals)


def _added(one: Any, two: Any) -> tuple[list[Tensor], Tensor]:
    return [a + b for a, b in zip(one[0], two[0], strict=True)], one[1] + two[1]


def _check_base(name: str, control: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """A ValueError where the configurations of a ControlNet and of the network say that the shapes
    of their residuals differ, or the text that they attend to.
    """
    keys = [*_SHARED]
    kinds = (*control.get("down_block_types", ()), control.get("mid_block_type") or "")
    if any("CrossAttn" in kind for kind in kinds):
        keys.append("cross_attention_dim")
    wrong = [
        f"{key} = {_plain(control[key])}, not {_plain(base[key])}"
        for key in keys
        if key in control and key in base and _plain(control[key]) != _plain(base[key])
    ]
    if wrong:
        raise ValueError(
            f"Controlled: the ControlNet {name!r} is made for another network than this one: it "
            f"has {'; '.join(wrong)}. Build one by diffusers.ControlNetModel.from_unet(network)"
        )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_image(
    name: str, image: Tensor, config: Mapping[str, Any], event: tuple[int, ...] | None
) -> None:
    """A ValueError unless the image of a ControlNet has its channels, and its size for states of
    that event.
    """
    widths, channels = config.get("conditioning_embedding_out_channels"), None
    shape: list[Any] = ["B", "C", "H", "W"]
    right = image.ndim == 4
    if (channels := config.get("conditioning_channels")) is not None:
        shape[1], right = channels, right and image.shape[1] == channels
    if widths is not None and event is not None and len(event) >= 2:
        factor = 2 ** (len(widths) - 1)
        size = [factor * side for side in event[-2:]]
        shape[2:], right = size, right and list(image.shape[-2:]) == size
    if not right:
        more = "" if event is None else f" for states of shape {event}"
        raise ValueError(
            f"the condition {name!r} must be an image of shape ({', '.join(map(str, shape))})"
            f"{more}, got {tuple(image.shape)}"
        )
