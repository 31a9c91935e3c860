"""Run by .venv-infra: which workloads of a built overlay its admission policy lets in, as JSON.

Variables and validation are evaluated as they stand; the message is not, since it uses functions of Kubernetes' own.
"""

import json
import sys
from pathlib import Path

import celpy
import yaml
from celpy.celtypes import MapType, StringType

objects = [document for document in yaml.safe_load_all(Path(sys.argv[1]).read_text()) if document]
policy = next(item["spec"] for item in objects if item["kind"] == "ValidatingAdmissionPolicy")
resources = {name for rule in policy["matchConstraints"]["resourceRules"] for name in rule["resources"]}
environment = celpy.Environment()


def evaluate(expression: str, workload: dict, variables: dict) -> object:
    """One expression's value."""
    program = environment.program(environment.compile(expression))
    given = MapType({StringType(name): value for name, value in variables.items()})
    return program.evaluate({"object": celpy.json_to_cel(workload), "variables": given})


admitted = {}
for workload in objects:
    if f"{workload['kind'].lower()}s" not in resources:
        continue
    variables: dict = {}
    for variable in policy["variables"]:
        variables[variable["name"]] = evaluate(variable["expression"], workload, variables)
    admitted[workload["metadata"]["name"]] = all(
        bool(evaluate(rule["expression"], workload, variables)) for rule in policy["validations"]
    )
print(json.dumps(admitted))
