"""What deploy/ starts: the pmill commands of its manifests, with the variables they get, and whether the binary knows them."""

import re
import shlex
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import yaml

import pmill

DEPLOY = pmill.REPO / "deploy"
# Read by every command, and in no help.
EVERYWHERE = {"PMILL_LOG_FORMAT", "PMILL_RETRY_SECONDS"}
VARIABLE = re.compile(r"\bPMILL_[A-Z_]+\b")


@dataclass(frozen=True)
class Command:
    """One command: the file it stands in, its name there, its arguments after `pmill`, its variables."""

    file: str
    name: str
    arguments: list
    variables: dict = field(default_factory=dict)

    def __str__(self):
        return f"{self.file}:{self.name}"

    def placed(self, places, **more):
        """The same with other places: pairs of a text and what stands for it, the longest first."""

        pattern = re.compile("|".join(re.escape(old) for old in sorted(places, key=len, reverse=True)))

        def place(text):
            # In one go, so that what stands there now is not replaced again.
            return pattern.sub(lambda found: str(places[found[0]]), text)

        variables = {key: place(value) for key, value in {**self.variables, **more}.items()}
        return replace(self, arguments=[place(argument) for argument in self.arguments], variables=variables)

    def problems(self):
        """What the binary does not know: flags, and variables that this command does not read."""
        command = self.arguments[0]
        text = manual(command)
        found = []
        parsed = pmill.run(*self.arguments, "--help", code=None)
        if parsed.code != 0:
            found.append(f"{self}: {parsed.err.strip()}")
        for flag in (argument.split("=")[0] for argument in self.arguments if argument.startswith("--")):
            if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text):
                found.append(f"{self}: `{flag}` is no flag of pmill {command}")
        for name in self.variables:
            if name.startswith("PMILL_") and name not in EVERYWHERE | set(VARIABLE.findall(text)):
                found.append(f"{self}: pmill {command} does not read {name}")
        return found


@lru_cache
def manual(command):
    return pmill.run(command, "--help").out


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests():
    """(file, object) of all Kubernetes manifests but kustomizations."""
    for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in documents(path):
                yield path, document


def pod(document):
    """The pod's template in an object, or nothing."""
    spec = document.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    return spec.get("template")


def relative(path):
    return str(path.relative_to(DEPLOY))


def of_kubernetes():
    return [
        Command(
            relative(path),
            container["name"],
            container["args"],
            {variable["name"]: variable["value"] for variable in container["env"]},
        )
        for path, document in manifests()
        if pod(document)
        for container in pod(document)["spec"]["containers"]
    ]


def compose():
    return yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


def of_compose():
    return [
        Command("compose/compose.yaml", name, service["command"], service["environment"])
        for name, service in compose()["services"].items()
    ]


def unit(path):
    """The (key, value) lines of a systemd file, continued lines joined."""
    text = re.sub(r"^\s*[#;].*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split("=", 1)) for line in text.splitlines() if "=" in line]


def of_systemd():
    found = []
    for path in sorted((DEPLOY / "systemd").glob("*.service")):
        lines = unit(path)
        for part in (None, *sorted((path.parent / f"{path.name}.d").glob("*.conf"))):
            all_lines = lines + (unit(part) if part else [])
            program, *arguments = shlex.split([value for key, value in all_lines if key == "ExecStart"][-1])
            assert program == "/usr/local/bin/pmill", path
            words = [word for key, value in all_lines if key == "Environment" for word in shlex.split(value)]
            file = part or path
            found.append(Command(relative(file), path.stem, arguments, dict(word.split("=", 1) for word in words)))
    return found


def every():
    return [*of_kubernetes(), *of_compose(), *of_systemd()]


def one(file, name=None):
    """The command of a file, by its name where there are several."""
    found = [command for command in every() if command.file == file and name in (None, command.name)]
    assert len(found) == 1, (file, name, found)
    return found[0]


def container_file():
    """(instruction, rest) of the container file, continued lines joined."""
    text = (DEPLOY / "container" / "Containerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def scripts():
    return [
        path
        for path in sorted(DEPLOY.rglob("*"))
        if path.is_file() and path.read_text().startswith("#!/usr/bin/env bash")
    ]


def nightly(path, places):
    """Writes the pipeline of the night with other places."""
    text = (DEPLOY / "kubernetes" / "nightly" / "nightly.toml").read_text()
    for old, new in places.items():
        text = text.replace(old, str(new))
    Path(path).write_text(text)
    return path
