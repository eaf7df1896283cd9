{{/* What the schema can't say: values that must not go together. Each fault tells what to write. */}}
{{- define "outpost.checks" -}}
{{- $values := .Values -}}
{{- $full := include "outpost.fullname" . -}}
{{- $cluster := include "outpost.clusterName" . -}}

{{- if not $values.image.repository -}}
{{- fail "image.repository is missing: the image of your application, such as registry.example.org/shop" -}}
{{- end -}}
{{- if not (or $values.image.tag $values.image.digest) -}}
{{- fail "image.tag or image.digest is missing: which version of the image" -}}
{{- end -}}
{{- if and $values.tool.image.repository (not (or $values.tool.image.tag $values.tool.image.digest)) -}}
{{- fail "tool.image.tag or tool.image.digest is missing: which version of the tool's image" -}}
{{- end -}}

{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $full) -}}
{{- fail (printf "the full name `%s` can't name Services: it has to begin with a letter; set fullnameOverride" $full) -}}
{{- end -}}

{{- $voters := int $values.cluster.initialVoters -}}
{{- if and (ne $values.persistence.mode "none") .Release.IsInstall (gt $voters (int $values.replicas)) -}}
{{- fail (printf "cluster.initialVoters is %d, and replicas only %d: a new cluster would wait for pods that never come; set cluster.initialVoters to 1 or 3, or more replicas" $voters (int $values.replicas)) -}}
{{- end -}}
{{- if and (eq $values.persistence.mode "none") (gt (int $values.replicas) 1) -}}
{{- fail "persistence.mode is none, and replicas more than 1: nodes without a data directory never vote beside others; set persistence.mode to claim or emptyDir, or replicas to 1" -}}
{{- end -}}

{{- if eq $values.cluster.discovery "dns" -}}
{{- range $values.cluster.seeds -}}
{{- if hasPrefix "kubernetes://" . -}}
{{- fail (printf "cluster.seeds names `%s`, which is watched through Kubernetes' API: set cluster.discovery to endpointslices, so that pods get a Role and a token for it" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if eq $values.trust.mode "secret" -}}
{{- if not $values.trust.secret.name -}}
{{- $names := list -}}
{{- range $at := until (int $values.replicas) -}}{{- $names = append $names (printf "%s-%d" $full $at) -}}{{- end -}}
{{- fail (printf "trust.secret.name is missing: the Secret with the nodes' certificates. To make one:\n\n  outpost ca init && outpost ca issue %s --cluster %s\n  kubectl create secret generic %s-trust -n %s --from-file=trust/ca.pem --from-file=trust/gossip.keys%s\n\nand set trust.secret.name to %s-trust. Keep trust/ca.key out of it. Where cert-manager's CSI driver is, set trust.mode to csi" (join " " $names) $cluster $full .Release.Namespace (include "outpost.fromFiles" $names) $full) -}}
{{- end -}}
{{- if $values.stateless.enabled -}}
{{- fail "stateless.enabled needs trust.mode csi: the names of a Deployment's pods are not known before, so no Secret can have their certificates" -}}
{{- end -}}
{{- end -}}

{{- if eq $values.trust.mode "csi" -}}
{{- if not $values.trust.csi.issuer.name -}}
{{- fail "trust.csi.issuer.name is missing: the Issuer or ClusterIssuer of cert-manager that signs the nodes' certificates" -}}
{{- end -}}
{{- if not $values.trust.csi.trustDomain -}}
{{- fail "trust.csi.trustDomain is missing: the first part of every name that is signed, such as example.org" -}}
{{- end -}}
{{- if not (include "outpost.gossipSecret" .) -}}
{{- fail (printf "trust.gossipKeys.secretName is missing: the Secret with the keys of gossip. To make one:\n\n  outpost keyring generate > gossip.keys\n  kubectl create secret generic %s-gossip -n %s --from-file=gossip.keys" $full .Release.Namespace) -}}
{{- end -}}
{{- end -}}

{{- if eq $values.trust.mode "none" -}}
{{- if $values.trust.revocations.secretName -}}
{{- fail "trust.revocations needs trust.mode secret or csi: without certificates there is nothing to revoke" -}}
{{- end -}}
{{- if $values.operators -}}
{{- fail "operators needs trust.mode secret or csi: the jobs of this chart show certificates, and have no tokens" -}}
{{- end -}}
{{- if $values.placement.enabled -}}
{{- fail "placement.enabled needs trust.mode secret or csi: without certificates the admin API listens on the pods' loopback only, where no job reaches it" -}}
{{- end -}}
{{- end -}}

{{- if and (not $values.ingress.tls.secretName) (not $values.ingress.plaintext) -}}
{{- fail "ingress: clients need TLS (ingress.tls.secretName, a Secret with tls.crt and tls.key), or ingress.plaintext: true, with which everybody on the network can read and change calls" -}}
{{- end -}}
{{- if and $values.ingress.tls.secretName $values.ingress.plaintext -}}
{{- fail "ingress.plaintext is true, and ingress.tls.secretName is set: choose one" -}}
{{- end -}}
{{- $authorities := $values.ingress.tls.clientAuthorities -}}
{{- if and $authorities.required (not $authorities.secretName) -}}
{{- fail "ingress.tls.clientAuthorities.required is true, and nobody could show a certificate that is believed: set ingress.tls.clientAuthorities.secretName, a Secret with the certificates of those who may sign" -}}
{{- end -}}
{{- if and $values.ingress.tls.clientRevocations.secretName (not $authorities.secretName) -}}
{{- fail "ingress.tls.clientRevocations needs ingress.tls.clientAuthorities: without, clients are asked for no certificate" -}}
{{- end -}}
{{- if and $authorities.secretName (not $values.ingress.tls.secretName) -}}
{{- fail "ingress.tls.clientAuthorities needs TLS: set ingress.tls.secretName, a Secret with tls.crt and tls.key, and leave ingress.plaintext false" -}}
{{- end -}}

{{- $tokens := $values.callers.tokens -}}
{{- if or (include "outpost.hasTokens" .) $tokens.algorithms $tokens.scopesClaim -}}
{{- if not $tokens.issuer -}}
{{- fail "callers.tokens.issuer is missing: the one whose tokens are believed, as their claim iss says, such as https://id.example.org" -}}
{{- end -}}
{{- if not $tokens.audiences -}}
{{- fail (printf "callers.tokens.audiences is missing: whom tokens have to be for, as their claim aud says, such as [%s]" $full) -}}
{{- end -}}
{{- if not $tokens.keys.configMapName -}}
{{- fail (printf "callers.tokens.keys.configMapName is missing: the ConfigMap with the issuer's keys, a JWK Set. To make one:\n\n  kubectl create configmap %s-issuer -n %s --from-file=%s=keys.json" $full .Release.Namespace $tokens.keys.key) -}}
{{- end -}}
{{- end -}}
{{- if not (include "outpost.hasTokens" .) -}}
{{- with include "outpost.firstNamed" (list $values.callers.policy (list "token" "scope")) -}}
{{- fail (printf "callers.policy: %s, and no token is believed: set callers.tokens.issuer, audiences and keys.configMapName" .) -}}
{{- end -}}
{{- end -}}
{{- if not $authorities.secretName -}}
{{- with include "outpost.firstNamed" (list $values.callers.policy (list "certificate")) -}}
{{- fail (printf "callers.policy: %s, and clients are asked for no certificate: set ingress.tls.clientAuthorities.secretName" .) -}}
{{- end -}}
{{- end -}}

{{- if $values.placement.enabled -}}
{{- if not $values.tool.image.repository -}}
{{- fail "placement.enabled needs tool.image.repository: the image of the tool `outpost` that applies it" -}}
{{- end -}}
{{- if not (include "outpost.hasOperator" .) -}}
{{- fail "placement.enabled needs an operator that may apply it: operator.name, and with trust.mode secret operator.secretName, a Secret with NAME.pem, NAME.key (outpost ca issue --operator NAME) and ca.pem" -}}
{{- end -}}
{{- if $values.operators -}}
{{- $rule := get $values.operators $values.operator.name | default dict -}}
{{- if or (ne (get $rule "scope" | default "") "admin") (hasKey $rule "modules") -}}
{{- fail (printf "operators does not let `%s` apply a placement: it needs scope admin, and all modules" $values.operator.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $scaling := $values.stateless.autoscaling -}}
{{- if and $scaling.enabled (lt (int $scaling.maxReplicas) (int $scaling.minReplicas)) -}}
{{- fail "stateless.autoscaling.maxReplicas is below minReplicas" -}}
{{- end -}}
{{- if and $scaling.enabled (not $scaling.metrics) (eq (int $scaling.targetCPUUtilizationPercentage) 0) -}}
{{- fail "stateless.autoscaling has nothing to go by: set targetCPUUtilizationPercentage, or metrics" -}}
{{- end -}}

{{- if and $values.metrics.enabled $values.networkPolicy.enabled (not $values.networkPolicy.metricsFrom) -}}
{{- fail "metrics.enabled needs networkPolicy.metricsFrom, who may ask for them: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]" -}}
{{- end -}}
{{- if and (not $values.metrics.enabled) (or $values.metrics.podAnnotations $values.metrics.serviceMonitor.enabled $values.metrics.prometheusRule.enabled) -}}
{{- fail "metrics.podAnnotations, metrics.serviceMonitor and metrics.prometheusRule are of use only with metrics.enabled" -}}
{{- end -}}

{{- /* What the chart sets by the environment, which would win without a word. */ -}}
{{- range $owned := list
  (list "node.name" "the pod's name is the node's")
  (list "node.data_dir" "see persistence")
  (list "node.stop_timeout" "set stopTimeoutSeconds")
  (list "cluster.name" "set cluster.name of the chart")
  (list "cluster.listen" "the chart sets it")
  (list "cluster.advertise" "the pod's address is advertised")
  (list "cluster.seeds" "set cluster.seeds of the chart")
  (list "cluster.initial_voters" "set cluster.initialVoters")
  (list "cluster.plaintext_beyond_loopback" "see trust.mode")
  (list "trust.certificate" "see trust.mode")
  (list "trust.key" "see trust.mode")
  (list "trust.authorities" "see trust.mode")
  (list "trust.gossip_keys" "set trust.gossipKeys")
  (list "trust.revocations" "set trust.revocations of the chart")
  (list "ingress.listen" "the chart sets it")
  (list "ingress.plaintext_beyond_loopback" "set ingress.plaintext")
  (list "ingress.tls" "set ingress.tls.secretName, and for clients' certificates ingress.tls.clientAuthorities")
  (list "callers.mode" "set callers.mode of the chart")
  (list "callers.policy" "set callers.policy of the chart")
  (list "callers.tokens.keys" "set callers.tokens.keys of the chart")
  (list "callers.tokens.issuer" "set callers.tokens.issuer of the chart")
  (list "callers.tokens.audiences" "set callers.tokens.audiences of the chart")
  (list "callers.tokens.algorithms" "set callers.tokens.algorithms of the chart")
  (list "callers.tokens.scopes_claim" "set callers.tokens.scopesClaim")
  (list "admin.enabled" "the chart needs it")
  (list "admin.listen" "see trust.mode")
  (list "admin.operators" "set operators")
  (list "health.listen" "the chart sets it")
  (list "metrics.listen" "set metrics.enabled")
  (list "metrics.plaintext_beyond_loopback" "set metrics.enabled")
-}}
{{- $parts := splitList "." (index $owned 0) -}}
{{- $table := $values.settings -}}
{{- range initial $parts -}}
{{- $table = ternary $table dict (kindIs "map" $table) -}}
{{- $table = get $table . -}}
{{- end -}}
{{- if kindIs "map" $table -}}
{{- if hasKey $table (last $parts) -}}
{{- fail (printf "settings.%s is not to be set here: %s" (index $owned 0) (index $owned 1)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "outpost.fromFiles" -}}
{{- range . }} --from-file=trust/{{ . }}.pem --from-file=trust/{{ . }}.key{{ end -}}
{{- end -}}
