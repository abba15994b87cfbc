"""YAML in which a key given twice is an error, and what looks like a date stays text."""

from __future__ import annotations

from typing import Any

import yaml

from modelium.errors import ConfigError

DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    # A model may be called 2026-11-25; no key here wants a date.
    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own)
        first: [pair for pair in pairs if pair[0] != DATE]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(text: str, source: str) -> Any:
    """Read one YAML document. Raises ConfigError naming `source` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, KeyError) as error:  # a tag that its value belies, such as !!int x
        raise ConfigError(f"{source}: not YAML: a value does not fit its tag: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not YAML: nested too deeply") from None
