"""What ``compoff[demo]`` installs beside compoff: asked for once, before anything long begins.

Knows the names of the packages only; each is imported in the one place that needs it.
"""

from __future__ import annotations

import importlib.util

from compoff.errors import BackendError

__all__ = ["check_extras"]

_MODULES = {
    "sklearn": "scikit-learn",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "jinja2": "jinja2",
}


def check_extras() -> None:
    """Refuse to begin where a package of the demonstration is missing.

    Raises:
        BackendError: A package is not installed; the message says how to get all of them.

    Examples:
        >>> check_extras()

    Source: this project.
    """
    missing = [package for module, package in _MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise BackendError(f'the demo needs {", ".join(missing)}; install everything with: pip install "compoff[demo]"')
