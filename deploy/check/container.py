"""What podman has to be told so that a container is what the kubelet would make of a pod's only container.

    container.py MANIFESTS NAME POD ADDRESS WORK [LABEL=VALUE...]

NAME is the StatefulSet's or the Job's. Prints an argument a line, up to those for after the image, which follow an empty
line. Folders of WORK stand for what Kubernetes keeps: secret/NAME, and data/POD for the claim; config/NAME and mounts/POD
are written. Variables that take a label of the pod get its VALUE, or nothing.
"""

import os
import shutil
import sys
from pathlib import Path

import yaml

manifests, name, pod, address, work, *labels = sys.argv[1:]
labels = dict(label.split("=", 1) for label in labels)
work = Path(work)
found = [manifest for manifest in yaml.safe_load_all(Path(manifests).read_text()) if manifest]
[template] = [m["spec"]["template"]["spec"] for m in found if m["metadata"]["name"] == name and m["kind"] in ("StatefulSet", "Job")]
configs = {m["metadata"]["name"]: m["data"] for m in found if m["kind"] == "ConfigMap"}
[container] = template["containers"]
group = template["securityContext"]["fsGroup"]
arguments = []

fields = {"metadata.name": pod, "status.podIP": address}
variables = {}
for variable in container["env"]:
    if "valueFrom" in variable:
        path = variable["valueFrom"]["fieldRef"]["fieldPath"]
        value = labels.get(path.removeprefix("metadata.labels['").removesuffix("']"), "") if "labels" in path else fields[path]
    else:
        value = variable["value"]
        for known, its in variables.items():
            value = value.replace(f"$({known})", its)
    variables[variable["name"]] = value
# A program of before there was such a listener.
if os.environ.get("WITHOUT_HEALTH"):
    variables.pop("OUTPOST_HEALTH__LISTEN", None)
for variable, value in variables.items():
    arguments += ["--env", f"{variable}={value}"]

volumes = {volume["name"]: volume for volume in template.get("volumes", [])}
for mount in container["volumeMounts"]:
    volume = volumes.get(mount["name"])
    mode = "ro" if mount.get("readOnly") else "rw"
    if volume is None:  # A claim.
        source = work / "data" / pod
        source.mkdir(parents=True, exist_ok=True)
        os.chown(source, 0, group)
        source.chmod(0o2775)
    else:
        source = work / "mounts" / pod / mount["name"]
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)
        if config := volume.get("configMap"):
            for file, text in configs[config["name"]].items():
                (source / file).write_text(text)
                (source / file).chmod(0o644)
        else:
            secret = volume["secret"]
            kept = work / "secret" / secret["secretName"]
            items = secret.get("items") or [{"key": file.name, "path": file.name} for file in kept.iterdir()]
            for item in items:
                target = source / item["path"]
                shutil.copyfile(kept / item["key"], target)
                os.chown(target, 0, group)
                target.chmod(secret["defaultMode"])
    arguments += ["--volume", f"{source}:{mount['mountPath']}:{mode}"]

context = template["securityContext"] | container["securityContext"]
arguments += ["--user", f"{context['runAsUser']}:{context['runAsGroup']}", "--group-add", str(group)]
if context["readOnlyRootFilesystem"]:
    arguments += ["--read-only", "--read-only-tmpfs=false"]
if not context["allowPrivilegeEscalation"]:
    arguments += ["--security-opt", "no-new-privileges"]
arguments += [f"--cap-drop={capability}" for capability in context["capabilities"]["drop"]]
arguments += ["--memory", container["resources"]["limits"]["memory"].replace("Mi", "m").replace("Gi", "g")]
if grace := template.get("terminationGracePeriodSeconds"):
    arguments += ["--stop-timeout", str(grace)]
print(*arguments, "", *container.get("args", []), sep="\n")
