"""What every codec takes for a size, a quality or a learning rate, whatever the feature. Knows no codec."""

from __future__ import annotations

from typing import Any

from compoff.checks import check_weight, check_whole
from compoff.errors import FeatureError, FitError

__all__ = ["check_latent", "check_lr", "check_quality"]


def check_latent(channels: Any, num_centers: Any) -> None:
    """Refuse sizes that no latent has, whatever the feature.

    Args:
        channels: What was given as the number of channels.
        num_centers: What was given as the number of levels.

    Raises:
        FeatureError: One is no whole number, or out of range.

    Examples:
        >>> check_latent(0, 8)
        Traceback (most recent call last):
        compoff.errors.FeatureError: channels is 0; expected at least 1 channel in the latent, such as 8
    """
    check_whole("channels", channels)
    check_whole("num_centers", num_centers)
    if channels < 1:
        raise FeatureError(f"channels is {channels}; expected at least 1 channel in the latent, such as 8")
    if not 2 <= num_centers <= 256:
        raise FeatureError(f"num_centers is {num_centers}; expected 2 to 256, such as 8")


def check_lr(lr: Any) -> None:
    """Refuse what no step can be as long as.

    Args:
        lr: What was given as the learning rate.

    Raises:
        FitError: It is negative or not finite, or no number.

    Examples:
        >>> check_lr(-1)
        Traceback (most recent call last):
        compoff.errors.FitError: lr is -1; expected a learning rate of 0 or more, such as 1e-3
    """
    check_weight("lr", lr, FitError, "a learning rate of 0 or more, such as 1e-3")


def check_quality(quality: Any, count: int) -> int:
    """Refuse what is none of a codec's qualities.

    Args:
        quality: What was given as the index of one.
        count: How many there are.

    Returns:
        The index.

    Raises:
        FeatureError: There is no such quality.

    Examples:
        >>> check_quality(-1, 12)
        Traceback (most recent call last):
        compoff.errors.FeatureError: there is no quality -1; this bottleneck has 0 to 11
    """
    check_whole("quality", quality)
    if not 0 <= quality < count:
        known = f"0 to {count - 1}" if count > 1 else "0 only"
        raise FeatureError(f"there is no quality {quality}; this bottleneck has {known}")
    return int(quality)
