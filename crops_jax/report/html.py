"""One self-contained page from a template."""

from __future__ import annotations

from typing import Any


def render(template: str, package: str = "crops_jax.report", **values: Any) -> str:
    """The page of a template in `templates/` of a package; what is put in is escaped.

    Templates of this room (`base.html`, `table.html`) are there for every package.
    """
    import jinja2

    loaders = [jinja2.PackageLoader(name) for name in dict.fromkeys([package, "crops_jax.report"])]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(values)
