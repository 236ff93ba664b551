"""The directive ``public``: what a package makes public, by the part of it that defines it.

``{public} geomhooks.functional position`` documents, under their public names, all that
``geomhooks.functional.__all__`` has out of ``geomhooks.functional.position``; without a part, all
that the package has. A name that no page has is an error of the build.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docutils import nodes
from public_names import home, public_names
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOG = logging.getLogger(__name__)
COMPLETE = ("geomhooks", "geomhooks.functional", "geomhooks.functional.compare")


def directive_for(package: str, name: str) -> list[str]:
    """The lines of reStructuredText that document one name."""
    value = getattr(importlib.import_module(package), name)
    path = f"{package}.{name}"
    if inspect.ismodule(value):
        return []
    if inspect.isclass(value):
        return [f".. autoclass:: {path}", "   :members:", ""]
    if callable(value):
        return [f".. autofunction:: {path}", ""]
    return [f".. autodata:: {path}", "   :no-value:", ""]


class Public(SphinxDirective):
    """Documents a package's public names, below what the modules that define them say."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The descriptions, parsed as if they stood here."""
        package, *parts = " ".join(self.arguments).split()
        public = {f"{package}.{name}" for name in importlib.import_module(package).__all__}
        lines: list[str] = []
        introduced: set[str] = set()
        for name in public_names(package, *parts):
            module = home(package, name)
            within = [f"{package}.{part}." for part in parts] or [f"{package}."]
            inside = any(f"{module}.".startswith(start) for start in within)
            if inside and module != package and module not in introduced:
                introduced.add(module)
                lines += [f".. automodule:: {module}", "   :no-members:", ""]
                if module in public:  # a function of its module's name
                    lines.insert(-1, "   :no-index:")
            lines += directive_for(package, name)
        if not lines:
            raise self.error(f"{package} has nothing public in {' '.join(parts)}")
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


def check_complete(app: Sphinx, env: Any) -> None:
    """Warn of public names that no page documents."""
    objects = env.get_domain("py").objects
    for package in COMPLETE:
        module = importlib.import_module(package)
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)) and f"{package}.{name}" not in objects:
                LOG.warning("no page documents %s.%s", package, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive, and the check of what it left out."""
    app.add_directive("public", Public)
    app.connect("env-check-consistency", check_complete)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
