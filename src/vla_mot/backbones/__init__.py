"""Understanding experts, one vision-language family per file.

A family file defines `build(config) -> UnderstandingExpert` (see `base`). `build_backbone` finds it by name, so
a new family is a new file here, a YAML in `conf/backbone/` and a test; nothing else changes.
"""

from vla_mot.backbones.base import Seen, UnderstandingExpert, Understood, build_backbone

__all__ = ["Seen", "UnderstandingExpert", "Understood", "build_backbone"]
