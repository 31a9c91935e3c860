"""Readings of Kubernetes manifests: the pods that they make, what these name, and who may speak with whom."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [item for item in objects if item["kind"] in kinds]


def pod_templates(objects: list[Object]) -> dict[str, Object]:
    """The template of each workload's pods, by kind and name."""
    found = {}
    for item in of_kind(objects, "Deployment", "StatefulSet", "Job", "CronJob"):
        spec = item["spec"]["jobTemplate"]["spec"] if item["kind"] == "CronJob" else item["spec"]
        found[f"{item['kind']}/{item['metadata']['name']}"] = spec["template"]
    return found


def containers(pod: Object) -> list[Object]:
    """All containers of a pod's spec."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def images(objects: list[Object]) -> set[str]:
    """All images that are named."""
    return {container["image"] for template in pod_templates(objects).values() for container in containers(template["spec"])}


def named(pod: Object, kind: str) -> set[str]:
    """Names of the secrets ("secret") or config maps ("configMap") that a pod's spec uses."""
    found = {
        source[f"{kind}Ref"]["name"] for item in containers(pod) for source in item.get("envFrom", ()) if f"{kind}Ref" in source
    }
    for item in containers(pod):
        for variable in item.get("env", ()):
            reference = variable.get("valueFrom", {}).get(f"{kind}KeyRef")
            found |= {reference["name"]} if reference else set()
    for volume in pod.get("volumes", ()):
        if kind in volume:
            found.add(volume[kind]["secretName" if kind == "secret" else "name"])
    return found


def allowed(
    objects: list[Object], pods: dict[str, dict[str, str]], ports: set[int], direction: str
) -> set[tuple[str, str, int]]:
    """(from, to, port) that the network policies let out ("Egress") or in ("Ingress") among pods of the namespace, by labels.

    As Kubernetes has it: a pod that a policy selects for a direction may do what some such policy allows, others all; a
    connection needs both. Peers by address or in other namespaces are left out: they are no pods of this one.
    """
    policies = [item["spec"] for item in of_kind(objects, "NetworkPolicy")]
    ways = {(source, target, port) for source in pods for target in pods for port in ports if source != target}
    if direction == "Egress":
        return {way for way in ways if _lets(policies, direction, "to", pods[way[0]], pods[way[1]], way[2])}
    return {way for way in ways if _lets(policies, direction, "from", pods[way[1]], pods[way[0]], way[2])}


def _lets(policies: list[Object], direction: str, key: str, own: dict[str, str], peer: dict[str, str], port: int) -> bool:
    held = [policy for policy in policies if direction in policy["policyTypes"] and _selects(policy["podSelector"], own)]
    rules = [rule for policy in held for rule in policy.get(direction.lower(), ())]
    return not held or any(_names(rule.get(key), peer) and _opens(rule.get("ports"), port) for rule in rules)


def _names(peers: list[Object] | None, labels: dict[str, str]) -> bool:
    """Whether a rule's peers take in a pod of the namespace; without peers it is meant for all."""
    near = [item for item in peers or () if "namespaceSelector" not in item and "ipBlock" not in item]
    return peers is None or any(_selects(item["podSelector"], labels) for item in near)


def _opens(ports: list[Object] | None, port: int) -> bool:
    return ports is None or any(item["port"] == port for item in ports)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    meant = {"Exists": lambda key, _: key in labels, "In": lambda key, values: labels.get(key) in values}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        meant[item["operator"]](item["key"], item.get("values")) for item in selector.get("matchExpressions", ())
    )
