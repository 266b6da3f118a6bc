{{- define "podwire.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "podwire.labels" -}}
app.kubernetes.io/name: podwire
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "podwire.config" -}}
{{ .Files.Get "config.yaml" }}
{{- with .Values.config }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "podwire.metricsAreReachable" -}}
{{- if eq .Values.metrics.address "127.0.0.1" }}
{{- fail "metrics.podMonitor and metrics.service need metrics.address=node: no Prometheus in the cluster reaches 127.0.0.1 of the nodes" }}
{{- end }}
{{- end }}
