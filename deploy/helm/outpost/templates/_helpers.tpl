{{- define "outpost.name" -}}
{{- default .Chart.Name .Values.nameOverride | replace "." "-" | trunc 36 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of a node is that of its pod, and a DNS label: no dots, and room for what a Deployment adds. */}}
{{- define "outpost.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | replace "." "-" | trunc 36 | trimSuffix "-" -}}
{{- end -}}

{{- define "outpost.clusterName" -}}
{{- default (include "outpost.fullname" .) .Values.cluster.name -}}
{{- end -}}

{{- define "outpost.nodesHost" -}}
{{- printf "%s-nodes.%s.svc.%s" (include "outpost.fullname" .) .Release.Namespace .Values.cluster.domain -}}
{{- end -}}

{{/* The nodes of the release, as a seed. */}}
{{- define "outpost.seed" -}}
{{- if eq .Values.cluster.discovery "endpointslices" -}}
{{- printf "kubernetes://%s-nodes.%s:7002" (include "outpost.fullname" .) .Release.Namespace -}}
{{- else -}}
{{- printf "%s:7002" (include "outpost.nodesHost" .) -}}
{{- end -}}
{{- end -}}

{{- define "outpost.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "outpost.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What a selector asks for. Never a version: a selector can't change. */}}
{{- define "outpost.selector" -}}
app.kubernetes.io/name: {{ include "outpost.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "outpost.labels" -}}
{{ include "outpost.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of an image: a digest, or a tag. */}}
{{- define "outpost.image" -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository .tag -}}
{{- end -}}
{{- end -}}

{{- define "outpost.gossipSecret" -}}
{{- $given := .Values.trust.gossipKeys.secretName -}}
{{- if eq .Values.trust.mode "secret" -}}{{ default .Values.trust.secret.name $given }}{{- else -}}{{ $given }}{{- end -}}
{{- end -}}

{{/* An address to listen on: of all interfaces, or of loopback. */}}
{{- define "outpost.any" -}}
{{- if eq .Values.cluster.ipFamily "IPv6" -}}[::]{{- else -}}0.0.0.0{{- end -}}
{{- end -}}
{{- define "outpost.loopback" -}}
{{- if eq .Values.cluster.ipFamily "IPv6" -}}[::1]{{- else -}}127.0.0.1{{- end -}}
{{- end -}}

{{/* A value in TOML. What is a whole number stays one, which `toToml` would not do. JSON's texts are TOML's. */}}
{{- define "outpost.toml.value" -}}
{{- if kindIs "map" . -}}
{ {{- range $at, $key := keys . | sortAlpha }}{{ if $at }},{{ end }} {{ $key | toJson }} = {{ include "outpost.toml.value" (get $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $at, $value := . }}{{ if $at }}, {{ end }}{{ include "outpost.toml.value" $value }}{{ end }}]
{{- else -}}
{{ . | toJson }}
{{- end -}}
{{- end -}}

{{/* A map as TOML: a line for each key, with dots. A list of the path and the map. */}}
{{- define "outpost.toml" -}}
{{- $path := index . 0 -}}
{{- $map := index . 1 -}}
{{- range $key := keys $map | sortAlpha -}}
{{- $value := get $map $key -}}
{{- $name := ternary $key ($key | toJson) (regexMatch "^[A-Za-z0-9_-]+$" $key) -}}
{{- $whole := ternary (printf "%s.%s" $path $name) $name (ne $path "") -}}
{{- if and (kindIs "map" $value) $value -}}
{{ include "outpost.toml" (list $whole $value) }}
{{- else if not (kindIs "invalid" $value) -}}
{{ $whole }} = {{ include "outpost.toml.value" $value }}
{{ end -}}
{{- end -}}
{{- end -}}

{{/* The volume that cert-manager's driver fills: a list of the root, "node" or "operator", and a name. */}}
{{- define "outpost.csiVolume" -}}
{{- $root := index . 0 -}}
{{- $csi := $root.Values.trust.csi -}}
{{- $uri := printf "spiffe://%s/outpost/%s/%s/%s" $csi.trustDomain (include "outpost.clusterName" $root) (index . 1) (index . 2) -}}
{{- $attributes := dict
  "csi.cert-manager.io/issuer-name" $csi.issuer.name
  "csi.cert-manager.io/issuer-kind" $csi.issuer.kind
  "csi.cert-manager.io/issuer-group" $csi.issuer.group
  "csi.cert-manager.io/uri-sans" $uri
  "csi.cert-manager.io/key-usages" "digital signature,server auth,client auth"
  "csi.cert-manager.io/key-algorithm" "ECDSA"
  "csi.cert-manager.io/key-encoding" "PKCS8"
  "csi.cert-manager.io/key-size" "256"
  "csi.cert-manager.io/duration" $csi.duration
-}}
{{- with $root.Values.podSecurityContext.fsGroup -}}
{{- $_ := set $attributes "csi.cert-manager.io/fs-group" (toString (int64 .)) -}}
{{- end -}}
driver: csi.cert-manager.io
readOnly: true
volumeAttributes:
  {{- toYaml (mergeOverwrite $attributes (deepCopy $csi.attributes)) | nindent 2 }}
{{- end -}}

{{/* Where a pod of the release finds the operator's certificate: files for the context. */}}
{{- define "outpost.contexts" -}}
current = "release"

[contexts.release]
node = "{{ include "outpost.fullname" . }}-nodes:7001"
{{- if eq .Values.trust.mode "csi" }}
certificate = "/etc/outpost/operator/tls.crt"
key = "/etc/outpost/operator/tls.key"
authorities = "/etc/outpost/operator/ca.crt"
{{- else }}
certificate = "/etc/outpost/operator/{{ .Values.operator.name }}.pem"
key = "/etc/outpost/operator/{{ .Values.operator.name }}.key"
authorities = "/etc/outpost/operator/ca.pem"
{{- end }}
{{- end -}}

{{- define "outpost.operatorVolume" -}}
name: operator
{{- if eq .Values.trust.mode "csi" }}
csi:
  {{- include "outpost.csiVolume" (list . "operator" .Values.operator.name) | nindent 2 }}
{{- else }}
secret:
  secretName: {{ .Values.operator.secretName | quote }}
  defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Whether the release's pods can ask the admin API. */}}
{{- define "outpost.hasOperator" -}}
{{- if and (ne .Values.trust.mode "none") .Values.operator.name (or (eq .Values.trust.mode "csi") .Values.operator.secretName) -}}yes{{- end -}}
{{- end -}}

{{/* Whether nodes check clients' tokens: any of what is required, and `outpost.checks` sees to the rest. */}}
{{- define "outpost.hasTokens" -}}
{{- with .Values.callers.tokens -}}
{{- if or .issuer .audiences .keys.configMapName -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{/* The first clients in a policy that begin with one of some words, and where: a list of the policy and the words. */}}
{{- define "outpost.firstNamed" -}}
{{- $words := index . 1 -}}
{{- $found := list -}}
{{- range $module, $rules := index . 0 -}}
{{- $all := get $rules "clients" | default list -}}
{{- range get $rules "methods" | default dict -}}{{- $all = concat $all (get . "clients" | default list) -}}{{- end -}}
{{- range $client := $all -}}
{{- if has (index (splitList ":" $client) 0) $words -}}{{- $found = append $found (printf "module `%s` names `%s`" $module $client) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- with $found -}}{{ index . 0 }}{{- end -}}
{{- end -}}
