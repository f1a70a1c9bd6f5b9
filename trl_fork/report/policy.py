"""Templates of pages, and the hash by which a page's content security policy names its inline style or script."""

import base64
from hashlib import sha256

from jinja2 import Environment, PackageLoader, StrictUndefined


def policy_hash(text: str) -> str:
    """Hash of what stands between the tags, to the byte."""
    return base64.b64encode(sha256(text.encode()).digest()).decode()


def page_templates(**settings) -> Environment:
    """
    The templates of this package. All text is escaped, and their common head allows no style and script but their own.

    Args:
        **settings: Arguments of `jinja2.Environment`.
    """
    loader = PackageLoader("trl_fork.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **settings)
    environment.filters["sha256"] = policy_hash
    return environment
