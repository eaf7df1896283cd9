{{/* The pod of a node, for the StatefulSet and the Deployment: a list of the root and "node" or "stateless". */}}
{{- define "outpost.pod" -}}
{{- $root := index . 0 -}}
{{- $stateless := eq (index . 1) "stateless" -}}
{{- $values := $root.Values -}}
{{- $full := include "outpost.fullname" $root -}}
{{- $any := include "outpost.any" $root -}}
{{- $trusted := ne $values.trust.mode "none" -}}
{{- $tokens := include "outpost.hasTokens" $root -}}
{{- $disk := and (not $stateless) (ne $values.persistence.mode "none") -}}
metadata:
  labels:
    {{- include "outpost.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ index . 1 }}
    outpost-member: "true"
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: node
    {{- if $values.rollOnSettingsChange }}
    checksum/settings: {{ include "outpost.toml" (list "" $values.settings) | sha256sum }}
    {{- end }}
    {{- if and $values.metrics.enabled $values.metrics.podAnnotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: "7004"
    prometheus.io/path: /metrics
    {{- end }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "outpost.serviceAccount" $root }}
  automountServiceAccountToken: {{ eq $values.cluster.discovery "endpointslices" }}
  # Variables for each Service of the namespace, which a node would have to tell from settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add (int $values.stopTimeoutSeconds) (int $values.preStopSleepSeconds) 15 }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  containers:
    - name: node
      image: {{ include "outpost.image" $values.image | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      {{- with $values.extraArgs }}
      args:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- toYaml $values.securityContext | nindent 8 }}
      env:
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        {{- if $values.zone.fromPodLabel }}
        - name: OUTPOST_NODE__LABELS__ZONE
          valueFrom:
            fieldRef:
              fieldPath: metadata.labels['topology.kubernetes.io/zone']
        {{- end }}
        {{- if $stateless }}
        {{- range $key, $value := $values.stateless.labels }}
        - name: OUTPOST_NODE__LABELS__{{ upper $key }}
          value: {{ $value | toString | quote }}
        {{- end }}
        {{- end }}
        - name: OUTPOST_CONFIG
          value: /etc/outpost/settings/outpost.toml
        - name: OUTPOST_NODE__NAME
          value: $(POD_NAME)
        {{- if $disk }}
        - name: OUTPOST_NODE__DATA_DIR
          value: /var/lib/outpost
        {{- end }}
        - name: OUTPOST_NODE__STOP_TIMEOUT
          value: {{ printf "%ds" (int $values.stopTimeoutSeconds) }}
        - name: OUTPOST_CLUSTER__NAME
          value: {{ include "outpost.clusterName" $root | quote }}
        - name: OUTPOST_CLUSTER__LISTEN
          value: {{ printf "%s:7002" $any | quote }}
        - name: OUTPOST_CLUSTER__ADVERTISE
          value: {{ ternary "[$(POD_IP)]:7002" "$(POD_IP):7002" (eq $values.cluster.ipFamily "IPv6") | quote }}
        {{- if or $stateless $disk $values.cluster.seeds }}
        - name: OUTPOST_CLUSTER__SEEDS
          value: {{ default (list (include "outpost.seed" $root)) $values.cluster.seeds | toJson | squote }}
        {{- end }}
        {{- if $disk }}
        {{- $voters := list }}
        {{- range $at := until (int $values.cluster.initialVoters) }}
        {{- $voters = append $voters (printf "%s-%d" $full $at) }}
        {{- end }}
        - name: OUTPOST_CLUSTER__INITIAL_VOTERS
          value: {{ $voters | toJson | squote }}
        {{- end }}
        {{- if not $trusted }}
        - name: OUTPOST_CLUSTER__PLAINTEXT_BEYOND_LOOPBACK
          value: "true"
        {{- end }}
        - name: OUTPOST_INGRESS__LISTEN
          value: {{ printf "%s:7000" $any | quote }}
        {{- if $values.ingress.tls.secretName }}
        - name: OUTPOST_INGRESS__TLS__CERTIFICATE
          value: /etc/outpost/ingress/tls.crt
        - name: OUTPOST_INGRESS__TLS__KEY
          value: /etc/outpost/ingress/tls.key
        {{- with $values.ingress.tls.clientAuthorities }}
        {{- if .secretName }}
        - name: OUTPOST_INGRESS__TLS__CLIENT_AUTHORITIES
          value: /etc/outpost/clients/ca.crt
        {{- end }}
        {{- if $values.ingress.tls.clientRevocations.secretName }}
        - name: OUTPOST_INGRESS__TLS__CLIENT_REVOCATIONS
          value: /etc/outpost/client-revocations/revocations.pem
        {{- end }}
        {{- if .required }}
        - name: OUTPOST_INGRESS__TLS__CLIENT_CERTIFICATES
          value: required
        {{- end }}
        {{- end }}
        {{- else }}
        - name: OUTPOST_INGRESS__PLAINTEXT_BEYOND_LOOPBACK
          value: "true"
        {{- end }}
        {{- if ne $values.callers.mode "enforce" }}
        - name: OUTPOST_CALLERS__MODE
          value: {{ $values.callers.mode }}
        {{- end }}
        {{- if $values.callers.policy }}
        - name: OUTPOST_CALLERS__POLICY
          value: /etc/outpost/callers/policy.toml
        {{- end }}
        {{- if $tokens }}
        {{- with $values.callers.tokens }}
        - name: OUTPOST_CALLERS__TOKENS__KEYS
          value: /etc/outpost/token-keys/keys.json
        - name: OUTPOST_CALLERS__TOKENS__ISSUER
          value: {{ .issuer | quote }}
        - name: OUTPOST_CALLERS__TOKENS__AUDIENCES
          value: {{ .audiences | toJson | quote }}
        {{- with .algorithms }}
        - name: OUTPOST_CALLERS__TOKENS__ALGORITHMS
          value: {{ . | toJson | quote }}
        {{- end }}
        {{- with .scopesClaim }}
        - name: OUTPOST_CALLERS__TOKENS__SCOPES_CLAIM
          value: {{ . | quote }}
        {{- end }}
        {{- end }}
        {{- end }}
        - name: OUTPOST_ADMIN__LISTEN
          value: {{ printf "%s:7001" (ternary $any (include "outpost.loopback" $root) $trusted) | quote }}
        {{- if $values.operators }}
        - name: OUTPOST_ADMIN__OPERATORS
          value: /etc/outpost/operators/operators.toml
        {{- end }}
        - name: OUTPOST_HEALTH__LISTEN
          value: {{ printf "%s:7003" $any | quote }}
        {{- if $values.metrics.enabled }}
        - name: OUTPOST_METRICS__LISTEN
          value: {{ printf "%s:7004" $any | quote }}
        - name: OUTPOST_METRICS__PLAINTEXT_BEYOND_LOOPBACK
          value: "true"
        {{- end }}
        {{- if $trusted }}
        {{- $csi := eq $values.trust.mode "csi" }}
        - name: OUTPOST_TRUST__CERTIFICATE
          value: /etc/outpost/trust/{{ ternary "tls.crt" "$(POD_NAME).pem" $csi }}
        - name: OUTPOST_TRUST__KEY
          value: /etc/outpost/trust/{{ ternary "tls.key" "$(POD_NAME).key" $csi }}
        - name: OUTPOST_TRUST__AUTHORITIES
          value: /etc/outpost/trust/{{ ternary "ca.crt" "ca.pem" $csi }}
        - name: OUTPOST_TRUST__GOSSIP_KEYS
          value: /etc/outpost/gossip/gossip.keys
        {{- if $values.trust.revocations.secretName }}
        - name: OUTPOST_TRUST__REVOCATIONS
          value: /etc/outpost/revocations/revocations.pem
        {{- end }}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: ingress
          containerPort: 7000
          protocol: TCP
        {{- if $trusted }}
        - name: admin
          containerPort: 7001
          protocol: TCP
        {{- end }}
        - name: cluster
          containerPort: 7002
          protocol: TCP
        - name: gossip
          containerPort: 7002
          protocol: UDP
        - name: health
          containerPort: 7003
          protocol: TCP
        {{- if $values.metrics.enabled }}
        - name: metrics
          containerPort: 7004
          protocol: TCP
        {{- end }}
      startupProbe:
        httpGet:
          path: /livez
          port: health
        {{- toYaml $values.probes.startup | nindent 8 }}
      livenessProbe:
        httpGet:
          path: /livez
          port: health
        {{- toYaml $values.probes.liveness | nindent 8 }}
      readinessProbe:
        httpGet:
          path: /readyz
          port: health
        {{- toYaml $values.probes.readiness | nindent 8 }}
      {{- if and (gt (int $values.preStopSleepSeconds) 0) (semverCompare ">=1.30.0-0" $root.Capabilities.KubeVersion.Version) }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ int $values.preStopSleepSeconds }}
      {{- end }}
      terminationMessagePolicy: FallbackToLogsOnError
      resources:
        {{- toYaml (ternary $values.stateless.resources $values.resources (and $stateless (not (empty $values.stateless.resources)))) | nindent 8 }}
      volumeMounts:
        - name: settings
          mountPath: /etc/outpost/settings
          readOnly: true
        {{- if $disk }}
        - name: data
          mountPath: /var/lib/outpost
        {{- end }}
        {{- if $trusted }}
        - name: trust
          mountPath: /etc/outpost/trust
          readOnly: true
        - name: gossip
          mountPath: /etc/outpost/gossip
          readOnly: true
        {{- if $values.trust.revocations.secretName }}
        - name: revocations
          mountPath: /etc/outpost/revocations
          readOnly: true
        {{- end }}
        {{- end }}
        {{- if $values.operators }}
        - name: operators
          mountPath: /etc/outpost/operators
          readOnly: true
        {{- end }}
        {{- if $values.ingress.tls.secretName }}
        - name: ingress-tls
          mountPath: /etc/outpost/ingress
          readOnly: true
        {{- end }}
        {{- if $values.ingress.tls.clientAuthorities.secretName }}
        - name: client-authorities
          mountPath: /etc/outpost/clients
          readOnly: true
        {{- end }}
        {{- if $values.ingress.tls.clientRevocations.secretName }}
        - name: client-revocations
          mountPath: /etc/outpost/client-revocations
          readOnly: true
        {{- end }}
        {{- if $values.callers.policy }}
        - name: callers
          mountPath: /etc/outpost/callers
          readOnly: true
        {{- end }}
        {{- if $tokens }}
        - name: token-keys
          mountPath: /etc/outpost/token-keys
          readOnly: true
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: settings
      configMap:
        name: {{ $full }}-settings
    {{- if and $disk (eq $values.persistence.mode "emptyDir") }}
    - name: data
      emptyDir:
        sizeLimit: {{ $values.persistence.size }}
    {{- end }}
    {{- if $trusted }}
    - name: trust
      {{- if eq $values.trust.mode "csi" }}
      csi:
        {{- include "outpost.csiVolume" (list $root "node" "${POD_NAME}") | nindent 8 }}
      {{- else }}
      secret:
        secretName: {{ $values.trust.secret.name | quote }}
        defaultMode: 0440
      {{- end }}
    - name: gossip
      secret:
        secretName: {{ include "outpost.gossipSecret" $root | quote }}
        defaultMode: 0440
        items:
          - key: {{ $values.trust.gossipKeys.key | quote }}
            path: gossip.keys
    {{- with $values.trust.revocations }}
    {{- if .secretName }}
    - name: revocations
      secret:
        secretName: {{ .secretName | quote }}
        defaultMode: 0440
        items:
          - key: {{ .key | quote }}
            path: revocations.pem
    {{- end }}
    {{- end }}
    {{- end }}
    {{- if $values.operators }}
    - name: operators
      configMap:
        name: {{ $full }}-operators
    {{- end }}
    {{- with $values.ingress.tls.secretName }}
    - name: ingress-tls
      secret:
        secretName: {{ . | quote }}
        defaultMode: 0440
    {{- end }}
    {{- with $values.ingress.tls.clientAuthorities }}
    {{- if .secretName }}
    - name: client-authorities
      secret:
        secretName: {{ .secretName | quote }}
        defaultMode: 0440
        items:
          - key: {{ .key | quote }}
            path: ca.crt
    {{- end }}
    {{- end }}
    {{- with $values.ingress.tls.clientRevocations }}
    {{- if .secretName }}
    - name: client-revocations
      secret:
        secretName: {{ .secretName | quote }}
        defaultMode: 0440
        items:
          - key: {{ .key | quote }}
            path: revocations.pem
    {{- end }}
    {{- end }}
    {{- if $values.callers.policy }}
    - name: callers
      configMap:
        name: {{ $full }}-callers
    {{- end }}
    {{- if $tokens }}
    - name: token-keys
      configMap:
        name: {{ $values.callers.tokens.keys.configMapName | quote }}
        items:
          - key: {{ $values.callers.tokens.keys.key | quote }}
            path: keys.json
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if $values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range $constraint := list (list "topology.kubernetes.io/zone" $values.topologySpread.zone) (list "kubernetes.io/hostname" $values.topologySpread.hostname) }}
    - maxSkew: 1
      topologyKey: {{ index $constraint 0 }}
      whenUnsatisfiable: {{ index $constraint 1 }}
      labelSelector:
        matchLabels:
          {{- include "outpost.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ ternary "stateless" "node" $stateless }}
    {{- end }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
