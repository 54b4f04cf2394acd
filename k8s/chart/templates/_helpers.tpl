{{- define "mcq.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "mcq.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: service
{{- end }}

{{- define "mcq.labels" -}}
{{ include "mcq.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "mcq.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "mcq.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "mcq.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{- /* Whether the registry is the directory that the chart mounts. */}}
{{- define "mcq.hasLocalRegistry" -}}
{{- if not (or .Values.settings.registry .Values.settingsFromSecret.registry) }}yes{{ end -}}
{{- end }}

{{- /* Whether the registry's index is a database, which has a schema to migrate. */}}
{{- define "mcq.hasRegistryServer" -}}
{{- $url := .Values.settings.registry | default "" }}
{{- if or .Values.settingsFromSecret.registry (and (contains "://" $url) (not (hasPrefix "file://" $url))) }}yes{{ end -}}
{{- end }}

{{- define "mcq.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "mcq.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "mcq.env" -}}
- name: MCQ_HOST
  value: "0.0.0.0"
- name: MCQ_PORT
  value: "8000"
- name: MCQ_CACHE_DIR
  value: /cache
- name: MCQ_DRAIN_TIMEOUT_S
  value: {{ .Values.drain.timeoutSeconds | quote }}
{{- if include "mcq.hasLocalRegistry" . }}
- name: MCQ_REGISTRY
  value: /registry
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
- name: MCQ_{{ $name | upper }}
  {{- /* JSON for numbers: a million would print as 1e+06. */}}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- range $name, $from := .Values.settingsFromSecret }}
- name: MCQ_{{ $name | upper }}
  valueFrom:
    secretKeyRef:
      name: {{ $from.name }}
      key: {{ $from.key }}
{{- end }}
# Only these folders can be written.
- name: HOME
  value: /tmp
- name: XDG_CACHE_HOME
  value: /cache
- name: HF_HOME
  value: /cache/huggingface
- name: TRITON_CACHE_DIR
  value: /cache/triton
- name: TORCHINDUCTOR_CACHE_DIR
  value: /cache/inductor
{{- if not (hasPrefix "hf:" (.Values.settings.base_model | default "")) }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- if and (not .Values.gpu.enabled) (dig "requests" "cpu" "" .Values.resources) }}
# torch would start a thread for each core of the node.
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef:
      containerName: service
      resource: requests.cpu
      divisor: "1"
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* What `python -m model_registry` needs to know, and no other secret. */}}
{{- define "mcq.registryEnv" -}}
- name: HOME
  value: /tmp
{{- if include "mcq.hasLocalRegistry" . }}
- name: MCQ_REGISTRY
  value: /registry
{{- end }}
{{- range $name := list "registry" "registry_store" }}
{{- with index $.Values.settings $name }}
- name: MCQ_{{ $name | upper }}
  value: {{ . | quote }}
{{- end }}
{{- with index $.Values.settingsFromSecret $name }}
- name: MCQ_{{ $name | upper }}
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mcq.volumeMounts" -}}
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
{{- if include "mcq.hasLocalRegistry" . }}
- name: registry
  mountPath: /registry
{{- end }}
{{- if .Values.gpu.enabled }}
- name: shm
  mountPath: /dev/shm
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Combinations that would render and then hang on the cluster. */}}
{{- define "mcq.refuseImpossible" -}}
{{- $shared := list }}
{{- range $name := list "modelCache" "registry" }}
{{- $volume := (index $.Values $name).persistence }}
{{- $isMounted := or (eq $name "modelCache") (include "mcq.hasLocalRegistry" $) }}
{{- if and $isMounted $volume.enabled (not (has "ReadWriteMany" $volume.accessModes)) (not $volume.existingClaim) }}
{{- $shared = append $shared $name }}
{{- end }}
{{- end }}
{{- $pods := ternary (int .Values.autoscaling.maxReplicas) (int .Values.replicas) .Values.autoscaling.enabled }}
{{- if and $shared (gt $pods 1) }}
{{- fail (printf "%s.persistence.accessModes: %d pods cannot share a ReadWriteOnce volume; use ReadWriteMany or persistence.enabled=false" (first $shared) $pods) }}
{{- end }}
{{- if and $shared (ne (toString .Values.rollout.maxSurge) "0") }}
{{- fail (printf "rollout.maxSurge: a new pod cannot have the ReadWriteOnce volume of %s before the old one is gone; set maxSurge=0 and maxUnavailable=1" (first $shared)) }}
{{- end }}
{{- if and (eq (toString .Values.rollout.maxSurge) "0") (eq (toString .Values.rollout.maxUnavailable) "0") }}
{{- fail "rollout: maxSurge and maxUnavailable cannot both be 0" }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas is more than maxReplicas" }}
{{- end }}
{{- range $name, $_ := .Values.settingsFromSecret }}
{{- if hasKey $.Values.settings $name }}
{{- fail (printf "settings.%s and settingsFromSecret.%s exclude each other" $name $name) }}
{{- end }}
{{- end }}
{{- end }}
