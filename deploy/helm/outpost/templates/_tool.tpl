{{/* What pods of the operator's tool have in common. */}}
{{- define "outpost.toolPod" -}}
serviceAccountName: {{ include "outpost.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "outpost.toolContainer" -}}
image: {{ include "outpost.image" .Values.tool.image | quote }}
imagePullPolicy: {{ .Values.tool.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- if include "outpost.hasOperator" . }}
env:
  - name: OUTPOST_CONTEXTS
    value: /etc/outpost/contexts/contexts.toml
{{- end }}
{{- end -}}

{{- define "outpost.toolMounts" -}}
- name: contexts
  mountPath: /etc/outpost/contexts
  readOnly: true
- name: operator
  mountPath: /etc/outpost/operator
  readOnly: true
{{- end -}}

{{- define "outpost.toolVolumes" -}}
- name: contexts
  configMap:
    name: {{ include "outpost.fullname" . }}-contexts
- {{ include "outpost.operatorVolume" . | nindent 2 | trim }}
{{- end -}}
