"""deploy/: what is in it is valid, names only what there is, and does what it says when it runs on loopback."""

import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from dataclasses import replace

import kubernetes_validate
import pytest
import yaml

import certificates
import cluster
import deployed
import pmill

KUBERNETES = deployed.DEPLOY / "kubernetes"
# Of another project than Kubernetes, which has no schema of it.
FOREIGN = {"ScaledObject"}
CUT = ["--unit-size", "40KiB"]


# What they say ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", deployed.every(), ids=str)
def test_every_flag_and_variable_of_a_command_exists(command):
    assert command.problems() == []


def test_a_flag_or_variable_that_is_gone_is_noticed():
    command = deployed.one("kubernetes/cluster/executor.yaml")
    for flag in ("--allowed", "--slot=4"):
        assert command.problems() == [] != replace(command, arguments=[*command.arguments, flag]).problems()
    for variable in ("PMILL_SLOT", "PMILL_WAREHOUSE", "PMILL_LISTEN"):
        changed = replace(command, variables={**command.variables, variable: "1"})
        assert changed.problems() == [f"{command}: pmill executor does not read {variable}"]


def test_variables_named_anywhere_exist():
    known = set(deployed.EVERYWHERE)
    for command in ("scheduler", "executor", "count", "run", "commit", "serve"):
        known |= set(deployed.VARIABLE.findall(deployed.manual(command)))
    sources = "".join(path.read_text() for path in (pmill.REPO / "crates").rglob("*.rs"))
    assert all(f'"{name}"' in sources for name in deployed.EVERYWHERE)
    for path in sorted(deployed.DEPLOY.rglob("*")):
        if path.is_file():
            assert set(deployed.VARIABLE.findall(path.read_text())) <= known, path


def test_yaml_is_tidy():
    rules = "{extends: default, rules: {line-length: {max: 130}, braces: {max-spaces-inside: 0}}}"
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", rules, str(deployed.DEPLOY)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", deployed.scripts(), ids=deployed.relative)
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", path], check=True, timeout=20)
    assert "set -euo pipefail" in path.read_text()
    # Slurm copies its scripts; the others are run.
    assert os.access(path, os.X_OK) != (path.suffix == ".sbatch")


def test_the_version_is_that_of_the_workspace():
    version = re.search(r'^version = "(.+)"$', (pmill.REPO / "Cargo.toml").read_text(), re.M)[1]
    for path in deployed.DEPLOY.rglob("*"):
        if path.is_file():
            assert set(re.findall(r"\bpmill:([\w.]+)|newTag: ([\w.]+)", path.read_text())) <= {(version, ""), ("", version)}, path


# The container file -----------------------------------------------------------------------------


def test_the_image_is_built_from_what_there_is_and_as_the_readme_says():
    lines = deployed.container_file()
    stages = [rest for instruction, rest in lines if instruction == "FROM"]
    assert len(stages) == 2 and stages[0].endswith(" AS build")
    toolchain = re.search(r'channel = "(.+)"', (pmill.REPO / "rust-toolchain.toml").read_text())[1]
    assert stages[0].startswith(f"rust:{toolchain}-")
    # Both of one Debian, or the binary would want a newer C library than there is.
    assert stages[0].split()[0].split("-")[-1] in stages[1]
    (build,) = [rest for instruction, rest in lines if instruction == "RUN" and "cargo" in rest]
    readme = (pmill.REPO / "README.md").read_text()
    assert f"`{build.removesuffix(' --locked')}`" in readme
    ignored = (deployed.DEPLOY / "container" / "Containerfile.dockerignore").read_text().split()
    sources = []
    for instruction, rest in lines:
        if instruction == "COPY" and not rest.startswith("--from"):
            sources += rest.split()[:-1]
    assert ignored == ["*", *ignored[1:]] and {line.removeprefix("!") for line in ignored[1:]} == set(sources)
    assert all((pmill.REPO / source).exists() for source in sources)
    (user,) = [rest for instruction, rest in lines if instruction == "USER"]
    assert user == "10001:10001"
    assert ("ENTRYPOINT", '["pmill"]') in lines


def test_what_is_copied_into_the_image_is_a_whole_workspace():
    """Every crate of the workspace, and every file that a crate takes from outside its folder, is in the context."""
    copied = [
        source
        for instruction, rest in deployed.container_file()
        if instruction == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    inside = [(pmill.REPO / source).resolve() for source in copied]
    for manifest in (pmill.REPO / "crates").rglob("Cargo.toml"):
        for path in re.findall(r'path = "([^"]+)"', manifest.read_text()):
            assert any((manifest.parent / path).resolve().is_relative_to(place) for place in inside), (manifest, path)
    for member in tomllib.loads((pmill.REPO / "Cargo.toml").read_text())["workspace"]["members"]:
        assert any((pmill.REPO / member).resolve().is_relative_to(place) for place in inside), member
    for source in (pmill.REPO / "crates").rglob("*.rs"):
        for path in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', source.read_text()):
            assert any((source.parent / path).resolve().is_relative_to(place) for place in inside), (source, path)


def test_healthy_asks_the_role_that_runs_beside_it(tmp_path):
    script = deployed.DEPLOY / "container" / "healthy"

    def healthy(*arguments, **variables):
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, env=pmill.environment(**variables), capture_output=True, timeout=20).returncode

    role = cluster.Role(tmp_path, "scheduler", "scheduler", "--listen", "127.0.0.1:0").ready()
    try:
        assert healthy(PMILL_HTTP=role.info["http"]) == 0
        assert healthy(role.info["http"].split(":")[1]) == 0
        assert healthy() == 0
    finally:
        role.kill()
    assert healthy(PMILL_HTTP=role.info["http"]) != 0


# Kubernetes -------------------------------------------------------------------------------------


def objects(kind):
    return [document for _, document in deployed.manifests() if document["kind"] == kind]


def pods():
    return [(document["metadata"]["name"], deployed.pod(document)) for _, document in deployed.manifests() if deployed.pod(document)]


@pytest.mark.parametrize("path", sorted({path for path, _ in deployed.manifests()}), ids=deployed.relative)
def test_manifests_are_what_kubernetes_takes(path):
    for document in deployed.documents(path):
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, "1.37", strict=True)


def test_kustomizations_reach_every_file():
    reached = set()
    for path in KUBERNETES.rglob("kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        for resource in kustomization["resources"]:
            target = (path.parent / resource).resolve()
            assert (target / "kustomization.yaml").exists() if target.is_dir() else target.is_file(), (path, resource)
            reached.add(target)
        for generator in kustomization.get("configMapGenerator", []):
            reached |= {(path.parent / file).resolve() for file in generator["files"]}
    files = {path for path in KUBERNETES.rglob("*") if path.is_file() and path.name != "kustomization.yaml"}
    assert files <= reached


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in KUBERNETES.rglob("kustomization.yaml")))
def test_kustomize_puts_them_together(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here: what it makes of deploy/kubernetes is not checked")
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    documents = [document for document in yaml.safe_load_all(result.stdout) if document]
    for document in documents:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, "1.37", strict=True)
    scalers = [document["kind"] for document in documents if document["kind"] in ("HorizontalPodAutoscaler", *FOREIGN)]
    assert scalers == {"cluster": ["HorizontalPodAutoscaler"], "all": ["HorizontalPodAutoscaler"], "keda": ["ScaledObject"]}.get(folder, [])


def selects(selector, labels):
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )


def test_services_scalers_and_policies_name_pods_that_there_are():
    labels = [template["metadata"]["labels"] for _, template in pods()]
    names = [document["metadata"]["name"] for document in objects("Deployment")]
    for service in objects("Service"):
        spec = service["spec"]
        (template,) = [template for _, template in pods() if spec["selector"].items() <= template["metadata"]["labels"].items()]
        ports = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in spec["ports"]} <= ports, service["metadata"]["name"]
    for document in objects("HorizontalPodAutoscaler") + objects("ScaledObject"):
        assert document["spec"]["scaleTargetRef"]["name"] in names
    for document in objects("Deployment"):
        assert selects(document["spec"]["selector"], deployed.pod(document)["metadata"]["labels"])
    for document in objects("PodDisruptionBudget"):
        assert any(selects(document["spec"]["selector"], each) for each in labels)
    ports = {port["containerPort"] for _, template in pods() for c in template["spec"]["containers"] for port in c.get("ports", [])}
    for policy in objects("NetworkPolicy"):
        spec = policy["spec"]
        assert any(selects(spec["podSelector"], each) for each in labels)
        for rule in spec.get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= ports
            for peer in rule["from"]:
                if "namespaceSelector" not in peer:
                    assert any(selects(peer["podSelector"], each) for each in labels)


def test_drivers_find_a_ready_scheduler_and_executors_one_that_is_not_ready_yet():
    by_name = {service["metadata"]["name"]: service["spec"] for service in objects("Service")}
    drivers = []
    for command in deployed.of_kubernetes():
        url = command.variables.get("PMILL_CLUSTER")
        if url:
            name = re.fullmatch(r"https://([a-z-]+):50050", url)[1]
            assert bool(by_name[name].get("publishNotReadyAddresses")) == (command.arguments[0] == "executor")
            drivers.append(command.arguments[0])
    assert sorted(drivers) == ["count", "executor", "run"]


def test_pods_have_no_rights_no_secrets_and_limits():
    volumes = {claim["metadata"]["name"] for claim in objects("PersistentVolumeClaim")}
    kinds = {document["kind"] for _, document in deployed.manifests()}
    assert "Secret" not in kinds
    readme = (deployed.DEPLOY / "README.md").read_text()
    for name, template in pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"], name
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}, name
        for volume in spec["volumes"]:
            if "secret" in volume:
                assert f"secret generic {volume['secret']['secretName']} " in readme, name
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in volumes, name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            memory = {kind: container["resources"][kind]["memory"] for kind in ("requests", "limits")}
            assert memory["requests"] == memory["limits"], name
            limit = {v["name"]: v["value"] for v in container["env"]}["PMILL_MEMORY_LIMIT"]
            assert mebibytes(limit) <= 0.8 * mebibytes(memory["limits"]), name
            for source in container.get("envFrom", []):
                assert f"secret generic {source['secretRef']['name']} " in readme, name
            roles = ("scheduler", "executor", "serve")
            assert ("livenessProbe" in container) == (container["args"][0] in roles), name


def mebibytes(text):
    number, unit = re.fullmatch(r"([\d.]+)(Gi|Mi)B?", text).groups()
    return float(number) * {"Gi": 1024, "Mi": 1}[unit]


def test_jobs_try_again_but_not_what_only_a_person_can_mend():
    jobs = objects("Job") + [cron["spec"]["jobTemplate"] for cron in objects("CronJob")]
    assert len(jobs) == 4
    for job in jobs:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        rules = {rule["action"]: rule for rule in job["spec"]["podFailurePolicy"]["rules"]}
        assert rules["FailJob"]["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
        assert rules["Ignore"]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


# They run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 3000, "--files", 6)
    return folder


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    return pmill.count(tmp_path_factory.mktemp("expected"), "captions", corpus, "TEXT", "--vocab-size", 20000)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """All secrets, under the names that they have in pods and in units."""
    folder = certificates.make(tmp_path_factory.mktemp("secrets"), "server")
    (folder / "token").write_text("token-of-this-test\n")
    for name, copies in {"server.pem": ("tls.crt", "cert"), "server.key": ("tls.key", "key"), "authority.pem": ("ca.crt", "ca")}.items():
        for copy in copies:
            shutil.copy(folder / name, folder / copy)
    return folder


@pytest.fixture
def places(corpus, secrets, tmp_path):
    """Where things are here that are elsewhere in a pod or under systemd."""
    data = corpus.parent
    # One for each test.
    warehouse = data / tmp_path.name / "warehouse"
    places = {
        # The image's folders.
        "/data": data,
        "/data/warehouse": warehouse,
        "/scratch": tmp_path / "scratch",
        "/etc/pmill/token": secrets,
        "/etc/pmill/tls": secrets,
        "/etc/pmill/users": secrets,
        "/etc/pmill/pipeline/nightly.toml": tmp_path / "nightly.toml",
        # Those of systemd's units.
        "/var/lib/pmill": data,
        "/var/lib/pmill/warehouse": warehouse,
        "/var/cache/pmill": tmp_path / "scratch",
        "/etc/pmill/nightly.toml": tmp_path / "nightly.toml",
        "/srv/corpus": corpus,
        "%d": secrets,
    }
    for port in (50050, 50051, 50052, 8080, 8815, 5432):
        places[f"0.0.0.0:{port}"] = places[f"127.0.0.1:{port}"] = "127.0.0.1:0"
    deployed.nightly(tmp_path / "nightly.toml", {"/data/corpus": corpus})
    return places


def get(url, authority=None):
    """The status that a GET gives."""
    context = ssl.create_default_context(cafile=authority) if authority else None
    try:
        with urllib.request.urlopen(url, timeout=20, context=context) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def start(command, folder):
    return cluster.Role(folder, command.name, *command.arguments, env=pmill.environment(**command.variables))


def run(command, *flags, **options):
    return pmill.run(*command.arguments, *flags, env=pmill.environment(**command.variables), **options)


def scheduler_urls(address):
    urls = {}
    for scheme in ("http", "https"):
        for host in ("pmill-scheduler", "pmill-scheduler-registration", "scheduler", "scheduler.example", "127.0.0.1"):
            urls[f"{scheme}://{host}:50050"] = f"{scheme}://{address}"
    return urls


CLUSTERS = {
    "kubernetes": ["kubernetes/cluster/scheduler.yaml", "kubernetes/cluster/executor.yaml", "kubernetes/count/job.yaml", "kubernetes/nightly/cronjob.yaml"],
    "compose": [("compose/compose.yaml", name) for name in ("scheduler", "executor", "count")],
    "systemd": ["systemd/pmill-scheduler.service", "systemd/pmill-executor.service", "systemd/pmill-nightly.service"],
    "systemd, over the network": [
        "systemd/pmill-scheduler.service.d/network.conf",
        "systemd/pmill-executor.service.d/network.conf",
        "systemd/pmill-nightly.service",
    ],
}


@pytest.mark.parametrize("kind", CLUSTERS)
def test_a_cluster_counts_as_one_process_does(kind, places, expected, secrets, tmp_path):
    scheduler, executor, *drivers = [deployed.one(*([file] if isinstance(file, str) else file)) for file in CLUSTERS[kind]]
    more = {}
    if kind.startswith("systemd"):
        # What the unit's comment and the README say for a cluster.
        more["PMILL_CLUSTER"] = "http://127.0.0.1:50050"
    if "network" in kind:
        more = {"PMILL_CLUSTER": "https://scheduler.example:50050", "PMILL_TOKEN_FILE": "%d/token", "PMILL_TLS_CA": "%d/ca"}
    roles = [start(scheduler.placed(places), tmp_path).ready()]
    try:
        http = roles[0].info["http"]
        # Why executors need a way to a scheduler that is not ready.
        assert (get(f"http://{http}/healthz"), get(f"http://{http}/readyz")) == (200, 503)
        places |= scheduler_urls(roles[0].info["listen"])
        roles.append(start(executor.placed(places), tmp_path).ready())
        assert cluster.wait_for(lambda: get(f"http://{http}/readyz") == 200)
        assert get(f"http://{roles[1].info['http']}/readyz") == 200
        for driver in drivers:
            summary = run(driver.placed(places, **more), *CUT, *([] if "--json" in driver.arguments else ["--json"])).json
            if driver.arguments[0] == "count":
                assert (summary["status"], summary["units"]) == ("counted", 6)
        job = pmill.Job(places["/data/warehouse"], "captions")
        assert job.terms() == expected.terms()
        assert job.table("pairs").equals(expected.table("pairs"))
        assert job.exists("pmi") == (drivers[-1].arguments[0] == "run")
        # As a pod or a unit is stopped.
        assert [role.terminate() for role in reversed(roles)] == [0, 0]
    finally:
        for role in roles:
            role.kill()


@pytest.mark.parametrize("page", ["docs/cluster.md", "README.md"])
def test_a_cluster_on_a_laptop_takes_three_commands(page, corpus, wordnet, tmp_path):
    """The page's scheduler, executor and job, run as they stand there but for ports and folders."""
    text = (pmill.REPO / page).read_text()
    lines = re.findall(r"^ *(?:\$ )?pmill ((?:scheduler|executor|(?:count|run) .*--cluster)\b[^#\n]*)", text, re.M)[:3]
    commands = [deployed.Command(page, line.split()[0], shlex.split(line.rstrip("& "))) for line in lines]
    scheduler, executor, job = commands
    assert [scheduler.name, executor.name, job.name in ("count", "run")] == ["scheduler", "executor", True]
    assert [command.problems() for command in commands] == [[], [], []]
    roles = [start(replace(scheduler, arguments=[*scheduler.arguments, "--listen", "127.0.0.1:0"]), tmp_path).ready()]
    try:
        urls = scheduler_urls(roles[0].info["listen"])
        roles.append(start(executor.placed(urls), tmp_path).ready())
        flags = dict(zip(job.arguments, job.arguments[1:]))
        places = {flags.get("--input"): corpus, flags.get("--text"): "TEXT", flags["--warehouse"]: "wh"}
        places[flags["--cluster"]] = urls[flags["--cluster"]]
        arguments = [str(places.get(argument, argument)) for argument in job.arguments]
        name = flags.get("--name")
        if job.name == "run":
            pipeline = pmill.REPO / arguments[1]
            name, arguments[1] = tomllib.loads(pipeline.read_text())["name"], str(pipeline)
            arguments += ["--set", f'input.paths=["{corpus}"]', "--set", f'features.lemma="wordnet:{wordnet}"']
        pmill.run(*arguments, *CUT, cwd=tmp_path)
        position = arguments.index("--cluster")
        alone = arguments[:position] + arguments[position + 2 :]
        alone[alone.index("wh")] = "alone"
        pmill.run(*alone, cwd=tmp_path)
        for table in ("vocab", "pairs"):
            assert pmill.Job(tmp_path / "wh", name).content(table) == pmill.Job(tmp_path / "alone", name).content(table)
    finally:
        for role in roles:
            role.kill()


@pytest.mark.parametrize("file, name", [("kubernetes/serve/serve.yaml", "serve"), ("compose/compose.yaml", "serve"), ("systemd/pmill-serve.service", None)])
def test_the_sql_server_is_ready_and_stops(file, name, places, secrets, expected, tmp_path):
    line = pmill.run("serve", "hash-password", "ann", stdin=b"a secret of this test").out
    (secrets / "users").write_text(line)
    shutil.copytree(expected.warehouse, places["/data/warehouse"])
    server = start(deployed.one(file, name).placed(places), tmp_path).ready()
    try:
        assert server.info["flight_sql"] and server.info["postgres"]
        scheme = "https" if server.info["tls"] else "http"
        probes = ("/healthz", "/readyz")
        authority = secrets / "authority.pem" if server.info["tls"] else None
        assert [get(f"{scheme}://{server.info['health']}{path}", authority) for path in probes] == [200, 200]
        if file.startswith("kubernetes"):
            (container,) = deployed.pod(objects("Deployment")[-1])["spec"]["containers"]
            asked = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
            assert {probe["scheme"] for probe in asked} == {scheme.upper()} and server.info["authentication"]
        assert server.terminate() == 0
    finally:
        server.kill()


def test_shards_of_an_indexed_job_count_and_the_commit_job_commits(places, expected, tmp_path):
    (job,) = [document for document in objects("Job") if document["spec"].get("completionMode") == "Indexed"]
    command = deployed.one("kubernetes/indexed/shards.yaml").placed(places)
    commit = deployed.one("kubernetes/commit/commit.yaml").placed(places)
    completions = job["spec"]["completions"]
    assert completions == job["spec"]["parallelism"] and f"--shard-count={completions}" in command.arguments
    environments = [pmill.environment(**command.variables, JOB_COMPLETION_INDEX=index) for index in range(completions)]
    log = (tmp_path / "shards.log").open("wb")
    shards = [
        subprocess.Popen([pmill.binary(), *command.arguments, *CUT], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for env in environments
    ]
    try:
        codes = [shard.wait(timeout=200) for shard in shards]
    finally:
        for shard in shards:
            if shard.poll() is None:
                shard.kill()
                shard.wait()
    assert codes == [0] * completions, (tmp_path / "shards.log").read_text()[-3000:]
    assert run(commit, "--json").json["units"] == 6
    cluster.same(pmill.Job(places["/data/warehouse"], "captions"), expected)


SBATCH = """#!/usr/bin/env bash
# Runs what it is given at once, as Slurm would: its tasks beside each other, with Slurm's variables.
set -euo pipefail
echo "$@" >> "$SLURM_FAKE/calls"
number=$(wc -l < "$SLURM_FAKE/calls")
array=none
while [[ $1 == --* ]]; do
    case $1 in --array=0-*) array=${1#--array=0-} ;; esac
    shift
done
export SLURM_JOB_ID=$number SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_NODE=1024
tasks=()
if [ "$array" = none ]; then
    bash "$@" >> "$SLURM_FAKE/log" 2>&1 & tasks+=($!)
else
    for index in $(seq 0 "$array"); do
        SLURM_ARRAY_TASK_ID=$index SLURM_ARRAY_TASK_MIN=0 bash "$@" >> "$SLURM_FAKE/log" 2>&1 & tasks+=($!)
    done
fi
for task in "${tasks[@]}"; do wait "$task"; done
echo "$number;cluster"
"""


@pytest.fixture
def slurm(tmp_path):
    """A folder of programs: pmill, and what stands for Slurm's. Gives the variables that scripts run with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pmill").symlink_to(pmill.binary())
    (programs / "sbatch").write_text(SBATCH)
    (programs / "scontrol").write_text('#!/usr/bin/env bash\necho "scontrol $*" >> "$SLURM_FAKE/calls"\n')
    for name in ("sbatch", "scontrol"):
        (programs / name).chmod(0o755)
    return pmill.environment(
        PATH=f"{programs}:{os.environ['PATH']}", SLURM_FAKE=tmp_path, TMPDIR=tmp_path, JOB="captions", PMILL_WAREHOUSE=tmp_path / "wh"
    )


@pytest.mark.parametrize("phases", [None, "terms count reduce"])
def test_a_slurm_array_counts_and_its_commit_comes_after_it(phases, slurm, corpus, expected, tmp_path):
    env = slurm | ({"PHASES": phases} if phases else {})
    command = ["bash", deployed.DEPLOY / "slurm" / "submit", "3", "--input", corpus, "--text", "TEXT", "--vocab-size", "20000", *CUT]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    log = (tmp_path / "log").read_text()
    assert result.returncode == 0, result.stderr + log
    calls = (tmp_path / "calls").read_text().splitlines()
    arrays = len(phases.split()) if phases else 1
    assert len(calls) == arrays + 1 and result.stdout == f"{arrays + 1};cluster\n"
    for number, call in enumerate(calls):
        assert ("--array=0-2" in call) == (number < arrays), call
        assert (f"--dependency=afterok:{number} " in call) == (number > 0), call
    cluster.same(pmill.Job(tmp_path / "wh", "captions"), expected)


def test_a_slurm_shard_that_cannot_now_is_queued_again(slurm, tmp_path):
    (tmp_path / "bin" / "pmill").unlink()
    (tmp_path / "bin" / "pmill").write_text("#!/usr/bin/env bash\nexit $CODE\n")
    (tmp_path / "bin" / "pmill").chmod(0o755)
    shard = ["bash", deployed.DEPLOY / "slurm" / "shard.sbatch", "--input", "x"]

    def outcome(code, restarts):
        (tmp_path / "calls").write_text("")
        env = slurm | {"CODE": str(code), "SHARDS": "2", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": str(restarts)}
        result = subprocess.run(shard, env=env, timeout=20)
        return result.returncode, (tmp_path / "calls").read_text()

    assert outcome(75, 0) == (75, "scontrol requeue 71\n")
    assert outcome(75, 10) == (75, "")
    assert outcome(2, 0) == (2, "")
    assert outcome(0, 0) == (0, "")


def test_submit_says_how_it_is_used(slurm):
    result = subprocess.run(["bash", deployed.DEPLOY / "slurm" / "submit"], env=slurm, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2 and "submit SHARDS" in result.stderr


# systemd and compose ----------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path):
    """The units with the binary where it is here; without systemd-analyze the test is skipped."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here (Debian's package systemd has it)")
    folder = tmp_path / "units"
    shutil.copytree(deployed.DEPLOY / "systemd", folder)
    for path in [*folder.glob("*.service"), *folder.glob("*/*.conf")]:
        path.write_text(path.read_text().replace("/usr/local/bin/pmill", str(pmill.binary())))
    return folder


@pytest.mark.parametrize("network", [False, True])
def test_units_are_what_systemd_takes(network, units):
    if not network:
        for folder in units.glob("*.d"):
            shutil.rmtree(folder)
    names = sorted(path for path in units.iterdir() if path.suffix in (".service", ".timer"))
    result = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True, timeout=60)
    ours = [line for line in result.stderr.splitlines() if "pmill" in line]
    assert result.returncode == 0 and ours == [], result.stderr


def test_units_are_hardened(units):
    for path in units.glob("*.service"):
        command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", path]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout[-300:] + result.stderr


def test_units_start_again_as_they_should():
    for path in (deployed.DEPLOY / "systemd").glob("*.service"):
        lines = dict(deployed.unit(path))
        assert lines["User"] == "pmill"
        if lines.get("Type") == "oneshot":
            assert (lines["Restart"], lines["RestartPreventExitStatus"]) == ("on-failure", "2")
        else:
            assert (lines["Restart"], lines["StartLimitIntervalSec"]) == ("always", "0")


def test_the_compose_file_names_what_there_is():
    compose = deployed.compose()
    for name, service in compose["services"].items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("depends_on", [])) <= set(compose["services"]), name
        assert {volume.split(":")[0] for volume in service["volumes"]} - {"${DATA"} <= set(compose["volumes"]), name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        # What lets everybody in is reached from this machine only.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if "--insecure" in service["command"]:
            assert all(compose["networks"][network].get("internal") for network in service["networks"]) or service.get("ports"), name
