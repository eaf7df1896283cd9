"""What no schema says of the manifests, and what must hold between two renderings.

    rules.py manifests FILE...          rules for every file of manifests
    rules.py refused HELM CHART FOLDER  value files that the chart must refuse, each with the words it must use
    rules.py changes HELM CHART         what may and may not change when a value does
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml

# ConfigMaps that value files of ci/ mount, and that are not the chart's.
OF_THE_USER = {"shop-policy", "shop-issuer"}
RELEASE = ["template", "shop", "--namespace", "prod"]


class Failed(Exception):
    """A rule that does not hold."""


def expect(holds, what):
    if not holds:
        raise Failed(what)


def pod_of(manifest):
    """The pod that a manifest makes, if it makes one: its metadata and its spec."""
    if manifest["kind"] == "Pod":
        return manifest
    return manifest.get("spec", {}).get("template")


def load(text):
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def seconds(text):
    expect(text.endswith("s") and text[:-1].isdigit(), f"`{text}` is no number of seconds")
    return int(text[:-1])


def environment(container):
    """The variables with a value, after the kubelet has put in those before."""
    found = {}
    for variable in container.get("env", []):
        expect(variable["name"] not in found, f"variable {variable['name']} is there twice")
        value = variable.get("value", "")
        expect("valueFrom" in variable or value is not None, f"variable {variable['name']} has no value")
        start = 0
        while (start := value.find("$(", start)) >= 0:
            name = value[start + 2 : value.index(")", start)]
            expect(name in found, f"variable {variable['name']} uses $({name}), which does not come before it")
            start += 2
        found[variable["name"]] = value
    return found


def check_ports(ports, key):
    names = [port["name"] for port in ports if "name" in port]
    expect(len(names) == len(set(names)), f"ports have one name: {names}")
    for name in names:
        good = 0 < len(name) <= 15 and any(c.isalpha() for c in name)
        good = good and all(c.islower() or c.isdigit() or c == "-" for c in name) and name.strip("-") == name
        expect(good, f"port name `{name}`: at most 15 lower-case letters, digits and dashes")
    for port in ports:
        expect(1 <= port[key] <= 65535, f"port {port[key]} is none")


def check_pod(pod):
    spec = pod["spec"]
    seeds = [environment(container).get("OUTPOST_CLUSTER__SEEDS", "") for container in spec["containers"]]
    watches = any("kubernetes://" in each for each in seeds)
    expect(spec.get("automountServiceAccountToken") is watches, "a token is mounted where none is used, or missing")
    expect(spec.get("enableServiceLinks") is False, "Services' variables would be among the settings")
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        expect(not spec.get(key), f"{key} is set")
    context = spec.get("securityContext", {})
    expect(context.get("runAsNonRoot") is True, "the pod may run as root")
    for key in ("runAsUser", "runAsGroup", "fsGroup"):
        expect(isinstance(context.get(key), int) and context[key] > 0, f"{key} is {context.get(key)}")
    expect(context.get("seccompProfile") == {"type": "RuntimeDefault"}, "there is no seccomp profile")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for volume in volumes.values():
        expect("hostPath" not in volume, f"volume {volume['name']} is a folder of the machine")
        mode = volume.get("secret", {}).get("defaultMode", 0)
        expect(mode & 0o007 == 0, f"volume {volume['name']} is for everybody: {mode:o}")
    for container in spec["containers"]:
        context = container.get("securityContext", {})
        expect(context.get("allowPrivilegeEscalation") is False, "privileges may grow")
        expect(context.get("readOnlyRootFilesystem") is True, "the root file system is writable")
        expect(context.get("capabilities", {}).get("drop") == ["ALL"], "capabilities are kept")
        expect("add" not in context.get("capabilities", {}), "capabilities are added")
        expect(not context.get("privileged"), "the container is privileged")
        resources = container.get("resources", {})
        expect("memory" in resources.get("limits", {}), "there is no limit on memory")
        expect({"cpu", "memory"} <= set(resources.get("requests", {})), "resources are not asked for")
        check_ports(container.get("ports", []), "containerPort")
        environment(container)
        image = container["image"]
        expect(":" in image and not image.endswith(":latest"), f"image {image} has no version")
        for mount in container.get("volumeMounts", []):
            expect("subPath" not in mount, f"mount {mount['name']} is a subPath: it would not follow what changes")
    return volumes


def check_node(manifest):
    """The pods of nodes: the StatefulSet's and the Deployment's."""
    spec = pod_of(manifest)["spec"]
    [container] = spec["containers"]
    variables = environment(container)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    expect(ports["cluster"] == 7002 and ports["ingress"] == 7000, "ports are not those that are listened on")

    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = seconds(variables["OUTPOST_NODE__STOP_TIMEOUT"]) + sleep + 10
    grace = spec["terminationGracePeriodSeconds"]
    expect(grace >= needed, f"the grace period is {grace} s, and a stop may take {needed} s")

    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        expect(container[probe]["httpGet"] == {"path": path, "port": "health"}, f"{probe} does not ask {path}")
    startup = container["startupProbe"]
    expect(startup["periodSeconds"] * startup["failureThreshold"] >= 120, "the startup probe gives less than 2 minutes")

    plain = variables.get("OUTPOST_CLUSTER__PLAINTEXT_BEYOND_LOOPBACK") == "true"
    admin = variables["OUTPOST_ADMIN__LISTEN"]
    expect(plain != ("OUTPOST_TRUST__CERTIFICATE" in variables), "certificates and plain text go together")
    if plain:
        expect(admin.startswith(("127.0.0.1:", "[::1]:")), f"without certificates, the admin API listens on {admin}")
        expect("admin" not in ports, "the admin API is announced, and listens on loopback")
    if manifest["kind"] == "Deployment":
        expect("OUTPOST_NODE__DATA_DIR" not in variables, "pods without a name that stays have a data directory")
        expect("OUTPOST_CLUSTER__INITIAL_VOTERS" not in variables, "stateless nodes are told of voters")
    else:
        expect(manifest["spec"]["podManagementPolicy"] == "Parallel", "nodes that wait for each other start in turn")
        # How long a node has to be ready before it votes again, and how long until the leader looks.
        expect(manifest["spec"]["minReadySeconds"] >= 15, "the next pod is replaced before the last one votes again")


def check_callers(variables):
    """What clients show, and what it is checked with, go together."""
    tls = {key.removeprefix("OUTPOST_INGRESS__TLS__") for key in variables if key.startswith("OUTPOST_INGRESS__TLS__")}
    plain = variables.get("OUTPOST_INGRESS__PLAINTEXT_BEYOND_LOOPBACK") == "true"
    expect(plain != ({"CERTIFICATE", "KEY"} <= tls) and not (plain and tls), "TLS for clients is half there")
    expect("CLIENT_AUTHORITIES" in tls or "CLIENT_CERTIFICATES" not in tls, "certificates are required, and none is believed")
    start = "OUTPOST_CALLERS__TOKENS__"
    tokens = {key.removeprefix(start): value for key, value in variables.items() if key.startswith(start)}
    needed = {"KEYS", "ISSUER", "AUDIENCES"}
    expect(not tokens or needed <= tokens.keys(), f"of callers.tokens, {sorted(needed - tokens.keys())} are missing")
    for key in tokens.keys() & {"AUDIENCES", "ALGORITHMS"}:
        read = json.loads(tokens[key])
        expect(isinstance(read, list) and read, f"{start}{key} is no list of some")


def check_metrics(by_name):
    """Who may ask for metrics can, and nobody else."""
    for (kind, _), manifest in by_name.items():
        if kind in ("StatefulSet", "Deployment"):
            [container] = pod_of(manifest)["spec"]["containers"]
            announced = "metrics" in {port["name"] for port in container["ports"]}
            listens = "OUTPOST_METRICS__LISTEN" in environment(container)
            expect(announced == listens, "the port of metrics is announced, and nobody listens, or the other way round")
        if kind == "NetworkPolicy":
            rules = [rule for rule in manifest["spec"]["ingress"] if any(port["port"] == "metrics" for port in rule["ports"])]
            expect(all(rule.get("from") for rule in rules), "everybody may ask for metrics")
            expect(len(rules) <= 1, "there are two rules on metrics")
        if kind == "ServiceMonitor":
            selector = manifest["spec"]["selector"]["matchLabels"].items()
            services = [service for (other, _), service in by_name.items() if other == "Service"]
            found = [service for service in services if selector <= service["metadata"]["labels"].items()]
            expect(len(found) == 1, f"a ServiceMonitor finds {len(found)} Services")
            ports = {port["name"] for port in found[0]["spec"]["ports"]}
            expect({end["port"] for end in manifest["spec"]["endpoints"]} <= ports, "a ServiceMonitor names a port that is none")
        if kind == "PrometheusRule":
            expect(manifest["spec"]["groups"][0]["rules"], "a PrometheusRule has no rules")


def check_roles(by_name):
    """A token is good for finding nodes in the namespace, where pods have one, and there are no other rights."""
    roles = {key: manifest for key, manifest in by_name.items() if "Role" in key[0]}
    pods = [pod["spec"] for manifest in by_name.values() if (pod := pod_of(manifest))]
    accounts = {pod["serviceAccountName"] for pod in pods if pod["automountServiceAccountToken"]}
    if not accounts:
        return expect(not roles, "there are roles")
    expect({kind for kind, _ in roles} == {"Role", "RoleBinding"}, f"there are {sorted(roles)}")
    [role] = [manifest for (kind, _), manifest in roles.items() if kind == "Role"]
    [rule] = role["rules"]
    wanted = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
    expect(rule == wanted, f"nodes may do more than find each other, or less: {rule}")
    [binding] = [manifest for (kind, _), manifest in roles.items() if kind == "RoleBinding"]
    expect(binding["roleRef"]["name"] == role["metadata"]["name"], "the RoleBinding is to another Role")
    expect({subject["name"] for subject in binding["subjects"]} == accounts, "the Role is not for those who have a token")


def check_files(spec, by_name):
    """A file that a variable names is in a volume, as far as can be told."""
    [container] = spec["containers"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    mounted = {mount["mountPath"]: volumes.get(mount["name"]) for mount in container.get("volumeMounts", [])}
    for variable, path in environment(container).items():
        if not path.startswith("/etc/outpost/"):
            continue
        folder, file = path.rsplit("/", 1)
        expect(mounted.get(folder), f"{variable} names {path}, and nothing is mounted there")
        volume = mounted[folder]
        source = volume.get("secret") or volume.get("configMap") or {}
        config = by_name.get(("ConfigMap", volume.get("configMap", {}).get("name")))
        if items := source.get("items"):
            expect(file in {item["path"] for item in items}, f"{variable} names {path}, which is not in {volume['name']}")
        elif config:
            expect(file in config["data"], f"{variable} names {path}, which is not in {volume['name']}")


def check_file(manifests):
    by_name = {}
    for manifest in manifests:
        key = manifest["kind"], manifest["metadata"]["name"]
        expect(key not in by_name, f"{key} is there twice")
        expect(len(key[1]) <= 63, f"the name {key[1]} is longer than 63")
        by_name[key] = manifest
    check_roles(by_name)
    check_metrics(by_name)
    for (kind, name), manifest in by_name.items():
        try:
            if pod := pod_of(manifest):
                for volume in check_pod(pod).values():
                    config = volume.get("configMap", {}).get("name", "")
                    known = not config or ("ConfigMap", config) in by_name or config in OF_THE_USER
                    expect(known, f"there is no ConfigMap {config}")
            if kind in ("StatefulSet", "Deployment"):
                check_node(manifest)
                check_callers(environment(pod_of(manifest)["spec"]["containers"][0]))
                check_files(pod_of(manifest)["spec"], by_name)
                labels = pod_of(manifest)["metadata"]["labels"]
                for key, value in manifest["spec"]["selector"]["matchLabels"].items():
                    expect(labels.get(key) == value, f"the selector's {key} is not on the pods")
                expect(not any("chart" in key or "version" in key for key in labels), "a label of pods has a version")
            if kind == "StatefulSet":
                service = by_name["Service", manifest["spec"]["serviceName"]]
                expect(service["spec"]["clusterIP"] == "None", "the Service of the nodes is not headless")
                expect(service["spec"]["publishNotReadyAddresses"] is True, "nodes that are not ready are not found")
            if kind == "Service":
                check_ports(manifest["spec"]["ports"], "port")
                selector = manifest["spec"]["selector"]
                expect("outpost-member" in selector or "app.kubernetes.io/component" in selector, "jobs are selected too")
            if kind == "HorizontalPodAutoscaler":
                spec = manifest["spec"]
                expect(1 <= spec["minReplicas"] <= spec["maxReplicas"], "maxReplicas is below minReplicas")
                target = by_name["Deployment", spec["scaleTargetRef"]["name"]]
                expect("replicas" not in target["spec"], "the Deployment and its autoscaler both set replicas")
            if kind == "PodDisruptionBudget" and manifest["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "node":
                expect(manifest["spec"]["maxUnavailable"] == 1, "more than one node may be evicted at a time")
        except Failed as failed:
            raise Failed(f"{kind} {name}: {failed}") from failed


def run(helm, chart, *arguments):
    """What Helm renders, or its error."""
    done = subprocess.run([helm, *RELEASE, chart, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def rendered(helm, chart, *arguments):
    code, out, error = run(helm, chart, *arguments)
    expect(code == 0, f"{' '.join(arguments)}: {error.strip()}")
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in load(out)}


def manifests(*files):
    for file in files:
        try:
            check_file(load(Path(file).read_text()))
        except Failed as failed:
            raise Failed(f"{file}: {failed}") from failed
    return f"{len(files)} files"


def refused(helm, chart, folder):
    base = str(Path(chart) / "ci" / "secret-values.yaml")
    files = sorted(Path(folder).glob("*.yaml"))
    expect(files, f"there are no value files in {folder}")
    for file in files:
        words = file.read_text().splitlines()[0].removeprefix("# refused: ")
        code, _, error = run(helm, chart, "-f", base, "-f", str(file))
        expect(code != 0, f"{file.name}: is taken, and should be refused with: {words}")
        expect(words in error, f"{file.name}: is refused, but not with the words: {words}\n{error}")
    return f"{len(files)} value files"


def changes(helm, chart):
    ci = Path(chart) / "ci"
    base = ["-f", str(ci / "csi-values.yaml")]
    before = rendered(helm, chart, *base)
    name = next(name for kind, name in before if kind == "StatefulSet")

    def pods(after):
        return [pod_of(after[kind, each]) for kind, each in (("StatefulSet", name), ("Deployment", f"{name}-stateless"))]

    def same(why, *arguments, but):
        after = rendered(helm, chart, *base, *arguments)
        expect(pods(after) == pods(before), f"{why} changes the pods, so all of them would restart")
        expect(after != before, f"{why} changes nothing at all")
        changed = {key for key in after.keys() | before.keys() if after.get(key) != before.get(key)}
        expect(changed <= but, f"{why} changes also {sorted(changed - but)}")

    job = ("Job", f"{name}-placement")
    same("scaling up", "--set", "replicas=7", but={("StatefulSet", name)})
    same("scaling down below the voters", "--set", "replicas=4", "--is-upgrade", but={("StatefulSet", name), job})
    same("another placement", "--set", "placement.document.module.cart.pin.node=shop-2", but={("ConfigMap", f"{name}-placement")})
    same("another operator", "--set", "operators.bob.scope=read", but={("ConfigMap", f"{name}-operators")})
    same("another policy", "--set", "callers.policy.orders.clients={anyone}", but={("ConfigMap", f"{name}-callers")})
    same("a policy for one more module", "--set", "callers.policy.cart.clients={token}", but={("ConfigMap", f"{name}-callers")})
    same("other bounds of the autoscaler", "--set", "stateless.autoscaling.maxReplicas=9", but={("HorizontalPodAutoscaler", f"{name}-stateless")})
    same("who may ask for metrics", "--set", "networkPolicy.metricsFrom[0].podSelector.matchLabels.app=prometheus", but={("NetworkPolicy", name)})
    same("how often they are asked for", "--set", "metrics.serviceMonitor.interval=60s", but={("ServiceMonitor", name)})
    same("who may connect", "--set", "networkPolicy.ingressFrom=null", but={("NetworkPolicy", name)})

    after = rendered(helm, chart, *base, "--set", "settings.log.format=text")
    expect(pods(after) != pods(before), "changed settings restart no pod")
    after = rendered(helm, chart, *base, "--set", "rollOnSettingsChange=false", "--set", "settings.log.format=text")
    other = rendered(helm, chart, *base, "--set", "rollOnSettingsChange=false")
    expect(pods(after) == pods(other), "changed settings restart pods, although rollOnSettingsChange is false")

    # What nodes read only when they start.
    for change in ("callers.mode=audit", "callers.tokens.issuer=https://other.example.org", "ingress.tls.clientAuthorities.required=true"):
        expect(pods(rendered(helm, chart, *base, "--set", change)) != pods(before), f"{change} restarts no pod")
    # The default is not said, so that a program of before there was such a setting starts.
    plain = rendered(helm, chart, "-f", str(ci / "secret-values.yaml"))["StatefulSet", "shop"]
    said = [key for key in environment(pod_of(plain)["spec"]["containers"][0]) if "CALLERS" in key or "CLIENT" in key]
    expect(not said, f"{said} are set, and nobody asked for that")

    # The sleep of Kubernetes 1.30, on which no older one may be asked to.
    def sleeps(version):
        pod = pods(rendered(helm, chart, *base, "--kube-version", version))[0]
        return "lifecycle" in pod["spec"]["containers"][0]

    expect(sleeps("1.30.0") and not sleeps("1.29.9"), "preStop.sleep is used on the wrong versions")

    # Whole numbers stay whole numbers on their way into TOML.
    text = before["ConfigMap", f"{name}-settings"]["data"]["outpost.toml"]
    expect("modules.cart.max_carts = 5000000\n" in text, "a whole number is none in outpost.toml")
    expect("cluster.gossip_phi = 12.5\n" in text, "a fraction is none in outpost.toml")
    try:
        import tomllib
    except ImportError:
        return "20 changes (no tomllib before Python 3.11: outpost.toml and policy.toml are not parsed)"
    values = yaml.safe_load((ci / "csi-values.yaml").read_text())
    policy = before["ConfigMap", f"{name}-callers"]["data"]["policy.toml"]
    for file, text, wanted in (("outpost.toml", text, values["settings"]), ("policy.toml", policy, values["callers"]["policy"])):
        read = tomllib.loads(text)
        expect(read == wanted, f"{file} says {read}, and the values {wanted}")
    return "20 changes"


if __name__ == "__main__":
    verbs = {"manifests": manifests, "refused": refused, "changes": changes}
    try:
        print(verbs[sys.argv[1]](*sys.argv[2:]))
    except Failed as problem:
        sys.exit(f"error: {problem}")
