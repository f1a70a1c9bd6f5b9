"""The hash by which a page's content security policy names its inline style or script."""

import base64
from hashlib import sha256


def policy_hash(text: str) -> str:
    """Hash of what stands between the tags, to the byte."""
    return base64.b64encode(sha256(text.encode()).digest()).decode()
