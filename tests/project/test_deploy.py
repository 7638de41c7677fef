"""What is handed out for running it: it parses, its parts agree, and the gateway takes its configuration."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagetasks_server.config import Settings, load
from imagetasks_server.contract import SERVICE
from imagetasks_server.health import ALIVE
from processes import ROOT

KUBERNETES = ROOT / "deploy/kubernetes/imagetasks.yaml"
COMPOSE = ROOT / "deploy/compose.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")

OBJECTS: dict[str, Any] = {each["kind"]: each for each in yaml.safe_load_all(KUBERNETES.read_text("utf-8"))}
DEPLOYMENT = OBJECTS["Deployment"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORTS = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
GATEWAY = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]["gateway"]


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def mebibytes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([MmGg])i?", text).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 1, "g": 1024}[unit.lower()]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the ConfigMap means; the Secret's files are there."""
    content = OBJECTS["ConfigMap"]["data"]["gateway.toml"]
    for path in re.findall(r'^tls_\w+ = "(.*)"', content, re.MULTILINE):
        (tmp_path / Path(path).name).touch()
        content = content.replace(path, str(tmp_path / Path(path).name))
    file = tmp_path / "gateway.toml"
    file.write_text(content)
    # As in the image.
    monkeypatch.setenv("IMAGETASKS_LISTEN", re.findall(r"IMAGETASKS_LISTEN=(\S+)", DOCKERFILE)[0])
    return load(str(file))


class TestKubernetes:
    """The manifests."""

    def test_each_object_is_of_one_namespace_and_selects_the_same_pods(self) -> None:
        namespace = OBJECTS["Namespace"]["metadata"]["name"]
        for kind, each in OBJECTS.items():
            assert kind == "Namespace" or each["metadata"]["namespace"] == namespace
        labels = DEPLOYMENT["template"]["metadata"]["labels"]
        assert DEPLOYMENT["selector"]["matchLabels"] == labels
        assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        assert OBJECTS["Service"]["spec"]["selector"] == labels
        assert POD["serviceAccountName"] == OBJECTS["ServiceAccount"]["metadata"]["name"]

    def test_its_share_counts_the_replicas_that_a_rollout_adds(self, settings: Settings) -> None:
        rollout = DEPLOYMENT["strategy"]["rollingUpdate"]
        most = DEPLOYMENT["replicas"] + rollout["maxSurge"]
        assert 0.99 / most < settings.budget.share <= 1 / most
        assert rollout["maxUnavailable"] == 0

    def test_its_ports_agree(self, settings: Settings) -> None:
        assert settings.listen == f"0.0.0.0:{PORTS['grpc']}"
        assert settings.health_listen == f"0.0.0.0:{PORTS['health']}"
        assert settings.metrics_listen == f"0.0.0.0:{PORTS['metrics']}"
        scraped = DEPLOYMENT["template"]["metadata"]["annotations"]["prometheus.io/port"]
        assert scraped == str(PORTS["metrics"])
        (port,) = OBJECTS["Service"]["spec"]["ports"]
        assert (port["port"], port["targetPort"]) == (PORTS["grpc"], "grpc")
        assert f"EXPOSE {PORTS['grpc']}\n" in DOCKERFILE

    def test_its_clients_choose_among_replicas(self) -> None:
        assert OBJECTS["Service"]["spec"]["clusterIP"] == "None"

    def test_its_probes_ask_where_health_is_answered_for_what_is_known_there(self) -> None:
        services = {}
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = CONTAINER[name]["grpc"]
            assert asked["port"] == PORTS["health"]
            services[name] = asked["service"]
        # A gateway without credentials, or one that drains, is not restarted for it.
        assert services == {
            "startupProbe": ALIVE,
            "livenessProbe": ALIVE,
            "readinessProbe": SERVICE.full_name,
        }

    def test_it_has_the_time_to_drain(self, settings: Settings) -> None:
        waits = [float(each) for each in re.findall(r"sleep\((\d+)\)", str(CONTAINER["lifecycle"]))]
        assert len(waits) == 1
        # And some for taking its parts down.
        assert POD["terminationGracePeriodSeconds"] >= waits[0] + settings.drain_seconds + 5

    def test_it_can_do_little(self) -> None:
        assert POD["securityContext"]["runAsNonRoot"] is True
        assert f"USER {POD['securityContext']['runAsUser']}:" in DOCKERFILE
        assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert CONTAINER["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert POD["automountServiceAccountToken"] is False

    def test_its_memory_is_limited_above_what_it_asks_for(self) -> None:
        resources = CONTAINER["resources"]
        assert mebibytes(resources["requests"]["memory"]) < mebibytes(resources["limits"]["memory"])
        # A limit of CPU would throttle it in the middle of an answer.
        assert "cpu" not in resources["limits"]

    def test_what_it_reads_is_mounted(self) -> None:
        content = OBJECTS["ConfigMap"]["data"]["gateway.toml"]
        mounts = {each["mountPath"]: each["name"] for each in CONTAINER["volumeMounts"]}
        volumes = {each["name"]: each for each in POD["volumes"]}
        assert set(mounts.values()) == set(volumes)
        paths = [CONTAINER["args"][1], *re.findall(r'tls_\w+ = "(.*)"', content)]
        assert len(paths) == 4
        assert {str(Path(path).parent) for path in paths} == set(mounts)
        assert CONTAINER["args"][0] == "--config"
        assert volumes["config"]["configMap"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
        assert Path(paths[0]).name in OBJECTS["ConfigMap"]["data"]
        # The gateway's group may read the key, and nobody else.
        assert volumes["tls"]["secret"]["defaultMode"] == 0o440
        assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]

    def test_a_drain_of_nodes_takes_one_at_a_time(self) -> None:
        budget = OBJECTS["PodDisruptionBudget"]["spec"]
        assert 0 < budget["maxUnavailable"] < DEPLOYMENT["replicas"]

    def test_its_image_is_of_this_version(self) -> None:
        version = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        assert CONTAINER["image"] == f"imagetasks:{version[0]}"


class TestCompose:
    """The Compose file."""

    @pytest.fixture
    def settings(self, monkeypatch: pytest.MonkeyPatch) -> Settings:
        for name, value in GATEWAY["environment"].items():
            assert name.startswith("AWS_") or value is not None
            if value is not None:
                monkeypatch.setenv(name, value)
        return load(None)

    def test_it_is_reached_from_this_machine_only(self, settings: Settings) -> None:
        (published,) = GATEWAY["ports"]
        host, outside, inside = published.split(":")
        assert host == "127.0.0.1"
        assert outside == inside == settings.listen.rpartition(":")[2]

    def test_it_has_the_time_to_drain(self, settings: Settings) -> None:
        assert seconds(GATEWAY["stop_grace_period"]) >= settings.drain_seconds + 5

    def test_its_health_is_checked_as_the_images(self) -> None:
        command = re.findall(r"^HEALTHCHECK .*\\\n  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0]
        check = GATEWAY["healthcheck"]
        assert ["CMD", *yaml.safe_load(command)] == check["test"]
        for option, key in (
            ("interval", "interval"),
            ("timeout", "timeout"),
            ("start-period", "start_period"),
        ):
            assert re.findall(rf"--{option}=(\S+)", DOCKERFILE) == [check[key]]
        assert f"--retries={check['retries']} " in DOCKERFILE

    def test_it_can_do_little(self) -> None:
        assert f"USER {GATEWAY['user']}\n" in DOCKERFILE
        assert GATEWAY["read_only"] is True
        assert GATEWAY["cap_drop"] == ["ALL"]
        assert mebibytes(GATEWAY["mem_limit"]) >= 512
        assert (COMPOSE.parent / GATEWAY["build"]).resolve() == ROOT
