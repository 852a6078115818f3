"""Modules by the name of their factory, `package.module:factory`: Python code, which runs only because it was named.

A recipe, a run or the caller names it. That a model's folder says which factory made its module never runs anything.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError

if TYPE_CHECKING:
    from torch import nn

NAME = re.compile(r"[^\W\d]\w*(\.\w+)*:[^\W\d]\w*(\.\w+)*(#\d+)?")

ITSELF = "In Python, give the module itself: tw.train(base=module), tw.resume(RUN, base=module), tw.load(RUN, base=…)."

_allowed: dict[str, str | None] = {}  # the factories that were named, and the folder that their code was found in
_given: dict[str, Any] = {}  # modules, or functions that make them, that the caller has in hand


def is_factory(base: str) -> bool:
    """Whether a base is named by code. A file or folder of that name comes first."""
    return bool(NAME.fullmatch(base)) and not Path(base).exists()


def allow(name: str, code: str | None = None) -> None:
    """Let a factory be run from now on: its name was given, or that of a run which says that `code` holds it."""
    _allowed[name] = code or _allowed.get(name)


def give(name: str, module: Any) -> None:
    """Use this module, factory, or other name of one, wherever `name` is asked for.

    Raises BaseModelError for anything else.
    """
    from torch import nn

    if isinstance(module, str) and is_factory(module):
        allow(module)
        if module != name:
            _given[name] = _found(module)
    elif isinstance(module, nn.Module) or callable(module):
        _given[name] = module
    else:
        raise BaseModelError(f"base is {module!r:.80}: give a torch module, or package.module:factory.")
    allow(name)


def is_given(name: str) -> bool:
    """Whether it is an object of this process alone."""
    return name in _given


def name_of(module: nn.Module) -> str:
    """The name under which a module that is given as an object is known: its class. A second one has a number."""
    kind = type(module)
    stem = f"{kind.__module__}:{kind.__name__ if '<' in kind.__qualname__ else kind.__qualname__}"
    names = [stem, *(f"{stem}#{i}" for i in range(2, len(_given) + 2))]
    name = next(name for name in names if _given.get(name, module) is module)
    give(name, module)
    return name


def make(name: str, seed: int = 0) -> nn.Module:
    """A new module of a factory that was named, its random weights drawn from the seed; or a copy of one in hand.

    Raises BaseModelError where nobody but a folder named it, or where it makes no module.
    """
    import torch
    from torch import nn

    if name not in _allowed:
        raise BaseModelError(
            f"This model is made by {name}, which is code, and no code is run because a folder names it. Name its run "
            f"in place of the folder; or name the code yourself, from Python: tw.load(FOLDER, base={name!r})."
        )
    given = _given.get(name)
    if isinstance(given, nn.Module):
        _refuse_lazy(name, given)
        return copy.deepcopy(given)
    factory = given or _found(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _called(name, factory)
    if not isinstance(module, nn.Module):
        raise BaseModelError(f"{name} returns {type(module).__name__}, and has to return a torch.nn.Module.")
    _refuse_lazy(name, module)
    return module


def _refuse_lazy(name: str, module: nn.Module) -> None:
    """Raise BaseModelError for layers whose shapes are those of the first images that they see."""
    from torch.nn.parameter import is_lazy

    lazy = [layer for layer, m in module.named_modules() if any(map(is_lazy, m.parameters(recurse=False)))]
    if lazy:
        raise BaseModelError(
            f"{name} has lazy layers, which have no weights before their first images: {', '.join(lazy[:5])}. Run it "
            "once on images of their size before it is given, or within its factory."
        )


def code_of(name: str) -> str | None:
    """The folder that a factory's package or module lies in, by which a run finds it again from any other folder."""
    top = sys.modules.get(name.partition(":")[0].partition(".")[0])
    file = getattr(top, "__file__", None)
    if file is None or is_given(name):
        return None
    place = Path(file).absolute().parent
    return str(place.parent if hasattr(top, "__path__") else place)


def _called(name: str, factory: Callable[[], Any]) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise BaseModelError(
            f"{name} cannot be called without arguments ({error}). Name a function that calls it with them. {ITSELF}"
        ) from error
    except ValueError:  # some callables do not say what they take
        pass
    try:
        return factory()
    except Exception as error:
        raise BaseModelError(f"{name} fails with {type(error).__name__}: {error}") from error


def _found(name: str) -> Any:
    """What the name stands for. The working directory is looked through too, behind what is installed."""
    place, _, path = name.partition("#")[0].partition(":")
    found = _imported(place, [str(Path.cwd()), *filter(None, [_allowed[name]])])
    for part in path.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"Did you mean {close[0]}?" if close else ITSELF
            raise BaseModelError(f"{name}: {getattr(found, '__name__', place)} has no {part}. {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise BaseModelError(f"{name} is no function or class, and so makes no module.")
    return found


def _imported(place: str, folders: list[str]) -> Any:
    sys.path += [folder for folder in folders if folder not in sys.path]
    importlib.invalidate_caches()
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if f"{place}.".startswith(f"{error.name}."):
            raise BaseModelError(
                f"There is no Python module {error.name} here or among those installed. Run from the folder that it "
                f"lies in, or install it. {ITSELF}"
            ) from error
        raise BaseModelError(f"{place} cannot be imported: {error}.") from error
    except Exception as error:
        raise BaseModelError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
