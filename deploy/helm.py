"""A Helm chart: the same objects, whose leaves are fields of the environment file.

The chart has the shape of the environment that it is made from (what sleeps, what is monitored, which stores there are); numbers,
images, sizes, places and names of secrets are values. A value that would change the shape is refused by the chart's schema.
"""

from __future__ import annotations

import json
import re
from typing import Any, Self

from deploy.box import Box
from deploy.environment import Environment
from deploy.fitting import Target, check
from deploy.notes import notes
from deploy.release import Release
from deploy.rendering import MARK, Rendering, dump, dump_all, manifests

_SCALARS = (
    "image", "host", "gateway.replicas.min", "gateway.replicas.max", "gateway.cpu_percent", "gateway.resources.cpu",
    "gateway.resources.memory", "engine.resources.cpu", "engine.resources.memory", "engine.idle_seconds", "ingress.class_name",
    "ingress.tls_secret", "weights.claim", "weights.image", "weights.storage_class", "state.claim", "state.storage_class",
    "engine.compile_cache", "network.keda",
)  # fmt: skip
_MAPPINGS = ("gateway.node_selector", "engine.node_selector", "ingress.annotations", "monitoring.labels")
_LISTS = ("gateway.tolerations", "engine.tolerations")
_TOKEN = re.compile(r"@@(\w+(?:\.\w+)*)@@")


class _Number(int):
    """An integer that writes itself as a value of the chart; computed with, it is the number it is."""

    path: str

    def __new__(cls, value: int, path: str) -> Self:
        made = super().__new__(cls, value)
        made.path = path
        return made

    def __str__(self) -> str:
        return f"@@{self.path}@@"

    def __format__(self, spec: str) -> str:
        return str(self)


def chart(box: Box, environment: Environment, target: Target) -> Rendering:
    """Return the files of a chart for a cluster's target; raises DoesNotFit."""
    advice = check(box, environment, target)
    paths = _open_paths(environment)
    opened = environment
    for path in paths:
        opened = _replaced(opened, path.split("."), path)
    opened = opened.model_copy(update={"name": "@@Release.Name@@", "namespace": "@@Release.Namespace@@"})
    release = Release(box, opened, revision="@@Release.Revision@@")
    values: dict[str, Any] = {}
    for path in paths:
        *outer, last = path.split(".")
        place = values
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = _plain(_value(environment, path))
    about = {
        "apiVersion": "v2", "name": box.name, "version": f"0.1.0+{box.version}", "appVersion": box.version, "type": "application",
        "description": f"The box {box.tag}: its gateway, and an engine that scales by {target}.",
    }  # fmt: skip
    head = f"{MARK} helm --target {target}`: {box.tag}\n"
    files = {
        "Chart.yaml": head + dump(about),
        "values.yaml": head + dump(values),
        "values.schema.json": json.dumps({"$comment": head.strip(), **_schema(paths)}, indent=2) + "\n",
        **{
            f"templates/{name}.yaml": _template(head + dump_all(_walked(made)))
            for name, made in manifests(release, target).items()
        },
    }
    told = notes(release, target)
    files["templates/NOTES.txt"] = f"{{{{- /* {head.strip()} */ -}}}}\n" + _template("".join(f"- {line}\n" for line in told))
    return Rendering(files, advice, notes(Release(box, environment), target))


def _open_paths(environment: Environment) -> list[str]:
    """Return the fields that may be values: those that are given, since one that is not has no place in the objects."""
    named = [
        name for name in type(environment.secrets).model_fields if name != "variables" and getattr(environment.secrets, name)
    ]
    secrets = [f"secrets.{name}.{part}" for name in named for part in ("name", "key")]
    given = [path for path in (*_SCALARS, *secrets) if _value(environment, path) is not None]
    return [*given, *_MAPPINGS, *_LISTS]


def _value(environment: Environment, path: str) -> Any:
    found: Any = environment
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _replaced(section: Any, names: list[str], path: str) -> Any:
    first, *rest = names
    value = getattr(section, first)
    if rest:
        return section.model_copy(update={first: _replaced(value, rest, path)})
    token: Any = f"@@{path}@@"
    if isinstance(value, int):
        token = _Number(value, path)
    elif isinstance(value, dict):
        token = {token: ""}
    elif isinstance(value, tuple):
        token = (token,)
    return section.model_copy(update={first: token})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _walked(content: Any) -> Any:
    """Return a structure whose numbers, mappings and lists that are values are tokens; of a text the token stays where it is."""
    if isinstance(content, _Number):
        return f"@@number.{content.path}@@"
    if isinstance(content, dict):
        keys = list(content)
        if len(keys) == 1 and isinstance(keys[0], str) and _TOKEN.fullmatch(keys[0]):
            return f"@@json.{keys[0].strip('@')}@@"
        return {key: _walked(value) for key, value in content.items()}
    if isinstance(content, list):
        if len(content) == 1 and isinstance(content[0], str) and any(content[0] == f"@@{path}@@" for path in _LISTS):
            return f"@@json.{content[0].strip('@')}@@"
        return [_walked(value) for value in content]
    return content


def _template(text: str) -> str:
    """Return a file of YAML as a template: braces of its own are kept, tokens become values."""
    return "".join(_line(line) for line in text.splitlines(keepends=True))


def _line(line: str) -> str:
    if merged := re.fullmatch(r"( *)'@@(\w+(?:\.\w+)*)@@': ''\n", line):
        pad, path = merged.groups()
        pair = "{{ $key | toJson }}: {{ $value | toJson }}"
        return f"{pad}{{{{- range $key, $value := .Values.{path} }}}}\n{pad}{pair}\n{pad}{{{{- end }}}}\n"
    line = line.replace("{{", "\0").replace("}}", '{{ "}}" }}').replace("\0", '{{ "{{" }}')
    whole = re.fullmatch(r"( *(?:- )?(?:[\w./-]+: )?)'@@(\w+(?:\.\w+)*)@@'\n", line)
    if whole and not whole[2].startswith("Release."):
        kind, _, path = whole[2].partition(".")
        value = f".Values.{path}" if kind in {"number", "json"} else f".Values.{whole[2]} | toString"
        return f"{whole[1]}{{{{ {value} | toJson }}}}\n"
    return _TOKEN.sub(lambda found: f"{{{{ {'.' if found[1].startswith('Release.') else '.Values.'}{found[1]} }}}}", line)


def _schema(paths: list[str]) -> dict[str, Any]:
    """Return the schema of the values: of each field, the environment file's own."""
    whole = Environment.model_json_schema()
    made: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_object(), "$defs": whole["$defs"]}
    for path in paths:
        *outer, last = path.split(".")
        place, theirs = made, whole
        for name in outer:
            theirs = _resolved(theirs["properties"][name], whole)
            place = place["properties"].setdefault(name, _object())
        place["properties"][last] = theirs["properties"][last]
    return made


def _object() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    for option in [schema, *schema.get("anyOf", [])]:
        if "$ref" in option:
            return whole["$defs"][option["$ref"].rpartition("/")[2]]
    return schema
