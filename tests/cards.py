"""BentoML's card of a model, as `ekiben pack` lets it be written."""

import yaml


def card(tag, **changed):
    """The text of `model.yaml` for a tag."""
    name, _, version = tag.partition(":")
    told = {
        "name": name, "version": version, "module": "", "labels": {"made-by": "ekiben"}, "options": {},
        "metadata": {"source": "path:elsewhere", "recipe": "none"},
        "context": {"framework_name": "", "framework_versions": {}, "bentoml_version": "1", "python_version": "3.11.2"},
        "signatures": {}, "api_version": "v1", "creation_time": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return yaml.safe_dump(told | changed)
