"""The RayService and its network: valid to Kubernetes and Ray Serve, and fitting our code."""

import importlib
import inspect

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.deployment import FAST
from serving.pressure import PressureOptions
from tests.deploy.test_deploy import DEPLOY, RAY_VERSION, containers

SERVICE = "rayservice.yaml"
NETWORK = "rayservice-network.yaml"
LABEL = {"app.kubernetes.io/name": "crescendo-ranking"}
# Of the CRDs of KubeRay 1.4 and newer (RayServiceSpec, RayClusterSpec, and their parts).
SERVICE_FIELDS = {
    *("serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy"),
    "excludeHeadPodFromServeSvc",
}
CLUSTER_FIELDS = {
    *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "gcsFaultToleranceOptions"),
    *("headGroupSpec", "workerGroupSpecs", "headServiceAnnotations", "suspend", "managedBy"),
}
GROUP_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "suspend"),
    *("numOfHosts", "rayStartParams", "template", "serviceType", "headService"),
}
KUBERNETES = "1.31.0"


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text()))


@pytest.fixture(scope="module")
def service():
    (document,) = documents(SERVICE)
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayService")
    return document["spec"]


@pytest.fixture(scope="module")
def serve_config(service):
    from ray.serve.schema import ServeDeploySchema

    given = yaml.safe_load(service["serveConfigV2"])
    ServeDeploySchema.model_validate(given)
    return given


@pytest.fixture(scope="module")
def deployment(serve_config):
    (application,) = serve_config["applications"]
    (deployment,) = application["deployments"]
    return deployment


def test_the_ray_service_has_fields_of_its_definition_alone(service):
    cluster = service["rayClusterConfig"]
    assert set(service) <= SERVICE_FIELDS
    assert set(cluster) <= CLUSTER_FIELDS
    assert cluster["rayVersion"] == RAY_VERSION
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group) <= GROUP_FIELDS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_pods_are_valid_to_kubernetes_and_hardened(service):
    cluster = service["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        template = group["template"]
        assert template["metadata"]["labels"] == LABEL
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "pod", **template["metadata"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        (container,) = containers(template["spec"])
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        for port in container["ports"]:
            assert len(port["name"]) <= 15


def test_a_wrong_manifest_would_be_found():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    container = {"name": "c", "image": "i", "readynessProbe": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**pod, "spec": {"containers": [container]}}, KUBERNETES, strict=True
        )


def test_the_serve_config_imports_what_is_there_with_arguments_that_it_takes(serve_config):
    (application,) = serve_config["applications"]
    module, name = application["import_path"].split(":")
    builder = getattr(importlib.import_module(module), name)
    (parameter,) = inspect.signature(builder).parameters.values()
    assert issubclass(parameter.annotation, BaseModel)
    args = parameter.annotation(**application["args"])
    assert str(args.workspace) == "/workspace"


def test_the_deployment_is_the_one_that_the_application_makes(deployment, tmp_path):
    from serving.ray_application import Args, application
    from serving.tokens import create_token

    create_token(Workspace(tmp_path), name="gateway", scopes=["rank"])
    made = application(Args(workspace=tmp_path))
    assert made._bound_deployment.name == deployment["name"]


def test_without_a_token_nothing_is_deployed(tmp_path):
    from serving.ray_application import Args, application

    with pytest.raises(InputError, match="crescendo token create"):
        application(Args(workspace=tmp_path))


def test_limits_of_ray_lie_above_those_of_the_application(deployment):
    assert deployment["max_ongoing_requests"] > PressureOptions().max_waiting
    assert deployment["max_queued_requests"] > 0
    assert deployment["backpressure_config"]["retry_after_s"] > 0


def test_a_replica_has_a_pod_of_its_own_and_time_to_end(service, deployment):
    (workers,) = service["rayClusterConfig"]["workerGroupSpecs"]
    cpus = deployment["ray_actor_options"]["num_cpus"]
    assert cpus == int(workers["rayStartParams"]["num-cpus"])
    assert deployment["max_replicas_per_node"] == 1
    scaling = deployment["autoscaling_config"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (
        scaling["min_replicas"],
        scaling["max_replicas"],
    )
    assert scaling["min_replicas"] >= 2
    pod = workers["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"]
    assert deployment["graceful_shutdown_timeout_s"] > ray_draining_s()
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "serve"}
    assert service["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def ray_draining_s():
    from ray.serve._private import constants

    return constants.RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S


def test_the_number_of_waiting_requests_that_scales_is_that_of_the_stated_utilisation(deployment):
    # M/D/1: L(u) = u + u^2 / (2 (1 - u)).
    target = deployment["autoscaling_config"]["target_ongoing_requests"]
    assert target == pytest.approx(0.7 + 0.7**2 / (2 * (1 - 0.7)), abs=0.05)


def environment(container):
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_the_flags_are_rays_and_the_ports_are_those_that_are_named(service):
    from ray.serve._private import constants

    cluster = service["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    flags = [environment(group["template"]["spec"]["containers"][0]) for group in groups]
    assert flags[0] == flags[1]
    assert flags[0].items() >= FAST.items()
    for name in flags[0]:
        assert name == "OMP_NUM_THREADS" or hasattr(constants, name), name
    first = int(flags[0]["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    end = int(flags[0]["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"])
    (container,) = groups[1]["template"]["spec"]["containers"]
    named = {p["containerPort"] for p in container["ports"] if p["name"].startswith("replica-")}
    assert named == set(range(first, end))
    opened = [port for _, port in open_ports() if port is not None and "endPort" in port]
    assert [(port["port"], port["endPort"]) for port in opened] == [(first, end - 1)]


def open_ports():
    """Of the network policy: from which namespace (None: the cluster itself), which port."""
    policy, _ = documents(NETWORK)
    for rule in policy["spec"]["ingress"]:
        (source,) = rule["from"]
        namespace = source.get("namespaceSelector", {}).get("matchLabels", {})
        for port in rule.get("ports", [None]):
            yield namespace.get("kubernetes.io/metadata.name"), port


def test_the_network_is_closed_but_for_what_is_named():
    policy, budget = documents(NETWORK)
    for document in (policy, budget):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert policy["spec"]["podSelector"]["matchLabels"] == LABEL
    assert budget["spec"]["selector"]["matchLabels"] == LABEL
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    whole, *others = list(open_ports())
    assert whole == (None, None)
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": LABEL}}]
    assert {(space, port["port"]) for space, port in others} == {
        ("kuberay-system", 8265),
        ("gateway", 8000),
        ("monitoring", 30000),
        ("monitoring", 8080),
    }
