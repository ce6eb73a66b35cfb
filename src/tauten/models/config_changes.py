"""What differs between two transformers configurations, and making it so in a third."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig


def config_of(model: nn.Module) -> dict[str, Any]:
    """A transformers model's configuration as JSON holds it; empty for others."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        return {}
    facts: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return facts


def changed_config(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of one configuration that another has otherwise, also of those inside."""
    changed: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := changed_config(old, value):
                changed[key] = inner
        elif key not in before or old != value:
            changed[key] = value
    return changed


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with changes as `changed_config` finds them."""
    result = dict(config)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merged(old, value)
        result[key] = value
    return result


def set_config(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    """Make the changes in a configuration object, in place."""
    for key, value in changes.items():
        inner = getattr(config, key, None)
        if isinstance(inner, PreTrainedConfig):
            set_config(inner, value)
        else:
            setattr(config, key, merged({key: inner}, {key: value})[key])
